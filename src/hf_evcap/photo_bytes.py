"""Where the bytes of a photo come from: files, URLs, `data:` URIs, base64, streams. All is read within limits."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes


MAX_BYTES = 256 << 20  # of a photo by URL or from a stream, encoded
URL_SECONDS = 60.0
_BLOCK = 1 << 16
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# How `datasets` names photos of a Hub repo or inside an archive: `zip://photo.jpg::hf://datasets/org/name/photos.zip`.
_ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_LONGEST_PATH = 300  # longer strings are taken for base64, if no file has that name
# How encoded photos begin, by which a short string of base64 is told from the name of a missing file.
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0", b"P6\n",
)  # fmt: skip
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def is_url(source: str) -> bool:
    """Whether a string is the address of something that is to be downloaded."""
    return source[:8].lower().startswith(("http://", "https://"))


def address_of(source: Any) -> str | None:
    """
    The address that a photo of a table or dataset would be fetched from, or `None` for one that is there.

    Args:
        source: As tables and datasets hold photos: a name, or a row `{"bytes": ..., "path": ...}`.
    """
    if isinstance(source, dict):
        source = None if source.get("bytes") else source.get("path")
    if not isinstance(source, str):
        return None
    name = source.strip()
    schemes = [part for part in name.split("::") if _SCHEME.match(part) and not part.startswith(_ARCHIVES)]
    return name if schemes else None


def check_address(source: Any, allow_urls: bool) -> None:
    """
    Refuses a photo of a table or dataset that is to be fetched from somewhere, unless that is allowed.

    Whoever wrote the table decides what is asked of which server, of this machine's own network, too.

    Raises:
        ValueError: It names an address.
    """
    address = None if allow_urls else address_of(source)
    if address is not None:
        raise ValueError(
            f"T{describe(address)[1:]} is an address. Those in tables and datasets are fetched with "
            "`allow_urls=True` (--allow-urls) only."
        )


def describe(source: Any) -> str:
    """How messages call a photo."""
    if not isinstance(source, (str, os.PathLike)):
        return "the photo"
    name = os.fsdecode(source)
    if name[:5].lower() == "data:":
        return "the photo (a data: URI)"
    if len(name) <= _LONGEST_PATH:
        return f"the photo {name!r}"
    return f"the photo {name[:60]!r}... ({len(name):,} characters)"


def open_photo(source: Any, timeout: float | None = None) -> BinaryIO:
    """
    Opens the encoded bytes of a photo.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `bytearray`, `memoryview` or a binary stream):
            Path, URL, `data:` URI, base64 (with or without line ends and padding, either alphabet), or the bytes. A
            stream that can seek is read from its start.
        timeout (`float`, *optional*, defaults to 60): Seconds within which a URL must have answered whole.

    Raises:
        OSError: There is no such file, or it may not be read.
        ValueError: It is no regular file, not valid base64, too large, or cannot be downloaded.
        TypeError: A stream of text.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if hasattr(source, "read"):
        return io.BytesIO(_read_stream(source))
    if isinstance(source, os.PathLike):
        return _open_file(os.fsdecode(source))
    text = source.strip()
    if not text:
        raise ValueError("The photo's name is empty. Give a path, a URL, bytes, a PIL image or pixels.")
    if is_url(text):
        return io.BytesIO(_download(text, URL_SECONDS if timeout is None else timeout))
    if text[:5].lower() == "data:":
        return io.BytesIO(_decode_data_uri(text))
    if text.startswith("hf://") or ("::" in text and text.startswith(_ARCHIVES)):
        return io.BytesIO(_read_inside(text))
    try:
        return _open_file(source)
    except OSError:
        decoded = None if os.path.lexists(source) else decode_base64(text)
        long = len(text) > _LONGEST_PATH
        if decoded and (long or len(decoded) > 12 and decoded.startswith(_SIGNATURES)):
            return io.BytesIO(decoded)
        if long:
            raise ValueError(f"Could not read {describe(source)}: it is neither a path nor base64.") from None
        raise


def _open_file(name: str) -> BinaryIO:
    """Opens a regular file; anything else might never end, or never begin."""
    try:
        _check_regular(name, os.stat(name).st_mode)
        opened = open(name, "rb", opener=_open_at_once)
    except FileNotFoundError as error:
        scheme = _SCHEME.match(name)
        hint = f"; addresses that begin with {scheme[0]} are not fetched" if scheme else ""
        raise FileNotFoundError(error.errno, f"There is no file for {describe(name)}{hint}.") from None
    except (IsADirectoryError, PermissionError):
        raise
    except OSError as error:
        raise OSError(error.errno, f"Could not open {describe(name)}: {error.strerror}.") from error
    try:
        _check_regular(name, os.fstat(opened.fileno()).st_mode)  # another may have taken the file's place
    except (OSError, ValueError):
        opened.close()
        raise
    return opened


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(name: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name!r} is a folder; give a photo.")
    if not stat.S_ISREG(mode):
        kind = next((what for test, what in _KINDS if test(mode)), "no regular file")
        raise ValueError(f"Could not read {describe(name)}: it is {kind}. Give a file, or the bytes.")


def _read_inside(name: str) -> bytes:
    """Content of a file in a Hub repo or an archive."""
    *_, outermost = name.split("::")
    if not outermost.startswith("hf://"):
        _open_file(outermost).close()  # an archive is a regular file
    try:
        import fsspec

        with fsspec.open(name, "rb") as opened:
            return _read_stream(opened)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"There is no file for {describe(name)}.") from error
    except Exception as error:  # archives of every kind, the Hub and the way to it fail in as many ways
        raise ValueError(f"Could not read {describe(name)}: {error}.") from error


def _read_stream(stream: Any) -> bytes:
    if getattr(stream, "seekable", bool)():
        stream.seek(0)
    blocks: list[bytes] = []
    size = 0
    while size <= MAX_BYTES:
        block = stream.read(MAX_BYTES + 1 - size)
        if not block and (block is None or isinstance(block, (bytes, bytearray, memoryview))):
            return b"".join(blocks)
        if not isinstance(block, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"Expected a stream of bytes as a photo, {type(stream).__name__} gives {type(block).__name__}; open "
                'files with mode "rb".'
            )
        blocks.append(bytes(block))
        size += len(blocks[-1])
    raise ValueError(f"Could not read the photo: the stream holds more than {MAX_BYTES >> 20} MiB.")


def decode_base64(text: str) -> bytes | None:
    """Bytes of base64 by RFC 4648 (either alphabet) or MIME (with line ends), padded or not; `None` if it is none."""
    compact = "".join(text.split()).replace("-", "+").replace("_", "/")
    bare = compact.rstrip("=")
    if _BASE64.fullmatch(compact) is None or len(bare) % 4 == 1:
        return None
    return base64.b64decode(bare + "=" * (-len(bare) % 4))


def _decode_data_uri(text: str) -> bytes:
    """Bytes of a `data:` URI by RFC 2397: base64, or percent-encoded."""
    head, comma, content = text.partition(",")
    if not comma:
        raise ValueError("Could not read the photo: a data: URI has a comma in front of its content.")
    raw = unquote_to_bytes(content)
    if head.lower().rstrip().rpartition(";")[2].strip() != "base64":
        return raw
    try:
        decoded = decode_base64(raw.decode("ascii"))
    except UnicodeDecodeError:
        decoded = None
    if decoded is None:
        raise ValueError("Could not read the photo: the content of the data: URI is not valid base64.")
    return decoded


def _download(url: str, timeout: float) -> bytes:
    """Content of a URL, within a time and a size, however slowly the server answers."""
    found: Future[bytes] = Future()

    def fetch() -> None:
        try:
            found.set_result(_fetch(url, timeout))
        except (OSError, ValueError) as error:
            found.set_exception(error)

    Thread(target=fetch, daemon=True).start()
    try:
        return found.result(timeout)
    except TooLate:
        reason = f"it did not arrive within {timeout:g} seconds"
    except (OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
    raise ValueError(f"Could not download {describe(url)}: {reason}.")


def _fetch(url: str, timeout: float) -> bytes:
    try:
        import httpx
    except ImportError:
        from huggingface_hub.utils import httpx
    end = time.monotonic() + timeout
    # What is compressed for the way would have to be unpacked before its size is known.
    headers = {"User-Agent": "hf_evcap", "Accept-Encoding": "identity"}
    content = bytearray()
    try:
        with httpx.stream("GET", url, timeout=timeout, follow_redirects=True, headers=headers) as answer:
            answer.raise_for_status()
            encoding = answer.headers.get("Content-Encoding") or "identity"
            if encoding.lower() != "identity":
                raise ValueError(f"the server compressed it by {encoding!r}, which was not asked for")
            length = answer.headers.get("Content-Length", "")
            announced = int(length) if length.isascii() and length.isdigit() else 0
            for block in [b""] if announced > MAX_BYTES else answer.iter_raw():
                content += block
                if max(announced, len(content)) > MAX_BYTES:
                    raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    break  # nobody waits for it any more
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    return bytes(content)


__all__ = ["address_of", "check_address", "decode_base64", "describe", "is_url", "open_photo"]
