"""Photos from untrusted places: the answer is their pixels or a named error, soon and within bounds."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from photo_server import bad_server
from PIL import Image

from hf_evcap import photo_bytes, photo_loading
from hf_evcap.photo_loading import as_list, hash_photo, is_photo, load_photo


SIDE = (24, 16)
# What Pillow warns of, and lives with, is the subject here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def within(seconds: float, call: Any) -> Any:
    """What a call gives or raises; fails when it takes longer."""
    found: Future = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised again where it is looked at
            found.set_exception(error)

    Thread(target=work, daemon=True).start()
    return found.result(seconds)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Its corners differ, so that turning shows."""
    x, y = np.meshgrid(np.linspace(0, 1, SIDE[0]), np.linspace(0, 1, SIDE[1]))
    return Image.fromarray(np.stack([220 * x + 20, 200 * y + 30, 120 * x * y + 60], axis=-1).astype(np.uint8))


@pytest.fixture(scope="module")
def png(picture: Image.Image) -> bytes:
    return encoded(picture)


def same(left: Image.Image, right: Image.Image) -> bool:
    return left.mode == right.mode == "RGB" and left.size == right.size and left.tobytes() == right.tobytes()


# Bytes in every wrapping


class OnlyReads:
    """A stream that cannot seek and gives a few bytes at a time, as sockets do."""

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def read(self, size: int = -1) -> bytes:
        block, self.rest = self.rest[:7], self.rest[7:]
        return block


def streams(content: bytes, folder: Path) -> dict[str, Any]:
    file = folder / "stream.png"
    file.write_bytes(content)
    (folder / "stream.png.gz").write_bytes(gzip.compress(content))
    at_its_end = io.BytesIO()
    at_its_end.write(content)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("in/photo.png", content)
    with tarfile.open(folder / "photos.tar", "w") as archive:
        archive.add(file, "photo.png")
    return {
        "BytesIO": io.BytesIO(content),
        "BytesIO that was just written": at_its_end,
        "buffered file": file.open("rb"),
        "unbuffered file": file.open("rb", buffering=0),
        "gzip file": gzip.open(folder / "stream.png.gz"),
        "member of a zip": zipfile.ZipFile(folder / "photos.zip").open("in/photo.png"),
        "member of a tar": tarfile.open(folder / "photos.tar").extractfile("photo.png"),
        "no seek, short reads": OnlyReads(content),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "part of a memoryview": memoryview(b"xx" + content + b"yy")[2:-2],
        "name inside a zip": f"zip://in/photo.png::{folder / 'photos.zip'}",
        "name inside a tar": f"tar://photo.png::{folder / 'photos.tar'}",
        "row with a name inside a zip": {"bytes": None, "path": f"zip://in/photo.png::{folder / 'photos.zip'}"},
    }


def test_everything_readable_is_one_photo(picture: Image.Image, png: bytes, tmp_path: Path, processor: Any) -> None:
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    for name, source in streams(png, tmp_path).items():
        assert is_photo(source) and len(as_list(source)) == 1, name
        assert same(load_photo(source), picture), name
    for name, source in streams(png, tmp_path).items():
        assert (processor(images=source, return_tensors="pt")["pixel_values"] == pixels).all(), name
        if not isinstance(source, OnlyReads):
            assert (processor(images=[source, picture], return_tensors="pt")["pixel_values"] == pixels).all(), name


def test_the_pipeline_takes_streams_for_photos(tiny_dir: Path, photo_paths: list[str], tmp_path: Path) -> None:
    from transformers import pipeline

    pipe = pipeline("image-to-text", model=str(tiny_dir))
    expected = pipe(photo_paths[0])
    content = Path(photo_paths[0]).read_bytes()
    for name, source in streams(content, tmp_path).items():
        assert pipe(source) == expected, name
    many = [source for source in streams(content, tmp_path).values()]
    assert pipe(many, batch_size=4) == [expected] * len(many)


def test_streams_that_are_no_photo(tmp_path: Path) -> None:
    class Closed:
        def read(self, size: int = -1) -> Any:
            return None

    class Other:
        def read(self, size: int = -1) -> int:
            return 5

    (tmp_path / "text.txt").write_text("hello")
    closed = io.BytesIO(b"x")
    closed.close()
    for stream, kind, reason in (
        (io.StringIO("hello"), TypeError, 'mode "rb"'),
        ((tmp_path / "text.txt").open(), TypeError, 'mode "rb"'),
        (Closed(), ValueError, "not an image"),
        (io.BytesIO(), ValueError, "not an image"),
        (closed, ValueError, "closed"),
        (Other(), TypeError, "gives int"),
    ):
        with pytest.raises(kind, match=reason):
            load_photo(stream)


def test_streams_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def read(self, size: int = -1) -> bytes:
            return bytes(min(size, 1 << 16))

    monkeypatch.setattr(photo_bytes, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="more than 1 MiB"):
        within(10, lambda: load_photo(Endless()))
    with pytest.raises(ValueError, match="more than 1 MiB"):
        load_photo(io.BytesIO(bytes((1 << 20) + 1)))
    with pytest.raises(ValueError, match="not an image"):
        load_photo(io.BytesIO(bytes(1 << 20)))


def data_uris(content: bytes) -> dict[str, str]:
    code = base64.b64encode(content).decode()
    url_safe = base64.urlsafe_b64encode(content).decode()
    return {
        "data:image/png;base64": f"data:image/png;base64,{code}",
        "no type": f"data:;base64,{code}",
        "capitals": f"DATA:image/PNG;BASE64,{code}",
        "parameters": f"data:image/png;charset=utf-8;name=a;base64,{code}",
        "padding left out": f"data:image/png;base64,{code.rstrip('=')}",
        "percent-encoded base64": f"data:image/png;base64,{quote(code, safe='')}",
        "other alphabet": f"data:image/png;base64,{url_safe}",
        "line ends": "data:image/png;base64," + base64.encodebytes(content).decode(),
        "spaces around": f"  data:image/png;base64, {code}\n",
        "percent-encoded bytes": f"data:image/png,{quote(content, safe='')}",
        "bare base64": code,
        "bare, padding left out": code.rstrip("="),
        "bare, other alphabet": url_safe,
        "bare with line ends": base64.encodebytes(content).decode(),
        "bare with CRLF": base64.encodebytes(content).decode().replace("\n", "\r\n"),
    }


@pytest.mark.parametrize("side", [(1, 1), (2, 3), (5, 4), SIDE, (200, 100)])
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "PPM"])
def test_base64_short_and_long(side: tuple[int, int], format: str) -> None:
    image = Image.frombytes("RGB", side, random.Random(0).randbytes(side[0] * side[1] * 3))
    content = encoded(image, format)
    expected = load_photo(content)
    for name, source in data_uris(content).items():
        assert same(load_photo(source), expected), name
        assert same(load_photo({"bytes": None, "path": source}), expected), name


@pytest.mark.parametrize(
    "source",
    [
        "data:", "data:,", "data:image/png;base64", "data:image/png;base64,", "data:image/png;base64,!!!!",
        "data:image/png;base64,QUJDRA==", "data:image/png;base64,A", "data:image/png;base64,%FF%FE",
        "data:image/png,hello", "data:text/html,<b>x</b>", "data:image/svg+xml;utf8,<svg xmlns=''/>",
        "data:image/png;base64,QUJD=RA", "A" * 400, "!" * 400, "QUJD" * 200 + "*", "x" * 100_000,
    ],
)  # fmt: skip
def test_data_that_is_no_photo(source: str) -> None:
    with pytest.raises(ValueError, match=r"the photo|The photo|a data: URI") as caught:
        within(10, lambda: load_photo(source))
    assert len(str(caught.value)) < 400


def test_strings_that_are_not_photos_say_what_is_wrong(tiny_dir: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    for empty in ("", " ", "\n"):
        with pytest.raises(ValueError, match="name is empty"):
            load_photo(empty)
    with pytest.raises(ValueError, match="name is empty"):
        pipeline("image-to-text", model=str(tiny_dir))("")
    for name in ("missing.jpg", "missing", "photos/missing", "abcd", "Qk1", "a b.png", "cat", "x" * 200):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            load_photo(name)
    for name in (
        "ftp://host/x.jpg",
        "s3://bucket/x.jpg",
        "file:///etc/passwd",
        "gopher://x",
        "zip://x::http://h/a.zip",
    ):
        with pytest.raises(FileNotFoundError, match="are not fetched"):
            load_photo(name)
    with pytest.raises(ValueError, match="null byte"):
        load_photo("a\0b.jpg")
    with pytest.raises(IsADirectoryError, match="folder"):
        load_photo(tmp_path)
    (tmp_path / "file.jpg").write_bytes(b"x")
    with pytest.raises(OSError, match="Not a directory"):
        load_photo(tmp_path / "file.jpg" / "inside.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    with pytest.raises(OSError, match="symbolic links"):
        load_photo(tmp_path / "round.jpg")
    for row in ({"bytes": None, "path": None}, {"bytes": b"", "path": ""}, {"bytes": b""}):
        with pytest.raises(ValueError, match="without content"):
            load_photo(row)
    with pytest.raises(TypeError, match="picture, name"):
        load_photo({"picture": 1, "name": 2})
    for other in (5, None, object(), 3.5, ["a.jpg"], set()):
        with pytest.raises(TypeError, match=type(other).__name__):
            load_photo(other)


# Files that are no files


def test_pipes_and_devices_do_not_hang(tmp_path: Path) -> None:
    fifo, link, bound = tmp_path / "fifo.jpg", tmp_path / "link.jpg", tmp_path / "socket.jpg"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(bound))
    with server:
        for path in (fifo, link, bound, "/dev/zero", "/dev/null", "/dev/urandom", "/dev/tty"):
            for source in (str(path), {"bytes": None, "path": str(path)}, f"zip://a.jpg::{path}"):
                with pytest.raises((ValueError, OSError), match=r"it is a (pipe|socket|device)|No such device"):
                    within(5, lambda source=source: load_photo(source))
    writer = os.open(fifo, os.O_RDWR)  # a pipe that a writer holds open never ends
    os.write(writer, b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="it is a pipe"):
        within(5, lambda: load_photo(fifo))
    os.close(writer)


def test_a_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="not an image"):
        within(5, lambda: load_photo(huge))


# Addresses


@pytest.fixture(scope="module")
def server(png: bytes) -> Iterator[str]:
    with bad_server(png) as (address, _):
        yield address


def test_addresses_that_answer_well(server: str, picture: Image.Image) -> None:
    for path in ("photo.png", "moved", "photo"):
        assert same(load_photo(f"{server}/{path}"), picture)
    assert same(load_photo(f" {server.replace('http', 'HTTP')}/photo.png\n"), picture)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "404"), ("failing", "500"), ("empty", "not an image"), ("page", "not an image"),
        ("loop", "redirect"), ("to-a-file", "file|rotocol"), ("announced", "larger than"), ("endless", "larger than"),
        ("cut", "closed|peer|incomplete"), ("compressed", "gzip"), ("silent", "within 2 seconds|timed out"),
        ("dripping", "within 2 seconds"), ("dripping-head", "within 2 seconds"),
    ],
)  # fmt: skip
def test_addresses_that_answer_badly(server: str, path: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_bytes, "MAX_BYTES", 4 << 20)
    with pytest.raises(ValueError, match=f"(?is)/{path}.*({reason})"):
        within(10, lambda: load_photo(f"{server}/{path}", timeout=2))


@pytest.mark.parametrize(
    "url", ["http://", "https://", "http://[", "http://256.256.256.256/x", "http://127.0.0.1:1/x", "http://a b/x.jpg",
            "http://127.0.0.1:99999/x.jpg", "http://\x00/x", "http://xn--/x", "http://" + "a" * 300 + "/x"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="Could not download"):
        within(20, lambda: load_photo(url, timeout=10))


# EXIF

ORIENTATIONS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
                7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", following: int = 0) -> bytes:
    """EXIF by hand: entries of tag, type, count and value, or where to find it."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0")[:4]
    return b"Exif\0\0" + head + body + struct.pack(order + "L", following) + bytes(32)


def short(value: int, order: str = "<") -> bytes:
    return struct.pack(order + "H", value)


RIGHT = (0x0112, 3, 1, short(6))
# Entries of all kinds that are not as the standard wants them.
ODD_ENTRIES = {
    "text for a number": (0x011A, 2, 3, b"72\0"),
    "text for dimensions": (0xA002, 2, 4, b"big\0"),
    "text for the place of EXIF": (0x8769, 2, 3, b"no\0"),
    "place of EXIF outside": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "place of GPS outside": (0x8825, 4, 1, b"\xff\xff\xff\xff"),
    "place of EXIF at itself": (0x8769, 4, 1, struct.pack("<L", 8)),
    "place of interoperability at itself": (0xA005, 4, 1, struct.pack("<L", 8)),
    "maker note of nothing": (0x927C, 7, 0, b""),
    "maker note outside": (0x927C, 7, 1 << 30, b"\xff\xff\xff\x7f"),
    "ratio by nothing": (0x011A, 5, 1, struct.pack("<L", 60)),
    "ratio outside": (0x829A, 5, 1 << 28, b"\xff\xff\xff\xff"),
    "unknown type": (0x0110, 99, 1, b"abcd"),
    "type 0": (0x0110, 0, 1, b"abcd"),
    "count beyond": (0x0110, 2, 0xFFFFFFFF, b"abcd"),
    "no count": (0x0131, 2, 0, b""),
    "floats": (0x0120, 12, 1, b"\xff\xff\xff\xff"),
    "bytes for a short": (0x0103, 1, 4, b"abcd"),
    "signed": (0x0128, 8, 1, short(65535)),
    "user comment": (0x9286, 7, 4, b"\xff\xfe\xfd\xfc"),
    "date": (0x0132, 2, 4, b"\0\0\0\0"),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("odd", ODD_ENTRIES)
def test_odd_exif_beside_a_good_orientation(picture: Image.Image, format: str, odd: str) -> None:
    content = exif(*sorted([ODD_ENTRIES[odd], RIGHT]))
    plain = load_photo(encoded(picture, format))
    assert same(load_photo(encoded(picture, format, exif=content)), plain.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_orientation_of_another_type(picture: Image.Image, format: str, kind: int, count: int) -> None:
    """Sound pixels are not refused for it; they are turned as it says, or stay."""
    plain = load_photo(encoded(picture, format))
    value = {2: b"6\0", 5: struct.pack("<L", 30), 10: struct.pack("<L", 30)}.get(kind, short(6))
    loaded = load_photo(encoded(picture, format, exif=exif((0x0112, kind, count, value))))
    assert same(loaded, plain) or same(loaded, plain.transpose(Image.Transpose.ROTATE_270))
    if kind == 3 and count == 1:
        assert loaded.size == SIDE[::-1]


@pytest.mark.parametrize("value", [0, 1, 9, 255, 65535])
def test_orientation_out_of_range(picture: Image.Image, value: int) -> None:
    assert same(load_photo(encoded(picture, exif=exif((0x0112, 3, 1, short(value))))), picture)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_in_both_orders(picture: Image.Image, order: str, orientation: int) -> None:
    turned = picture.transpose(Image.Transpose[ORIENTATIONS[orientation]])
    content = exif((0x0112, 3, 1, short(orientation, order)), order=order)
    loaded = load_photo(encoded(turned, exif=content))
    assert same(loaded, picture) and same(load_photo(loaded), picture)  # not turned twice
    assert hash_photo(loaded) == hash_photo(picture)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_random_exif(picture: Image.Image, format: str) -> None:
    """300 times: nothing, or everything but a few bytes, is as it should be."""
    plain = load_photo(encoded(picture, format))
    turns = [plain, *(plain.transpose(turn) for turn in Image.Transpose)]
    generator = random.Random(0)
    for number in range(300):
        content = bytearray(exif(RIGHT, *generator.sample(list(ODD_ENTRIES.values()), 4), following=8))
        if number % 3 == 0:
            content = bytearray(b"Exif\0\0" + generator.randbytes(generator.randrange(200)))
        for _ in range(generator.randrange(6)):
            content[generator.randrange(6, len(content)) if len(content) > 6 else 0] = generator.randrange(256)
        try:
            data = encoded(picture, format, exif=bytes(content[: generator.randrange(7, len(content) + 8)]))
        except Exception:  # noqa: BLE001 - Pillow does not write what it cannot parse
            continue
        loaded = within(10, lambda data=data: load_photo(data))
        assert any(same(loaded, turn) for turn in turns), number


# Damage


@pytest.mark.parametrize("format", FORMATS)
def test_damage_of_every_kind_is_named(format: str, picture: Image.Image) -> None:
    """Bytes changed, cut, doubled, left out and put elsewhere, 200 times a format."""
    whole = encoded(picture, format)
    generator = random.Random(format)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            place, length = generator.randrange(len(data)), generator.randrange(1, 40)
            change = generator.randrange(6)
            if change == 0:
                data[place : place + length] = generator.randbytes(length)
            elif change == 1:
                del data[place:]
            elif change == 2:
                del data[place : place + length]
            elif change == 3:
                data[place:place] = data[place : place + length]
            elif change == 4:
                data[place : place + 4] = b"\xff\xff\xff\x7f"
            else:
                data[place : place + length] = bytes(length)
            data = data or bytearray(b"x")
        try:
            assert within(20, lambda data=data: load_photo(bytes(data))).mode == "RGB"
        except ValueError as error:
            assert "the photo" in str(error)


@pytest.mark.parametrize(
    "name", [name.lower() for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "EPS", "PSD", "ICO", "PDF", "SVG")]
)
def test_empty_files_of_each_name(name: str, tmp_path: Path) -> None:
    for content in (b"", b"\0", b"\xff", bytes(100), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF"):
        (tmp_path / f"photo.{name}").write_bytes(content)
        with pytest.raises(ValueError, match=rf"photo\.{name}"):
            load_photo(tmp_path / f"photo.{name}")


def test_no_program_is_run_for_a_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS, which is a program, to Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("ran a program"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("ran a program"))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(content)).format == "EPS"
    with pytest.raises(ValueError, match="not an image"):
        load_photo(content)


# Size

MEASURE = """
import json, resource, sys
import numpy, torch
from PIL import Image
from hf_evcap.photo_loading import load_photo
Image.new("RGB", (64, 64)).save("{name}.small", "PNG")
load_photo("{name}.small")
def high():  # of this program alone, not of the one that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before = high()
photo = load_photo("{name}")
print(json.dumps([photo.size, photo.getpixel((0, 0)), photo.getpixel((photo.width - 1, photo.height - 1)),
                  high() - before]))
"""


def measured(path: Path) -> Any:
    code = MEASURE.replace("{name}", str(path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc for the memory of a process")
@pytest.mark.parametrize(
    ("format", "mode", "megapixels", "limit"),
    [("JPEG", "RGB", 108, 260), ("JPEG", "L", 169, 260), ("PNG", "RGB", 108, 600),
     ("PNG", "1", 169, 260), ("TIFF", "I;16", 100, 500)],
)  # fmt: skip
def test_memory_of_a_large_photo(tmp_path: Path, format: str, mode: str, megapixels: int, limit: int) -> None:
    """A 108-megapixel photo took 1,250 MB and one of 169 megapixels 1,955 MB when every pixel was kept, thrice."""
    width = 12000
    height = megapixels * 1_000_000 // width // 2 * 2
    path = tmp_path / f"large.{format.lower()}"
    dark, light = {"I;16": (1000, 60000), "1": (0, 1), "P": (0, 1)}.get(mode, (10, 240))
    fill = (lambda value: tuple([value] * len(mode))) if mode in ("RGB", "CMYK") else (lambda value: value)
    if mode == "I;16":
        image = Image.fromarray(np.repeat(np.array([[dark], [light]], np.uint16), height // 2, 0).repeat(width, 1))
    else:
        image = Image.new(mode, (width, height), fill(dark))
        image.paste(fill(light), (0, height // 2, width, height))
    if mode == "P":
        image.putpalette([10, 10, 10, 240, 240, 240])
    image.save(path, format, **({"compress_level": 1} if format == "PNG" else {}))
    corners = [load_photo(image.crop((0, top, 2, top + 2))).getpixel((0, 0)) for top in (0, height - 2)]
    assert abs(corners[0][0] - corners[1][0]) > 200
    size, first, last, grown = measured(path)
    assert size[0] * size[1] <= 32_100_000 and abs(size[0] / size[1] - width / height) < 0.01
    assert np.abs(np.subtract([first, last], corners)).max() <= 12
    assert grown < limit, f"{grown:.0f} MB"


def test_reduced_in_strips_is_reduced_at_once(monkeypatch: pytest.MonkeyPatch, picture: Image.Image) -> None:
    """Small stand-ins for large photos of every mode and of awkward sizes: strips leave no seams."""
    monkeypatch.setattr(photo_loading, "MAX_FULL_SIZE_PIXELS", 100)
    monkeypatch.setattr(photo_loading, "_REDUCED_PIXELS", 100)
    generator = np.random.default_rng(0)
    for side in ((24, 16), (23, 17), (1, 401), (401, 1), (39, 40), (19, 6)):
        for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr"):
            noise = Image.fromarray(generator.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))
            if mode == "I;16":
                image = Image.fromarray(generator.integers(0, 65536, side[::-1], dtype=np.uint16))
            elif mode in ("I", "F"):
                image = Image.fromarray(generator.integers(0, 60000, side[::-1]).astype(np.int32)).convert(mode)
            else:
                image = noise.quantize(16) if mode == "P" else noise.convert(mode)
            found = []
            for strip in (1, 50, 1 << 30):
                monkeypatch.setattr(photo_loading, "_STRIP_PIXELS", strip)
                found.append(load_photo(image))
            assert same(found[0], found[1]) and same(found[1], found[2]), (side, mode)
            scale = 2 if side[0] * side[1] <= 400 else 4 if side[0] * side[1] <= 1600 else 8
            assert found[0].size == (-(-side[0] // scale), -(-side[1] // scale))


def test_large_jpegs_are_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_loading, "MAX_FULL_SIZE_PIXELS", 100_000)
    monkeypatch.setattr(photo_loading, "_REDUCED_PIXELS", 50_000)
    x, y = np.meshgrid(np.linspace(0, 1, 400), np.linspace(0, 1, 300))
    image = Image.fromarray(np.stack([220 * x + 20, 200 * y + 30, 120 * x * y + 60], axis=-1).astype(np.uint8))
    for orientation, turn in ORIENTATIONS.items():
        content = encoded(
            image.transpose(Image.Transpose[turn]), "JPEG", quality=95, exif=exif((0x0112, 3, 1, short(orientation)))
        )
        loaded = load_photo(content)
        assert loaded.size == (200, 150)
        assert np.abs(np.asarray(loaded, int) - np.asarray(image.reduce(2), int)).max() < 12


def bomb(kind: str) -> bytes:
    """A few bytes that claim 60,000 x 60,000 pixels."""
    if kind == "PNG":
        head = b"IHDR" + struct.pack(">LLBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        return (b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + head
                + struct.pack(">L", zlib.crc32(head)) + struct.pack(">L", 0) + b"IDAT" + bytes(4))  # fmt: skip
    if kind == "GIF":
        return b"GIF89a" + struct.pack("<HH", 60000, 60000) + b"\x80\0\0" + bytes(6) + b"," + bytes(40)
    if kind == "BMP":
        return (b"BM" + struct.pack("<LHHL", 100, 0, 0, 54) + struct.pack("<LllHHLLllLL", 40, 60000, 60000, 1, 24, 0,
                0, 0, 0, 0, 0) + bytes(64))  # fmt: skip
    if kind == "PPM":
        return b"P6\n60000 60000\n255\n" + bytes(64)
    whole = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    place = whole.index(b"\xff\xc0") + 5
    whole[place : place + 4] = struct.pack(">HH", 60000, 60000)
    return bytes(whole)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "PPM", "JPEG"])
def test_bombs_are_refused_for_their_size(kind: str) -> None:
    with pytest.raises(ValueError, match="too many pixels") as caught:
        load_photo(bomb(kind))
    assert "damaged" not in str(caught.value)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_warning_that_the_user_made_an_error_is_named(png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(ValueError, match="too many pixels"):
        load_photo(png)


# Arrays


@pytest.mark.parametrize(
    "array",
    [np.zeros((5, 5, 5)), np.zeros((4, 4), complex), np.array([["a", "b"]]), np.array([[object()]]), np.zeros(()),
     np.zeros((4, 0)), np.zeros((2, 3, 4, 5)), np.full((2, 2), 300), np.full((2, 2), -1), np.full((2, 2), 2.0),
     np.zeros(5), np.zeros((2, 2), "datetime64[s]")],
)  # fmt: skip
def test_arrays_that_are_no_photo(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels|Pixels"):
        load_photo(array)


def test_what_gives_an_array_is_a_photo(picture: Image.Image) -> None:
    class Tensor:  # as other libraries' tensors do
        shape = (SIDE[1], SIDE[0], 3)

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.asarray(picture)

    assert same(load_photo(Tensor()), picture)
    assert len(as_list(Tensor())) == 1
