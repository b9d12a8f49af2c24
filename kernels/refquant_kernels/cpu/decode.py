"""What one block decodes to: for every block format, `head` and `weights`, from which all decoding kernels are made.

    head(blocks, at)                  the block's scales, as a tuple of vectors: read once a block
    weights(blocks, at, head, j)      weights 32 j .. 32 j + 31 of the block at byte `at`: two vectors of sixteen

The layouts are told in `formats.gguf_blocks`; the roundings are those of ggml's C code, in its order, so the weights
equal the reference's to the last bit. Neighbouring codes lie in planes, so that sixteen bytes, one shift and one mask
give sixteen codes in order: no shuffling anywhere.
"""

# ruff: noqa: D103 (every head_x and weights_x is what the text above says, for the format x)

import numpy as np

from refquant.codebooks import E2M1_DOUBLED, IQ4_VALUES
from refquant_kernels.cpu.compile import inlined
from refquant_kernels.cpu.lanes import TWO_112, from_float16
from refquant_kernels.cpu.machine import (
    HAS_HALF,
    HAS_PICK,
    HAS_TABLE,
    float_of_bits,
    four_halves,
    half_at,
    in_front,
    load_float16,
    pick,
    splat_half_at,
    word_at,
)
from refquant_kernels.cpu.simd import (
    from_bits,
    lane_numbers,
    load,
    load_halves,
    load_signed,
    select,
    shift_right,
    splat,
    splat_int,
    to_float,
)

f32, u32 = np.float32, np.uint32


@inlined
def half(blocks, at):
    """float32 of the float16 at byte `at`; a NaN is made quiet."""
    if HAS_HALF:
        return half_at(blocks, at)
    bits = u32(blocks[at]) | u32(blocks[at + 1]) << u32(8)
    rest = (bits & u32(0x7FFF)) << u32(13)
    if rest >= u32(0x0F80_0000):
        quiet = u32(0x0040_0000) if rest > u32(0x0F80_0000) else u32(0)
        value = float_of_bits(rest | u32(0x7F80_0000) | quiet)
    else:
        value = float_of_bits(rest) * TWO_112
    return -value if bits & u32(0x8000) else value


@inlined
def splat_half(blocks, at):
    """F: `half` in every lane."""
    return splat_half_at(blocks, at) if HAS_HALF else splat(half(blocks, at))


@inlined
def sixteen_halves(data, at):
    """F: sixteen float16 from byte `at`."""
    return load_float16(data, at) if HAS_HALF else from_float16(load_halves(data, at))


@inlined
def halves(blocks, i, j):
    """F: the float16 at bytes i, i + 2, j, j + 2, as `half`, then twelve zeros: d and minimum of two blocks."""
    if HAS_HALF:
        return four_halves(blocks, i, j)
    return in_front(half(blocks, i), half(blocks, i + 2), half(blocks, j), half(blocks, j + 2))


# With `pick`, four bits become any of sixteen numbers in one instruction, which looks at no other bits of the index: no
# mask, no conversion. Two bits, or one, work likewise: their table repeats itself.
NIBBLES = np.arange(16, dtype=f32)
NIBBLES_8 = NIBBLES - 8
PAIRS = NIBBLES % 4
PAIRS_2 = PAIRS - 2
SECOND_PAIRS = NIBBLES // 4
UPPER_PAIRS = 16 * PAIRS - 32
UPPER_BITS = NIBBLES % 2 * 16


@inlined
def four_bits(v):
    """F: the lowest four bits."""
    return pick(load(NIBBLES, 0), v) if HAS_PICK else to_float(v & 15)


@inlined
def four_bits_minus_8(v):
    """F: the lowest four bits, minus 8."""
    return pick(load(NIBBLES_8, 0), v) if HAS_PICK else to_float((v & 15) - 8)


@inlined
def two_bits(v):
    """F: the lowest two bits."""
    return pick(load(PAIRS, 0), v) if HAS_PICK else to_float(v & 3)


@inlined
def two_bits_minus_2(v):
    """F: the lowest two bits, minus 2."""
    return pick(load(PAIRS_2, 0), v) if HAS_PICK else to_float((v & 3) - 2)


@inlined
def next_two_bits(v):
    """F: the two bits above those."""
    return pick(load(SECOND_PAIRS, 0), v) if HAS_PICK else to_float((v >> 2) & 3)


@inlined
def five_bits(low, high):
    """F: the lowest four bits of `low` and above them the lowest bit of `high`."""
    if HAS_PICK:
        return pick(load(NIBBLES, 0), low) + pick(load(UPPER_BITS, 0), high)
    return to_float((low & 15) | ((high & 1) << 4))


@inlined
def six_bits_minus_32(low, high):
    """F: the lowest four bits of `low`, above them the lowest two of `high`, minus 32."""
    if HAS_PICK:
        return pick(load(NIBBLES, 0), low) + pick(load(UPPER_PAIRS, 0), high)
    return to_float(((low & 15) | ((high & 3) << 4)) - 32)


@inlined
def head_d(blocks, at):
    """Formats that begin with d."""
    return (splat_half(blocks, at),)


# ---- Q4_0 Q4_1 Q5_0 Q5_1 Q8_0


@inlined
def fifth_bits(blocks, at):
    """32 bits in order: two vectors whose lowest bits they are."""
    word = splat_int(np.int32(word_at(blocks, at)))
    return shift_right(word, lane_numbers()), shift_right(word, lane_numbers() + 16)


@inlined
def weights_q4_0(blocks, at, head, j):
    codes, d = load(blocks, at + 2), head[0]
    return d * four_bits_minus_8(codes), d * four_bits_minus_8(codes >> 4)


@inlined
def head_d_m(blocks, at):
    """Formats that begin with d and a minimum."""
    return splat_half(blocks, at), splat_half(blocks, at + 2)


@inlined
def weights_q4_1(blocks, at, head, j):
    codes, d, m = load(blocks, at + 4), head[0], head[1]
    return d * four_bits(codes) + m, d * four_bits(codes >> 4) + m


@inlined
def weights_q5_0(blocks, at, head, j):
    codes, d = load(blocks, at + 6), head[0]
    low, high = fifth_bits(blocks, at + 2)
    return d * (five_bits(codes, low) - 16.0), d * (five_bits(codes >> 4, high) - 16.0)


@inlined
def weights_q5_1(blocks, at, head, j):
    codes, d, m = load(blocks, at + 8), head[0], head[1]
    low, high = fifth_bits(blocks, at + 4)
    return d * five_bits(codes, low) + m, d * five_bits(codes >> 4, high) + m


@inlined
def weights_q8_0(blocks, at, head, j):
    d = head[0]
    return d * to_float(load_signed(blocks, at + 2)), d * to_float(load_signed(blocks, at + 18))


# ---- Q2_K Q3_K Q4_K Q5_K Q6_K


@inlined
def head_q2_k(blocks, at):
    return splat_half(blocks, at + 80), splat_half(blocks, at + 82)


@inlined
def weights_q2_k(blocks, at, head, j):
    byte, shift = at + 16 + 32 * (j // 4), 2 * (j % 4)
    s, t = blocks[at + 2 * j], blocks[at + 2 * j + 1]
    a = head[0] * splat(f32(s & 15)) * two_bits(load(blocks, byte) >> shift) - head[1] * splat(f32(s >> 4))
    b = head[0] * splat(f32(t & 15)) * two_bits(load(blocks, byte + 16) >> shift) - head[1] * splat(f32(t >> 4))
    return a, b


@inlined
def head_q3_k(blocks, at):
    return (splat_half(blocks, at + 108),)


@inlined
def scale_q3_k(blocks, at, j):
    low = blocks[at + 96 + j % 8] >> (4 * (j // 8)) & 15
    return f32(np.int32(low | (blocks[at + 104 + j % 4] >> (2 * (j // 4)) & 3) << 4) - 32)


@inlined
def weights_q3_k(blocks, at, head, j):
    byte, shift = at + 32 + 32 * (j // 4), 2 * (j % 4)
    low = ((load(blocks, byte) >> shift) & 3) | (((load(blocks, at) >> j) & 1) << 2)
    high = ((load(blocks, byte + 16) >> shift) & 3) | (((load(blocks, at + 16) >> j) & 1) << 2)
    a, b = head[0] * splat(scale_q3_k(blocks, at, 2 * j)), head[0] * splat(scale_q3_k(blocks, at, 2 * j + 1))
    return a * to_float(low - 4), b * to_float(high - 4)


@inlined
def six_bits(blocks, at, j):
    """Scale and min j of the twelve bytes at `at`."""
    if j < 4:
        return blocks[at + j] & 63, blocks[at + 4 + j] & 63
    shared = blocks[at + 4 + j]
    return (shared & 15) | (blocks[at + j - 4] >> 6) << 4, (shared >> 4) | (blocks[at + j] >> 6) << 4


@inlined
def weights_q4_k(blocks, at, head, j):
    byte, shift = at + 16 + 32 * (j // 2), 4 * (j % 2)
    s, m = six_bits(blocks, at + 4, j)
    scale, minimum = head[0] * splat(f32(s)), head[1] * splat(f32(m))
    low, high = four_bits(load(blocks, byte) >> shift), four_bits(load(blocks, byte + 16) >> shift)
    return scale * low - minimum, scale * high - minimum


@inlined
def weights_q5_k(blocks, at, head, j):
    byte, shift = at + 48 + 32 * (j // 2), 4 * (j % 2)
    s, m = six_bits(blocks, at + 4, j)
    scale, minimum = head[0] * splat(f32(s)), head[1] * splat(f32(m))
    low = five_bits(load(blocks, byte) >> shift, load(blocks, at + 16) >> j)
    high = five_bits(load(blocks, byte + 16) >> shift, load(blocks, at + 32) >> j)
    return scale * low - minimum, scale * high - minimum


@inlined
def head_q6_k(blocks, at):
    return (splat_half(blocks, at + 208),)


@inlined
def weights_q6_k(blocks, at, head, j):
    byte, shift = at + 64 * (j // 4) + 32 * (j % 2), 4 * (j // 2 % 2)
    top, upper = at + 128 + 32 * (j // 4), 2 * (j % 4)
    low = six_bits_minus_32(load(blocks, byte) >> shift, load(blocks, top) >> upper)
    high = six_bits_minus_32(load(blocks, byte + 16) >> shift, load(blocks, top + 16) >> upper)
    a = head[0] * splat(f32(np.int8(blocks[at + 192 + 2 * j])))
    b = head[0] * splat(f32(np.int8(blocks[at + 193 + 2 * j])))
    return a * low, b * high


# ---- IQ4_NL IQ4_XS MXFP4: codes are places in a table
#
# Without `pick`: a table of sixteen bytes is four 32-bit words, each of four entries; two selections find the word, a
# shift the entry.

IQ4_WORDS = tuple(np.int32(word) for word in IQ4_VALUES.view("<i4"))
E2M1_WORDS = tuple(np.int32(word) for word in E2M1_DOUBLED.view("<i4"))
IQ4, E2M1 = IQ4_VALUES.astype(f32), E2M1_DOUBLED.astype(f32)


@inlined
def look_up(table, words, codes):
    """F: entry `codes` (its lowest four bits) of a table of sixteen signed bytes, given in two ways."""
    if HAS_TABLE:
        return pick(load(table, 0), codes)
    lower = select((codes & 4) == 0, splat_int(words[0]), splat_int(words[1]))
    upper = select((codes & 4) == 0, splat_int(words[2]), splat_int(words[3]))
    word = select((codes & 8) == 0, lower, upper)
    return to_float(shift_right(word, (codes & 3) << 3) << 24 >> 24)


@inlined
def weights_iq4_nl(blocks, at, head, j):
    codes, d = load(blocks, at + 2), head[0]
    return d * look_up(IQ4, IQ4_WORDS, codes), d * look_up(IQ4, IQ4_WORDS, codes >> 4)


@inlined
def weights_iq4_xs(blocks, at, head, j):
    codes = load(blocks, at + 8 + 16 * j)
    low = blocks[at + 4 + j // 2] >> (4 * (j % 2)) & 15
    high = blocks[at + 2 + j // 4] >> (2 * (j % 4)) & 3
    scale = head[0] * splat(f32(np.int32(low | high << 4) - 32))
    return scale * look_up(IQ4, IQ4_WORDS, codes), scale * look_up(IQ4, IQ4_WORDS, codes >> 4)


@inlined
def head_mxfp4(blocks, at):
    e = u32(blocks[at])
    return (splat(float_of_bits(u32(0x0020_0000) << e if e < 2 else (e - u32(1)) << u32(23))),)


@inlined
def weights_mxfp4(blocks, at, head, j):
    codes, d = load(blocks, at + 1), head[0]
    return d * look_up(E2M1, E2M1_WORDS, codes), d * look_up(E2M1, E2M1_WORDS, codes >> 4)


# ---- TQ1_0 TQ2_0


@inlined
def head_tq1_0(blocks, at):
    return (splat_half(blocks, at + 52),)


@inlined
def trits(data, t):
    """F: trit t of sixteen bytes, minus 1."""
    power = 3**t
    return to_float(((((data * power) & 255) * 3) >> 8) - 1)


@inlined
def weights_tq1_0(blocks, at, head, j):
    d = head[0]
    if j < 5:
        return d * trits(load(blocks, at), j), d * trits(load(blocks, at + 16), j)
    data = load(blocks, at + 32)
    if j < 7:
        return d * trits(data, 2 * (j - 5)), d * trits(data, 2 * (j - 5) + 1)
    lane = lane_numbers()
    last = (
        shift_right(splat_int(np.int32(word_at(blocks, at + 48))), (lane & 3) << 3) & 255
    )  # of lane i, trit i // 4 of byte i % 4
    first, later = select(lane < 4, splat_int(1), splat_int(3)), select(lane < 12, splat_int(9), splat_int(27))
    power = select(lane < 8, first, later)
    return d * trits(data, 4), d * to_float(((((last * power) & 255) * 3) >> 8) - 1)


@inlined
def head_tq2_0(blocks, at):
    return (splat_half(blocks, at + 64),)


@inlined
def weights_tq2_0(blocks, at, head, j):
    byte, shift, d = at + 32 * (j // 4), 2 * (j % 4), head[0]
    return d * (two_bits(load(blocks, byte) >> shift) - 1.0), d * (two_bits(load(blocks, byte + 16) >> shift) - 1.0)


# ---- F16 BF16 F32: blocks of 32 for the sake of one loop


@inlined
def no_head(blocks, at):
    return (f32(0),)


@inlined
def weights_f16(blocks, at, head, j):
    return from_float16(load_halves(blocks, at)), from_float16(load_halves(blocks, at + 32))


@inlined
def weights_bf16(blocks, at, head, j):
    return from_bits(load_halves(blocks, at) << 16), from_bits(load_halves(blocks, at + 32) << 16)


# name -> (weights a block, bytes a block, head, weights)
DECODERS = {
    "Q4_0": (32, 18, head_d, weights_q4_0),
    "Q4_1": (32, 20, head_d_m, weights_q4_1),
    "Q5_0": (32, 22, head_d, weights_q5_0),
    "Q5_1": (32, 24, head_d_m, weights_q5_1),
    "Q8_0": (32, 34, head_d, weights_q8_0),
    "Q2_K": (256, 84, head_q2_k, weights_q2_k),
    "Q3_K": (256, 110, head_q3_k, weights_q3_k),
    "Q4_K": (256, 144, head_d_m, weights_q4_k),
    "Q5_K": (256, 176, head_d_m, weights_q5_k),
    "Q6_K": (256, 210, head_q6_k, weights_q6_k),
    "IQ4_NL": (32, 18, head_d, weights_iq4_nl),
    "IQ4_XS": (256, 136, head_d, weights_iq4_xs),
    "MXFP4": (32, 17, head_mxfp4, weights_mxfp4),
    "TQ1_0": (256, 54, head_tq1_0, weights_tq1_0),
    "TQ2_0": (256, 66, head_tq2_0, weights_tq2_0),
    "F16": (32, 64, no_head, weights_f16),
    "BF16": (32, 64, no_head, weights_bf16),
}
