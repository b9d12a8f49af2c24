"""FP8: weights, and perhaps activations, as 8-bit floats with one scale; the simplest format that GPUs multiply in.

A scale brings the largest magnitude of its group to the largest value of the format; then every weight is cast::

    scale = max |w| / 448              E4M3; 57344 for E5M2, 240 for E4M3 FNUZ
    code  = nearest(w / scale)

Because the levels are spaced by a factor, not by a step, small weights keep their relative precision (3 bits) whatever
the largest is: an outlier costs much less than on an integer grid, and a scale for a row, or even for the whole matrix,
will do. What is under max|w| / 448 * 2^-10 still becomes 0.

    name                scale for             file
    fp8-e4m3            each row              compressed-tensors, strategy "channel"
    fp8-e4m3-tensor     the matrix            compressed-tensors, strategy "tensor"
    fp8-e4m3-block      128 x 128 weights     DeepSeek-V3, `weight_scale_inv` (which multiplies, whatever its name says)

and the same for `e5m2`, `e4m3fnuz` and `e5m2fnuz`.

Source: Micikevicius et al., "FP8 formats for deep learning" (arXiv 2209.05433); DeepSeek-V3 (arXiv 2412.19437), section
3.3, for blocks. The cast itself is `codebooks.SmallFloat.encode`.
Against other code: compressed-tensors keeps the scale in the model's dtype (bfloat16 as a rule), here it is float32.
vLLM takes at least 1 / (448 * 512) as the scale of an activation; here a group of zeros has scale 1.
Leaves out: scales rounded to powers of two (DeepSeek-V3.1), delayed scaling, gradients in E5M2.
"""

import numpy as np

from refquant import ops
from refquant.codebooks import E4M3, E4M3_FNUZ, E5M2, E5M2_FNUZ, SmallFloat
from refquant.errors import BadInput
from refquant.grids import CodebookGrid, check_inputs, register_grids
from refquant.methods import rtn
from refquant.methods.registry import Method, Row, own_format, register_method
from refquant.quantized import Quantized

FLOATS = {"e4m3": E4M3, "e5m2": E5M2, "e4m3fnuz": E4M3_FNUZ, "e5m2fnuz": E5M2_FNUZ}
BLOCK = 128
_SHARED = {"": (None, 1), "-tensor": (None, None), "-block": (BLOCK, BLOCK)}  # columns, rows to a scale


def grid(float_name: str, shared: str = "") -> CodebookGrid:
    """Return the grid `fp8-<float_name><shared>`; `shared` is "", "-tensor" or "-block"."""
    shared = shared or ""
    return CodebookGrid(f"fp8-{float_name}{shared}", FLOATS[float_name], *_SHARED[shared])


register_grids(
    r"fp8-(e4m3|e5m2|e4m3fnuz|e5m2fnuz)(-tensor|-block)?",
    grid,
    ("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block", "fp8-e5m2"),
)
ops.part("search", "fp8")(rtn.search)


def input_scale(x: np.ndarray, codebook: SmallFloat = E4M3, per: str = "token") -> np.ndarray:
    """Scale of inputs `x` [..., k]: max |x| over the largest value of the format, float32.

    `per` "token": one for each token, [m, 1], found while serving ("dynamic"). "tensor": one for all, [1, 1], found on
    calibration data and then kept ("static"), which saves the search but saturates what lies beyond.
    """
    if per not in ("token", "tensor"):
        raise BadInput(f"per must be 'token' or 'tensor', got {per!r}")
    x = check_inputs(x, np.shape(x)[-1] if np.ndim(x) else 0)
    peaks = np.abs(x).max(axis=1, keepdims=True)  # [m, 1]
    each = CodebookGrid("inputs", codebook)
    return each.scale(peaks if per == "token" else peaks.max(keepdims=True))


def quantize_inputs(
    x: np.ndarray, scale: np.ndarray, codebook: SmallFloat = E4M3, overflow: str = "saturate"
) -> np.ndarray:
    """Codes uint8 of inputs `x` [m, k] with the scale of `input_scale`; `overflow` as for the cast."""
    return codebook.encode(np.asarray(x, np.float32) / scale, overflow)


def matmul(x: np.ndarray, q: Quantized, scale: np.ndarray | None = None, codebook: SmallFloat = E4M3) -> np.ndarray:
    """Multiply with both sides in FP8 (W8A8): x [..., k] -> float32 [..., n].

    Parameters
    ----------
    x : float32 [..., k]
    q : Quantized
        Weights [n, k] in an `fp8-` format. (`ops.matmul` leaves x as it is: weight-only.)
    scale : float32 [1, 1] or [m, 1], optional
        A static scale from `input_scale(calibration, per="tensor")`; by default each token gets its own.
    codebook : SmallFloat
        Of the inputs.

    Notes
    -----
    Products of two E4M3 codes are exact in float32 (4 + 4 bits of significand), and so is what tensor cores take.
    Against other code: GPUs sum the codes' products and multiply by the scales at the end (per 128 inputs with block
    scales); here the factors carry their scales. The two differ by float32 rounding only.
    """
    tokens = check_inputs(np.atleast_2d(x), q.shape[1])
    scale = input_scale(tokens, codebook) if scale is None else np.asarray(scale, np.float32)
    decoded = codebook.decode(quantize_inputs(tokens, scale, codebook)) * scale
    return (decoded @ ops.dequantize(q).T).reshape(*np.shape(x)[:-1], q.shape[0])


register_method(
    Method(
        "fp8",
        layer=own_format("fp8"),
        rows=(Row("FP8 E4M3 per channel", "fp8", "fp8-e4m3", "GPU", "Simple, safe compression"),),
    )
)
