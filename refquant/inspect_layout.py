"""The same 4-bit codes in the files of five programs: where each of them puts the code of a weight.

    tensors(q, layout)      the arrays of a matrix as a layout has them
    code_map(layout, shape) which weight every half byte of the layout's code tensor holds
    place(layout, shape, row, column)

All five can hold one grid: 32 weights to a float16 scale, no zero-point (`int4-g32-sym`, which is ggml's Q4_0). Nothing
here knows a layout: matrices whose codes spell the weights' own numbers, digit by digit, are written by the writers of
`refquant.formats`, and the half bytes are read back.

Leaves out: other widths than 4 bits, act-order, the tensors of the scales.
"""

import functools
from dataclasses import dataclass

import numpy as np

from refquant import ops
from refquant.errors import BadInput, UnknownName
from refquant.formats.awq import AWQ
from refquant.formats.compressed_int import PackQuantized
from refquant.formats.gptq import GPTQ
from refquant.quantized import Quantized

GRID = "int4-g32-sym"
_WRITERS = {
    "GPTQ": GPTQ(4, 32, True),
    "GPTQ v2": GPTQ(4, 32, True, version=2),
    "AWQ": AWQ(4, 32, True),
    "compressed-tensors": PackQuantized(4, 32, True),
}
LAYOUTS = (*_WRITERS, "GGUF Q4_0")
CODES = {"GPTQ": "qweight", "GPTQ v2": "qweight", "AWQ": "qweight", "compressed-tensors": "weight_packed"}


def tensors(q: Quantized, layout: str) -> dict[str, np.ndarray]:
    """Arrays of `q`, which must be on the grid `int4-g32-sym`, by their names in this layout.

    Raises
    ------
    UnknownName
        No such layout.
    BadInput
        Another grid, or a shape that the layout cannot hold.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    if q.format != GRID:
        raise BadInput(f"the layouts are compared on the grid {GRID}, got {q.format}")
    if layout in _WRITERS:
        return {name: tensor.array for name, tensor in _WRITERS[layout].write(q).items()}
    fields = ops.unpack(q)
    return ops.pack({"d": fields["scales"].astype(np.float16), "codes": fields["codes"]}, "Q4_0", q.shape).arrays


def _codes_tensor(codes: np.ndarray, layout: str) -> np.ndarray:
    """The tensor that holds these codes [n, k] with scales of 1."""
    n, k = codes.shape
    ones = np.ones((n, k // 32), np.float16)
    q = ops.pack({"codes": codes, "scales": ones, "zeros": np.full(ones.shape, 8, np.uint8)}, GRID, (n, k))
    return tensors(q, layout)[CODES.get(layout, "blocks")]


@functools.cache
def code_map(layout: str, shape: tuple[int, int]) -> np.ndarray:
    """Which weight each half byte holds, int [bytes of the code tensor, 2]: row * k + column, or -1 for no code.

    The second axis is (low half, high half). Raises as `tensors` does.
    """
    n, k = shape

    def halves(codes):
        data = np.ascontiguousarray(_codes_tensor(codes, layout)).view(np.uint8).reshape(-1)
        return np.stack([data & 15, data >> 4], axis=1).astype(np.int64)

    number = np.arange(n * k).reshape(n, k)
    found, digit = np.zeros_like(halves(np.zeros(shape, np.uint8))), 0
    while 16**digit < n * k:
        found += halves((number >> 4 * digit & 15).astype(np.uint8)) << 4 * digit
        digit += 1
    is_code = halves(np.full(shape, 15, np.uint8)) != halves(np.zeros(shape, np.uint8))
    found = np.where(is_code, found, -1)
    found.flags.writeable = False
    return found


@dataclass(frozen=True)
class Place:
    """Where a code lies: the tensor, the element of it (for GGUF the byte of the row), and the element's bits.

    `word` lists the weights of the same four bytes, the highest half byte first for the 32-bit words; in file order,
    high half before low half, for GGUF. -1 is no code.
    """

    layout: str
    tensor: str
    element: tuple[int, int]
    bits: tuple[int, int]
    word: tuple[int, ...]

    def __str__(self):
        where = ", ".join(map(str, self.element))
        return f"{self.layout}: {self.tensor}[{where}] bits {self.bits[0]}..{self.bits[1]}"


@functools.cache
def _width(layout: str, shape: tuple[int, int]) -> int:
    """Elements in a row of the tensor that holds the codes."""
    return _codes_tensor(np.zeros(shape, np.uint8), layout).shape[1]


def place(layout: str, shape: tuple[int, int], row: int, column: int) -> Place:
    """Find the code of a weight. Raises `UnknownName`, `BadInput`."""
    if not (0 <= row < shape[0] and 0 <= column < shape[1]):
        raise BadInput(f"a matrix {list(shape)} has no weight [{row}, {column}]")
    owners = code_map(layout, tuple(shape))
    ((byte, half),) = np.argwhere(owners == row * shape[1] + column)
    if layout == "GGUF Q4_0":
        per_row = len(owners) // shape[0]
        first = byte // per_row * per_row + max(0, min(byte % per_row - 1, per_row - 4))
        word = owners[first : first + 4, ::-1].reshape(-1)
        return Place(
            layout, "blocks", (int(byte) // per_row, int(byte) % per_row), (4 * half + 3, 4 * half), tuple(word)
        )
    element, low = divmod(int(byte), 4)
    width = _width(layout, tuple(shape))
    low = 8 * low + 4 * int(half)
    word = owners[4 * element : 4 * element + 4].reshape(-1)[::-1]
    return Place(layout, CODES[layout], divmod(element, width), (low + 3, low), tuple(word))
