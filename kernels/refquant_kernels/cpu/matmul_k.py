"""Products of a token or a few with Q2_K Q3_K Q4_K Q5_K Q6_K, activations of one byte or three (`products`).

Must move, 4096 x 4096 weights of Q4_K: 9,437,184 bytes: at 18 GB/s 0.52 ms. Must do, a block of 256: 6 operations for
the codes; with one byte 8 for 256 products and their scales (VNNI), with three 32; 4 to bring the scales to their
lanes, some 20 for the scales of the block, which are the same for four weights as for four hundred.

Two ideas:

- **One byte: a block is one sum of integers.** Four products fit 16 bits, so one instruction multiplies by the
  sub-block's scale and adds; only then comes float32, once a block. With three bytes each vector is converted, but of
  Q2_K, whose scale * code is a byte.
- **The minima, and the 4 or 32 by which codes are stored too large, meet sums of activations only**, which are the same
  for all rows: sum (scale * code - min) * x = scale * sum code * x - min * sum x. They are one vector a block.
"""

import numpy as np

from refquant_kernels.cpu.activations import add_in_lanes, in_order
from refquant_kernels.cpu.compile import aligned_empty, inlined, specialized
from refquant_kernels.cpu.decode import splat_half
from refquant_kernels.cpu.machine import (
    arrange,
    dot_bytes,
    dot_scaled,
    load_words,
    load_words_twice,
    look_up_bytes,
    prefetch,
    scaled,
    sum_lanes,
    times,
)
from refquant_kernels.cpu.products import AHEAD, NIBBLES, TWO_BITS, Product, dot_three, in_halves
from refquant_kernels.cpu.simd import LANES, fma, load, load_signed, splat, splat_int, to_float

# ruff: noqa: D103 (codes_x and scales_x are what the comment below says, for the format x)

# codes(blocks, at): the 256 codes of the block at byte `at`, bytes of four vectors
# scales(blocks, at): two vectors of whole numbers: the scales, and what the sums of activations are multiplied by


@inlined
def codes_q2_k(blocks, at):
    data = load_words(blocks, at + 16)
    return data & TWO_BITS, (data >> 2) & TWO_BITS, (data >> 4) & TWO_BITS, (data >> 6) & TWO_BITS


@inlined
def scales_q2_k(blocks, at):
    both = load(blocks, at)
    return both & 15, both >> 4


@inlined
def codes_q3_k(blocks, at):
    data, top = load_words(blocks, at + 32), in_halves(load_words_twice(blocks, at), 0, 4)
    a = (data & TWO_BITS) | ((top << 2) & 0x0404_0404)
    b = ((data >> 2) & TWO_BITS) | ((top << 1) & 0x0404_0404)
    c = ((data >> 4) & TWO_BITS) | (top & 0x0404_0404)
    return a, b, c, ((data >> 6) & TWO_BITS) | ((top >> 1) & 0x0404_0404)


low_q3_k, high_q3_k = arrange([2 + j % 8 for j in range(16)]), arrange([10 + j % 4 for j in range(16)])
LOW_SHIFTS, HIGH_SHIFTS = (np.repeat(np.array(a, np.int32), 16 // len(a)) for a in ((0, 4), (0, 2, 4, 6)))


@inlined
def scales_q3_k(blocks, at):
    data = load(blocks, at + 94)  # the scales are in bytes 96 to 107
    low, high = low_q3_k(data) >> load(LOW_SHIFTS, 0), high_q3_k(data) >> load(HIGH_SHIFTS, 0)
    scale = ((low & 15) | ((high & 3) << 4)) - 32
    return scale, scale


@inlined
def codes_q4_k(blocks, at):
    a, b = load_words(blocks, at + 16), load_words(blocks, at + 80)
    return a & NIBBLES, (a >> 4) & NIBBLES, b & NIBBLES, (b >> 4) & NIBBLES


low_six, high_six = arrange([*range(4, 16), *range(12, 16)]), arrange([0] * 8 + [*range(4, 12)])
SIX_SHIFTS = np.repeat(np.array([0, 0, 0, 4], np.int32), 4)
SIX_MASKS, SIX_HIGH = (np.repeat(np.array(a, np.int32), 8) for a in ((63, 15), (0, 48)))


@inlined
def scales_six_bits(blocks, at):
    """Q4_K, Q5_K: scales 0..3, minima 0..3, scales 4..7, minima 4..7; all of them twice."""
    data = load(blocks, at)
    low, high = low_six(data) >> load(SIX_SHIFTS, 0), high_six(data) >> 2
    both = (low & load(SIX_MASKS, 0)) | (high & load(SIX_HIGH, 0))
    return both, both


@inlined
def codes_q5_k(blocks, at):
    a, b = load_words(blocks, at + 48), load_words(blocks, at + 112)
    top = in_halves(load_words_twice(blocks, at + 16), 0, 2)
    v = (a & NIBBLES) | ((top << 4) & 0x1010_1010)
    w = ((a >> 4) & NIBBLES) | ((top << 3) & 0x1010_1010)
    x = (b & NIBBLES) | (top & 0x1010_1010)
    return v, w, x, ((b >> 4) & NIBBLES) | ((top >> 1) & 0x1010_1010)


@inlined
def codes_q6_k(blocks, at):
    a, b = load_words(blocks, at), load_words(blocks, at + 64)
    top, more = in_halves(load_words_twice(blocks, at + 128), 0, 2), in_halves(load_words_twice(blocks, at + 160), 0, 2)
    v, w = (a & NIBBLES) | ((top << 4) & 0x3030_3030), ((a >> 4) & NIBBLES) | (top & 0x3030_3030)
    x, y = (b & NIBBLES) | ((more << 4) & 0x3030_3030), ((b >> 4) & NIBBLES) | (more & 0x3030_3030)
    return v, w, x, y


@inlined
def scales_q6_k(blocks, at):
    scale = load_signed(blocks, at + 192)
    return scale, scale


# given by `specialized`, for each format: bytes a block; the functions above; where d and dmin are; by how many bits
# the excess of the codes is shifted, or 0 for none; the scales of each of the four vectors in its lanes
record, codes, scales, d_at, min_at, excess, place_0, place_1, place_2, place_3 = [None] * 10


def _one_byte(x, scale_x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks each.

    x: uint8 [m, k], the bytes of signed codes, in the order of the vectors; scale_x [m, k / 256]; sums int32
    [m, k / 16], of the codes that each lane of the second vector of `scales` is for.
    """
    for t in range(x.shape[0]):
        tokens, scale_of_token, sums_of_token = x[t], scale_x[t], sums[t]
        for r in range(first, last):
            total, rest = splat(0.0), splat(0.0)
            for b in range(per_row):
                at = record * (r * per_row + b)
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                scale, for_sums = scales(blocks, at)
                scale = scaled(scale)
                c0, c1, c2, c3 = codes(blocks, at)
                whole = dot_scaled(splat_int(0), c0, load_words(tokens, 256 * b), place_0(scale))
                whole = dot_scaled(whole, c1, load_words(tokens, 256 * b + 64), place_1(scale))
                whole = dot_scaled(whole, c2, load_words(tokens, 256 * b + 128), place_2(scale))
                whole = dot_scaled(whole, c3, load_words(tokens, 256 * b + 192), place_3(scale))
                beside = times(for_sums, load(sums_of_token, LANES * b))
                if excess:
                    whole = whole - (beside << excess)
                if min_at:
                    rest = fma(to_float(beside), splat_half(blocks, at + min_at) * splat(scale_of_token[b]), rest)
                total = fma(to_float(whole), splat_half(blocks, at + d_at) * splat(scale_of_token[b]), total)
            out[t, r] = sum_lanes(total - rest)


def _three_bytes(x, scale_x, sums, blocks, per_row, first, last, out):
    """As above. x: uint8 [m, 3 k]; sums float32, of the decoded activations."""
    for t in range(x.shape[0]):
        tokens, scale_of_token, sums_of_token = x[t], scale_x[t], sums[t]
        for r in range(first, last):
            total, other, rest = splat(0.0), splat(0.0), splat(0.0)
            for b in range(per_row):
                at, column = record * (r * per_row + b), 768 * b
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                whole, for_sums = scales(blocks, at)
                d = splat_half(blocks, at + d_at)
                scale = to_float(whole) * (d * splat(scale_of_token[b]))
                if min_at or excess:
                    subtracted = splat_half(blocks, at + min_at) if min_at else d * np.float32(1 << excess)
                    rest = fma(to_float(for_sums) * subtracted, load(sums_of_token, LANES * b), rest)
                c0, c1, c2, c3 = codes(blocks, at)
                total = fma(to_float(dot_three(splat_int(0), c0, tokens, column)), place_0(scale), total)
                other = fma(to_float(dot_three(splat_int(0), c1, tokens, column + 192)), place_1(scale), other)
                total = fma(to_float(dot_three(splat_int(0), c2, tokens, column + 384)), place_2(scale), total)
                other = fma(to_float(dot_three(splat_int(0), c3, tokens, column + 576)), place_3(scale), other)
            out[t, r] = sum_lanes((total + other) - rest)


def _scaled_codes(x, scale_x, sums, blocks, per_row, first, last, out):
    """As above, of Q2_K: scale * code, at most 45, is a byte, from a table of its sixteen weights' own (0 1 2 3) scale.

    So one sum of integers for each of the digits of a block: two of them are put together, the third beside.
    """
    for t in range(x.shape[0]):
        tokens, scale_of_token, sums_of_token = x[t], scale_x[t], sums[t]
        for r in range(first, last):
            total, rest = splat(0.0), splat(0.0)
            for b in range(per_row):
                at, column = record * (r * per_row + b), 768 * b
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                scale, for_sums = scales(blocks, at)
                rest = fma(to_float(for_sums) * splat_half(blocks, at + min_at), load(sums_of_token, LANES * b), rest)
                table = scale * 0x0302_0100
                c0, c1, c2, c3 = codes(blocks, at)
                c0, c1 = look_up_bytes(place_0(table), c0), look_up_bytes(place_1(table), c1)
                c2, c3 = look_up_bytes(place_2(table), c2), look_up_bytes(place_3(table), c3)
                high = dot_bytes(splat_int(0), c0, load_words(tokens, column))
                high = dot_bytes(high, c1, load_words(tokens, column + 192))
                high = dot_bytes(high, c2, load_words(tokens, column + 384))
                high = dot_bytes(high, c3, load_words(tokens, column + 576))
                high = dot_bytes(high << 8, c0, load_words(tokens, column + 64))
                high = dot_bytes(high, c1, load_words(tokens, column + 256))
                high = dot_bytes(high, c2, load_words(tokens, column + 448))
                high = dot_bytes(high, c3, load_words(tokens, column + 640))
                low = dot_bytes(splat_int(0), c0, load_words(tokens, column + 128))
                low = dot_bytes(low, c1, load_words(tokens, column + 320))
                low = dot_bytes(low, c2, load_words(tokens, column + 512))
                low = dot_bytes(low, c3, load_words(tokens, column + 704))
                whole = fma(to_float(high), splat(256.0), to_float(low))
                total = fma(whole, splat_half(blocks, at + d_at) * splat(scale_of_token[b]), total)
            out[t, r] = sum_lanes(total - rest)


# The order of a block's weights in the four vectors, by 32
TURNS = (0, 4, 1, 5, 2, 6, 3, 7)  # Q2_K, Q3_K
PLANES = (0, 2, 1, 3, 4, 6, 5, 7)  # Q4_K, Q5_K
IN_ORDER = tuple(range(8))
SIX = (0, 1, 2, 3, 8, 9, 10, 11)  # the lane of each scale of `scales_six_bits`
PARTS = {
    "Q2_K": (84, codes_q2_k, scales_q2_k, 80, 82, 0, TURNS),
    "Q3_K": (110, codes_q3_k, scales_q3_k, 108, 0, 2, TURNS),
    "Q4_K": (144, codes_q4_k, scales_six_bits, 0, 2, 0, PLANES),
    "Q5_K": (176, codes_q5_k, scales_six_bits, 0, 2, 0, PLANES),
    "Q6_K": (210, codes_q6_k, scales_q6_k, 208, 0, 5, IN_ORDER),
}


def order_of(order) -> np.ndarray:
    """Weights of a block in the order of the four vectors' bytes: int [256]."""
    if order == "IQ4_XS":  # sixteen low halves of a sub-block, of the next one, then the high ones
        return np.arange(256).reshape(4, 2, 2, 16).swapaxes(1, 2).reshape(-1)
    return (32 * np.array(order)[:, None] + np.arange(32)).reshape(-1)


def places(name: str, order) -> dict:
    """Functions `place_0` .. `place_3`: the scales that belong to the lanes, of four weights, of each vector."""
    sub_blocks = order_of(order).reshape(-1, 4)[:, 0] // 16
    lanes = [SIX[i // 2] for i in sub_blocks] if name in ("Q4_K", "Q5_K") else list(sub_blocks)
    return {f"place_{i}": arrange([int(lane) for lane in lanes[LANES * i : LANES * (i + 1)]]) for i in range(4)}


def sums_in_lanes(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each lane of the second vector of `scales`, the first of the weights that it is for, and how many those are.

    Lanes that hold scales are for none.
    """
    if name not in ("Q4_K", "Q5_K"):
        return np.arange(0, 256, 16), np.full(LANES, 16)
    starts, minima = np.zeros(LANES, np.int64), [4, 5, 6, 7, 12, 13, 14, 15]
    starts[minima] = np.arange(0, 256, 32)
    return starts, np.where(np.isin(np.arange(LANES), minima), 32, 0)


def _product(name):
    size, its_codes, its_scales, its_d, its_min, its_excess, order = PARTS[name]
    parts = {"record": size, "codes": its_codes, "scales": its_scales, "d_at": its_d, "min_at": its_min}
    parts |= {"excess": its_excess, **places(name, order)}
    of_weights, of_lanes = order_of(order), sums_in_lanes(name)
    kernels = {
        1: specialized(_one_byte, f"matmul_int8_{name.lower()}", **parts),
        3: specialized(_scaled_codes if name == "Q2_K" else _three_bytes, f"matmul_{name.lower()}", **parts),
    }

    def tables(whole, scales, digits):
        m, blocks = scales.shape
        sums = aligned_empty((m, LANES * blocks), np.float32 if digits == 3 else np.int32)
        units = scales.astype(np.float64) if digits == 3 else np.ones(scales.shape)
        add_in_lanes(whole.reshape(-1), units.reshape(-1), *of_lanes, 256, sums.reshape(-1))
        return in_order(whole, of_weights, 256, digits)[0], scales, sums

    return Product(kernels, 256, tables)


K_QUANTS = {name: _product(name) for name in PARTS}
