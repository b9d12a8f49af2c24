"""Reference implementations of weight quantization for LLM serving, in NumPy. Read in this order:

    grids       the numbers a code can stand for, and how to round to them
    codebooks   the tables of those whose levels are not evenly spaced: small floats, NF4
    quantized   what every method returns
    ops         the operations: reference, unavoidable traffic, fast paths by backend
    casts       float32 to float16 and bfloat16, to the last bit
    methods     rtn, obq, gptq, awq, llm_int8, fp8, nf4, mx, kquants: weights (and calibration) become codes and scales
    importance  how strongly each input column is used
    formats     the same numbers as bytes
    models      load a language model, calibrate, quantize its Linear layers, save
    evaluate    layer error, perplexity, KL divergence
    verify      the conformance kit
    cli         the `refquant` command

Letters, everywhere: m tokens, n outputs, k inputs, g weights that share a scale; W, X, H, Hinv as in the papers.
"""

import importlib

from refquant import formats, methods
from refquant.errors import RefquantError
from refquant.formats import fp8 as _fp8  # noqa: F401 (these register themselves)
from refquant.formats import gguf_blocks as _gguf_blocks  # noqa: F401
from refquant.formats import llm_int8 as _llm_int8  # noqa: F401
from refquant.formats import mx as _mx  # noqa: F401
from refquant.formats import nf4 as _nf4  # noqa: F401
from refquant.formats import uniform as _uniform  # noqa: F401
from refquant.grids import IntGrid, as_grid
from refquant.ops import dequantize, matmul, quantize, traffic
from refquant.quantized import Quantized

__version__ = "0.1.0"
__all__ = [
    "IntGrid",
    "Quantized",
    "RefquantError",
    "as_grid",
    "dequantize",
    "formats",
    "matmul",
    "methods",
    "quantize",
    "traffic",
]

# Loaded when first used: `models` needs torch, and the others are not needed to quantize an array.
_LAZY = {name: f"refquant.{name}" for name in ("bandwidth", "claims", "evaluate", "models", "verify")}
_LAZY["gguf"] = "refquant.formats.gguf"


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    raise AttributeError(f"module 'refquant' has no attribute {name!r}")
