"""The programs that a benchmark compares with, where they are installed: ggml (in the xllamacpp wheel) and torch."""

import ctypes
import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from refquant.ggml_types import ggml_type

DOT = {  # type -> the type that its dot product wants the activations in
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4"), "q8_0"),
    **dict.fromkeys(("Q4_1", "Q5_1"), "q8_1"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"), "q8_K"),
}


@functools.cache
def ggml():
    """Ggml as a ctypes library, ready to use, or None."""
    package = importlib.util.find_spec("xllamacpp")
    for folder in package.submodule_search_locations if package else ():
        for path in sorted(p for root in (folder, folder + ".libs") for p in Path(root).rglob("*.so*")):
            library = ctypes.CDLL(str(path))
            if hasattr(library, "ggml_quantize_chunk") and hasattr(library, "ggml_cpu_init"):
                library.ggml_cpu_init()  # fills its table of float16
                return library
    return None


def _symbol(name: str) -> str:
    return name[:-1].lower() + "K" if name.endswith("_K") else name.lower()


def _pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def ggml_quantize(w: np.ndarray, name: str, importance=None):
    """Return a function that encodes w [n, k], and the array that it fills."""
    n, k = w.shape
    out = np.empty((n, ggml_type(name).row_bytes(k)), np.uint8)
    sizes = (ctypes.c_int64(0), ctypes.c_int64(n), ctypes.c_int64(k))
    arguments = (ggml_type(name).id, _pointer(w), _pointer(out), *sizes, _pointer(importance))
    return lambda: ggml().ggml_quantize_chunk(*arguments), out


def ggml_dequantize(blocks: np.ndarray, name: str, shape):
    """Return a function that decodes `blocks`, and the array that it fills."""
    out = np.empty(shape, np.float32)
    symbol = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}.get(name)
    function = getattr(ggml(), symbol or f"dequantize_row_{_symbol(name)}")
    return lambda: function(_pointer(blocks), _pointer(out), ctypes.c_int64(out.size)), out


@functools.cache
def _dot_loop(name: str):
    """Ggml's vec_dot over rows first .. last - 1, compiled, so that no interpreter stands between two calls."""
    import numba

    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int, pointer, size, pointer, size, pointer, size, ctypes.c_int)
    dot = kind(ctypes.cast(getattr(ggml(), f"ggml_vec_dot_{_symbol(name)}_{DOT[name]}"), pointer).value)

    @numba.njit(nogil=True)
    def loop(k, result, row, bytes_a_row, activations, first, last):
        for r in range(first, last):
            dot(k, result + 4 * r, 0, row + r * bytes_a_row, 0, activations, 0, 1)

    return loop


def ggml_matvec(x: np.ndarray, blocks: np.ndarray, name: str, threads: int = 1):
    """Return a function that multiplies x [k] by every row of `blocks`, and its result: ggml's vec_dot, in a loop.

    The activations are rounded to 8 bits beforehand, which its time therefore leaves out. Threads share the rows.
    """
    rounded, out = np.zeros(2 * x.size, np.uint8), np.empty(len(blocks), np.float32)
    getattr(ggml(), f"quantize_row_{DOT[name]}")(_pointer(x), _pointer(rounded), ctypes.c_int64(x.size))
    loop = _dot_loop(name)
    arguments = (x.size, out.ctypes.data, blocks.ctypes.data, blocks.shape[1], rounded.ctypes.data)
    keep = (x, blocks, rounded, out)  # the loop has only their addresses
    ends = [len(blocks) * i // threads for i in range(threads + 1)]
    pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def run():
        others = [pool.submit(loop, *arguments, *ends[i : i + 2]) for i in range(1, threads)]
        loop(*arguments, ends[0], ends[1])
        for other in others:
            other.result()
        return keep

    return run, out


def has_torch() -> bool:
    """Whether torch can be imported."""
    return importlib.util.find_spec("torch") is not None


def torch_mv(x: np.ndarray, w: np.ndarray, dtype: str):
    """Return a function for torch's product of w [n, k] and x [k] in `dtype`; w holds its bits."""
    import torch

    matrix = torch.from_numpy(w).view(getattr(torch, dtype))
    vector = torch.from_numpy(x).to(matrix.dtype)
    return lambda: torch.mv(matrix, vector)


def torch_int4(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group: int):
    """Return a function for torch's int4 product with bfloat16 activations; codes [n, k], scales and zeros [n, G]."""
    import torch

    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes.astype(np.int32)), 1)
    shifted = scales * (8 - zeros)  # it decodes (code - 8) * scale + zero
    both = torch.from_numpy(np.stack([scales.T, shifted.T], axis=-1).astype(np.float32)).bfloat16().contiguous()
    tokens = torch.from_numpy(x.reshape(1, -1)).bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(tokens, packed, group, both)
