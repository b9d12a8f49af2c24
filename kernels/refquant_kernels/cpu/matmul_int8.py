"""matmul_int8: weights times activations of 8 bits, `ops.find_op("matmul_int8", "Q4_K")`, of all block formats.

The activations are rounded first (`activations`). The rest is exact but for float32 sums: y = sum decode(q) *
decode(x). The rounding costs accuracy, so this is an operation of its own, never what `matmul` does. The kernels, what
they must move and do: `matmul_k`, `matmul_pairs`, `matmul_ternary`, `matmul_iq4_xs`; of the uniform grids
`matmul_grids`.
"""

import numpy as np

from refquant import ops
from refquant.grids import as_grid
from refquant.quantized import find_format
from refquant_kernels.cpu.activations import round_q8_0, round_q8_k
from refquant_kernels.cpu.matmul_iq4_xs import IQ4_XS
from refquant_kernels.cpu.matmul_k import K_QUANTS
from refquant_kernels.cpu.matmul_pairs import PAIRS
from refquant_kernels.cpu.matmul_ternary import TERNARY

PRODUCTS = K_QUANTS | PAIRS | TERNARY | IQ4_XS


def run_of_grid(size: int, k: int) -> int:
    """How many activations share a scale, for groups of `size` weights in rows of k; both multiples of 64."""
    return 64 if size % 128 or k % 128 else 128


def run_length(q) -> int:
    """How many activations share a scale, for the weights `q`."""
    if find_format(q.format).family == "int":
        return run_of_grid(as_grid(q.format).group_size or q.shape[1], q.shape[1])
    return 256 if q.format.endswith("_K") or q.format in ("IQ4_XS", "TQ1_0", "TQ2_0") else 32


def round_as_for(x: np.ndarray, q) -> np.ndarray:
    """X [m, k] as `matmul_int8` with the weights `q` sees it: rounded, and decoded again."""
    run = run_length(q)
    if run == 256:
        codes, scales = round_q8_k(x)
    else:
        codes, scales = round_q8_0(x, run, np.float16 if run == 32 else np.float32)
    return (codes * scales[..., None]).reshape(x.shape)


def _reference(x, q):
    tokens = np.asarray(x, np.float32).reshape(-1, q.shape[1])
    return (round_as_for(tokens, q) @ ops.dequantize(q).T).reshape(*x.shape[:-1], q.shape[0])


def _traffic(shape, name, m=1):
    return ops.traffic("matmul", shape, name, m=m)


def _register(name):
    @ops.fast_path("matmul_int8", name, backend="numba")
    def matmul(x, q):
        """X [..., k] -> float32 [..., n], with activations rounded to 8 bits."""
        tokens = np.asarray(x, np.float32).reshape(-1, q.shape[1])
        out = np.empty((len(tokens), q.shape[0]), np.float32)
        PRODUCTS[name].rows(tokens, np.ascontiguousarray(q.arrays["blocks"]).reshape(-1), out, digits=1)
        return out.reshape(*x.shape[:-1], q.shape[0])


ops.register("matmul_int8", _reference, _traffic)
for _name in PRODUCTS:
    _register(_name)
