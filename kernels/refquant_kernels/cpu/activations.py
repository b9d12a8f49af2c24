"""Activations rounded to 8 bits: in ggml's manner for its block formats, in our own for the uniform grids.

Every run of activations gets one scale; a code is the nearest whole number of scales, -127 to 127::

    run   scale                               for
    32    max |x| / 127, kept in float16      the formats with blocks of 32: ggml's Q8_0 (and Q8_1: see below)
    256   extreme / -127, float32             the formats with blocks of 256: ggml's Q8_K
    128   max |x| / 127, float32              uniform grids whose groups are multiples of 128; 64 if of 64 only

Source: `quantize_row_q8_0` of ggml-cpu for x86 (the function called `_ref` divides in another order), and
`quantize_row_q8_K_ref`. NaN and infinity give a scale of NaN, so they are not hidden.
Two passes over the activations, in kernels: NumPy's dozen of passes took as long as a small product itself.
Against other code: with Q4_1 and Q5_1 ggml multiplies the block's minimum by scale * sum of codes rounded to float16
(Q8_1); here by the same number in float32.
"""

from math import prod

import numpy as np

from refquant_kernels.cpu.compile import kernel

f32 = np.float32


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
def add_runs(codes, run, out):
    """Sums of each `run` of codes, flat, int32."""
    for r in range(out.size):
        total = np.int32(0)
        for i in range(r * run, (r + 1) * run):
            total += codes[i]
        out[r] = total


def sums_of_runs(codes: np.ndarray, run: int) -> np.ndarray:
    """Sums of each `run` codes of a row, int32 [m, columns / run]."""
    out = np.empty((len(codes), prod(codes.shape[1:]) // run), np.int32)
    add_runs(np.ascontiguousarray(codes).reshape(-1), run, out.reshape(-1))
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
