"""One tensor of a GGUF file: what its header says, and its bytes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.ggml_types import GGMLType, ggml_type
from refquant.quantized import Quantized

PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_NAMES = {np.dtype(code): name for name, code in PLAIN.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor: name, row-major shape ([out, in] for a matrix), ggml type, and where its bytes come from.

    `data` of a tensor that was read is uint8 [..., bytes per row], a view of the mapped file. For writing it may also
    be bytes, an array of the plain type, a `Quantized`, an iterator of any of these (pieces in order), or a function
    without arguments that returns one when the tensor's turn comes. `offset` counts from the start of the data section.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: Any = field(repr=False, compare=False)
    offset: int | None = None

    @property
    def kind(self) -> GGMLType:
        """The tensor's ggml type."""
        return ggml_type(self.type)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without padding."""
        return self.kind.nbytes(self.shape)

    @property
    def size(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of its type."""
        return self.kind.bits_per_weight

    def array(self) -> np.ndarray:
        """The numbers of a tensor of a plain type (F32, F16, F64, I8..I64), as a view of the file."""
        if self.type not in PLAIN:
            raise BadInput(f"{self.name} is {self.type}, whose bytes are blocks; use quantized() or floats()")
        return np.ascontiguousarray(self.data).view(PLAIN[self.type]).reshape(self.shape)

    def quantized(self) -> Quantized:
        """Its bytes as a `Quantized` matrix [out, in], not copied; the leading axes of a 3-D tensor become rows."""
        if not self.shape or not self.size:
            raise BadInput(f"{self.name}: a tensor of shape {self.shape} is not a matrix")
        return Quantized.from_bytes(self.data, self.type, (self.size // self.shape[-1], self.shape[-1]))

    def floats(self) -> np.ndarray:
        """The weights, float32 of the tensor's shape, by the reference decoder of its type."""
        if self.type in PLAIN:
            return self.array().astype(np.float32)
        return ops.dequantize(self.quantized()).reshape(self.shape)

    def pieces(self) -> Iterator[np.ndarray | bytes]:
        """Its bytes, piece by piece, each a buffer."""
        data = self.data() if callable(self.data) else self.data
        if isinstance(data, np.ndarray | bytes | bytearray | memoryview | Quantized):
            data = (data,)
        for piece in data:
            yield _buffer(piece, self)


def _buffer(piece, tensor: Tensor):
    if isinstance(piece, Quantized):
        if piece.format != tensor.type:
            raise BadInput(f"{tensor.name}: declared {tensor.type}, but given {piece.format}")
        piece = piece.arrays["blocks"]
    if isinstance(piece, np.ndarray):
        if piece.dtype != np.uint8 and _type_name(piece.dtype) != tensor.type:
            raise BadInput(f"{tensor.name}: {tensor.type} data must be uint8 or of that type, got {piece.dtype}")
        return np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
    return piece


def _type_name(dtype: np.dtype) -> str | None:
    return "BF16" if dtype.name == "bfloat16" else _NAMES.get(dtype)  # ml_dtypes adds bfloat16 to NumPy


def as_tensor(name: str, value) -> Tensor:
    """Describe an array or a `Quantized` as a tensor; a `Tensor` is returned as it is."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Quantized):
        return Tensor(name, value.shape, value.format, value)
    if isinstance(value, np.ndarray):
        if kind := _type_name(value.dtype):
            return Tensor(name, value.shape, kind, value)
        raise BadInput(f"{name}: no ggml type for {value.dtype}; known: {', '.join(map(str, _NAMES))}, bfloat16")
    raise BadInput(f"{name}: expected an array, a Quantized or a Tensor, got {type(value).__name__}")
