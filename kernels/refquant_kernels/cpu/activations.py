"""Activations as whole numbers: of 8 bits, in ggml's manner or in our own, and of 24 bits.

Every run of activations gets one scale; a whole number is the nearest to so many scales::

    bits  run  scale                               for
    8     32   max |x| / 127, kept in float16      formats with blocks of 32: ggml's Q8_0 (and Q8_1: see below)
    8     256  extreme / -127, float32             formats with blocks of 256: ggml's Q8_K
    8     128  max |x| / 127, float32              uniform grids with groups of multiples of 128; 64 if of 64 only
    24    any  max |x| / 8,355,710, float32        `matmul` with float32 activations (`products`)

Source: `quantize_row_q8_0` of ggml-cpu for x86 (the function called `_ref` divides in another order), and
`quantize_row_q8_K_ref`; of 24 bits our own. NaN and infinity give a scale of NaN, so they are not hidden.
A pass or two over the activations, in kernels: NumPy's dozen of passes took as long as a small product itself.
Against other code: with Q4_1 and Q5_1 ggml multiplies the block's minimum by scale * sum of codes rounded to float16
(Q8_1); here by the same number in float32.
"""

import numpy as np

from refquant_kernels.cpu.compile import kernel
from refquant_kernels.cpu.machine import float_of_bits

f32, u32 = np.float32, np.uint32
TOP = 127 * 65536 + 127 * 256 + 126  # one below what three digits of -128..127 hold: the scale may be rounded down
SMALLEST = 2.0**-126  # scale of a run that still counts beside others
LEAST = f32(2.0**-100)  # scale of a token that keeps its accuracy when multiplied by scales of weights


@kernel()
def find_extremes(x, run, out):
    """Of each `run` of x, flat, the element of the largest magnitude, the first if there are several; NaN if any is."""
    for r in range(out.size):
        extreme = x[r * run]
        for i in range(r * run, (r + 1) * run):
            if not abs(x[i]) <= abs(extreme):
                extreme = x[i]
            if extreme != extreme:
                break
        out[r] = extreme


@kernel()
def round_runs(x, inverse, run, out):
    """The nearest whole numbers to x * inverse of its run, at most 127 in magnitude; 0 for NaN and infinity."""
    for r in range(inverse.size):
        for i in range(r * run, (r + 1) * run):
            code = np.rint(x[i] * inverse[r])
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
def split(whole, digits, out):
    """Bytes of whole, flat: of 64 numbers first the highest digits, -128..127 each, then the next."""
    for i in range(0, whole.size, 64):
        for j in range(min(64, whole.size - i)):
            rest = whole[i + j]
            for digit in range(digits - 1, -1, -1):
                low = np.int8(rest & 255)
                out[digits * i + 64 * digit + j] = np.uint8(low)
                rest = (rest - low) >> 8


@kernel()
def add_runs(codes, run, out):
    """Sums of each `run` of codes, flat, int32."""
    for r in range(out.size):
        total = np.int32(0)
        for i in range(r * run, (r + 1) * run):
            total += codes[i]
        out[r] = total


def sums_of_runs(codes: np.ndarray, run: int) -> np.ndarray:
    """Sums of each `run` whole numbers of a row [m, k], int32 [m, k / run]."""
    out = np.empty((len(codes), codes.shape[1] // run), np.int32)
    add_runs(np.ascontiguousarray(codes).reshape(-1), run, out.reshape(-1))
    return out


def in_bytes(whole: np.ndarray, digits: int) -> np.ndarray:
    """Bytes of whole int32 [m, k], k a multiple of 64, so many a number: uint8 [m, digits k]; see `split`."""
    out = np.empty((len(whole), digits * whole.shape[1]), np.uint8)
    split(whole.reshape(-1), digits, out.reshape(-1))
    return out


def _extremes(x: np.ndarray, run: int) -> tuple[np.ndarray, np.ndarray]:
    flat = np.ascontiguousarray(x, f32).reshape(-1)
    found = np.empty((len(x), x.shape[1] // run), f32)
    find_extremes(flat, run, found.reshape(-1))
    return flat, found


def _codes(flat: np.ndarray, inverse: np.ndarray, run: int) -> np.ndarray:
    codes = np.empty((*inverse.shape, run), np.int8)
    round_runs(flat, inverse.reshape(-1), run, codes.reshape(-1))
    return codes


def round_q8_0(x: np.ndarray, run: int = 32, dtype=np.float16) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [m, k / run, run] and scales float32 [m, k / run] of x [m, k]."""
    flat, largest = _extremes(x, run)
    largest = np.abs(largest)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(largest == 0, f32(0), f32(127) / largest)
        scales = (largest / f32(127)).astype(dtype).astype(f32)
    return _codes(flat, inverse, run), np.where(np.isfinite(largest), scales, f32(np.nan))


def round_q8_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [m, k / 256, 256] and scales float32 [m, k / 256] of x [m, k]."""
    flat, extreme = _extremes(x, 256)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(extreme == 0, f32(0), f32(-127) / extreme)
        scales = np.where(inverse == 0, f32(0), f32(1) / inverse)
    return _codes(flat, inverse, 256), np.where(np.isfinite(extreme), scales, f32(np.nan))


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
    codes, scales = round_q8_k(x) if run == 256 else round_q8_0(x, run, np.float16 if run == 32 else f32)
    return codes.reshape(x.shape).astype(np.int32), scales


def well_rounded(scales: np.ndarray) -> bool:
    """Whether 24 bits do for every token: all of it finite, and not so small that its scales are inexact."""
    largest = scales.max(axis=1, initial=0)
    return bool(np.all((largest == 0) | (largest >= LEAST)))
