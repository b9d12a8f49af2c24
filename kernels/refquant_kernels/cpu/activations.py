"""Activations rounded to 8 bits: in ggml's manner for its block formats, in our own for the uniform grids.

Every run of activations gets one scale; a code is the nearest whole number of scales, -127 to 127::

    run   scale                               for
    32    max |x| / 127, kept in float16      the formats with blocks of 32: ggml's Q8_0 (and Q8_1: see below)
    256   extreme / -127, float32             the formats with blocks of 256: ggml's Q8_K
    128   max |x| / 127, float32              uniform grids whose groups are multiples of 128; 64 if of 64 only

Source: `quantize_row_q8_0` of ggml-cpu for x86 (the function called `_ref` divides in another order), and
`quantize_row_q8_K_ref`. NaN and infinity give a scale of NaN, so they are not hidden.
Against other code: with Q4_1 and Q5_1 ggml multiplies the block's minimum by scale * sum of codes rounded to float16
(Q8_1); here by the same number in float32.
"""

import numpy as np

f32 = np.float32


def round_q8_0(x: np.ndarray, run: int = 32, dtype=np.float16) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [m, k / run, run] and scales float32 [m, k / run] of x [m, k]."""
    x = x.reshape(len(x), x.shape[1] // run, run)
    largest = np.abs(x).max(axis=2, initial=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(largest == 0, f32(0), f32(127) / largest)
        codes = np.rint(x * inverse[..., None])
        scales = (largest / f32(127)).astype(dtype).astype(f32)
    return as_bytes(codes), np.where(np.isfinite(largest), scales, f32(np.nan))


def round_q8_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [m, k / 256, 256] and scales float32 [m, k / 256] of x [m, k]."""
    x = x.reshape(len(x), x.shape[1] // 256, 256)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=2)[..., None], axis=2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(extreme == 0, f32(0), f32(-127) / extreme)
        codes = np.minimum(np.rint(inverse * x), 127)
        scales = np.where(inverse == 0, f32(0), f32(1) / inverse)[..., 0]
    return as_bytes(codes), np.where(np.isfinite(extreme[..., 0]), scales, f32(np.nan))


def as_bytes(codes: np.ndarray) -> np.ndarray:
    """Whole numbers as int8; 0 for NaN and infinity, whose scale is NaN."""
    return np.clip(np.nan_to_num(codes, nan=0, posinf=0, neginf=0), -127, 127).astype(np.int8)
