"""Float32 as a plain C loop does it, for many blocks at once.

To choose the same bytes as ggml, every operation must round where ggml's rounds. Three things make NumPy differ unless
one takes care, and this file takes it:

- **Sums** go from left to right, one rounding each. `np.sum` adds in pairs, which is more accurate, and so different.
- **Rounding to an integer** has three rules in ggml: to even (`nearest`), half away from zero (`round_half_away`) and
  cutting off after adding a half (`truncated`).
- **Nothing is fused**: `a * b + c` rounds twice. ggml's released builds are compiled without fused multiply-add.

Layout, everywhere in this package: the first axis counts the weights of a block, all others count blocks. `x[i]` is
weight i of every block, so a loop over a block in C reads the same here, and each statement does all blocks.

Overflow, 0/0 and NaN need no special cases: they come out as they do in C, because the operations are the same ones.
"""

from collections.abc import Iterable

import numpy as np

f32 = np.float32

ZERO = f32(0)
EPS = f32(1e-15)  # below this largest magnitude, a group counts as all zero: ggml's GROUP_MAX_EPS
_MAGIC = f32(3 << 22)  # 12582912: floats between it and its double are whole numbers


def ordered_sum(terms: Iterable[np.ndarray], start=ZERO) -> np.ndarray:
    """Add terms[0], terms[1], ... to `start`, in that order, in float32."""
    total = start
    for term in terms:
        total = total + term
    return total


def nearest(v: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest integer, int32, ties to even. ggml's `nearest_int`.

    The sum with 3 * 2^22 has no room for a fraction, so the addition itself rounds; the integer is then read out of the
    low bits. That fixes the answer beyond |v| = 4194303, and for infinity and NaN, too: some integer, always the same.
    """
    return ((v + _MAGIC).view(np.int32) & 0x007F_FFFF) - 0x0040_0000


def round_half_away(v: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest integer, float32, ties away from zero. C's `roundf`."""
    whole = np.trunc(v)
    return whole + np.copysign(f32(1), v) * (np.abs(v - whole) >= f32(0.5))


def truncated(v: np.ndarray) -> np.ndarray:
    """Cut float32 to int8, as x86 does: the low byte of the 32-bit integer; 0 for NaN and beyond 32 bits."""
    return np.where(np.abs(v) < f32(2**31), v, f32(0)).astype(np.int32).astype(np.int8)


def as_byte(integers: np.ndarray) -> np.ndarray:
    """Keep the low byte, as a C assignment to `uint8_t` does: -1 becomes 255. Still int32."""
    return integers & 255


def lowest(x: np.ndarray) -> np.ndarray:
    """Minimum along the first axis; of -0 and +0 the first one met, as `if (x < low) low = x` keeps it."""
    low = x[0]
    for row in x[1:]:
        low = np.where(row < low, row, low)
    return low


def highest(x: np.ndarray) -> np.ndarray:
    """Maximum along the first axis; see `lowest`."""
    return -lowest(-x)


def largest_magnitude(x: np.ndarray) -> np.ndarray:
    """The entry of largest magnitude along the first axis, with its sign; the first of equals; +0 where all are 0.

    NaN is passed over, as `if (size > largest)` does; a scale is NaN when its sums overflowed.
    """
    size = np.fmax(np.abs(x), f32(0))
    first = size.argmax(axis=0)[None]
    return np.where(size.max(axis=0) > 0, np.take_along_axis(x, first, axis=0)[0], f32(0))


def reciprocal(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where d is 0."""
    return np.where(d != 0, f32(1) / d, f32(0))
