"""matmul_int8 of the other block formats: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL MXFP4, IQ4_XS, TQ1_0 TQ2_0.

Must move, 4096 x 4096 weights of Q4_0: 9,437,184 bytes: at 18 GB/s 0.52 ms. Must do, for two blocks, 64 weights: some 4
operations for the codes, one for their products, a conversion, two multiplications, 6 for the two scales: a scale for
every 32 weights makes this dearer than Q4_K.

The idea: codes that are stored too large (by 8 in Q4_0) are multiplied as they are, and the sum does not begin at 0 but
at -8 times the sum of the four activations of its lane: a table, in place of the 0 that it would begin with anyway.
Two blocks fill a vector: their codes then are in the order of the weights, and the activations stay in theirs.
"""

import numpy as np

from refquant import ops
from refquant.codebooks import E2M1_DOUBLED, IQ4_VALUES
from refquant_kernels.cpu.activations import round_q8_0, round_q8_k, sums_of_runs
from refquant_kernels.cpu.compile import PRODUCT, in_pieces, inlined, specialized
from refquant_kernels.cpu.decode import half, halves
from refquant_kernels.cpu.machine import (
    SIGNED_EXCESS,
    above_85,
    above_170,
    add_bit_4,
    arrange,
    dot_bytes,
    dot_signed,
    in_front,
    load_52,
    load_quarters,
    load_two,
    load_words,
    look_up_bytes,
    prefetch,
    sum_lanes,
    triple_bytes,
    word_at,
)
from refquant_kernels.cpu.matmul_int8 import AHEAD, NIBBLES, PAIRS, order_of, places
from refquant_kernels.cpu.matmul_k import codes_iq4_xs, scales_iq4_xs
from refquant_kernels.cpu.simd import fma, lane_numbers, load, select, splat, splat_int, to_float

# ruff: noqa: D103 (codes_x and scale_x are what the comments below say, for the format x)

f32 = np.float32
MXFP4_EXCESS = 12
IQ4_TABLE = np.tile(IQ4_VALUES, 4).view(np.int32)
POWERS = np.ldexp(f32(0.5), np.arange(-127, 129)).astype(f32)  # of MXFP4: half of 2^(e - 127), for doubled values
E2M1_TABLE = np.tile(E2M1_DOUBLED + np.int8(MXFP4_EXCESS), 4).view(np.int32)


@inlined
def nibbles(data):
    """Low halves in lanes 0..3 and 8..11, high ones in the others, whose data are the same again."""
    return (data >> select((lane_numbers() & 4) == 0, splat_int(0), splat_int(4))) & NIBBLES


# ---- blocks of 32. codes(blocks, i, j): 64 codes of the blocks at bytes i and j


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
    return load_two(blocks, i + 2, j + 2)


@inlined
def codes_iq4_nl(blocks, i, j):
    return look_up_bytes(load(IQ4_TABLE, 0), nibbles(load_quarters(blocks, i + 2, j + 2)))


@inlined
def codes_mxfp4(blocks, i, j):
    return look_up_bytes(load(E2M1_TABLE, 0), nibbles(load_quarters(blocks, i + 1, j + 1)))


# head(blocks, i, j): F, in lanes 0 and 2 the scales d of the blocks at bytes i and j, in 1 and 3 their minima; without
# minima what stands in 1 and 3 is not used (`decode.halves`)


@inlined
def heads_mxfp4(blocks, i, j):
    return in_front(POWERS[blocks[i]], 0, POWERS[blocks[j]], 0)


to_each_half = arrange([0] * 8 + [2] * 8)  # d to the lanes of its block
record, codes, head, dot, has_min = None, None, None, None, None  # given by `specialized`, for each format


def _pairs(x, starts, scale_x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks each, two at a time.

    x: uint8 [m, 64 p], the bytes of signed codes; starts: int32 [m, 16 p]; scale_x: [m, 16 p], of each lane; sums
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
                products = dot(load(starts_of_token, 8 * b), codes(blocks, i, j), load_words(tokens, 32 * b))
                d_and_min = head(blocks, i, j)
                total = fma(to_float(products), load(scales, 8 * b) * to_each_half(d_and_min), total)
                if has_min:
                    rest = fma(d_and_min, load(sums_of_token, 8 * b), rest)
            out[t, r] = sum_lanes(total + rest if has_min else total)


OF_32 = {
    "Q4_0": (18, codes_q4_0, halves, dot_bytes, 8, False),
    "Q4_1": (20, codes_q4_1, halves, dot_bytes, 0, True),
    "Q5_0": (22, codes_q5_0, halves, dot_bytes, 16, False),
    "Q5_1": (24, codes_q5_1, halves, dot_bytes, 0, True),
    "Q8_0": (34, codes_q8_0, halves, dot_signed, SIGNED_EXCESS, False),
    "IQ4_NL": (18, codes_iq4_nl, halves, dot_signed, SIGNED_EXCESS, False),
    "MXFP4": (17, codes_mxfp4, heads_mxfp4, dot_bytes, MXFP4_EXCESS, False),
}


def padded(a: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros after the last column, up to a multiple."""
    short = -a.shape[1] % multiple
    return np.hstack([a, np.zeros((len(a), short), a.dtype)]) if short else a


def starting_sums(ordered: np.ndarray, excess: int) -> np.ndarray:
    """Minus `excess` times the sum of each four codes, int32 [m, k / 4]."""
    return np.int32(-excess) * sums_of_runs(ordered, 4)


def in_mins(of_blocks: np.ndarray) -> np.ndarray:
    """Sums of the activations of each block [m, blocks], of each two in lanes 1 and 3 of sixteen: float32 [m, 16 p]."""
    m, blocks = of_blocks.shape
    pairs = -(-blocks // 2)
    lanes = np.zeros((m, pairs, 16), np.float32)
    lanes[..., 1:4:2] = padded(of_blocks, 2).reshape(m, pairs, 2)
    return lanes.reshape(m, 16 * pairs)


def _register_32(name):
    size, its_codes, its_head, its_dot, excess, with_min = OF_32[name]
    kernel = specialized(
        _pairs,
        f"matmul_int8_{name.lower()}",
        record=size,
        codes=its_codes,
        head=its_head,
        dot=its_dot,
        has_min=with_min,
    )

    @ops.fast_path("matmul_int8", name, backend="numba")
    def matmul(x, q):
        """X [..., k] -> float32 [..., n], with activations rounded to 8 bits."""
        n, k = q.shape
        codes, scale_x = round_q8_0(np.asarray(x, np.float32).reshape(-1, k))
        m = len(codes)
        ordered, each = padded(codes.reshape(m, k), 64), padded(np.repeat(scale_x, 8, axis=1), 16)
        sums = in_mins(sums_of_runs(codes, 32) * scale_x) if with_min else each  # unused without
        tables = ordered.view(np.uint8), starting_sums(ordered, excess), each, sums
        out = np.empty((m, n), np.float32)
        data = np.ascontiguousarray(q.arrays["blocks"]).reshape(-1)
        in_pieces(lambda a, b: kernel(*tables, data, k // 32, a, b, out), n, max(1, PRODUCT // k))
        return out.reshape(*x.shape[:-1], n)


# ---- blocks of 256. whole(blocks, at, tokens, column, starts, i): products of a block, times its scales but d


place_0, place_1, place_2, place_3 = places("IQ4_XS", "IQ4_XS").values()


@inlined
def whole_iq4_xs(blocks, at, tokens, column, starts, i):
    scale, table, (a, b, c, d) = to_float(scales_iq4_xs(blocks, at)[0]), load(IQ4_TABLE, 0), codes_iq4_xs(blocks, at)
    a = dot_signed(load(starts, i), look_up_bytes(table, a), load_words(tokens, column))
    b = dot_signed(load(starts, i + 16), look_up_bytes(table, b), load_words(tokens, column + 64))
    c = dot_signed(load(starts, i + 32), look_up_bytes(table, c), load_words(tokens, column + 128))
    d = dot_signed(load(starts, i + 48), look_up_bytes(table, d), load_words(tokens, column + 192))
    total = fma(to_float(b), place_1(scale), to_float(a) * place_0(scale))
    total = fma(to_float(d), place_3(scale), fma(to_float(c), place_2(scale), total))
    return total * half(blocks, at)


@inlined
def whole_tq2_0(blocks, at, tokens, column, starts, i):
    data = load_words(blocks, at)
    total = dot_bytes(load(starts, i), data & PAIRS, load_words(tokens, column))
    total = dot_bytes(total, (data >> 2) & PAIRS, load_words(tokens, column + 64))
    total = dot_bytes(total, (data >> 4) & PAIRS, load_words(tokens, column + 128))
    total = dot_bytes(total, (data >> 6) & PAIRS, load_words(tokens, column + 192))
    return to_float(total) * half(blocks, at + 64)


@inlined
def trits(data):
    """The first trit of each byte, 0 to 2: byte * 3 / 256, without its fraction."""
    return above_85(data) + above_170(data)


@inlined
def whole_tq1_0(blocks, at, tokens, column, starts, i):
    data, total = load_52(blocks, at, at + 32, at + 48), load(starts, i)
    for j in range(5):
        total = dot_bytes(total, trits(data), load_words(tokens, column + 64 * j))
        data = triple_bytes(data)
    return to_float(total) * half(blocks, at + 52)


whole, width, wide = None, None, None  # given by `specialized`: codes a block with those that are 0; starts a block


def _blocks(x, starts, scale_x, blocks, per_row, first, last, out):
    """As above. x: uint8 [m, width * per_row]; starts: int32 [m, wide * per_row]; scale_x [m, per_row]."""
    for t in range(x.shape[0]):
        tokens, starts_of_token, scales = x[t], starts[t], scale_x[t]
        for r in range(first, last):
            total = splat(0.0)
            for b in range(per_row):
                at = record * (r * per_row + b)
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                products = whole(blocks, at, tokens, width * b, starts_of_token, wide * b)
                total = fma(products, splat(scales[b]), total)
            out[t, r] = sum_lanes(total)


def _order_tq2_0():
    return np.arange(256).reshape(2, 4, 32).swapaxes(0, 1).reshape(-1)


def _order_tq1_0():
    """Vector j has trit j of the 48 bytes, then of the last four, which have four; -1 where there is no weight."""
    order = np.full((5, 64), -1)
    order[:, :32], order[:, 32:48] = np.arange(160).reshape(5, 32), np.arange(160, 240).reshape(5, 16)
    order[:4, 48:52] = np.arange(240, 256).reshape(4, 4)
    return order.reshape(-1)


OF_256 = {
    "IQ4_XS": (136, whole_iq4_xs, order_of("IQ4_XS"), SIGNED_EXCESS, 64),
    "TQ2_0": (66, whole_tq2_0, _order_tq2_0(), 1, 16),
    "TQ1_0": (54, whole_tq1_0, _order_tq1_0(), 1, 16),
}


def _register_256(name):
    size, its_whole, order, excess, starts_a_block = OF_256[name]
    kernel = specialized(
        _blocks, f"matmul_int8_{name.lower()}", record=size, whole=its_whole, width=len(order), wide=starts_a_block
    )

    @ops.fast_path("matmul_int8", name, backend="numba")
    def matmul(x, q):
        """X [..., k] -> float32 [..., n], with activations rounded to 8 bits."""
        n, k = q.shape
        codes, scale_x = round_q8_k(np.asarray(x, np.float32).reshape(-1, k))
        m = len(codes)
        ordered = np.take(codes, order, axis=2)  # [m, blocks, width]
        ordered[..., order < 0] = 0
        ordered = ordered.reshape(m, k // 256 * len(order))
        starts = starting_sums(ordered, excess).reshape(m, k // 256, len(order) // 4 // starts_a_block, starts_a_block)
        starts = starts.sum(axis=2, dtype=np.int32).reshape(m, k // 256 * starts_a_block)
        tables = ordered.view(np.uint8), starts, scale_x
        out = np.empty((m, n), np.float32)
        data = np.ascontiguousarray(q.arrays["blocks"]).reshape(-1)
        in_pieces(lambda a, b: kernel(*tables, data, k // 256, a, b, out), n, max(1, PRODUCT // k))
        return out.reshape(*x.shape[:-1], n)


for _name in OF_32:
    _register_32(_name)
for _name in OF_256:
    _register_256(_name)
