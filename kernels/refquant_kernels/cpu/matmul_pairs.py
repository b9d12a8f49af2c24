"""Products of a token or a few with formats of 32 weights a block, two blocks at a time (`products`).

Activations of one byte or three: Q4_0 Q4_1 Q5_0 Q5_1 MXFP4; Q8_0 and IQ4_NL too, but three only with VNNI, since their
values of 8 bits leave no room: the highest digit has a sum of its own.

Must move, 4096 x 4096 weights of Q4_0: 9,437,184 bytes: at 18 GB/s 0.52 ms. Must do, for two blocks, 64 weights: some 4
operations for the codes, one or five for their products, a conversion, two multiplications, 6 for the two scales: a
scale for every 32 weights makes this dearer than Q4_K.

The idea: codes that are stored too large (by 8 in Q4_0) are multiplied as they are, and -8 times the sum of the four
activations of each lane is added, from a table: with one byte in place of the 0 that the sum would begin with anyway.
Two blocks fill a vector: their codes then are in the order of the weights, and the activations stay in theirs.
"""

import numpy as np

from refquant.codebooks import E2M1_DOUBLED, IQ4_VALUES
from refquant_kernels.cpu.activations import IN_ORDER, in_order, starts_of, sums_of_runs
from refquant_kernels.cpu.compile import aligned_empty, inlined, specialized
from refquant_kernels.cpu.decode import halves
from refquant_kernels.cpu.machine import (
    HAS_VNNI,
    SIGNED_EXCESS,
    TURN,
    add_bit_4,
    arrange,
    byte_at,
    dot_bytes,
    load_quarters,
    load_two,
    load_words,
    look_up_bytes,
    prefetch,
    sum_lanes,
    word_at,
)
from refquant_kernels.cpu.products import AHEAD, NIBBLES, Product, dot_one, dot_one_signed, dot_three, padded
from refquant_kernels.cpu.simd import LANES, fma, lane_numbers, load, select, splat, splat_int, to_float

# ruff: noqa: D103 (codes_x and scale_x are what the comments below say, for the format x)

f32 = np.float32
MXFP4_EXCESS = 12
IQ4_CODES = np.tile(IQ4_VALUES, 4).view(np.int32) ^ np.int32(TURN if HAS_VNNI else 0)  # plus SIGNED_EXCESS
POWERS = np.ldexp(f32(0.5), np.arange(-127, 129)).astype(f32)  # of MXFP4: half of 2^(e - 127), for doubled values
E2M1_TABLE = np.tile(E2M1_DOUBLED + np.int8(MXFP4_EXCESS), 4).view(np.int32)


@inlined
def nibbles(data):
    """Low halves in lanes 0..3 and 8..11, high ones in the others, whose data are the same again."""
    return (data >> select((lane_numbers() & 4) == 0, splat_int(0), splat_int(4))) & NIBBLES


# ---- blocks of 32. codes(blocks, i, j): 64 codes of the blocks at bytes i and j; signed ones plus SIGNED_EXCESS


@inlined
def codes_q4_0(blocks, i, j):
    return nibbles(load_quarters(blocks, i + 2, j + 2))


@inlined
def codes_q4_1(blocks, i, j):
    return nibbles(load_quarters(blocks, i + 4, j + 4))


@inlined
def codes_q5_0(blocks, i, j):
    data = nibbles(load_quarters(blocks, i + 6, j + 6))
    return add_bit_4(data, word_at(blocks, i + 2), word_at(blocks, j + 2))


@inlined
def codes_q5_1(blocks, i, j):
    data = nibbles(load_quarters(blocks, i + 8, j + 8))
    return add_bit_4(data, word_at(blocks, i + 4), word_at(blocks, j + 4))


@inlined
def codes_q8_0(blocks, i, j):
    codes = load_two(blocks, i + 2, j + 2)
    return codes ^ TURN if HAS_VNNI else codes


@inlined
def codes_iq4_nl(blocks, i, j):
    return look_up_bytes(load(IQ4_CODES, 0), nibbles(load_quarters(blocks, i + 2, j + 2)))


@inlined
def codes_mxfp4(blocks, i, j):
    return look_up_bytes(load(E2M1_TABLE, 0), nibbles(load_quarters(blocks, i + 1, j + 1)))


# head(blocks, i, j): two F: the scale of the block at byte i in lanes 0..7, of that at j in the others; and in lanes 1
# and 3 their minima, in 0 and 2 the scales; without minima the second is not used

to_each_half = arrange([0] * 8 + [2] * 8)


@inlined
def heads_halves(blocks, i, j):
    both = halves(blocks, i, j)
    return to_each_half(both), both


@inlined
def heads_mxfp4(blocks, i, j):
    both = select(lane_numbers() < 8, splat(POWERS[byte_at(blocks, i)]), splat(POWERS[byte_at(blocks, j)]))
    return both, both


# product(starts, i, codes, x, at): F, 64 codes times activations from byte `at` on, and what starts[i] adds


@inlined
def product_one(starts, i, codes, x, at):
    return to_float(dot_one(load(starts, i), codes, x, at))


@inlined
def product_one_signed(starts, i, codes, x, at):
    dot = dot_one if HAS_VNNI else dot_one_signed
    return to_float(dot(load(starts, i), codes, x, at))


@inlined
def product_three(starts, i, codes, x, at):
    return to_float(dot_three(load(starts, i), codes, x, at))


@inlined
def product_three_signed(starts, i, codes, x, at):
    """Starts: for the highest digit, then for the others, as `starts_in_two`."""
    high = dot_bytes(load(starts, 2 * i), codes, load_words(x, at))
    low = dot_bytes(splat_int(0), codes, load_words(x, at + 64))
    low = dot_bytes((low << 8) + load(starts, 2 * i + LANES), codes, load_words(x, at + 128))
    return fma(to_float(high), splat(65536.0), to_float(low))


record, codes, head, product, has_min, bytes_each = None, None, None, None, None, None  # given by `specialized`


def _pairs(x, starts, scale_x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks each, two at a time.

    x: uint8 [m, 64 p bytes_each]; starts: int32 [m, 16 p] or twice that; scale_x: [m, 16 p], of each lane; sums
    [m, 16 p]: in lanes 1 and 3, where the minima are, those of the decoded activations of the two blocks, else 0.
    Where the last pair is half, all are 0 there.
    """
    for t in range(x.shape[0]):
        tokens, starts_of_token, scales, sums_of_token = x[t], starts[t], scale_x[t], sums[t]
        for r in range(first, last):
            total, rest = splat(0.0), splat(0.0)
            for b in range(0, per_row, 2):
                i = record * (r * per_row + b)
                j = i + record if b + 1 < per_row else i
                for line in range(0, 2 * record, 64):
                    prefetch(blocks, i + AHEAD + line)
                products = product(starts_of_token, 8 * b, codes(blocks, i, j), tokens, 32 * bytes_each * b)
                d, d_and_min = head(blocks, i, j)
                total = fma(products, load(scales, 8 * b) * d, total)
                if has_min:
                    rest = fma(d_and_min, load(sums_of_token, 8 * b), rest)
            out[t, r] = sum_lanes(total + rest if has_min else total)


PARTS = {
    "Q4_0": (18, codes_q4_0, heads_halves, False, 8, False),
    "Q4_1": (20, codes_q4_1, heads_halves, False, 0, True),
    "Q5_0": (22, codes_q5_0, heads_halves, False, 16, False),
    "Q5_1": (24, codes_q5_1, heads_halves, False, 0, True),
    "Q8_0": (34, codes_q8_0, heads_halves, True, SIGNED_EXCESS, False),
    "IQ4_NL": (18, codes_iq4_nl, heads_halves, True, SIGNED_EXCESS, False),
    "MXFP4": (17, codes_mxfp4, heads_mxfp4, False, MXFP4_EXCESS, False),
}


def in_lanes(of_blocks: np.ndarray) -> np.ndarray:
    """A number of each block [m, blocks] in its eight lanes, 0 in those of half a pair: float32 [m, 16 p]."""
    m, blocks = of_blocks.shape
    lanes = aligned_empty((m, 16 * -(-blocks // 2)))
    lanes[:, : 8 * blocks].reshape(m, blocks, 8)[:] = of_blocks[..., None]
    lanes[:, 8 * blocks :] = 0
    return lanes


def in_mins(of_blocks: np.ndarray) -> np.ndarray:
    """Sums of the activations of each block [m, blocks], of each two in lanes 1 and 3 of sixteen: float32 [m, 16 p]."""
    m, blocks = of_blocks.shape
    pairs = -(-blocks // 2)
    lanes = aligned_empty((m, pairs, 16))
    lanes[:] = 0
    lanes[..., 1:4:2] = padded(of_blocks, 2).reshape(m, pairs, 2)
    return lanes.reshape(m, 16 * pairs)


def starts_in_two(fours: np.ndarray) -> np.ndarray:
    """-128 times sums of four activations [m, 16 p], which 32 bits do not hold, as 65536 high + low: [m, 32 p]."""
    starts = aligned_empty((len(fours), fours.shape[1] // LANES, 2, LANES), np.int32)
    by_pairs = fours.reshape(len(fours), -1, LANES)
    starts[:, :, 0] = -(by_pairs >> 9)
    starts[:, :, 1] = -((by_pairs & 511) << 7)
    return starts.reshape(len(fours), -1)


def _product(name):
    size, its_codes, its_head, signed, excess, with_min = PARTS[name]
    parts = {"record": size, "codes": its_codes, "head": its_head, "has_min": with_min}
    one = product_one_signed if signed else product_one
    kernels = {1: specialized(_pairs, f"matmul_int8_{name.lower()}", product=one, bytes_each=1, **parts)}
    if HAS_VNNI or not signed:
        three = product_three_signed if signed else product_three
        kernels[3] = specialized(_pairs, f"matmul_{name.lower()}", product=three, bytes_each=3, **parts)

    def tables(whole, scales, digits):
        wide, each = padded(whole, 64), in_lanes(scales)
        sums = in_mins(sums_of_runs(whole, 32) * scales) if with_min else each  # unused without
        ordered, fours = in_order(wide, IN_ORDER, 64, digits)
        starts = starts_in_two(fours) if signed and digits == 3 else starts_of(fours, 1, -excess)
        return ordered, starts, each, sums

    return Product(kernels, 32, tables)


PAIRS = {name: _product(name) for name in PARTS}
