"""Pickles written to harm: nothing here is changed, nothing is run, no more is taken than the file holds."""

from __future__ import annotations

import collections
import io
import pickle
import random
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_evcap.checkpoint_reader import read_state_file
from hf_evcap.conversion import load_evcap_memory


def storage_bytes(values: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are what such pickles hold
        torch.save(values.storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


class Tensor:
    """Pickles as a tensor of other sizes than its storage."""

    def __init__(self, size: Any, stride: Any, offset: Any = 0, content: bytes | None = None, numel: int = 4) -> None:
        self.arguments = (offset, size, stride, False, collections.OrderedDict())
        self.content = storage_bytes(torch.ones(numel)) if content is None else content

    def __reduce__(self) -> Any:
        return _rebuild, (_Storage(self.content), *self.arguments)


class _Storage:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.content,)


_rebuild = torch._utils._rebuild_tensor_v2
HUGE = 1 << 40


def tensors() -> dict[str, Any]:
    return {
        "stride 0": Tensor((HUGE, 1), (0, 1)), "stride 0, both": Tensor((1 << 20, 1 << 20), (0, 0)),
        "beyond its storage": Tensor((HUGE, 4), (4, 1)), "offset beyond": Tensor((1, 4), (4, 1), 100),
        "negative size": Tensor((-1, 4), (4, 1)), "negative stride": Tensor((2, 2), (-2, 1)),
        "negative offset": Tensor((1, 4), (4, 1), -4), "sizes that are text": Tensor("ab", "ab"),
        "sizes that are lists": Tensor([1, 4], [4, 1]), "sizes of floats": Tensor((1.0, 4.0), (4, 1)),
        "sizes of truths": Tensor((True, 4), (4, 1)), "fewer strides": Tensor((1, 4), (1,)),
        "a thousand dimensions": Tensor((1,) * 1000, (1,) * 1000), "huge dimensions": Tensor((1 << 200, 0), (1, 1)),
        "overlap": Tensor((4, 4), (0, 1)), "no numbers": Tensor((1, 4), (4, 1), content=b""),
        "numbers that are none": Tensor((1, 4), (4, 1), content=b"\x80\x02]."),
        "numbers cut": Tensor((1, 4), (4, 1), content=storage_bytes(torch.ones(4))[:-1]),
        "numbers and more": Tensor((1, 4), (4, 1), content=storage_bytes(torch.ones(4)) + b"x"),
        "numbers in an archive": Tensor((1, 4), (4, 1), content=zip_of({"x/data.pkl": b"\x80\x02]."})),
    }  # fmt: skip


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
LOAD = b"ctorch.storage\n_load_from_bytes\n"
DICT = b"ccollections\nOrderedDict\n"
# Pickles by hand: what each tries.
PROGRAMS = {
    "BUILD on a function": b"\x80\x02" + REBUILD + b"}" + text("__defaults__") + b"(NNttR.",
    "BUILD of a dictionary": b"\x80\x02" + REBUILD + b"}" + text("__kwdefaults__") + b"}sb.",
    "BUILD of slots": b"\x80\x02" + REBUILD + b"N}" + text("__defaults__") + b"N\x85s\x86b.",
    "BUILD of a class": b"\x80\x02" + DICT + b"}" + text("__doc__") + text("mine") + b"sb.",
    "BUILD of slots of a class": b"\x80\x02" + DICT + b"N}" + text("clear") + b"Ns\x86b.",
    "BUILD of its class": b"\x80\x02" + LOAD + b"N}" + text("__class__") + DICT + b"s\x86b.",
    "BUILD of the stand-in": b"\x80\x02" + LOAD + b"N}" + text("_call") + DICT + b"s\x86b.",
    "item of a function": b"\x80\x02" + REBUILD + text("a") + text("b") + b"s.",
    "append to a function": b"\x80\x02" + REBUILD + text("a") + b"a.",
    "a memo of 2 billion": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a memo of 4 billion": b"\x80\x02]r\xff\xff\xff\xff.",
    "bytes of 2 GB": b"\x80\x03B\xff\xff\xff\x7fabc.",
    "bytes of 8 EB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"abc.",
    "text of 8 EB": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"abc.",
    "a frame of 8 EB": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"].",
    "an array of bytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a number of 200 digits": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    "a number as text": b"I" + b"9" * 100_000 + b"\n.",
    "an instance": b"(ios\nsystem\nX.",
    "an object": b"\x80\x02(" + DICT + b"o.",
    "a new object": b"\x80\x02" + DICT + b")\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97.",
    "doubled": b"\x80\x02]" + b"2" * 1000 + b".",
    "popped": b"\x80\x02]00000.",
    "bytearray of 1 TB": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\1\x85R.",
    "torch.Tensor of 1 TB": b"\x80\x02ctorch\nTensor\n\x8a\x06\0\0\0\0\0\1\x85R.",
    "no end": b"\x80\x02]",
    "nothing": b"",
    "a protocol of the future": b"\x80\xff].",
    "text for a name": b"\x80\x04" + text("os") + b"]\x93.",
    "names with dots": b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93.",
    "a type of torch": b"\x80\x02ctorch\nload\n.",
    "a module of torch": b"\x80\x02ctorch\nos\n.",
    "its own recursion": b"\x80\x02]q\0h\0a.",
    "nested a hundred thousand times": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list of itself, often": b"\x80\x02]q\0(" + b"h\0" * 10_000 + b"e.",
}
DOUBLING = b"\x80\x02(" + text("x") + b"lq\0" + b"".join(
    b"(" + f"h{chr(level)}".encode("latin-1") * 10 + b"lq" + bytes([level + 1]) for level in range(60)
) + b"."  # fmt: skip
PROGRAMS["ten to the sixtieth names"] = DOUBLING


@pytest.fixture(autouse=True)
def process_is_as_before() -> Any:
    """What a pickle may touch is what it was; afterwards tensors load as ever."""
    functions = (torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes, torch._utils._rebuild_parameter)
    before = [(one.__defaults__, one.__kwdefaults__, one.__code__, dict(vars(one))) for one in functions]
    names = {one: dict(vars(one)) for one in (collections.OrderedDict,)}
    yield
    assert [(one.__defaults__, one.__kwdefaults__, one.__code__, dict(vars(one))) for one in functions] == before
    assert {one: dict(vars(one)) for one in names} == names
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["a"].tolist() == [0, 1, 2]


@pytest.fixture
def little_memory() -> Any:
    """1 GB more than now: what asks for a terabyte is refused by the system, and noticed."""
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard) if used else (soft, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("place", ["whole", "in a pair"])
def test_programs(name: str, place: str, tmp_path: Path, little_memory: Any) -> None:
    program = PROGRAMS[name]
    if place == "in a pair":  # its result as the names
        good = pickle.dumps(torch.ones(1, 4), 2)[:-1]
        start = 2 if program[:1] == b"\x80" else 0
        program = good + program[start:].removesuffix(b".") + b"\x86."
    path = tmp_path / "memory.pkl"
    path.write_bytes(program)
    with pytest.raises(ValueError, match=r"memory\.pkl") as caught:
        load_evcap_memory(path)
    assert len(str(caught.value)) < 1000 and "MemoryError" not in repr(caught.value.__cause__)
    (tmp_path / "model.pth").write_bytes(program)
    with pytest.raises(ValueError, match=r"model\.pth"):
        read_state_file(tmp_path / "model.pth")


@pytest.mark.parametrize("name", [*tensors()])
def test_tensors(name: str, tmp_path: Path, little_memory: Any) -> None:
    path = tmp_path / "memory.pkl"
    path.write_bytes(pickle.dumps((tensors()[name], ["a"])))
    with pytest.raises(ValueError, match=r"memory\.pkl") as caught:
        load_evcap_memory(path)
    assert "MemoryError" not in repr(caught.value.__cause__) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_good_memories_are_read(protocol: int, dtype: torch.dtype, tmp_path: Path) -> None:
    keys = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    names = [f"thing {row}" for row in range(7)]
    for number, pair in enumerate(
        ((keys, names), [keys, names], (keys.T.contiguous().T, names), (keys[1:], names[1:]))
    ):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps(pair, protocol))
        memory = load_evcap_memory(path)
        assert memory.names == pair[1]
        np.testing.assert_allclose(memory.keys, pair[0].float().numpy(), rtol=1e-6)


def test_random_changes_of_a_good_memory(tmp_path: Path, reference: Any) -> None:
    """1,000 times some bytes of a good file are others: it is read, or refused by name."""
    whole = reference.memory.read_bytes()
    generator = random.Random(0)
    path = tmp_path / "memory.pkl"
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            place = generator.choice((generator.randrange(200), generator.randrange(38_600, len(data))))
            data[place] = generator.randrange(256)
        path.write_bytes(data)
        try:
            assert len(load_evcap_memory(path)) == 200
        except ValueError as error:
            assert "memory.pkl" in str(error)


# Checkpoints


def archive(program: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    entries = {"a/data.pkl": program, "a/byteorder": b"little", "a/version": b"3\n"}
    return zip_of({**entries, **{f"a/data/{key}": content for key, content in storages.items()}}, compression)


def storage_reference(key: str, numel: int, kind: str = "FloatStorage") -> bytes:
    number = b"\x8a\x08" + struct.pack("<q", numel)
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number + b"tQ"


def tensor_program(key: str, numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    rest = b"\x8a\x08" + struct.pack("<q", offset) + numbers(size) + numbers(stride) + b"\x89" + DICT + b")R"
    return b"\x80\x02}" + text("w") + REBUILD + b"(" + storage_reference(key, numel) + rest + b"tRs."


FOUR = np.ones(4, np.float32).tobytes()
OLD_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
CHECKPOINTS = {
    "stride 0": archive(tensor_program("0", 4, (HUGE, 4), (0, 1)), {"0": FOUR}),
    "a storage of 4 TB": archive(tensor_program("0", HUGE, (HUGE,), (1,)), {"0": FOUR}),
    "a storage that is longer than its bytes": archive(tensor_program("0", 8, (8,), (1,)), {"0": FOUR}),
    "no such storage": archive(tensor_program("1", 4, (4,), (1,)), {"0": FOUR}),
    "a storage outside": archive(tensor_program("../data.pkl", 4, (4,), (1,)), {"0": FOUR}),
    "a negative storage": archive(tensor_program("0", -4, (4,), (1,)), {"0": FOUR}),
    "beyond its storage": archive(tensor_program("0", 4, (5,), (1,)), {"0": FOUR}),
    "behind its storage": archive(tensor_program("0", 4, (4,), (1,), 1), {"0": FOUR}),
    "compressed zeros": archive(tensor_program("0", 1 << 28, (1 << 28,), (1,)), {"0": bytes(1 << 20)},
                                zipfile.ZIP_DEFLATED),
    "two pickles": zip_of({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."}),
    "no pickle": zip_of({"a/data": b""}),
    "an archive of nothing": zip_of({}),
    "an old file that claims 4 TB": OLD_HEAD
    + tensor_program("0", HUGE, (HUGE,), (1,)) + pickle.dumps(["0"], 2) + struct.pack("<q", HUGE) + FOUR,
    "an old file with another order": OLD_HEAD
    + tensor_program("0", 4, (4,), (1,)) + pickle.dumps(["1"], 2) + struct.pack("<q", 4) + FOUR,
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, tmp_path: Path, little_memory: Any) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(CHECKPOINTS[name])
    with pytest.raises(ValueError, match=r"model\.pth is damaged or holds more than weights") as caught:
        read_state_file(path)
    assert "MemoryError" not in repr(caught.value.__cause__)


def test_the_same_numbers_as_a_thousand_weights(tmp_path: Path) -> None:
    """Each is within its storage; together they would take a thousand times the file."""
    storage = torch.ones(100_000)
    torch.save({f"w{number}": storage[:] for number in range(1000)}, tmp_path / "many.pth")
    with pytest.raises(ValueError, match="of the same numbers"):
        read_state_file(tmp_path / "many.pth")
    torch.save({f"w{number}": storage[:] for number in range(4)}, tmp_path / "tied.pth")
    assert len(read_state_file(tmp_path / "tied.pth")) == 4


@pytest.mark.parametrize("legacy", [False, True])
def test_good_checkpoints_are_read(legacy: bool, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Embedding(5, 2).half())
    tied = torch.arange(12.0).reshape(3, 4)
    contents = {
        "state": model.state_dict(),
        "training": {"model": model.state_dict(), "epoch": 3, "loss": 0.5, "names": ["a"], "size": torch.Size([1, 2])},
        "parameters": dict(model.named_parameters()),
        "views": {
            "a": tied,
            "b": tied.T,
            "c": tied[1:],
            "d": tied[:, 0],
            "scalar": torch.tensor(3.0),
            "none": tied[:0],
        },
        "types": {
            str(dtype): torch.ones(3).to(dtype) for dtype in (torch.bfloat16, torch.int64, torch.bool, torch.uint8)
        },
        "optimizer": {"model": model.state_dict(), "optimizer": torch.optim.Adam(model.parameters()).state_dict()},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth", _use_new_zipfile_serialization=not legacy)
        found = read_state_file(tmp_path / f"{name}.pth")
        expected = content.get("model", content)
        assert set(found) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value.detach(), rtol=0, atol=0)


def test_nothing_is_run(tmp_path: Path) -> None:
    """Commands at every place of a pickle, in a process of their own that would tell."""
    marker = tmp_path / "ran"
    command = b"cos\nsystem\n" + text(f"touch {marker}") + b"\x85R"
    programs = [b"\x80\x02" + command + b".", b"\x80\x02}" + text("w") + command + b"s.",
                b"\x80\x02]" + command + b"a.",
                b"\x80\x02" + REBUILD + b"(" + command + b"tR.", b"\x80\x02" + LOAD + command + b"\x85R."]  # fmt: skip
    for number, program in enumerate(programs):
        (tmp_path / f"{number}.pkl").write_bytes(program)
        (tmp_path / f"{number}.pth").write_bytes(archive(program, {}))
    code = """
import sys
from pathlib import Path
from hf_evcap.checkpoint_reader import read_state_file
from hf_evcap.conversion import load_evcap_memory
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (load_evcap_memory, read_state_file):
        try:
            read(path)
        except ValueError:
            print("refused", path.name)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("refused") == 20, done.stderr[-1000:]
    assert not marker.exists()
