"""matmul of float32 activations with weights in any block format.

One token (decode), 4096 x 4096 weights of Q4_K: must move 9,437,184 bytes, each once: at 18 GB/s 0.52 ms; float32
weights would take 3.7 ms. Must do: 2 operations a weight, 33.6 MFLOP, and some 5 more for sixteen weights to decode
them: the memory is the floor of a large matrix, if enough of it is asked for in time.

- **A token or a few**: of most formats products of bytes, with the activations as three of them (`products`). Of
  IQ4_XS, F16 and BF16, without VNNI of Q8_0 and IQ4_NL too, every row is decoded in registers, never stored, and
  multiplied at once. The one idea besides: a prefetch 4 KiB ahead in the stream of blocks. The processor's own
  prefetcher stops at every page of 4 KiB.
- **Many** (prefill): a panel of rows is decoded, small enough to stay in the cache, and multiplied (`gemm`).

A row is summed by one thread, in an order that depends on nothing but its width. Sums run in 32 lanes, each of them
short, so the error is below that of a plain loop.
"""

import numpy as np

from refquant import ops
from refquant_kernels.cpu.compile import PRODUCT, aligned, in_pieces, specialized
from refquant_kernels.cpu.decode import DECODERS
from refquant_kernels.cpu.dequantize import KERNELS
from refquant_kernels.cpu.gemm import HAS_TILES, by_panels
from refquant_kernels.cpu.machine import prefetch, sum_lanes
from refquant_kernels.cpu.matmul_int8 import PRODUCTS
from refquant_kernels.cpu.matmul_iq4_xs import FLOAT32, arranged
from refquant_kernels.cpu.products import AHEAD, FEW
from refquant_kernels.cpu.simd import LANES, fma, load, splat

size, record, head, weights = None, None, None, None  # given by `specialized`, for each format


def _rows(x, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t of x [m, k], and rows first .. last - 1 of `per_row` blocks."""
    for t in range(0, x.shape[0]):
        tokens = x[t]
        for r in range(first, last):
            low, high = splat(0.0), splat(0.0)
            for b in range(per_row):
                at = record * (r * per_row + b)
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                scales = head(blocks, at)
                for j in range(size // 32):
                    v, w = weights(blocks, at, scales, j)
                    column = b * size + 32 * j
                    low = fma(v, load(tokens, column), low)
                    high = fma(w, load(tokens, column + LANES), high)
            out[t, r] = sum_lanes(low + high)


def _register(name):
    block, itemsize, its_head, its_weights = DECODERS[name]
    product = PRODUCTS.get(name)
    in_bytes = product is not None and 3 in product.kernels
    kernel, arrange = (FLOAT32, arranged) if name == "IQ4_XS" else (None, aligned)
    if not in_bytes and kernel is None:
        parts = {"size": block, "record": itemsize, "head": its_head, "weights": its_weights}
        kernel = specialized(_rows, f"matmul_{name.lower()}", **parts)

    def prepare(q):
        """Return matmul as a function of x [..., k] alone: float32 [..., n]."""
        n, k = q.shape
        data, row_bytes = np.ascontiguousarray(q.arrays["blocks"]).reshape(-1), k // block * itemsize

        def decode(first, last, panel):
            KERNELS[name](data[first * row_bytes : last * row_bytes], 0, (last - first) * k // block, panel)

        def multiply(x):
            tokens = np.ascontiguousarray(x, np.float32).reshape(-1, k)
            m = len(tokens)
            out = np.empty((m, n), np.float32)
            if k % block:  # F16 and BF16 of a ragged width
                np.matmul(tokens, ops.dequantize(q, backend="numba").T, out=out)
            elif 0 < m <= FEW and not in_bytes:
                given, least = arrange(tokens), max(1, PRODUCT // k)
                in_pieces(lambda first, last: kernel(given, data, k // block, first, last, out), n, least)
            elif m and not (m <= FEW and product.rows(tokens, data, out, digits=3)):
                by_panels(tokens, n, decode, out)
            return out.reshape(*np.shape(x)[:-1], n)

        return multiply

    @ops.fast_path("matmul", name, backend="numba")
    def matmul(x, q):
        """X [..., k] -> float32 [..., n]."""
        return prepare(q)(x)

    ops.find_op("matmul", name).prepare["numba"] = prepare


for _name in DECODERS:
    _register(_name)


@ops.fast_path("matmul", "F32", backend="numba")
def matmul_f32(x, q):
    """A token or a few, or where there are no tiles: BLAS, without a copy of the weights."""
    n, k = q.shape
    weights = np.ascontiguousarray(q.arrays["blocks"]).view(np.float32)
    tokens = np.ascontiguousarray(x, np.float32).reshape(-1, k)
    if len(tokens) <= FEW or not HAS_TILES:
        return (tokens @ weights.T).reshape(*np.shape(x)[:-1], n)
    out = np.empty((len(tokens), n), np.float32)

    def decode(first, last, panel):
        panel[: (last - first) * k] = weights[first:last].reshape(-1)

    by_panels(tokens, n, decode, out)
    return out.reshape(*np.shape(x)[:-1], n)
