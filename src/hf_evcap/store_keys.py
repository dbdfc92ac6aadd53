"""Keys of a retrieval store: a growing buffer that edited copies share, and the exact search over it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


BLOCK_ROWS = 16384
KEY_DTYPES = ("float32", "float16")
MAX_KEY_VALUE = 1e15  # beyond it, or below its inverse, squares leave the range of float32


def arrow_numbers(array: Any) -> np.ndarray:
    """
    Numbers of an Arrow array, NaN for missing ones; not copied where none is missing, and then not writable.
    `array.to_numpy()` gives the same and imports pandas, half a second at every start.
    """
    if array.null_count:
        return array.to_numpy(zero_copy_only=False)
    return np.from_dlpack(array) if len(array) else np.zeros(0, array.type.to_pandas_dtype())


def dictionary_codes(encoded: Any) -> np.ndarray:
    """Place of each value of a dictionary-encoded Arrow array in its dictionary, -1 for a missing one."""
    codes = encoded.indices
    return arrow_numbers(codes.fill_null(-1) if codes.null_count else codes)  # `fill_null`, too, imports pandas


def check_keys(keys: Any, rows: int, dim: int | None, dtype: Any = np.float32, word: str = "memory") -> np.ndarray:
    """
    Returns keys as a contiguous array of shape `(rows, dim)`, or says what is wrong with them.

    Args:
        word (`str`, *optional*, defaults to `"memory"`): What messages call the store.

    Raises:
        ValueError: Wrong shape or dimension, NaN or infinity, a zero vector.
    """
    if hasattr(keys, "detach"):  # a torch tensor, on any device and in any precision
        keys = keys.detach().float().cpu().numpy()
    try:
        with np.errstate(over="ignore"):  # what float16 cannot hold is refused below
            keys = np.ascontiguousarray(keys, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Keys must be numbers, an array or tensor of shape ({rows}, dim): {error}.") from error
    if keys.ndim != 2 or keys.shape[0] != rows:
        raise ValueError(f"Expected keys of shape ({rows}, dim), one a row; got {keys.shape}.")
    if dim is not None and keys.shape[1] != dim:
        raise ValueError(
            f"These keys have dimension {keys.shape[1]}, the {word}'s have {dim}: they come from different encoders. "
            f"Make them with the encoder that made those of the {word}."
        )
    for start in range(0, rows, BLOCK_ROWS):
        block = keys[start : start + BLOCK_ROWS]
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            limit = "" if np.dtype(dtype) == np.float32 else f", or a number too large for {np.dtype(dtype).name}"
            raise ValueError(f"Keys must be finite; row {start + int(bad.argmax())} holds NaN or infinity{limit}.")
        zero = ~block.any(axis=1)
        if zero.any():
            raise ValueError(
                "Keys must not be zero vectors (they have no direction to compare); row "
                f"{start + int(zero.argmax())} is."
            )
        extent = np.abs(block).max(axis=1, initial=0).astype(np.float32)
        extreme = (extent > MAX_KEY_VALUE) | (extent < 1 / MAX_KEY_VALUE)
        if extreme.any():
            raise ValueError(
                f"The largest number of a key must lie between {1 / MAX_KEY_VALUE:g} and {MAX_KEY_VALUE:g}; that of "
                f"row {start + int(extreme.argmax())} is {extent[extreme.argmax()]:g}."
            )
    return keys


def normalize_keys(keys: np.ndarray) -> np.ndarray:
    """Scales keys to unit length, as the cosine search needs them; the result is float32."""
    keys = np.asarray(keys, dtype=np.float32)
    return keys / np.linalg.norm(keys, axis=1, keepdims=True)


class GrowingNumbers:
    """
    Ascending whole numbers that grow at the end. What is written never changes, so [`KeyRows`] that look at its
    beginning share it.

    Args:
        values (`np.ndarray` of shape `(length,)`): The first numbers; copied.
        expected (`int`, *optional*): Room for so many and a quarter more; for the first ones when absent.
    """

    def __init__(self, values: np.ndarray, expected: int | None = None) -> None:
        length = len(values) if expected is None else expected
        self._room = np.empty(length + length // 4 + 64, dtype=np.int64)
        self._room[: len(values)] = values
        self._used = len(values)
        self._lock = threading.Lock()

    def taken(self, places: np.ndarray) -> GrowingNumbers:
        """
        The numbers in these places, ascending.

        Raises:
            IndexError: There is no such place.
        """
        if len(places) and not 0 <= places[0] <= places[-1] < self._used:
            raise IndexError(f"There are {self._used} numbers, no places from {places[0]} to {places[-1]}.")
        found = GrowingNumbers(self._room[:0], len(places))
        np.take(self._room, places, out=found._room[: len(places)], mode="clip")  # straight to where they stay
        found._used = len(places)
        return found

    def first(self, length: int) -> np.ndarray:
        """The first `length` numbers."""
        return self._room[:length]

    def followed_by(self, length: int, values: np.ndarray) -> GrowingNumbers:
        """These numbers where others can be written behind the first `length`; otherwise a copy with room for them."""
        with self._lock:
            stop = length + len(values)
            if self._used == length and stop <= len(self._room):
                self._room[length:stop], self._used = values, stop
                return self
        return GrowingNumbers(np.concatenate([self.first(length), values]))

    def __getstate__(self) -> np.ndarray:
        return self._room[: self._used]

    def __setstate__(self, state: np.ndarray) -> None:
        self.__init__(state)  # type: ignore[misc]


class KeyBuffer:
    """
    Room for keys, filled from the start. Several [`KeyRows`] may look at it, from any thread: what is written is never
    changed, and rows are appended under a lock.

    Args:
        keys (`np.ndarray` of shape `(rows, dim)`): The first keys; copied.
        spare (`int`): Rows that can be added before the buffer has to move. Untouched room takes no memory.
        array (`np.ndarray` of shape `(len(keys) + spare, dim)`, *optional*): Room to use, such as a file's.
    """

    def __init__(self, keys: np.ndarray, spare: int, array: np.ndarray | None = None) -> None:
        self.array = np.empty((len(keys) + spare, keys.shape[1]), dtype=keys.dtype) if array is None else array
        self.scale = np.empty(len(self.array), dtype=np.float32)  # 1 / length of each key
        self.numbers = np.empty(len(self.array), dtype=np.int64)  # of each row, which it keeps as long as it lives
        self.used = 0
        self.lock = threading.Lock()
        self.index: Any = None  # a `RowIndex` over the buffer's rows, once one was needed
        self.index_lock = threading.Lock()
        self.append(keys)

    def append(self, keys: np.ndarray, numbers: np.ndarray | None = None) -> None:
        """Writes keys behind the last ones; there must be room. Without `numbers`, rows are numbered through."""
        for start in range(0, len(keys), BLOCK_ROWS):
            block = keys[start : start + BLOCK_ROWS]
            rows = slice(self.used, self.used + len(block))
            self.array[rows] = block
            self.numbers[rows] = (
                np.arange(rows.start, rows.stop) if numbers is None else numbers[start : start + len(block)]
            )
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # files are checked after reading
                self.scale[rows] = 1 / np.linalg.norm(block.astype(np.float32, copy=False), axis=1)
            self.used = rows.stop

    def __getstate__(self) -> dict[str, Any]:
        with self.lock:
            rows, index = slice(0, self.used), self.index
        if index is not None and index.file is not None:
            index = None  # it lies in a file of this machine
        return {"array": self.array[rows], "numbers": self.numbers[rows], "index": index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["array"]
        self.__init__(array[:0], len(array) + len(array) // 4 + 64)  # type: ignore[misc]
        self.append(array, state["numbers"])
        self.index = state["index"]


class KeyRows:
    """
    An unchangeable sequence of keys; adding and dropping rows gives another one that shares the buffer.

    Args:
        buffer ([`KeyBuffer`]): Where the keys lie.
        length (`int`): Number of rows.
        slots (`np.ndarray` of shape `(length,)`, *optional*):
            Place of each row in the buffer, ascending; `None` when the rows are the buffer's first ones.
    """

    def __init__(self, buffer: KeyBuffer, length: int, slots: np.ndarray | GrowingNumbers | None = None) -> None:
        self.buffer = buffer
        self.length = length
        self._slots = GrowingNumbers(slots) if isinstance(slots, np.ndarray) else slots
        self._array: np.ndarray | None = None

    @classmethod
    def of(cls, keys: np.ndarray) -> KeyRows:
        """Copies checked keys into a buffer of their own."""
        return cls(KeyBuffer(keys, spare=len(keys) // 4 + 64), len(keys))

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    @property
    def slots(self) -> np.ndarray | None:
        """`np.ndarray` of shape `(length,)` or `None`: Place of each row in the buffer."""
        return None if self._slots is None else self._slots.first(self.length)

    @property
    def dim(self) -> int:
        """`int`: Dimension of the keys."""
        return self.buffer.array.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """`np.dtype`: float32 or float16."""
        return self.buffer.array.dtype

    @property
    def array(self) -> np.ndarray:
        """`np.ndarray` of shape `(length, dim)`: All keys in order; a view if nothing was dropped."""
        if self._array is None:
            self._array = self._of_rows(self.buffer.array)
        return self._array

    @property
    def scale(self) -> np.ndarray:
        """`np.ndarray` of shape `(length,)`: What each key is multiplied by to be of unit length."""
        return self._of_rows(self.buffer.scale)

    @property
    def numbers(self) -> np.ndarray:
        """`np.ndarray` of shape `(length,)`: Number of each row, ascending; it keeps it whatever happens to others."""
        return self._of_rows(self.buffer.numbers)

    def _of_rows(self, values: np.ndarray) -> np.ndarray:
        slots = self.slots
        return values[: self.length] if slots is None else values[slots]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Gives the keys of some rows, of shape `(len(rows), dim)`."""
        slots = self.slots
        return self.buffer.array[rows if slots is None else slots[rows]]

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """Goes through the keys in order, at most `rows` at a time."""
        slots = self.slots
        for start in range(0, self.length, rows):
            stop = min(start + rows, self.length)
            yield self.buffer.array[start:stop] if slots is None else self.buffer.array[slots[start:stop]]

    def append(self, keys: np.ndarray, first_number: int) -> KeyRows:
        """
        Gives these rows followed by others; costs their number, but for when the buffer has to move.

        Args:
            keys (`np.ndarray` of shape `(rows, dim)`): Checked keys.
            first_number (`int`): Number of the first of them, above those of all rows here.
        """
        numbers = np.arange(first_number, first_number + len(keys))
        length = self.length + len(keys)
        buffer, slots = self.buffer, self._slots
        with buffer.lock:
            start = buffer.used
            # Another store may have written behind the rows that this one sees.
            if (slots is not None or self.length == start) and start + len(keys) <= len(buffer.array):
                buffer.append(keys, numbers)
                if slots is not None:
                    slots = slots.followed_by(self.length, np.arange(start, start + len(keys)))
                return KeyRows(buffer, length, slots)
        moved = KeyBuffer(keys[:0], spare=length + length // 4 + 64)
        own_numbers, done = self.numbers, 0
        for block in self.blocks():
            moved.append(block, own_numbers[done : done + len(block)])
            done += len(block)
        moved.append(keys, numbers)
        return KeyRows(moved, length)

    def select(self, rows: np.ndarray) -> KeyRows:
        """Gives some of the rows, in ascending order."""
        rows = np.asarray(rows, dtype=np.int64)
        return KeyRows(self.buffer, len(rows), rows if self._slots is None else self._slots.taken(rows))

    def keep(self, rows: np.ndarray) -> KeyRows:
        """Gives some of the rows, in ascending order; keys move where most of the buffer would lie idle otherwise."""
        kept = self.select(rows)
        return kept if len(kept) * 2 >= self.buffer.used else kept.moved(kept.array)

    def astype(self, dtype: Any) -> KeyRows:
        """Gives the same rows in another precision."""
        return self if self.dtype == np.dtype(dtype) else self.moved(check_keys(self.array, self.length, None, dtype))

    def moved(self, keys: np.ndarray) -> KeyRows:
        """Gives rows of the same numbers with these keys, in a buffer of their own."""
        buffer = KeyBuffer(keys[:0], spare=len(keys) + len(keys) // 4 + 64)
        buffer.append(keys, self.numbers)
        return KeyRows(buffer, len(keys))


def exact_search(queries: np.ndarray, keys: KeyRows, k: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Compares queries with every key, block by block.

    Args:
        queries (`np.ndarray` of shape `(num_queries, dim)`): Of unit length.
        keys ([`KeyRows`]): Of any length.
        k (`int`): At most the number of keys.

    Returns:
        Cosine similarities and rows of shape `(num_queries, k)`, best first.
    """
    wanted = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    scale = torch.from_numpy(keys.scale)
    scores = torch.zeros(len(queries), 0)
    rows = torch.zeros(len(queries), 0, dtype=torch.long)
    start = 0
    for block in keys.blocks():
        similarities = wanted @ torch.from_numpy(block).float().T * scale[start : start + len(block)]
        best, places = similarities.topk(min(k, len(block)), dim=1)
        scores, rows = torch.cat([scores, best], dim=1), torch.cat([rows, places + start], dim=1)
        if scores.shape[1] > k:
            scores, kept = scores.topk(k, dim=1)
            rows = rows.gather(1, kept)
        start += len(block)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores.numpy(), rows.gather(1, order).numpy()


__all__ = ["KeyBuffer", "KeyRows", "check_keys", "exact_search", "normalize_keys"]
