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
    """Return a function that decodes `blocks` to a new array, as ours does: fresh memory has its price."""
    symbol = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}.get(name)
    function = getattr(ggml(), symbol or f"dequantize_row_{_symbol(name)}")

    def run():
        out = np.empty(shape, np.float32)
        function(_pointer(blocks), _pointer(out), ctypes.c_int64(out.size))
        return out

    return run


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


def _on_threads(function, calls: list[tuple]):
    """Return a function that calls `function` with each of these arguments, the first here, the others beside it."""
    pool = ThreadPoolExecutor(len(calls) - 1) if len(calls) > 1 else None

    def run():
        others = [pool.submit(function, *call) for call in calls[1:]]
        function(*calls[0])
        for other in others:
            other.result()

    return run


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
    share = _on_threads(loop, [(*arguments, *ends[i : i + 2]) for i in range(threads)])
    return lambda: (share(), keep), out


def plain_read(data: np.ndarray, threads: int = 1):
    """Return a function that reads `data` once and does nothing else, and the bytes that it reads: the floor."""
    from refquant_kernels.cpu.read import combine

    flat = data.reshape(-1).view(np.uint8)
    size = flat.size // threads // 256 * 256  # what `combine` takes
    parts = [flat[i * size : (i + 1) * size] for i in range(threads)]
    return _on_threads(combine, [(part,) for part in parts]), size * threads


def has_torch() -> bool:
    """Whether torch can be imported."""
    return importlib.util.find_spec("torch") is not None


def torch_mv(x: np.ndarray, w: np.ndarray, dtype: str):
    """Return a function for torch's product of w [n, k] and x [k] in `dtype`; w holds its bits."""
    import torch

    matrix = torch.from_numpy(w).view(getattr(torch, dtype))
    vector = torch.from_numpy(x).to(matrix.dtype)
    return lambda: torch.mv(matrix, vector)


def torch_mm(x: np.ndarray, w: np.ndarray):
    """Return a function for torch's product of x [m, k] and float32 weights w [n, k]."""
    import torch

    tokens, matrix = torch.from_numpy(x), torch.from_numpy(w)
    return lambda: tokens @ matrix.T


def torch_int4(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group: int, copies: int = 1):
    """Return a function for torch's int4 product with bfloat16 activations; codes [n, k], scales and zeros [n, G].

    The matrix is so many copies, one below the other. Packed rows are in blocks of at most 64, so n is a multiple.
    """
    import torch

    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes.astype(np.int32)), 1)
    packed = packed.repeat(copies, 1)
    shifted = scales * (8 - zeros)  # it decodes (code - 8) * scale + zero
    both = torch.from_numpy(np.stack([scales.T, shifted.T], axis=-1).astype(np.float32)).bfloat16()
    both = both.repeat(1, copies, 1).contiguous()
    tokens = torch.from_numpy(x.reshape(1, -1)).bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(tokens, packed, group, both)


def published_gptq(w: np.ndarray, H: np.ndarray, bits: int = 4, group: int = 128, block: int = 128, damp: float = 0.01):
    """Return a function for GPTQ as its authors' program does it, in torch and float32: the decoded weights [n, k].

    Restated from Frantar et al. 2023, algorithm 1, and the order of the operations in their gptq.py: the factor by
    Cholesky, inverse, Cholesky; then column after column over all rows; a group's range as its first column is reached.
    """
    import torch

    def run():
        rest, hessian, levels = torch.from_numpy(w).clone(), torch.from_numpy(H).float().clone(), 2**bits - 1
        k = rest.shape[1]
        unreached = hessian.diagonal() == 0
        hessian[unreached, unreached] = 1
        rest[:, unreached] = 0
        hessian.diagonal().add_(damp * hessian.diagonal().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        U = torch.linalg.cholesky(inverse, upper=True)
        decoded, losses = torch.zeros_like(rest), torch.zeros_like(rest)
        for start in range(0, k, block):
            end = min(start + block, k)
            part, errors, triangle = (
                rest[:, start:end].clone(),
                torch.zeros(len(rest), end - start),
                U[start:end, start:end],
            )
            for i in range(end - start):
                if (start + i) % group == 0:
                    members = rest[:, start + i : start + i + group]
                    low, high = members.amin(1).clamp(max=0), members.amax(1).clamp(min=0)
                    scale = (high - low) / levels
                    zero = torch.round(-low / scale)
                column, d = part[:, i], triangle[i, i]
                nearest = scale * (torch.clamp(torch.round(column / scale) + zero, 0, levels) - zero)
                decoded[:, start + i] = nearest
                losses[:, start + i] = (column - nearest) ** 2 / d**2 / 2
                errors[:, i] = (column - nearest) / d
                part[:, i:] -= errors[:, i : i + 1].matmul(triangle[i : i + 1, i:])
            rest[:, end:] -= errors.matmul(U[start:end, end:])
        return decoded

    return run
