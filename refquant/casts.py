"""float32 to float16 and bfloat16 and back, to the last bit, NaN included, as ggml does it.

Both narrow types round to nearest, ties to even, keep subnormals and overflow to infinity (a float16 at 65520 and
above). They differ in what they give up::

                 sign  exponent  fraction     largest     smallest normal
    float32        1       8        23        3.4e38        1.2e-38
    bfloat16       1       8         7        3.4e38        1.2e-38        the upper half of a float32
    float16        1       5        10        65504         6.1e-5

NaN has no one right answer, so ggml's is taken: to float16, the payload is dropped and the sign is kept (0x7E00,
0xFE00); to bfloat16, the upper half is kept and the quiet bit is set; from float16, the quiet bit is set; from
bfloat16, nothing is changed.

Source: ggml-impl.h, `ggml_compute_fp32_to_fp16` and its three relatives.
Against other code: the F16C instructions of x86 keep the payload of a NaN. The AVX-512 instruction for bfloat16, which
`ggml_fp32_to_bf16_row` uses where it can, flushes subnormals to zero; the quantizer never calls it.
Leaves out: the 8-bit floats.
"""

import numpy as np

SIGN16, QUIET_NAN16 = np.uint16(0x8000), np.uint16(0x7E00)
QUIET32, INFINITY32 = np.uint32(0x0040_0000), np.uint32(0x7F80_0000)


def to_float16(x: np.ndarray) -> np.ndarray:
    """Round float32 [...] to float16 [...]."""
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        bits = x.astype(np.float16).view(np.uint16)
    sign = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16) & SIGN16
    return np.where(np.isnan(x), sign | QUIET_NAN16, bits).view(np.float16)


def from_float16(half: np.ndarray) -> np.ndarray:
    """Widen float16 [...] to float32 [...]; exact."""
    bits = np.asarray(half, np.float16).view(np.uint16).astype(np.uint32)
    nan = (bits & 0x8000) << 16 | INFINITY32 | QUIET32 | (bits & 0x03FF) << 13
    with np.errstate(invalid="ignore"):
        wide = np.asarray(half, np.float16).astype(np.float32)
    return np.where(np.isnan(wide), nan, wide.view(np.uint32)).view(np.float32)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Round float32 [...] to bfloat16; NumPy has no such type, so the bits are returned, uint16 [...]."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    upper = bits >> np.uint32(16)
    # Adding just under half of the last kept place carries into it when the rest is more than half; adding the place's
    # own bit as well breaks a tie toward even.
    rounded = (bits + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)
    quiet = upper | QUIET32 >> np.uint32(16)
    return np.where((bits & np.uint32(0x7FFF_FFFF)) > INFINITY32, quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits, uint16 [...], to float32 [...]; exact."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
