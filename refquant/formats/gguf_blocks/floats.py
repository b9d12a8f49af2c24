"""F32, F16, BF16: no blocks, no codes, one number after the other, little-endian.

::

    F32   [s|eeeeeeee|fffffffffffffffffffffff]    4 bytes    32 bits a weight
    F16   [s|eeeee|ffffffffff]                    2 bytes    16
    BF16  [s|eeeeeeee|fffffff]                    2 bytes    16, the upper half of an F32

GGUF files keep norms and biases as F32, and fall back to F16 for a row whose width no block divides. `refquant.casts`
has the rounding, and what becomes of NaN.

Fields: `bits`, the numbers' own bits, uint32 or uint16 [n, k], so that a NaN passes through unchanged.
"""

import numpy as np

from refquant import ops
from refquant.casts import from_bfloat16, from_float16
from refquant.formats.gguf_blocks.blocks import as_bytes, records, register

BITS = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
RECORDS = {name: np.dtype([("bits", dtype)]) for name, dtype in BITS.items()}
WIDEN = {
    "F32": lambda bits: bits.astype(np.uint32).view(np.float32),
    "F16": lambda bits: from_float16(bits.astype(np.uint16).view(np.float16)),
    "BF16": from_bfloat16,
}
assert [record.itemsize for record in RECORDS.values()] == [4, 2, 2]

for _name, _record in RECORDS.items():
    register(_name, 1, _record)


@ops.part("pack", *BITS)
def pack(fields: dict, name: str) -> dict:
    """Lay out `bits` [n, k]."""
    return as_bytes(RECORDS[name], bits=fields["bits"])


@ops.part("unpack", *BITS)
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return `bits` [n, k]."""
    return {"bits": records(arrays, RECORDS[name])["bits"]}


@ops.part("decode", *BITS)
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]; exact."""
    return WIDEN[name](fields["bits"])
