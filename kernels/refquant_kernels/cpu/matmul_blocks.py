"""matmul of float32 activations with weights in any block format.

One token (decode), 4096 x 4096 weights of Q4_K: must move 9,437,184 bytes, each once: at 18 GB/s 0.52 ms; float32
weights would take 3.7 ms. Must do: 2 operations a weight, 33.6 MFLOP, and some 5 more for sixteen weights to decode
them: the memory is the floor of a large matrix, if enough of it is asked for in time.

- **A token or a few**: every row is decoded in registers, never stored, and multiplied at once. The one idea besides:
  a prefetch 4 KiB ahead in the stream of blocks. The processor's own prefetcher stops at every page of 4 KiB.
- **Many** (prefill): a panel of rows is decoded, small enough to stay in the cache, and multiplied by BLAS, which then
  does nearly all the work.

A row is summed by one thread, in an order that depends on nothing but its width. Sums run in 32 lanes, each of them
short, so the error is below that of a plain loop.
"""

import numpy as np

from refquant import ops
from refquant_kernels.cpu.compile import PRODUCT, aligned, in_pieces, specialized
from refquant_kernels.cpu.decode import DECODERS
from refquant_kernels.cpu.dequantize import KERNELS
from refquant_kernels.cpu.machine import prefetch, sum_lanes
from refquant_kernels.cpu.matmul_k import ROWS, arranged
from refquant_kernels.cpu.matmul_pairs import PAIRS, in_pairs
from refquant_kernels.cpu.matmul_ternary import TERNARY, in_trits
from refquant_kernels.cpu.simd import LANES, fma, load, splat

FEW = 4  # tokens up to which each row is decoded in registers for all of them
PIECE = 1 << 16  # weights to decode that are worth handing to another thread
PANEL = 1 << 19  # weights decoded for one call of BLAS: 2 MB
AHEAD = 4096  # bytes

size, record, head, weights = None, None, None, None  # given by `specialized`, for each format


def _rows(x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t of x [m, k], and rows first .. last - 1 of `per_row` blocks; `sums` is unused."""
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
    kernel, arrange = (ROWS | PAIRS | TERNARY).get(name), lambda tokens, name: (tokens, tokens)
    for kernels, its_arrange in ((ROWS, arranged), (PAIRS, in_pairs), (TERNARY, in_trits)):
        arrange = its_arrange if name in kernels else arrange
    if kernel is None:
        kernel = specialized(
            _rows, f"matmul_{name.lower()}", size=block, record=itemsize, head=its_head, weights=its_weights
        )

    def prepare(q):
        """Return matmul as a function of x [..., k] alone: float32 [..., n]."""
        n, k = q.shape
        data = np.ascontiguousarray(q.arrays["blocks"]).reshape(-1)

        def multiply(x):
            tokens = aligned(np.asarray(x).reshape(-1, k))
            m = len(tokens)
            out = np.empty((m, n), np.float32)
            if k % block:  # F16 and BF16 of a ragged width
                np.matmul(tokens, ops.dequantize(q, backend="numba").T, out=out)
            elif 0 < m <= FEW:
                given, sums = arrange(tokens, name)
                in_pieces(
                    lambda first, last: kernel(given, sums, data, k // block, first, last, out),
                    n,
                    max(1, PRODUCT // k),
                )
            elif m:
                by_panels(tokens, data, KERNELS[name], block, out)
            return out.reshape(*np.shape(x)[:-1], n)

        return multiply

    @ops.fast_path("matmul", name, backend="numba")
    def matmul(x, q):
        """X [..., k] -> float32 [..., n]."""
        return prepare(q)(x)

    ops.find_op("matmul", name).prepare["numba"] = prepare


def by_panels(tokens, data, decode, block, out):
    """Decode some rows at a time and let BLAS multiply them."""
    (_, k), n = tokens.shape, out.shape[1]
    rows = max(1, PANEL // k)
    panel = np.empty((min(rows, n), k), np.float32)
    for first in range(0, n, rows):
        count = min(rows, n - first)
        bytes_a_row = data.size // n
        part = data[first * bytes_a_row : (first + count) * bytes_a_row]
        in_pieces(
            lambda a, b, part=part: decode(part, a, b, panel.reshape(-1)), count * k // block, max(1, PIECE // block)
        )
        np.matmul(tokens, panel[:count].T, out=out[:, first : first + count])


for _name in DECODERS:
    _register(_name)


@ops.fast_path("matmul", "F32", backend="numba")
def matmul_f32(x, q):
    """BLAS, without a copy of the weights."""
    return np.asarray(x, np.float32) @ np.ascontiguousarray(q.arrays["blocks"]).view(np.float32).T
