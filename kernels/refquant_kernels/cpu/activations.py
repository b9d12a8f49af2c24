"""Activations as whole numbers: of 8 bits, in ggml's manner or in our own, and of 24 bits.

Every run of activations gets one scale; a whole number is the nearest to so many scales::

    bits  run  scale                               for
    8     32   max |x| / 127, kept in float16      formats with blocks of 32: ggml's Q8_0 (and Q8_1: see below)
    8     256  extreme / -127, float32             formats with blocks of 256: ggml's Q8_K
    8     128  max |x| / 127, float32              uniform grids, groups and rows of multiples of 128; else 64
    24    any  max |x| / 8,355,710, float32        `matmul` with float32 activations (`products`)

Source: `quantize_row_q8_0` of ggml-cpu for x86 (the function called `_ref` divides in another order), and
`quantize_row_q8_K_ref`; of 24 bits our own. NaN and infinity give a scale of NaN, so they are not hidden.
A pass or two over the activations, in kernels: NumPy's dozen of passes took as long as a small product itself.
Against other code: with Q4_1 and Q5_1 ggml multiplies the block's minimum by scale * sum of codes rounded to float16
(Q8_1); here by the same number in float32.
"""

import numpy as np

from refquant_kernels.cpu.compile import aligned_empty, kernel
from refquant_kernels.cpu.machine import float_of_bits
from refquant_kernels.cpu.simd import LANES, load, store

f32, u32 = np.float32, np.uint32
TOP = 127 * 65536 + 127 * 256 + 126  # one below what three digits of -128..127 hold: the scale may be rounded down
SMALLEST = 2.0**-126  # scale of a run that still counts beside others
LEAST = f32(2.0**-100)  # scale of a token that keeps its accuracy when multiplied by scales of weights
IN_ORDER = np.arange(64)  # for `in_order`: as they are


@kernel()
def round_to_8_bits(x, run, signed, out, scales):
    """As the text above says, by the extreme with its sign or by its magnitude; x float32, flat.

    The extreme of several is the first. A run with NaN or infinity has the scale NaN.
    """
    for r in range(scales.size):
        extreme = x[r * run]
        for i in range(r * run, (r + 1) * run):
            if not abs(x[i]) <= abs(extreme):
                extreme = x[i]
            if extreme != extreme:
                break
        inverse = f32(0)
        if extreme != 0:
            inverse = f32(-127) / extreme if signed else f32(127) / abs(extreme)
        if not np.isfinite(extreme):
            scales[r] = f32(np.nan)
        elif signed:
            scales[r] = f32(1) / inverse if inverse != 0 else f32(0)
        else:
            scales[r] = abs(extreme) / f32(127)
        for i in range(r * run, (r + 1) * run):
            code = np.rint(x[i] * inverse)
            out[i] = np.int8(min(max(code, f32(-127)), f32(127))) if np.isfinite(code) else 0


@kernel()
def round_to_24_bits(x, bits, run, out, scales):
    """As the text above says; x float32 and its bits, uint32, flat. Runs too small for a scale are 0."""
    for r in range(scales.size):
        largest = u32(0)
        for i in range(r * run, (r + 1) * run):
            largest = max(largest, bits[i] & u32(0x7FFF_FFFF))
        finite = largest < u32(0x7F80_0000)
        scale = f32(float_of_bits(largest) / TOP) if finite else f32(np.nan)
        scales[r] = scale
        inverse = 1 / np.float64(scale) if scale >= SMALLEST else 0.0
        for i in range(r * run, (r + 1) * run):
            out[i] = np.int32(np.rint(x[i] * inverse)) if finite else 0


@kernel()
def lay_out(whole, order, block, digits, out, fours):
    """Bytes of whole, flat, in an order, and the sums of each four numbers, int32, in that order.

    Of every `block` numbers those with the numbers `order` (a multiple of 64 of them; -1 for a 0), by 64: first the
    highest digits, -128..127 each, then the next.
    """
    numbers = np.empty(64, np.int32)
    for b in range(whole.size // block):
        for i in range(0, order.size, 64):
            first = b * order.size + i
            for j in range(0, 64, 4):
                total = np.int32(0)
                for each in range(j, j + 4):
                    source = order[i + each]
                    number = whole[b * block + source] if source >= 0 else np.int32(0)
                    numbers[each] = number
                    total += number
                fours[(first + j) // 4] = total
            for j in range(0, 64, LANES):
                rest = load(numbers, j)
                for at in range(digits * first + 64 * (digits - 1), digits * first - 1, -64):
                    store(out, at + j, rest)
                    rest = (rest + 128) >> 8


@kernel()
def add_runs(codes, run, out):
    """Sums of each `run` of codes, flat, int32."""
    for r in range(out.size):
        total = np.int32(0)
        for i in range(r * run, (r + 1) * run):
            total += codes[i]
        out[r] = total


@kernel()
def add_in_lanes(whole, scales, starts, lengths, block, out):
    """For each block of whole, flat, and each lane: the sum of `lengths` numbers from `starts` on, times its scale.

    starts and lengths [16]; scales float64, one a block; out [blocks 16].
    """
    for b in range(scales.size):
        for lane in range(starts.size):
            total, first = np.int32(0), b * block + starts[lane]
            for i in range(first, first + lengths[lane]):
                total += whole[i]
            out[b * starts.size + lane] = total * scales[b]


@kernel()
def add_vectors(fours, count, factor, out):
    """Of each `count` vectors of fours, flat, the sum, lane by lane, times a factor; all int32."""
    for i in range(out.size):
        total = np.int32(0)
        for j in range(count):
            total += fours[(i // LANES * count + j) * LANES + i % LANES]
        out[i] = factor * total


@kernel()
def add_groups(whole, scales, run, size, out):
    """Sums of each `size` decoded activations, runs of whole [m, k] times scales [m, k / run]; the last may be fewer.

    out float32 [m, G].
    """
    for t in range(out.shape[0]):
        for g in range(out.shape[1]):
            total = 0.0
            for r in range(g * size // run, min((g + 1) * size, whole.shape[1]) // run):
                of_run = np.int32(0)
                for i in range(r * run, (r + 1) * run):
                    of_run += whole[t, i]
                total += of_run * np.float64(scales[t, r])
            out[t, g] = total


def sums_of_runs(codes: np.ndarray, run: int) -> np.ndarray:
    """Sums of each `run` whole numbers of a row [m, k], int32 [m, k / run]."""
    out = np.empty((len(codes), codes.shape[1] // run), np.int32)
    add_runs(np.ascontiguousarray(codes).reshape(-1), run, out.reshape(-1))
    return out


def starts_of(fours: np.ndarray, count: int, factor: int) -> np.ndarray:
    """What sums of products begin with, of in_order's sums of fours [m, width / 4]: see `add_vectors`."""
    out = aligned_empty((len(fours), fours.shape[1] // count), np.int32)
    add_vectors(fours.reshape(-1), count, factor, out.reshape(-1))
    return out


def in_order(whole: np.ndarray, order: np.ndarray, block: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of whole int32 [m, k], each block of it in this order, and the sums of each four; see `lay_out`."""
    m, width = len(whole), whole.shape[1] // block * len(order)
    out, fours = aligned_empty((m, digits * width), np.uint8), aligned_empty((m, width // 4), np.int32)
    lay_out(whole.reshape(-1), order, block, digits, out.reshape(-1), fours.reshape(-1))
    return out, fours


def _round(x: np.ndarray, run: int, signed: bool, dtype) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = np.empty((len(x), x.shape[1] // run, run), dtype), np.empty((len(x), x.shape[1] // run), f32)
    round_to_8_bits(np.ascontiguousarray(x, f32).reshape(-1), run, signed, codes.reshape(-1), scales.reshape(-1))
    return codes, scales


def round_q8_0(x: np.ndarray, run: int = 32, scale_type=np.float16, dtype=np.int8) -> tuple[np.ndarray, np.ndarray]:
    """Codes [m, k / run, run] and scales float32 [m, k / run] of x [m, k]; the scales hold what `scale_type` can."""
    codes, scales = _round(x, run, False, dtype)
    with np.errstate(over="ignore"):
        return codes, scales.astype(scale_type).astype(f32)


def round_q8_k(x: np.ndarray, dtype=np.int8) -> tuple[np.ndarray, np.ndarray]:
    """Codes [m, k / 256, 256] and scales float32 [m, k / 256] of x [m, k]."""
    return _round(x, 256, True, dtype)


def round_fixed(x: np.ndarray, run: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of 24 bits, int32 [m, k], and scales float32 [m, k / run] of x [m, k]."""
    flat = np.ascontiguousarray(x, f32).reshape(-1)
    whole, scales = np.empty(x.shape, np.int32), np.empty((len(x), x.shape[1] // run), f32)
    round_to_24_bits(flat, flat.view(u32), run, whole.reshape(-1), scales.reshape(-1))
    return whole, scales


def rounded(x: np.ndarray, run: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of so many bytes, 1 or 3, int32 [m, k], and scales float32 [m, k / run] of x [m, k]."""
    if digits == 3:
        return round_fixed(x, run)
    if run == 256:
        codes, scales = round_q8_k(x, np.int32)
    else:
        codes, scales = round_q8_0(x, run, np.float16 if run == 32 else f32, np.int32)
    return codes.reshape(x.shape), scales


@kernel()
def well_rounded(scales):
    """Whether 24 bits do for every token of scales [m, runs]: all finite, and not so small that they are inexact."""
    for t in range(scales.shape[0]):
        largest = f32(0)
        for scale in scales[t]:
            if not np.isfinite(scale):
                return False
            largest = max(largest, scale)
        if 0 < largest < LEAST:
            return False
    return True
