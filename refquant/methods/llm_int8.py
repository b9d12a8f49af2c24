"""LLM.int8: weights and activations as 8-bit integers; the few input columns with outliers apart, in floating point.

Each row of W and each token of x is scaled by its largest magnitude, so the product of integers needs one factor::

    Cw = round(W 127 / sw),  sw = max |W| of the row          once, when the weights are quantized
    Cx = round(x 127 / sx),  sx = max |x| of the token        at every call
    y  = (Cx Cwᵀ) sx sw / 127²                                 the product in int32, exact

One large activation leaves all the others of its token few levels. In trained models such outliers sit in the same few
columns for every token, so those are multiplied apart, with the weights decoded::

    O  = the columns j with |x_j| >= 6 in any token
    y  = (Cx Cwᵀ) sx sw / 127²  without O   +   x_O (Cw sw / 127)_Oᵀ

Source: Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8()" (arXiv 2208.07339), sections 2 and 3; bitsandbytes 0.50.2,
backends/default/ops.py: `int8_vectorwise_quant`, `int8_mixed_scaled_mm`, `int8_mm_dequant`.
Against other code: as bitsandbytes, weights and activations are rounded to float16 before they are quantized, the
threshold is met at 6.0 itself, sx leaves out the outliers but not the rest of their columns, and with threshold 0
nothing is set apart. For float16 inputs it rounds y to float16 before it adds the outliers; here all is float32. The
paper writes "greater than" the threshold. 1/127² is 6.2000124e-05, as in bitsandbytes' CUDA code; its default backend
has 6.200124e-05, a digit short, so its products are 18 millionths larger. Without AVX-512 its CPU product is summed in
float32, which is exact up to 1040 inputs.
Leaves out: the backward pass.
"""

from dataclasses import dataclass

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.grids import CodebookGrid, check_inputs, register_grids
from refquant.methods import rtn
from refquant.methods.registry import Method, Row, own_format, register_method
from refquant.quantized import Quantized

LEVELS = 127
DEQUANTIZE = 1 / LEVELS**2
THRESHOLD = 6.0


def rowwise(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [m, k] and largest magnitudes float32 [m] of float16 or float32 [m, k]; a row of zeros stays zeros."""
    a = a.astype(np.float32, copy=False)
    s = np.abs(a).max(axis=1)
    return _codes(a, s[:, None]), s


def _codes(a, s):
    factor = np.float32(LEVELS) * (np.float32(1) / np.where(s > 0, s, np.float32(np.inf)))
    return np.clip(np.rint(a * factor), -LEVELS, LEVELS).astype(np.int8)


@dataclass(frozen=True)
class Int8Grid(CodebookGrid):
    """The grid `llm-int8`: -127 to 127 times row maximum / 127. Codes travel as uint8, the same bytes as the int8."""

    def scale(self, peak: np.ndarray) -> np.ndarray:
        """The row's maximum after rounding to float16."""
        return _half(peak).astype(np.float32)

    def encode(self, w: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Codes, uint8 of w's shape, of w rounded to float16."""
        return _codes(_half(w), scale).view(np.uint8)

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Weights, float32 of the codes' shape."""
        return codes.view(np.int8) * scale * np.float32(1 / LEVELS)


def _half(a: np.ndarray) -> np.ndarray:
    return _finite(_rounded(a), a)


def _rounded(a: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(a).astype(np.float16)


def _finite(half: np.ndarray, a: np.ndarray) -> np.ndarray:
    if not np.isfinite(half).all():
        raise BadInput(f"llm-int8 rounds to float16 first, and {np.abs(a).max():.3g} is beyond it (65504)")
    return half


register_grids("llm-int8", lambda: Int8Grid("llm-int8", None), ("llm-int8",))
ops.part("search", "llm-int8")(rtn.search)


def outliers(x: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Where |x| reaches the threshold after rounding to float16, bool of x's shape; nowhere with a threshold of 0.

    The columns to set apart are those with any: `outliers(x).any(axis=0)`, whose mean is the fraction of columns.
    """
    _check(threshold)
    return (np.abs(_rounded(x)) >= threshold) & (threshold > 0)


def with_threshold(q: Quantized, threshold: float) -> Quantized:
    """Return `q` with the threshold that `ops.matmul` then uses in place of 6.0; 0 for no decomposition."""
    _check(threshold)
    return Quantized(q.format, q.shape, q.arrays | {"threshold": np.array(threshold, np.float32)})


def _check(threshold):
    if not threshold >= 0:
        raise BadInput(f"threshold must be 0 (no decomposition) or positive, got {threshold!r}")


@ops.part("matmul", "llm-int8")
def matmul(
    x: np.ndarray, q: Quantized, threshold: float | None = None, constant: float = DEQUANTIZE, product=None
) -> np.ndarray:
    """Multiply: x [..., k] -> float32 [..., n]. This is what `ops.matmul` does for `llm-int8`.

    Parameters
    ----------
    x : float [..., k]
        Which columns are outliers depends on all the tokens that are multiplied together.
    q : Quantized
        Weights [n, k] in `llm-int8`.
    threshold : float, optional
        Of the decomposition; 0 for none. By default that of `q`, 6.0 unless set by `with_threshold`.
    constant : float
        1/127²; for a comparison with bitsandbytes' default backend, 6.200124e-05.
    product : function, optional
        Of the integers, in place of `int32_product`.

    Raises
    ------
    BadInput
        NaN or infinity, or, of what is rounded, values beyond float16.
    """
    if not np.size(x):
        return np.empty((*np.shape(x)[:-1], q.shape[0]), np.float32)
    tokens = check_inputs(np.atleast_2d(x), q.shape[1])  # [m, k]
    CB, SCB = q.arrays["CB"], q.arrays["SCB"]
    threshold = q.arrays.get("threshold", THRESHOLD) if threshold is None else threshold
    half = _rounded(tokens)
    large = outliers(half, threshold)
    CA, SCA = rowwise(_finite(np.where(large, np.float16(0), half), tokens))
    O = large.any(axis=0)  # [k]
    CA[:, O] = 0
    y = (product or int32_product)(CA, CB).astype(np.float32)
    y *= SCA[:, None] * SCB
    y *= np.float32(constant)
    y += tokens[:, O] @ (CB[:, O] * SCB[:, None] * np.float32(1 / LEVELS)).T
    return y.reshape(*np.shape(x)[:-1], q.shape[0])


def int32_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Product of int8 [m, k] and int8 [n, k], int32 [m, n], by BLAS; exact where the type holds every partial sum."""
    exact = np.float32 if a.shape[1] * 128**2 <= 2**24 else np.float64
    return (a.astype(exact) @ b.astype(exact).T).astype(np.int32)


def _layer(w, grid, inputs, threshold=THRESHOLD):
    q = own_format("llm-int8")(w, grid, inputs)
    return q if threshold == THRESHOLD else with_threshold(q, threshold)


register_method(
    Method(
        "llm-int8",
        layer=_layer,
        rows=(Row("LLM.int8", "llm-int8", "llm-int8", "GPU", "Simple, safe compression"),),
    )
)
