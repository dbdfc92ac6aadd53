"""
Pickles of tensors, looked through before anything is made of them.

A pickle is a program. Here it is run with stand-ins alone: what it asks for by name is an object of our own, made for
it and shared with nothing, which notes sizes instead of taking memory. So a pickle can neither change what is in this
process nor claim more than its file holds.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAGIC = 0x1950A86A20F9469CFC6C  # of the files of torch before 1.6
_LONGEST_NUMBER = 16  # bytes
_MOST_DIMENSIONS = 16
_MOST_COPIES = 8  # of a file's numbers among its tensors: some are tied
# What tensors, lists, dictionaries and strings are written with.
_OPERATIONS = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE "
    "BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_DICT SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE "
    "BINPERSID BUILD".split()
)


class _Named:
    """Stands for something that a pickle asks for by its name. It has no attributes that could be set."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle sets {name!r} of a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle sets attributes of a function")


class OrderedState(dict):
    """Stands for an `OrderedDict`, whose attributes (the versions of modules) are passed over."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Storage:
    """Numbers that a file holds: their type, their key in the file, and how many there are."""

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        """`int`: Bytes that they take."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorView:
    """Where a tensor's numbers lie in a storage, which holds all of them."""

    storage: Any
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _view(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorView:
    counts = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else [None]
    if not all(type(count) is int and count >= 0 for count in counts) or len(size) != len(stride):
        raise pickle.UnpicklingError("the pickle holds a tensor of impossible sizes")
    if len(size) > _MOST_DIMENSIONS:
        raise pickle.UnpicklingError(f"the pickle holds a tensor of {len(size)} dimensions")
    view = TensorView(storage, offset, size, stride)
    if isinstance(storage, Storage):
        check_view(view, storage.numel)
    return view


def check_view(view: TensorView, numel: int) -> None:
    """
    Checks that a storage holds every number of a tensor once: repeated ones ask for more memory than the file has.

    Raises:
        UnpicklingError: It does not.
    """
    wanted = math.prod(view.size)
    last = view.offset + sum((count - 1) * step for count, step in zip(view.size, view.stride, strict=True))
    if wanted and (wanted > numel or last >= numel):
        raise pickle.UnpicklingError(f"the pickle holds a tensor of {wanted:,} numbers over {numel:,}")


def _of_dtype(name: str) -> Storage:
    return Storage(STORAGES[name], "", 0)


class TensorUnpickler(pickle.Unpickler):
    """
    Runs a pickle of tensors with stand-ins: storages become [`Storage`], tensors [`TensorView`].

    Args:
        file (`BinaryIO`): At the beginning of a pickle that [`check_operations`] has passed.
        what (`str`): What such a pickle holds, for messages.
        named (`Mapping[tuple[str, str], Callable]`): What it may ask for by module and name, and what is done instead.
        sizes (`Callable`, *optional*): Gives the bytes that the file holds under a storage's key.
        most (`int`, *optional*): Bytes that all tensors may have together.
    """

    def __init__(
        self,
        file: BinaryIO,
        what: str,
        named: Mapping[tuple[str, str], Callable[..., Any]],
        sizes: Callable[[str], int] | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(file)
        self.what, self.named, self.sizes, self.most = what, named, sizes, most
        self.storages: dict[str, Storage] = {}
        self.total = 0

    def _counted_view(self, *arguments: Any) -> TensorView:
        view = _view(*arguments)
        if self.most is not None and isinstance(view.storage, Storage):
            self.total += math.prod(view.size) * view.storage.dtype.itemsize
            if self.total > self.most:
                raise pickle.UnpicklingError(f"the pickle makes more than {self.most:,} bytes of the same numbers")
        return view

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return _of_dtype(name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        if (module, name) not in self.named:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}; {self.what}")
        call = self.named[module, name]
        return _Named(self._counted_view if call is _view else call)

    def persistent_load(self, pid: Any) -> Storage:
        if self.sizes is None:
            raise pickle.UnpicklingError("the pickle refers to data outside itself")
        kind = pid[1] if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" else None
        if not isinstance(kind, Storage) or not isinstance(pid[2], str) or type(pid[4]) is not int or pid[4] < 0:
            raise pickle.UnpicklingError("the pickle refers to data in a way that torch does not")
        storage = Storage(kind.dtype, pid[2], pid[4])
        held = self.sizes(storage.key)
        if storage.nbytes > held:
            raise pickle.UnpicklingError(
                f"the pickle claims {storage.nbytes:,} bytes of numbers where the file has {held:,}"
            )
        self.storages[storage.key] = storage
        return storage


def check_operations(file: BinaryIO) -> None:
    """
    Goes through a pickle's operations without running them, to its end.

    Raises:
        UnpicklingError: It does what pickles of tensors do not, or a place in its memo or a number is too large.
        ValueError: It is damaged.
    """
    argument: Any
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        name = operation.name
        if name not in _OPERATIONS:
            raise pickle.UnpicklingError(f"the pickle has the operation {name}, which tensors and lists do not need")
        if name in ("BINPUT", "LONG_BINPUT") and argument > count + 256:  # room would be made for all below
            raise pickle.UnpicklingError(f"the pickle remembers something as its number {argument:,}")
        if name == "LONG1" and argument.bit_length() > 8 * _LONGEST_NUMBER:
            raise pickle.UnpicklingError("the pickle holds a huge number")


def load_checked(
    file: BinaryIO,
    what: str,
    named: Mapping[tuple[str, str], Callable[..., Any]],
    sizes: Callable[[str], int] | None = None,
    most: int | None = None,
) -> tuple[Any, dict[str, Storage]]:
    """
    Checks one pickle and runs it with stand-ins; the file is then at its end.

    Returns:
        What it holds, and its storages by their keys.
    """
    start = file.tell()
    check_operations(file)
    end = file.tell()
    file.seek(start)
    unpickler = TensorUnpickler(io.BytesIO(file.read(end - start)), what, named, sizes, most)
    return unpickler.load(), unpickler.storages


# What a checkpoint may ask for besides storages and types.
_CHECKPOINT_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("collections", "OrderedDict"): lambda *entries: OrderedState(),
    ("torch", "Size"): lambda sizes: tuple(sizes),
    ("torch", "device"): lambda *names: names,
}
_CHECKPOINT = "a checkpoint holds tensors, numbers and strings only"


def check_checkpoint(path: Path) -> None:
    """
    Checks a PyTorch file before it is loaded: no names but tensors', no more numbers than the file holds.

    Raises:
        UnpicklingError, ValueError: It is not so, or the file is damaged.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            check_legacy(file, size, _CHECKPOINT, _CHECKPOINT_NAMES)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            packed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
            if packed or sum(entry.file_size for entry in entries.values()) > size:
                raise pickle.UnpicklingError("the file is compressed, which torch does not do")
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise pickle.UnpicklingError("the file is no archive of torch")
            folder = pickles[0].removesuffix("data.pkl")

            def held(key: str) -> int:
                entry = entries.get(f"{folder}data/{key}")
                if entry is None:
                    raise pickle.UnpicklingError(f"the numbers {key!r} are not in the file")
                return entry.file_size

            content = io.BytesIO(archive.read(pickles[0]))
            load_checked(content, _CHECKPOINT, _CHECKPOINT_NAMES, held, _MOST_COPIES * size)
    except zipfile.BadZipFile as error:
        raise ValueError(f"the archive is damaged ({error})") from error


def check_legacy(
    file: BinaryIO, size: int, what: str, named: Mapping[tuple[str, str], Callable[..., Any]]
) -> tuple[Any, list[Storage]]:
    """
    Checks a file of torch before 1.6: pickles of a mark, a version, the system, the content and the storages' order,
    and then the storages.

    Args:
        file (`BinaryIO`): At its beginning; afterwards at the first storage.
        size (`int`): Its bytes.

    Returns:
        The content with stand-ins, and the storages in the order in which they follow.
    """
    magic, _ = load_checked(file, what, {})
    if magic != _MAGIC:
        raise pickle.UnpicklingError("the file is none of torch")
    for _ in range(2):
        load_checked(file, what, {})
    content, storages = load_checked(file, what, named, lambda key: size, _MOST_COPIES * size)
    order, _ = load_checked(file, what, {})
    if not _is_order(order, storages):
        raise pickle.UnpicklingError("the storages that follow are not those of the content")
    if sum(storages[key].nbytes + 8 for key in order) > size - file.tell():
        raise pickle.UnpicklingError("the pickle claims more numbers than the file has")
    return content, [storages[key] for key in order]


def _is_order(order: Any, storages: Iterable[str]) -> bool:
    texts = isinstance(order, list) and all(isinstance(key, str) for key in order)
    return texts and len(set(order)) == len(order) and set(order) == set(storages)


@dataclass
class EmbeddedStorage:
    """The bytes of a storage inside of a pickle, a file of torch of their own, read when they are wanted."""

    content: Any = field(repr=False)

    def read(self) -> torch.Tensor:
        """
        The storage's numbers.

        Raises:
            UnpicklingError, ValueError: It is something else.
        """
        content = self.content.encoded() if isinstance(self.content, _EncodedText) else self.content
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError("a storage of the pickle has no bytes")
        file = io.BytesIO(content)
        storage, following = check_legacy(file, len(content), "a storage holds numbers only", {})
        if not isinstance(storage, Storage) or following != [storage]:
            raise pickle.UnpicklingError("a storage of the pickle holds something else")
        count, start = int.from_bytes(file.read(8), "little"), file.tell()
        if count != storage.numel or start + storage.nbytes != len(content):
            raise pickle.UnpicklingError("a storage of the pickle is damaged")
        if not count:
            return torch.empty(0, dtype=storage.dtype)
        return torch.frombuffer(bytearray(content[start:]), dtype=storage.dtype)


@dataclass(frozen=True)
class _EncodedText:
    """How Python 3 writes bytes in the pickles of Python 2: as text that is to be encoded."""

    text: Any
    encoding: Any

    def encoded(self) -> Any:
        return self.text.encode("latin-1") if isinstance(self.text, str) and self.encoding == "latin1" else None


# What a pickle of tensors that are not saved by torch asks for.
MEMORY_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch.storage", "_load_from_bytes"): EmbeddedStorage,
    ("_codecs", "encode"): _EncodedText,
    ("collections", "OrderedDict"): lambda *entries: OrderedState(),
}


def make_tensor(view: TensorView) -> torch.Tensor:
    """
    Makes the tensor that a pickle describes.

    Raises:
        UnpicklingError, ValueError: Its storage is damaged, or does not hold all of it.
    """
    if not isinstance(view.storage, EmbeddedStorage):
        raise pickle.UnpicklingError("the pickle holds a tensor without numbers")
    numbers = view.storage.read()
    check_view(view, numbers.numel())
    return torch.as_strided(numbers, view.size, view.stride, view.offset).clone()


__all__ = ["MEMORY_NAMES", "TensorView", "check_checkpoint", "load_checked", "make_tensor"]
