"""ggml itself, compiled, through ctypes: the program that owns the block formats, and so decides what is right.

The library is the one inside the `xllamacpp` wheel. Nothing of refquant is used here.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path

import gguf
import numpy as np

TYPES = gguf.GGMLQuantizationType
SIZES = gguf.GGML_QUANT_SIZES  # type -> (weights a block, bytes a block)
DECODERS = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}


def sizes(name):
    """Weights and bytes of a block, as gguf-py states them."""
    return SIZES[TYPES[name]]


@functools.cache
def library():
    """The first shared library of the installed xllamacpp that exports the quantizer."""
    package = importlib.util.find_spec("xllamacpp").submodule_search_locations[0]
    for path in sorted(p for root in (package, package + ".libs") for p in Path(root).rglob("*.so*")):
        handle = ctypes.CDLL(str(path))
        if hasattr(handle, "ggml_quantize_chunk"):
            handle.ggml_quantize_chunk.restype = ctypes.c_size_t
            return handle
    raise LookupError(f"no library in {package} exports ggml_quantize_chunk")


def _pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def quantize(w, name, importance=None):
    """Bytes of `w` float32 [n, k] in the type `name`, uint8 [n, bytes a row]."""
    w = np.ascontiguousarray(w, np.float32)
    n, k = w.shape
    weights, size = sizes(name)
    out = np.empty((n, k // weights * size), np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == (k,)
    written = library().ggml_quantize_chunk(
        int(TYPES[name]), _pointer(w), _pointer(out),
        ctypes.c_int64(0), ctypes.c_int64(n), ctypes.c_int64(k), _pointer(importance),
    )  # fmt: skip
    assert written == out.nbytes
    return out


def dequantize(blocks, name):
    """Weights float32 [n, k] of `blocks` uint8 [n, bytes a row]."""
    blocks = np.ascontiguousarray(blocks)
    weights, size = sizes(name)
    if name == "F32":
        return blocks.view(np.float32)
    out = np.empty((len(blocks), blocks.shape[1] // size * weights), np.float32)
    symbol = DECODERS.get(name) or "dequantize_row_" + (
        name.lower()[:-1] + "K" if name.endswith("_K") else name.lower()
    )
    getattr(library(), symbol)(_pointer(blocks), _pointer(out), ctypes.c_int64(out.size))
    return out


def to_float16(x):
    """float16 bits of float32 [count]."""
    x, out = np.ascontiguousarray(x, np.float32), np.empty(len(x), np.uint16)
    library().ggml_fp32_to_fp16_row(_pointer(x), _pointer(out), ctypes.c_int64(len(x)))
    return out


def to_bfloat16(x):
    """bfloat16 bits of float32 [count], by the function that the quantizer calls."""
    x, out = np.ascontiguousarray(x, np.float32), np.empty(len(x), np.uint16)
    library().ggml_fp32_to_bf16_row_ref(_pointer(x), _pointer(out), ctypes.c_int64(len(x)))
    return out
