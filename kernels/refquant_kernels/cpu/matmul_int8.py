"""matmul_int8: the k-quants times activations of 8 bits, in ggml's manner: `ops.find_op("matmul_int8", "Q4_K")`.

The activations of a token are rounded first, 256 at a time, as ggml's Q8_K: scale = extreme / -127, code = x / scale
to the nearest. The rest is exact but for float32 sums: y = sum decode(q) * decode(x). The rounding costs accuracy, so
this is an operation of its own, never what `matmul` does.

Must move, 4096 x 4096 weights of Q4_K: 9,437,184 bytes: at 18 GB/s 0.52 ms. Must do: for 64 weights a shift, a mask,
one instruction for 64 products (VNNI), a conversion, a multiplication with the scales: 24 operations a block of 256.

The idea: the codes stay bytes. 64 of them meet 64 bytes of activations, put beforehand in the order in which the planes
of a block give the codes; the minima, and the 4 or 32 by which codes are stored too large, meet sums of activations.
"""

import numpy as np

from refquant import ops
from refquant_kernels.cpu.compile import in_pieces, inlined, specialized
from refquant_kernels.cpu.machine import dot_bytes, load_words, load_words_twice, pick, prefetch, sum_lanes
from refquant_kernels.cpu.matmul_k import (
    factors_q2_k,
    factors_q3_k,
    factors_q6_k,
    factors_six_bits,
)
from refquant_kernels.cpu.simd import (
    LANES,
    fma,
    lane_numbers,
    load,
    select,
    splat,
    splat_int,
    to_float,
)

# ruff: noqa: D103 (half_x: 128 codes, bytes of two vectors, from block `at`; g is 0 or 1)

AHEAD = 4096  # bytes
PIECE = 1 << 16  # weights that are worth handing to another thread
NIBBLES, PAIRS, ONES = 0x0F0F_0F0F, 0x0303_0303, 0x0101_0101  # masks: so many bits of each byte


@inlined
def in_halves(v, low, high):
    """Shift lanes 0..7 right by `low`, lanes 8..15 by `high`."""
    return v >> select(lane_numbers() < 8, splat_int(low), splat_int(high))


@inlined
def half_q2_k(blocks, at, g):
    data = load_words_twice(blocks, at + 16 + 32 * g)
    return in_halves(data, 0, 2) & PAIRS, in_halves(data, 4, 6) & PAIRS


@inlined
def half_q3_k(blocks, at, g):
    data, top = load_words_twice(blocks, at + 32 + 32 * g), load_words_twice(blocks, at)
    low = (in_halves(data, 0, 2) & PAIRS) | ((in_halves(top, 4 * g, 4 * g + 1) & ONES) << 2)
    return low, (in_halves(data, 4, 6) & PAIRS) | ((in_halves(top, 4 * g + 2, 4 * g + 3) & ONES) << 2)


@inlined
def half_q4_k(blocks, at, g):
    data = load_words(blocks, at + 16 + 64 * g)
    return data & NIBBLES, (data >> 4) & NIBBLES


@inlined
def half_q5_k(blocks, at, g):
    data, top = load_words(blocks, at + 48 + 64 * g), load_words_twice(blocks, at + 16)
    low = (data & NIBBLES) | ((in_halves(top, 4 * g, 4 * g + 2) & ONES) << 4)
    return low, ((data >> 4) & NIBBLES) | ((in_halves(top, 4 * g + 1, 4 * g + 3) & ONES) << 4)


@inlined
def half_q6_k(blocks, at, g):
    data, top = load_words(blocks, at + 64 * g), load_words_twice(blocks, at + 128 + 32 * g)
    low = (data & NIBBLES) | ((in_halves(top, 0, 2) & PAIRS) << 4)
    return low, ((data >> 4) & NIBBLES) | ((in_halves(top, 4, 6) & PAIRS) << 4)


# Which of the sixteen scales (one for sixteen weights) each lane of the two vectors needs, and the order of 128 weights
IN_ORDER = np.arange(128)
PLANES = np.concatenate([IN_ORDER[0:32], IN_ORDER[64:96], IN_ORDER[32:64], IN_ORDER[96:128]])

record, factors, codes, excess, places = None, None, None, None, None  # given by `specialized`, for each format


def _rows(x, scales, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks each.

    x: uint8 [m, k], the bytes of signed codes, in the order of the planes; scales [m, k / 256]; sums [m, k / 16], of
    the decoded activations.
    """
    for t in range(x.shape[0]):
        tokens, scales_of_token, sums_of_token = x[t], scales[t], sums[t]
        for r in range(first, last):
            low, high, rest = splat(0.0), splat(0.0), splat(0.0)
            for b in range(per_row):
                at = record * (r * per_row + b)
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                scale, minimum = factors(blocks, at)
                rest = fma(minimum - scale * excess, load(sums_of_token, LANES * b), rest)
                scale = scale * scales_of_token[b]
                for g in range(2):
                    v, w = codes(blocks, at, g)
                    column = 256 * b + 128 * g
                    v = to_float(dot_bytes(splat_int(0), v, load_words(tokens, column)))
                    w = to_float(dot_bytes(splat_int(0), w, load_words(tokens, column + 64)))
                    low = fma(v, pick(scale, load(places, 32 * g)), low)
                    high = fma(w, pick(scale, load(places, 32 * g + LANES)), high)
            out[t, r] = sum_lanes(low + high + rest)


_PARTS = {
    "Q2_K": (84, factors_q2_k, half_q2_k, 0, IN_ORDER),
    "Q3_K": (110, factors_q3_k, half_q3_k, 4, IN_ORDER),
    "Q4_K": (144, factors_six_bits, half_q4_k, 0, PLANES),
    "Q5_K": (176, factors_six_bits, half_q5_k, 0, PLANES),
    "Q6_K": (210, factors_q6_k, half_q6_k, 32, IN_ORDER),
}


def round_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [m, k / 256, 256] and scales float32 [m, k / 256] of x [m, k], as ggml's `quantize_row_q8_K`."""
    x = x.reshape(len(x), x.shape[1] // 256, 256)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=2)[..., None], axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(extreme == 0, np.float32(0), np.float32(-127) / extreme)
        codes = np.minimum(np.rint(inverse * x), 127)
        return codes.astype(np.int8), np.where(inverse == 0, np.float32(0), np.float32(1) / inverse)[..., 0]


def _reference(x, q):
    codes, scales = round_activations(np.asarray(x, np.float32).reshape(-1, q.shape[1]))
    rounded = (codes.astype(np.float32) * scales[..., None]).reshape(*x.shape)
    return rounded @ ops.dequantize(q).T


def _traffic(shape, name, m=1):
    return ops.traffic("matmul", shape, name, m=m)


def _register(name):
    size, its_factors, its_codes, its_excess, order = _PARTS[name]
    both = np.concatenate([order, order + 128]).reshape(-1, 4)[:, 0] // 16  # the sub-block of each lane's four weights
    kernel = specialized(
        _rows,
        f"matmul_int8_{name.lower()}",
        record=size,
        factors=its_factors,
        codes=its_codes,
        excess=np.float32(its_excess),
        places=both.astype(np.int32),
    )

    @ops.fast_path("matmul_int8", name, backend="numba")
    def matmul(x, q):
        """X [..., k] -> float32 [..., n], with activations rounded to 8 bits."""
        n, k = q.shape
        codes, scales = round_activations(np.asarray(x, np.float32).reshape(-1, k))
        sums = codes.reshape(len(codes), k // LANES, LANES).sum(axis=2, dtype=np.float32)
        sums *= np.repeat(scales, 16, axis=1)
        ordered = codes.reshape(-1, 128)[:, order].reshape(len(codes), k).view(np.uint8)
        out = np.empty((len(codes), n), np.float32)
        data = np.ascontiguousarray(q.arrays["blocks"]).reshape(-1)
        in_pieces(
            lambda first, last: kernel(ordered, scales, sums, data, k // 256, first, last, out), n, max(1, PIECE // k)
        )
        return out.reshape(*x.shape[:-1], n)


ops.register("matmul_int8", _reference, _traffic)
for _name in _PARTS:
    _register(_name)
