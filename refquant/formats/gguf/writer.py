"""Write a GGUF file, one tensor after the other; the whole model need never be in memory."""

from collections.abc import Iterable, Mapping

import numpy as np

from refquant.errors import BadFile, BadInput
from refquant.formats.files import continuing, replacing
from refquant.formats.gguf.reader import DEFAULT_ALIGNMENT, MAGIC, MAX_AXES, VERSIONS
from refquant.formats.gguf.tensor import Tensor, as_tensor
from refquant.formats.gguf.values import encode, encode_string, type_code, typed

MAX_NAME = 63  # bytes; GGML_MAX_NAME counts the C string's end as well


def write(
    path, metadata: Mapping, tensors: Mapping | Iterable[Tensor], version: int = 3, resume: bool | None = None
) -> None:
    """Write a GGUF file; the layout is in :func:`refquant.formats.gguf.read`.

    Parameters
    ----------
    path : path of the file, which appears only when it is complete
    metadata : mapping of key to value
        In the order they shall have; `values.typed` says which type a plain Python number gets. `general.alignment`
        is obeyed where present.
    tensors : mapping of name to array, `Quantized` or `Tensor`; or an iterable of `Tensor`
        In the order they shall have. A `Tensor` may bring its bytes as a function or an iterator, called when its turn
        comes, so a model can be quantized while it is written.
    version : int
        2 or 3; the bytes differ in that number only.
    resume : bool, optional
        Not None: an interrupted run leaves what it wrote, as `.NAME.partial` in the same folder. True: take that up,
        after its last whole tensor; that one is asked for again, and compared.

    Raises
    ------
    BadFile
        What is to be resumed has another header or another last tensor than this run gives it; it is left alone.
    BadInput
        A value without a GGUF type, a name twice or longer than llama.cpp takes, rows that are not whole blocks, or a
        tensor that brings more or fewer bytes than its shape says. Nothing is left at `path` then.

    Checked: gguf 0.19 reads the same. A file read and written again is the same file, where its padding was zero and
    its tensors lay in the order of their descriptions (llama.cpp demands that order).

    Against other code: gguf-py keeps the tensors it is given until the header is written; this writer asks for each
    when its turn comes, and leaves no partial file behind.
    Leaves out: splitting over several files.
    """
    if version not in VERSIONS:
        raise BadInput(f"GGUF version must be one of {VERSIONS}, got {version}")
    values = {key: typed(value, key) for key, value in metadata.items()}
    alignment = values.get("general.alignment", np.uint32(DEFAULT_ALIGNMENT))
    if not isinstance(alignment, np.uint32) or alignment < 1 or int(alignment) & (int(alignment) - 1):
        raise BadInput(f"general.alignment must be a UINT32 power of two, got {alignment!r}")
    items = [as_tensor(*item) for item in tensors.items()] if isinstance(tensors, Mapping) else list(tensors)
    header = _header(values, items, int(alignment), version)
    with replacing(path) if resume is None else continuing(path, resume) as file:
        done = _take_up(file, header, items, int(alignment)) if resume else 0
        if not done:
            file.write(header)
        for tensor in items[done:]:
            _pad(file, int(alignment))
            _write_tensor(file, tensor)
        _pad(file, int(alignment))


def _take_up(file, header: bytes, items: list[Tensor], alignment: int) -> int:
    """Return how many tensors are whole in a file that was left, and cut it after them."""
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(len(header)) != header[:size]:
        raise BadFile(f"{file.name} was left by a run with other settings; run it with those, or without resume")
    start, end, done = -(-len(header) // alignment) * alignment, 0, 0
    for tensor in items:
        if start + tensor.nbytes > size:
            break
        begin, end, done = start, start + tensor.nbytes, done + 1
        start = -(-end // alignment) * alignment
    if done:
        file.seek(begin)
        for piece in items[done - 1].pieces():
            if file.read(memoryview(piece).nbytes) != bytes(piece):
                raise BadFile(f"{file.name}: {items[done - 1].name} is not what this run makes; run without resume")
    file.truncate(end)
    file.seek(end)
    return done


def _header(values: dict, items: list[Tensor], alignment: int, version: int) -> bytes:
    names = [tensor.name for tensor in items]
    if len(set(names)) != len(names):
        raise BadInput(f"two tensors have the name {next(name for name in names if names.count(name) > 1)!r}")
    parts = [MAGIC, version.to_bytes(4, "little"), len(items).to_bytes(8, "little"), len(values).to_bytes(8, "little")]
    for key, value in values.items():
        if not isinstance(key, str) or not key:
            raise BadInput(f"a metadata key must be a string that is not empty, got {key!r}")
        parts += [encode_string(key, "a metadata key"), type_code(value).to_bytes(4, "little"), encode(value, key)]
    offset = 0
    for tensor in items:
        name = encode_string(tensor.name, "a tensor name")
        if not 0 < len(name) - 8 <= MAX_NAME:
            raise BadInput(f"a tensor name must have 1 to {MAX_NAME} bytes, got {tensor.name!r}")
        if len(tensor.shape) > MAX_AXES:
            raise BadInput(f"{tensor.name}: at most {MAX_AXES} axes, got the shape {tensor.shape}")
        parts += [name, len(tensor.shape).to_bytes(4, "little")]
        parts += [int(size).to_bytes(8, "little") for size in reversed(tensor.shape)]
        parts += [tensor.kind.id.to_bytes(4, "little"), offset.to_bytes(8, "little")]
        offset += -(-tensor.nbytes // alignment) * alignment
    return b"".join(parts)


def _pad(file, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _write_tensor(file, tensor: Tensor) -> None:
    start = file.tell()
    for piece in tensor.pieces():
        if file.tell() - start + memoryview(piece).nbytes > tensor.nbytes:
            raise BadInput(f"{tensor.name}: more bytes than the {tensor.nbytes} of {tensor.type} {list(tensor.shape)}")
        file.write(piece)
    if file.tell() - start != tensor.nbytes:
        raise BadInput(
            f"{tensor.name}: {tensor.type} {list(tensor.shape)} takes {tensor.nbytes} bytes, got {file.tell() - start}"
        )
