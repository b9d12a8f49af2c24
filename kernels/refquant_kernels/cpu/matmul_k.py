"""matmul of a token or a few with Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS: the scales of a block kept out of the inner loop.

Must move, 4096 x 4096 weights of Q4_K: 9,437,184 bytes: at 18 GB/s 0.52 ms. Must do: for sixteen weights a shift,
one or two look-ups, a multiplication by x and one by the scale with its addition: 5 to 7 vector operations, of which
the machine does two at a time: some 50 cycles a block of 256, so the arithmetic, not the memory, is the floor.

The idea: decoding as the reference does it costs a multiplication by the scale and a subtraction of the minimum for
every weight. The minimum of a sub-block meets the sum of its activations only, which is the same for all rows:

    sum (scale * code - min) * x  =  scale * sum code * x  -  min * sum x

so the sixteen minima of a block are one vector, multiplied once with a vector of sixteen sums.
"""

import numpy as np

from refquant_kernels.cpu.compile import inlined, specialized
from refquant_kernels.cpu.decode import (
    IQ4,
    IQ4_WORDS,
    NIBBLES,
    five_bits,
    four_bits,
    half,
    look_up,
    six_bits_minus_32,
    two_bits,
)
from refquant_kernels.cpu.machine import HAS_PICK, bytes_of, pick, prefetch, sum_lanes, word_at
from refquant_kernels.cpu.simd import (
    LANES,
    fma,
    load,
    load_signed,
    shift_right,
    splat,
    splat_int,
    store,
    to_float,
)

# ruff: noqa: D103 (factors_x and codes_x are what the comment below says, for the format x)

AHEAD = 4096  # bytes
f32, u32 = np.float32, np.uint32
UPPER_BITS_4 = NIBBLES % 2 * 4 - 4
PAIRWISE = np.repeat(np.arange(8, dtype=np.int32), 2)  # 0 0 1 1 2 2 ...: sub-blocks of 32 as pairs of sixteen

# factors(blocks, at): scale and minimum, negative, of each sixteen weights of the block at byte `at`: two vectors
# codes(blocks, at, j): weights 32 j .. 32 j + 31 without either: two vectors


@inlined
def factors_six_bits(blocks, at):
    """Q4_K, Q5_K."""
    d, dmin = half(blocks, at), half(blocks, at + 2)
    a, b, c = word_at(blocks, at + 4), word_at(blocks, at + 8), word_at(blocks, at + 12)
    scales, later_scales = a & u32(0x3F3F_3F3F), (c & u32(0x0F0F_0F0F)) | ((a >> u32(2)) & u32(0x3030_3030))
    mins, later_mins = b & u32(0x3F3F_3F3F), ((c >> u32(4)) & u32(0x0F0F_0F0F)) | ((b >> u32(2)) & u32(0x3030_3030))
    both = to_float(bytes_of(scales, later_scales, mins, later_mins))
    pairs = load(PAIRWISE, 0)
    return pick(both, pairs) * d, pick(both, pairs + 8) * (-dmin)


@inlined
def codes_q4_k(blocks, at, j):
    byte, shift = at + 16 + 32 * (j // 2), 4 * (j % 2)
    return four_bits(load(blocks, byte) >> shift), four_bits(load(blocks, byte + 16) >> shift)


@inlined
def codes_q5_k(blocks, at, j):
    byte, shift = at + 48 + 32 * (j // 2), 4 * (j % 2)
    low = five_bits(load(blocks, byte) >> shift, load(blocks, at + 16) >> j)
    return low, five_bits(load(blocks, byte + 16) >> shift, load(blocks, at + 32) >> j)


@inlined
def factors_q2_k(blocks, at):
    both = load(blocks, at)
    return four_bits(both) * half(blocks, at + 80), four_bits(both >> 4) * (-half(blocks, at + 82))


@inlined
def codes_q2_k(blocks, at, j):
    byte, shift = at + 16 + 32 * (j // 4), 2 * (j % 4)
    return two_bits(load(blocks, byte) >> shift), two_bits(load(blocks, byte + 16) >> shift)


@inlined
def factors_q3_k(blocks, at):
    a, b, c = word_at(blocks, at + 96), word_at(blocks, at + 100), word_at(blocks, at + 104)
    low, high = u32(0x0F0F_0F0F), u32(0x3030_3030)
    first, second = (a & low) | ((c << u32(4)) & high), (b & low) | ((c << u32(2)) & high)
    third, fourth = ((a >> u32(4)) & low) | (c & high), ((b >> u32(4)) & low) | ((c >> u32(2)) & high)
    return to_float(bytes_of(first, second, third, fourth) - 32) * half(blocks, at + 108), splat(0.0)


@inlined
def three_bits_minus_4(low, high):
    """F: the lowest two bits of `low`, above them the lowest bit of `high`, minus 4."""
    if HAS_PICK:
        return two_bits(low) + pick(load(UPPER_BITS_4, 0), high)
    return to_float(((low & 3) | ((high & 1) << 2)) - 4)


@inlined
def codes_q3_k(blocks, at, j):
    byte, shift = at + 32 + 32 * (j // 4), 2 * (j % 4)
    low = three_bits_minus_4(load(blocks, byte) >> shift, load(blocks, at) >> j)
    return low, three_bits_minus_4(load(blocks, byte + 16) >> shift, load(blocks, at + 16) >> j)


@inlined
def factors_q6_k(blocks, at):
    return to_float(load_signed(blocks, at + 192)) * half(blocks, at + 208), splat(0.0)


@inlined
def codes_q6_k(blocks, at, j):
    byte, shift = at + 64 * (j // 4) + 32 * (j % 2), 4 * (j // 2 % 2)
    top, upper = at + 128 + 32 * (j // 4), 2 * (j % 4)
    low = six_bits_minus_32(load(blocks, byte) >> shift, load(blocks, top) >> upper)
    return low, six_bits_minus_32(load(blocks, byte + 16) >> shift, load(blocks, top + 16) >> upper)


@inlined
def factors_iq4_xs(blocks, at):
    pairs = load(PAIRWISE, 0)
    low = shift_right(splat_int(np.int32(word_at(blocks, at + 4))), pairs << 2) & 15
    high = (splat_int(np.int32(blocks[at + 2]) | np.int32(blocks[at + 3]) << 8) >> (pairs << 1)) & 3
    return to_float((low | (high << 4)) - 32) * half(blocks, at), splat(0.0)


@inlined
def codes_iq4_xs(blocks, at, j):
    data = load(blocks, at + 8 + 16 * j)
    return look_up(IQ4, IQ4_WORDS, data), look_up(IQ4, IQ4_WORDS, data >> 4)


record, factors, codes, wide = None, None, None, None  # given by `specialized`, for each format


def _rows(x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t of x [m, k], and rows first .. last - 1, of `per_row` blocks each.

    sums [m, k / 16]: of each sixteen activations.
    """
    scale = np.empty(2 * LANES, np.float32)
    scale = scale[-scale.ctypes.data % 64 // 4 :]  # within one cache line: a vector stored across two is slow to read
    for t in range(x.shape[0]):
        tokens, sums_of_token = x[t], sums[t]
        for r in range(first, last):
            low, high, rest = splat(0.0), splat(0.0), splat(0.0)
            for b in range(per_row):
                at = record * (r * per_row + b)
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                f, m = factors(blocks, at)
                store(scale, 0, f)
                rest = fma(m, load(sums_of_token, LANES * b), rest)
                for j in range(8):
                    v, w = codes(blocks, at, j)
                    column = 256 * b + 32 * j
                    if wide:  # one scale for 32 weights
                        both = fma(w, load(tokens, column + LANES), v * load(tokens, column))
                        low = fma(both, splat(scale[2 * j]), low)
                    else:
                        low = fma(v * load(tokens, column), splat(scale[2 * j]), low)
                        high = fma(w * load(tokens, column + LANES), splat(scale[2 * j + 1]), high)
            out[t, r] = sum_lanes(low + high + rest)


_PARTS = {
    "Q2_K": (84, factors_q2_k, codes_q2_k, False),
    "Q3_K": (110, factors_q3_k, codes_q3_k, False),
    "Q4_K": (144, factors_six_bits, codes_q4_k, True),
    "Q5_K": (176, factors_six_bits, codes_q5_k, True),
    "Q6_K": (210, factors_q6_k, codes_q6_k, False),
    "IQ4_XS": (136, factors_iq4_xs, codes_iq4_xs, True),
}
ROWS = {
    name: specialized(_rows, f"matmul_{name.lower()}", record=size, factors=its_factors, codes=its_codes, wide=its_wide)
    for name, (size, its_factors, its_codes, its_wide) in _PARTS.items()
}
