"""llama.cpp's importance files: the GGUF form, and the older `.dat`.

GGUF form: metadata general.type "imatrix", imatrix.datasets (strings), imatrix.chunk_count and imatrix.chunk_size
(UINT32); for every matrix NAME two F32 tensors, `NAME.in_sum2` [experts, in], the sums of squares, and `NAME.counts`
[experts, 1], how many tokens they were taken over.

`.dat`, little-endian int32 and float32, without any mark at its start::

    bytes        field
        4        number of entries
                 each entry: length of its name (4), name, calls (4), number of values (4), the values (4 each),
                             which are mean squares times calls; calls counts chunks of text
        4        chunks in all         } absent in the
        4 + n    length and name of the text } oldest files
"""

import struct
from pathlib import Path

import numpy as np

from refquant.errors import BadFile, BadInput
from refquant.formats import gguf
from refquant.formats.files import replacing
from refquant.importance import Entry, ImportanceMatrix

SUMS, COUNTS = ".in_sum2", ".counts"


def read(path) -> ImportanceMatrix:
    """Read an importance file of either form, told apart by the GGUF magic.

    Raises
    ------
    BadFile
        A truncated or damaged file, sums that are negative, infinite or NaN (the tensor and column are named), sums
        without counts. Sizes are held against the file's length before anything is made.

    Against other code: llama.cpp checks for NaN only when it quantizes, and does not name the tensor.
    """
    path = Path(path)
    with open(path, "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    matrix = _read_gguf(path) if is_gguf else _read_dat(path)
    for name, entry in matrix.entries.items():
        try:
            entry.check(name)
        except BadInput as problem:
            raise BadFile(f"{path}: {problem}") from None
    return matrix


def write(path, matrix: ImportanceMatrix) -> None:
    """Write an importance file: the older form where `path` ends in `.dat`, else the GGUF form.

    Names are sorted, as llama.cpp does. In `.dat` an expert without tokens is stored as ones, and an entry without any
    token is left out; the GGUF form keeps its count of zero.
    """
    for name, entry in matrix.entries.items():
        entry.check(name)
    if Path(path).suffix == ".dat":
        with replacing(path) as file:
            file.write(_dat(matrix))
        return
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(matrix.datasets),
        "imatrix.chunk_count": np.uint32(matrix.chunk_count),
        "imatrix.chunk_size": np.uint32(matrix.chunk_size or 1),
    }
    tensors = {}
    for name, entry in sorted(matrix.entries.items()):
        tensors[name + SUMS] = entry.sums.astype(np.float32)
        tensors[name + COUNTS] = entry.counts.astype(np.float32)[:, None]
    gguf.write(path, metadata, tensors)


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = gguf.read(path)
    needed = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    if missing := [key for key in needed if key not in file.metadata]:
        raise BadFile(f"{path}: not an importance file: it lacks {', '.join(missing)}")
    datasets, chunk_count, chunk_size = (file.metadata[key] for key in needed)
    if not isinstance(datasets, list) or not all(isinstance(n, np.uint32) for n in (chunk_count, chunk_size)):
        raise BadFile(f"{path}: expected imatrix.datasets as strings and the chunk numbers as UINT32")
    matrix = ImportanceMatrix({}, datasets, int(chunk_count), int(chunk_size))
    for name, tensor in file.tensors.items():
        if not name.endswith(SUMS):
            continue
        counts = file.tensors.get(name.removesuffix(SUMS) + COUNTS)
        if counts is None or {tensor.type, counts.type} != {"F32"} or not tensor.size or not counts.size:
            raise BadFile(f"{path}: {name} must be F32 and have counts, F32 as well")
        if tensor.size % counts.size or not (np.abs(counts.array()) < 2**31).all() or (counts.array() < 0).any():
            raise BadFile(f"{path}: the counts of {name} must be numbers of tokens, one for each of its matrices")
        entry = Entry(tensor.array().reshape(counts.size, -1), np.rint(counts.array()).astype(np.int64).reshape(-1))
        matrix.entries[name.removesuffix(SUMS)] = entry
    if not matrix.entries:
        raise BadFile(f"{path}: no tensor ends in {SUMS}")
    return matrix


def _read_dat(path: Path) -> ImportanceMatrix:
    data, at = path.read_bytes(), 0

    def take(count: int, what: str) -> bytes:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise BadFile(f"{path}: at byte {at}: {what} needs {count} bytes, {len(data) - at} are left")
        at += count
        return data[at - count : at]

    def integer(what: str, least: int = 1) -> int:
        (value,) = struct.unpack("<i", take(4, what))
        if value < least:
            raise BadFile(f"{path}: at byte {at - 4}: {what} is {value}; expected at least {least}")
        return value

    def text(what: str, least: int) -> str:
        length, start = integer(f"the length of {what}", least), at
        try:
            return take(length, what).decode()
        except UnicodeDecodeError:
            raise BadFile(f"{path}: at byte {start}: {what} is not UTF-8") from None

    matrix = ImportanceMatrix()
    for _ in range(integer("the number of entries")):
        name = text("a tensor name", 1)
        if name in matrix.entries:
            raise BadFile(f"{path}: at byte {at}: {name} appears twice")
        calls, count = integer(f"the calls of {name}"), integer(f"the number of values of {name}")
        values = np.frombuffer(take(4 * count, f"the values of {name}"), "<f4")
        matrix.entries[name] = Entry(values[None], np.array([calls]))
    if at < len(data):
        matrix.chunk_count = integer("the number of chunks", 0)
        if dataset := text("the name of the text", 0):
            matrix.datasets.append(dataset)
    return matrix


def _dat(matrix: ImportanceMatrix) -> bytes:
    parts = []
    for name, entry in sorted(matrix.entries.items()):
        if not entry.counts.any():
            continue
        calls = int(entry.counts.max())
        values = entry.sums.astype("<f4")
        if matrix.chunk_size:  # sums over tokens become means times chunks
            calls = -(-calls // matrix.chunk_size)
            seen = entry.counts[:, None] > 0
            means = np.where(seen, values / np.maximum(entry.counts, 1).astype(np.float32)[:, None], np.float32(1))
            values = means * np.float32(calls)
        label = name.encode()
        parts.append(struct.pack("<i", len(label)) + label + struct.pack("<ii", calls, values.size) + values.tobytes())
    dataset = (matrix.datasets[-1] if matrix.datasets else "").encode()
    return b"".join(
        [struct.pack("<i", len(parts)), *parts, struct.pack("<ii", matrix.chunk_count, len(dataset)), dataset]
    )
