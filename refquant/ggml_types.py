"""The tensor types of ggml: number in a file, weights per block, bytes per block. Nothing but the table.

A row of a matrix is a whole number of blocks, so its width must be a multiple of the weights per block. The table
names every type that a GGUF file may hold today, also those that refquant cannot decode (the IQ1, IQ2 and IQ3 families
and the activation types Q8_1 and Q8_K), so that any file can be listed, checked and copied byte for byte.

Source: ggml.h (the numbers) and ggml-common.h (the block structs).
"""

import math
from dataclasses import dataclass

from refquant.errors import BadInput, UnknownName


@dataclass(frozen=True)
class GGMLType:
    """One tensor type: its number in a file and the size of its block."""

    name: str
    id: int
    weights: int
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.bytes / self.weights

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights; raise `BadInput` when it is not a whole number of blocks."""
        if width % self.weights:
            raise BadInput(f"{self.name}: a row must be a multiple of {self.weights} weights, got {width}")
        return width // self.weights * self.bytes

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, row-major, the last axis along the blocks; () is one number."""
        width = shape[-1] if shape else 1
        return math.prod(shape[:-1]) * self.row_bytes(width)


#       name       id weights bytes
_TABLE = """
        F32         0     1     4
        F16         1     1     2
        Q4_0        2    32    18
        Q4_1        3    32    20
        Q5_0        6    32    22
        Q5_1        7    32    24
        Q8_0        8    32    34
        Q8_1        9    32    36
        Q2_K       10   256    84
        Q3_K       11   256   110
        Q4_K       12   256   144
        Q5_K       13   256   176
        Q6_K       14   256   210
        Q8_K       15   256   292
        IQ2_XXS    16   256    66
        IQ2_XS     17   256    74
        IQ3_XXS    18   256    98
        IQ1_S      19   256    50
        IQ4_NL     20    32    18
        IQ3_S      21   256   110
        IQ2_S      22   256    82
        IQ4_XS     23   256   136
        I8         24     1     1
        I16        25     1     2
        I32        26     1     4
        I64        27     1     8
        F64        28     1     8
        IQ1_M      29   256    56
        BF16       30     1     2
        TQ1_0      34   256    54
        TQ2_0      35   256    66
        MXFP4      39    32    17
        NVFP4      40    64    36
        Q1_0       41   128    18
        Q2_0       42    64    18
"""
TYPES = {name: GGMLType(name, *map(int, rest)) for name, *rest in (line.split() for line in _TABLE.split("\n")[1:-1])}
BY_ID = {item.id: item for item in TYPES.values()}

# Numbers that were in use once; ggml refuses them today.
REMOVED = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


def ggml_type(name: str) -> GGMLType:
    """Return the type called `name`; raise `UnknownName`, which lists the known ones."""
    try:
        return TYPES[name]
    except (KeyError, TypeError):
        raise UnknownName("ggml type", name, TYPES) from None
