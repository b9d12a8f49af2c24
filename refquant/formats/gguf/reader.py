"""Read a GGUF file: the header at once, the tensors when they are looked at."""

import math
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refquant.errors import BadFile
from refquant.formats.gguf.tensor import Tensor
from refquant.formats.gguf.values import ARRAY, NUMBERS, STRING, Nested
from refquant.ggml_types import BY_ID, REMOVED, TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_AXES = 4  # GGML_MAX_DIMS
_MAX_NESTING = 8  # arrays in arrays; none is known to exist
_LEAST_PAIR = 8 + 4 + 1  # bytes of the shortest metadata pair: key length, type, one byte
_LEAST_TENSOR = 8 + 4 + 4 + 8  # bytes of the shortest tensor description: name length, axes, type, offset


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file: its metadata and tensors, both in file order."""

    path: Path
    version: int
    metadata: dict[str, object]
    tensors: dict[str, Tensor] = field(repr=False)
    alignment: int = DEFAULT_ALIGNMENT
    data_offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all the tensors, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class _Cursor:
    """A position in the mapped file. What it hands out lies within the file; nothing is copied before that check."""

    def __init__(self, data: np.ndarray, path: Path):
        self.data, self.view, self.path, self.at = data, memoryview(data), path, 0

    def fail(self, problem: str, at: int | None = None):
        raise BadFile(f"{self.path}: at byte {self.at if at is None else at}: {problem}")

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they start."""
        if count > len(self.data) - self.at:
            self.fail(f"{what} needs {count} bytes, but the file has {len(self.data) - self.at} left")
        start, self.at = self.at, self.at + count
        return start

    def integer(self, code: str, what: str) -> int:
        return struct.unpack_from("<" + code, self.view, self.take(struct.calcsize(code), what))[0]

    def count(self, least: int, what: str) -> int:
        """Read a uint64 count of items that take at least `least` bytes each."""
        start = self.at
        count = self.integer("Q", f"the number of {what}")
        if count * least > len(self.data) - self.at:
            self.fail(f"{count} {what} cannot fit in the {len(self.data) - self.at} bytes that are left", start)
        return count

    def string(self, what: str) -> str:
        length = self.integer("Q", f"the length of {what}")
        start = self.take(length, what)
        try:
            return str(self.view[start : self.at], "utf-8")
        except UnicodeDecodeError as problem:
            self.fail(f"{what} is not UTF-8: {problem.reason}", start + problem.start)

    def value(self, code: int, what: str, depth: int = 0):
        """Read a metadata value whose type number has just been read."""
        if code == STRING:
            return self.string(what)
        if code == ARRAY:
            return self.array(what, depth)
        if code not in NUMBERS:
            self.fail(f"{what} has the unknown value type {code}; known: 0 to 12", self.at - 4)
        start = self.take(NUMBERS[code].itemsize, what)
        return self._numbers(code, start, 1, what)[0] if code != 7 else bool(self._numbers(code, start, 1, what)[0])

    def array(self, what: str, depth: int):
        code = self.integer("I", f"the item type of {what}")
        if depth >= _MAX_NESTING:
            self.fail(f"{what} nests arrays more than {_MAX_NESTING} deep", self.at - 4)
        if code in NUMBERS:
            count = self.count(NUMBERS[code].itemsize, f"items of {what}")
            return self._numbers(code, self.take(count * NUMBERS[code].itemsize, what), count, what)
        if code == STRING:
            return [self.string(f"an item of {what}") for _ in range(self.count(8, f"items of {what}"))]
        if code == ARRAY:
            return Nested(self.array(what, depth + 1) for _ in range(self.count(12, f"items of {what}")))
        self.fail(f"{what} is an array of the unknown value type {code}; known: 0 to 12", self.at - 4)

    def _numbers(self, code: int, start: int, count: int, what: str) -> np.ndarray:
        raw = self.data[start : start + count * NUMBERS[code].itemsize]
        if code == 7 and (bad := np.flatnonzero(raw > 1)).size:
            self.fail(f"{what} is a BOOL and must be 0 or 1, got {raw[bad[0]]}", start + int(bad[0]))
        return raw.copy().view(NUMBERS[code])


def read(path) -> GGUFFile:
    """Read the header of a GGUF file and map its tensors.

    ::

        offset  bytes  field
             0      4  "GGUF"
             4      4  version, uint32: 2 or 3 (the same layout; 3 allows big-endian files, which have it swapped)
             8      8  number of tensors, uint64
            16      8  number of metadata pairs, uint64
            24         the pairs: key (string), value type (uint32), value
                       the tensors: name (string), axes (uint32), sizes (uint64 each, the row's width first),
                       type (uint32), offset in the data section (uint64)
                       zeros up to a multiple of general.alignment (32 where the metadata does not say)
                       the data section: the tensors' bytes, each at a multiple of the alignment

    A string is its length (uint64) and UTF-8; an array its item type (uint32), count (uint64) and items.

    Parameters
    ----------
    path : path of the file

    Returns
    -------
    GGUFFile
        Metadata values keep their types (see `values`); a tensor's `data` is a view of the mapped file, so opening a
        file of any size costs only its header.

    Raises
    ------
    BadFile
        With the byte offset: truncated, not GGUF, version 1, big-endian, unknown value or tensor type, invalid UTF-8,
        duplicate or empty names, a BOOL that is not 0 or 1, an alignment that is not a power of two, a row that is
        not a whole number of blocks, a tensor that is misaligned, outside the file, or overlaps another. Every length
        and count is held against the bytes that are left before anything of that size is made.

    Source: docs/gguf.md of ggml and gguf.cpp of llama.cpp. Checked: gguf 0.19.

    Against other code: llama.cpp also wants tensors back to back in the order of their descriptions and names shorter
    than 64 bytes, and refuses arrays of arrays; this reader takes what the specification allows. gguf-py checks neither
    overlaps nor UTF-8.
    Leaves out: version 1 (32-bit lengths), big-endian files, models split over several files (each is read by itself).
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 24:
            raise BadFile(f"{path}: at byte 0: a GGUF header takes at least 24 bytes, the file has {size}")
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    cursor = _Cursor(data, path)
    version = _version(cursor)
    n_tensors = cursor.count(_LEAST_TENSOR, "tensors")
    n_pairs = cursor.count(_LEAST_PAIR, "metadata pairs")
    metadata = {}
    for _ in range(n_pairs):
        start = cursor.at
        key = cursor.string("a metadata key")
        if not key or key in metadata:
            cursor.fail(f"the metadata key {key!r} appears twice" if key else "a metadata key is empty", start)
        at = cursor.at + 4
        metadata[key] = cursor.value(cursor.integer("I", f"the type of {key}"), key)
        if key == "general.alignment":
            _check_alignment(cursor, metadata[key], at)
    alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    found: dict[str, tuple[Tensor, int]] = {}
    for _ in range(n_tensors):
        start = cursor.at
        tensor = _describe(cursor, alignment)
        if tensor.name in found:
            cursor.fail(f"the tensor {tensor.name!r} appears twice", start)
        found[tensor.name] = tensor, start
    data_offset = -(-cursor.at // alignment) * alignment
    _check_places(cursor, found.values(), data_offset)
    tensors = {name: _with_data(tensor, data, data_offset) for name, (tensor, _) in found.items()}
    return GGUFFile(path, version, metadata, tensors, alignment, data_offset)


def _version(cursor: _Cursor) -> int:
    magic = bytes(cursor.view[: cursor.take(4, "the magic") + 4])
    if magic != MAGIC:
        cursor.fail(f"not a GGUF file: it starts with {magic!r}, not {MAGIC!r}", 0)
    version = cursor.integer("I", "the version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in VERSIONS:
        if swapped in (1, *VERSIONS):
            cursor.fail(f"a big-endian GGUF file (version {swapped}); only little-endian files are read", 4)
        cursor.fail(f"GGUF version {version}; versions 2 and 3 are read", 4)
    return version


def _check_alignment(cursor: _Cursor, value, at: int) -> None:
    if not isinstance(value, np.uint32) or value < 1 or int(value) & (int(value) - 1):
        cursor.fail(f"general.alignment must be a UINT32 power of two, got {value!r}", at)


def _describe(cursor: _Cursor, alignment: int) -> Tensor:
    name = cursor.string("a tensor name")
    if not name:
        cursor.fail("a tensor name is empty", cursor.at - 8)
    axes = cursor.integer("I", f"the number of axes of {name}")
    if axes > MAX_AXES:
        cursor.fail(f"{name} has {axes} axes; at most {MAX_AXES} are allowed", cursor.at - 4)
    sizes_at = cursor.at
    shape = tuple(cursor.integer("Q", f"the shape of {name}") for _ in range(axes))[::-1]
    if math.prod(shape) >= 2**63:
        cursor.fail(f"{name} has {shape} weights, more than 2^63", sizes_at)
    number = cursor.integer("I", f"the type of {name}")
    if number not in BY_ID:
        was = f" ({REMOVED[number]}, which ggml has removed)" if number in REMOVED else ""
        cursor.fail(f"{name} has the unknown tensor type {number}{was}; known: {', '.join(TYPES)}", cursor.at - 4)
    kind = BY_ID[number]
    width = shape[-1] if shape else 1
    if width % kind.weights:
        cursor.fail(f"{name}: a row of {width} weights is not whole blocks of {kind.weights} ({kind.name})", sizes_at)
    offset = cursor.integer("Q", f"the offset of {name}")
    if offset % alignment:
        cursor.fail(f"the offset {offset} of {name} is not a multiple of the alignment {alignment}", cursor.at - 8)
    return Tensor(name, shape, kind.name, None, offset)


def _check_places(cursor: _Cursor, found, data_offset: int) -> None:
    """Every tensor within the file, and no two on the same bytes."""
    room, previous = len(cursor.data) - data_offset, None
    for tensor, at in sorted(found, key=lambda item: (item[0].offset, item[0].nbytes)):
        if tensor.offset + tensor.nbytes > room:
            cursor.fail(
                f"{tensor.name} needs bytes {tensor.offset} to {tensor.offset + tensor.nbytes} of the data section at "
                f"{data_offset}, which has {max(room, 0)}",
                at,
            )
        if previous and tensor.nbytes and tensor.offset < previous.offset + previous.nbytes:
            cursor.fail(f"{tensor.name} overlaps {previous.name}", at)
        previous = tensor if tensor.nbytes else previous


def _with_data(tensor: Tensor, data: np.ndarray, data_offset: int) -> Tensor:
    start = data_offset + tensor.offset
    rows = (*tensor.shape[:-1], tensor.kind.row_bytes(tensor.shape[-1] if tensor.shape else 1))
    view = data[start : start + tensor.nbytes].reshape(rows)
    return Tensor(tensor.name, tensor.shape, tensor.type, view, tensor.offset)
