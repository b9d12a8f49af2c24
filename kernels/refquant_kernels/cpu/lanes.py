"""The arithmetic that the encoders share, sixteen blocks at a time: what `methods.kquants.arithmetic` is for NumPy.

A buffer holds a run of vectors, flat: vector i of a run that begins at `at` is `load(buffer, at + 16 * i)`. The lanes
of all of them belong to the same sixteen blocks.
"""

import numpy as np

from refquant_kernels.cpu.compile import helper, inlined
from refquant_kernels.cpu.simd import (
    LANES,
    bits,
    from_bits,
    load,
    select,
    shift_right,
    splat,
    splat_int,
    store,
    to_float,
    to_int,
    turn,
)

MAGIC = np.float32(3 << 22)  # between it and its double floats are whole numbers: adding it rounds
EPS = np.float32(1e-15)  # ggml's GROUP_MAX_EPS
TWO_31 = np.float32(2.0**31)
TWO_112 = np.float32(2.0**112)
HALF = np.float32(0.5)


@inlined
def nearest(v):
    """F -> I, ties to even; beyond 2^22, infinity and NaN as `methods.kquants.arithmetic.nearest`."""
    return (bits(v + MAGIC) & 0x007F_FFFF) - 0x0040_0000


@inlined
def clip(i, low, high):
    """I limited to low..high."""
    i = select(i < low, splat_int(low), i)
    return select(i > high, splat_int(high), i)


@inlined
def nearest_within(v, top):
    """F -> F, first limited to 0..top, then rounded, ties to even; NaN gives 0."""
    v = select(v > 0.0, v, splat(0.0))
    v = select(v < top, v, splat(top))
    return (v + MAGIC) - MAGIC


@inlined
def truncated(v):
    """F -> I cut toward zero, the low byte with its sign; 0 beyond 32 bits and for NaN."""
    whole = to_int(select(abs(v) < TWO_31, v, splat(0.0)))
    return (whole << 24) >> 24


@inlined
def round_half_away(v):
    """F -> F; C's roundf, for |v| below 2^31, otherwise v."""
    small = abs(v) < TWO_31
    whole = to_float(to_int(select(small, v, splat(0.0))))
    one = from_bits((bits(v) & -0x8000_0000) | bits(splat(1.0)))  # with the sign of v
    return select(small, select(abs(v - whole) >= HALF, whole + one, whole), v)


@inlined
def reciprocal(d):
    """1 / d, and 0 where d is 0."""
    return select(d != 0.0, splat(1.0) / d, splat(0.0))


@inlined
def to_float16(v):
    """F -> I, the bits of float16, ties to even; NaN loses its payload, as in ggml."""
    size = bits(v) & 0x7FFF_FFFF
    odd = shift_right(size, splat_int(13)) & 1
    normal = shift_right(size + (odd + (0x0FFF - 0x3800_0000)), splat_int(13))
    small = bits(from_bits(size) + HALF) - bits(splat(HALF))  # below 2^-14: the last place of 1/2 + v is 2^-24
    half = select(size < 0x3880_0000, small, normal)
    half = select(size >= 0x477F_F000, splat_int(0x7C00), half)  # 65520 and above: infinity
    half = select(size > 0x7F80_0000, splat_int(0x7E00), half)
    return half | (shift_right(bits(v), splat_int(16)) & 0x8000)


@inlined
def from_float16(half):
    """I, the bits of float16, -> F; exact, a NaN made quiet."""
    rest = (half & 0x7FFF) << 13
    finite = bits(from_bits(rest) * TWO_112)  # the exponent counts from 2^-15 there, from 2^-127 here
    special = rest | 0x7F80_0000
    special = select(special > 0x7F80_0000, special | 0x0040_0000, special)
    return from_bits(select(rest >= 0x0F80_0000, special, finite) | ((half & 0x8000) << 16))


@helper
def sum_of_squares(x, at, n):
    """x[0]^2 + x[1]^2 + ..., from left to right."""
    total = splat(0.0)
    for i in range(at, at + LANES * n, LANES):
        v = load(x, i)
        total = total + v * v
    return total


@helper
def largest_magnitude(x, at, n):
    """The entry of largest magnitude, with its sign; the first of equals; +0 where all are 0; NaN is passed over."""
    extreme, largest = splat(0.0), splat(0.0)
    for i in range(at, at + LANES * n, LANES):
        v = load(x, i)
        larger = abs(v) > largest
        extreme, largest = select(larger, v, extreme), select(larger, abs(v), largest)
    return extreme


@helper
def block_starts(first, blocks, size, period, starts):
    """Where the sixteen blocks from `first` begin: size * (block % period). Past the end, the last block again."""
    for lane in range(LANES):
        starts[lane] = size * (min(first + lane, blocks - 1) % period)


@helper
def turn_in(source, starts, size, buffer, at):
    """Blocks of `size` numbers, one after the other, into a run of vectors, a lane for each."""
    for i in range(0, size, LANES):
        turn(source, starts, i, buffer, at + LANES * i, LANES)


@helper
def turn_out(image, size, steps, out, at):
    """Sixteen records of `size` bytes (16 or more) from vectors of bytes to out[at], one after the other.

    `steps` is 0, 16, 32, ...
    """
    for i in range(0, size, LANES):
        i = min(i, size - LANES)
        turn(image, steps, LANES * i, out, at + i, size)


@inlined
def store_float16(image, byte, half):
    """Put the bits of a float16 into bytes `byte` and `byte` + 1 of the records."""
    store(image, LANES * byte, half)
    store(image, LANES * (byte + 1), half >> 8)
