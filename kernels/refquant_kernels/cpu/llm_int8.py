"""llm-int8: quantize, dequantize, and its product, in which both sides are 8-bit integers (`methods.llm_int8`).

Must move, 4096 x 4096 weights, one token: 16,777,216 bytes: at 18 GB/s 0.93 ms. Must do, for 64 weights: one
instruction for their products (VNNI; with AVX2 five for 32): the memory is the floor. 512 tokens: 8.6 G products, 64 an
instruction.

The idea: the product of integers stays one: four products at a time are added up in 32 bits. Of many tokens four meet
two rows at a time, so that there are more products than loads, and eight sums. Everything around it, the rounding of x,
the scales, the columns with outliers, is the reference's own, so the result is equal to it, but where a column is set
apart: those few are multiplied by BLAS in both, in float32.
"""

import numpy as np

from refquant import ops
from refquant.grids import as_grid
from refquant.methods import llm_int8
from refquant.quantized import Quantized
from refquant_kernels.cpu.codebooks import peaks
from refquant_kernels.cpu.compile import PRODUCT, aligned_empty, in_pieces, inlined, kernel
from refquant_kernels.cpu.int_grids import PIECE, load_first, store_first
from refquant_kernels.cpu.lanes import MAGIC, from_float16, to_float16
from refquant_kernels.cpu.machine import SIGNED_EXCESS, dot_signed, load_words, prefetch, sum_lanes_int
from refquant_kernels.cpu.simd import LANES, load, load_signed, select, splat, splat_int, store, to_float, to_int

AHEAD = 4096  # bytes
TOKENS = 8  # whose codes stay in the cache while the rows pass
f32 = np.float32


@inlined
def nearest_code(v, factor):
    """I: v, rounded to float16, times a factor, to the nearest in -127..127."""
    v = (from_float16(to_float16(v)) * factor + MAGIC) - MAGIC
    return to_int(select(v < -127.0, splat(-127.0), select(v > 127.0, splat(127.0), v)))


@kernel()
def int8_encode(w, factors, k, first, last, out):
    """Codes of rows first .. last - 1: w rounded to float16, times the row's factor, to the nearest in -127..127."""
    room, codes = np.zeros(LANES, np.float32), np.empty(LANES, np.uint8)
    for r in range(first, last):
        i, end, factor = r * k, (r + 1) * k, splat(factors[r])
        while i + LANES <= end:
            store(out, i, nearest_code(load(w, i), factor))
            i += LANES
        if i < end:
            store_first(out, i, end - i, nearest_code(load_first(w, i, end - i, room), factor), codes)


@kernel()
def int8_decode(codes, scales, k, first, last, out):
    """Weights of rows first .. last - 1: code * scale * 1/127, in that order."""
    for r in range(first, last):
        scale, start, whole = splat(scales[r]), r * k, r * k + k // LANES * LANES
        for i in range(start, whole, LANES):
            store(out, i, to_float(load_signed(codes, i)) * scale * f32(1 / 127))
        for i in range(whole, start + k):
            out[i] = f32(np.int8(codes[i])) * scales[r] * f32(1 / 127)


@inlined
def finished(total, start, a, i, b, j, count):
    """int32: the sum of the lanes, `start`, and the products of `count` more codes of a from i and b from j on."""
    result = sum_lanes_int(total) + start
    for n in range(count):
        result += np.int32(np.int8(a[i + n])) * np.int32(np.int8(b[j + n]))
    return result


@kernel()
def int8_rows(a, starts, b, k, done, first, last, out):
    """out[t, r] = sum a[t] * b[r] for tokens from `done` on and rows first .. last - 1, int32.

    a: uint8 [m, k], the bytes of signed codes; starts int32 [m], minus SIGNED_EXCESS times the sum of those
    that fill vectors of 64; b: the bytes of signed codes [n, k], flat.
    """
    whole, rest = k // 64 * 64, k % 64
    for r in range(first, last):
        for t in range(done, a.shape[0]):
            tokens, total = a[t], splat_int(0)
            for i in range(0, whole, 64):
                prefetch(b, r * k + i + AHEAD)
                total = dot_signed(total, load_words(b, r * k + i), load_words(tokens, i))
            out[t, r] = finished(total, starts[t], tokens, whole, b, r * k + whole, rest)


@kernel()
def int8_tiles(a, starts, b, k, done, first, last, out):
    """The same of tokens up to `done`, a multiple of four: four by two rows, eight sums, none waits for one before.

    An odd last row is taken twice.
    """
    whole, rest = k // 64 * 64, k % 64
    for start in range(0, done, TOKENS):
        for r in range(first, last, 2):
            s = min(r + 1, last - 1)
            for t in range(start, min(done, start + TOKENS), 4):
                t0, t1, t2, t3 = splat_int(0), splat_int(0), splat_int(0), splat_int(0)
                u0, u1, u2, u3 = splat_int(0), splat_int(0), splat_int(0), splat_int(0)
                x0, x1, x2, x3 = a[t], a[t + 1], a[t + 2], a[t + 3]
                for i in range(0, whole, 64):
                    v, w = load_words(b, r * k + i), load_words(b, s * k + i)
                    t0, u0 = dot_signed(t0, v, load_words(x0, i)), dot_signed(u0, w, load_words(x0, i))
                    t1, u1 = dot_signed(t1, v, load_words(x1, i)), dot_signed(u1, w, load_words(x1, i))
                    t2, u2 = dot_signed(t2, v, load_words(x2, i)), dot_signed(u2, w, load_words(x2, i))
                    t3, u3 = dot_signed(t3, v, load_words(x3, i)), dot_signed(u3, w, load_words(x3, i))
                for each, of_r, of_s in ((t, t0, u0), (t + 1, t1, u1), (t + 2, t2, u2), (t + 3, t3, u3)):
                    out[each, r] = finished(of_r, starts[each], a[each], whole, b, r * k + whole, rest)
                    out[each, s] = finished(of_s, starts[each], a[each], whole, b, s * k + whole, rest)


def int32_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Product of int8 [m, k], none of them -128, and int8 [n, k]: int32 [m, n], exact."""
    (m, k), n = a.shape, len(b)
    starts = -SIGNED_EXCESS * a[:, : k // 64 * 64].sum(axis=1, dtype=np.int32)
    codes, flat = np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8).reshape(-1)
    out, done = np.empty((m, n), np.int32), m // 4 * 4

    def run(first, last):
        if done:
            int8_tiles(codes, starts, flat, k, done, first, last, out)
        if done < m:
            int8_rows(codes, starts, flat, k, done, first, last, out)

    in_pieces(run, n, max(2, PRODUCT // (k * max(m, 1))))
    return out


@ops.fast_path("quantize", "llm-int8", backend="numba")
def quantize(w, format, importance=None):  # noqa: A002 (ops calls it that)
    """The same arrays as backend "numpy"."""
    n, k = w.shape
    flat = np.ascontiguousarray(w, np.float32).reshape(-1)
    scales = as_grid(format).scale(peaks(flat, k, k, n))
    factors = f32(llm_int8.LEVELS) * (f32(1) / np.where(scales > 0, scales, f32(np.inf)))
    codes = np.empty((n, k), np.uint8)
    out = codes.reshape(-1)
    in_pieces(lambda a, b: int8_encode(flat, factors, k, a, b, out), n, max(1, PIECE // k))
    return Quantized(format, (n, k), {"CB": codes.view(np.int8), "SCB": scales})


@ops.fast_path("dequantize", "llm-int8", backend="numba")
def dequantize(q):
    """Weights float32 [n, k]."""
    (n, k), out = q.shape, aligned_empty(q.shape)
    codes, scales = (np.ascontiguousarray(q.arrays[name]) for name in ("CB", "SCB"))
    codes, flat = codes.view(np.uint8).reshape(-1), out.reshape(-1)
    in_pieces(lambda a, b: int8_decode(codes, scales, k, a, b, flat), n, max(1, PIECE // k))
    return out


@ops.fast_path("matmul", "llm-int8", backend="numba")
def matmul(x, q):
    """X [..., k] -> float32 [..., n]: both sides in 8 bits, the columns with outliers apart."""
    return llm_int8.matmul(x, q, product=int32_product)
