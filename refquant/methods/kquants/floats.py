"""F32, F16, BF16: nothing is searched, the weights are rounded (`refquant.casts`). The importance plays no part."""

import numpy as np

from refquant.casts import to_bfloat16, to_float16
from refquant.methods.kquants.blocks import search


@search("F32")
def f32(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Field bits uint32 [n, k]."""
    return {"bits": w.view(np.uint32)}


@search("F16")
def f16(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Field bits uint16 [n, k]; a weight of 65520 or more becomes infinity, as in ggml."""
    return {"bits": to_float16(w).view(np.uint16)}


@search("BF16")
def bf16(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Field bits uint16 [n, k]."""
    return {"bits": to_bfloat16(w)}
