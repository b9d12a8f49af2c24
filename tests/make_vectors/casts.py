"""Number formats: float32 to narrower floats by ggml, ml_dtypes and torch, and every code of the 8-bit ones back."""

import ggml
import ml_dtypes
import numpy as np
import torch
from suite import GGML, ML_DTYPES, TORCH, Suite

EIGHT = {
    "E4M3FN": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    "E4M3FNUZ": (ml_dtypes.float8_e4m3fnuz, torch.float8_e4m3fnuz),
    "E5M2": (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    "E5M2FNUZ": (ml_dtypes.float8_e5m2fnuz, torch.float8_e5m2fnuz),
}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-149), 3.4028235e38, 1e-38, 65504, 65519.996, 65520,
           65536, 6.1035156e-05, 5.9604645e-08, 2.9802322e-08]  # fmt: skip
BORDER = [240, 247.9, 248, 256, 448, 463.9, 464, 465, 480, 57344, 61439, 61440, 65536, 1e6]


def ties(values):
    """Halfway between neighbours, one float32 to each side of it, and both signs."""
    values = np.unique(np.abs(values[np.isfinite(values)])).astype(np.float64)
    middle = ((values[:-1] + values[1:]) / 2).astype(np.float32)
    near = [np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(np.inf))]
    return np.concatenate([sign * part for part in near for sign in (1, -1)]).astype(np.float32)


def casts():
    """float32 to bits, and bits to float32."""
    suite = Suite("casts", "float32 to float16, bfloat16 and the 8-bit floats: every tie and boundary, every code.")
    rng = np.random.default_rng(500)
    what = "floats cut off instead of rounded to the nearest even, NaN to infinity, subnormals to zero"
    halves = rng.integers(0, 0x7C00, 1500).astype(np.uint16)
    near = np.concatenate([halves, halves + 1, np.arange(40, dtype=np.uint16)]).view(np.float16).astype(np.float32)
    x = np.concatenate([ties(near), np.float32(SPECIAL), rng.standard_normal(512).astype(np.float32)])
    bits = ggml.to_float16(x)
    with np.errstate(all="ignore"):
        other = x.astype(np.float16)
    assert np.array_equal(bits.view(np.float16), other, equal_nan=True)
    suite.add("ties", "cast", "F16", x.shape, {"x": x}, {"bits": bits}, "bits", what, (GGML, "numpy 2"), {41},
              {"TieRounding", "SubnormalScale"})  # fmt: skip
    upper = rng.integers(0, 0x7F80, 1500).astype(np.uint32)
    near = (np.concatenate([upper, upper + 1, np.arange(40, dtype=np.uint32)]) << 16).view(np.float32)
    x = np.concatenate([ties(near), np.float32(SPECIAL), np.uint32([0x7F800001, 0xFFFFFFFF]).view(np.float32)])
    bits = ggml.to_bfloat16(x)
    assert np.array_equal(bits.view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16), equal_nan=True)
    suite.add("ties", "cast", "BF16", x.shape, {"x": x}, {"bits": bits}, "bits", what, (GGML, ML_DTYPES), {41},
              {"TieRounding", "SubnormalScale"})  # fmt: skip
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, (numpy_type, torch_type) in EIGHT.items():
        values = codes.view(numpy_type).astype(np.float32)
        assert np.array_equal(values, torch.from_numpy(codes).view(torch_type).float().numpy(), equal_nan=True)
        suite.add("every-code", "dequantize", name, (16, 16), {"blocks": codes}, {"w": values}, "bits",
                  "the bias, the subnormals or the NaN of another 8-bit float: all 256 codes", (ML_DTYPES, TORCH),
                  {42}, {"EveryCode"})  # fmt: skip
        x = np.concatenate([ties(values.ravel()), np.float32(SPECIAL), np.float32(BORDER), -np.float32(BORDER)])
        with np.errstate(all="ignore"):
            bits = x.astype(numpy_type).view(np.uint8)
        suite.add("overflow-nan", "cast", name, x.shape, {"x": x}, {"bits": bits}, "bits",
                  "ties rounded up instead of to the even code; numbers beyond the largest value, which must become "
                  "NaN (infinity in E5M2)", (ML_DTYPES,), {42}, {"TieRounding", "SaturateVsNaN"},
                  {"overflow": "nan"})  # fmt: skip
    x = np.concatenate([ties(EIGHT_VALUES), np.float32(SPECIAL), np.float32(BORDER), -np.float32(BORDER)])
    bits = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    suite.add("saturate", "cast", "E4M3FN", x.shape, {"x": x}, {"bits": bits}, "bits",
              "numbers beyond 448, which must become 448: NaN or a wrapped code instead", (TORCH,), {42},
              {"TieRounding", "SaturateVsNaN"}, {"overflow": "saturate"})  # fmt: skip
    return suite


EIGHT_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
SUITES = (casts,)
