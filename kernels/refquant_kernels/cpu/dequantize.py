"""dequantize of every block format, bit for bit as `formats.gguf_blocks`.

Must move, for 4096 x 4096 weights of Q4_K: 9,437,184 bytes in, 67,108,864 out: at 15 GB/s 5 ms, nearly all of it the
float32 that are written. Must do: 4 to 8 operations for sixteen weights.

The idea: codes lie in planes, so vectors of sixteen come out of the bytes in order (`decode`). The weights begin at a
cache line: a vector that crosses one is two stores.
"""

import numpy as np

from refquant import ops
from refquant_kernels.cpu.compile import aligned_empty, in_pieces, specialized
from refquant_kernels.cpu.decode import DECODERS
from refquant_kernels.cpu.machine import prefetch
from refquant_kernels.cpu.simd import LANES, store

PIECE = 1 << 17  # weights
SOON = 256  # weights whose place is asked for in advance: a line that is not there yet is read before it is written

size, record, head, weights = None, None, None, None  # given by `specialized`, for each format


def _blocks(blocks, first, last, out):
    """Decode blocks first .. last - 1."""
    for b in range(first, last):
        for line in range(0, size, LANES):
            prefetch(out, size * b + SOON + line)
        scales = head(blocks, record * b)
        for j in range(size // 32):
            low, high = weights(blocks, record * b, scales, j)
            store(out, size * b + 32 * j, low)
            store(out, size * b + 32 * j + LANES, high)


KERNELS = {}


def _register(name):
    block, itemsize, its_head, its_weights = DECODERS[name]
    kernel = specialized(
        _blocks, f"dequantize_{name.lower()}", size=block, record=itemsize, head=its_head, weights=its_weights
    )

    KERNELS[name] = kernel

    @ops.fast_path("dequantize", name, backend="numba")
    def dequantize(q):
        """Weights float32 [n, k]."""
        data, count = np.ascontiguousarray(q.arrays["blocks"]).reshape(-1), q.shape[0] * q.shape[1]
        out = aligned_empty((count,))
        whole = count // block
        in_pieces(lambda first, last: kernel(data, first, last, out), whole, max(1, PIECE // block))
        if rest := count - whole * block:  # F16 and BF16: the last numbers, in a block of their own
            last = np.zeros(itemsize, np.uint8)
            last[: 2 * rest] = data[whole * itemsize :]
            decoded = np.empty(block, np.float32)
            kernel(last, 0, 1, decoded)
            out[-rest:] = decoded[:rest]
        return out.reshape(q.shape)


for _name in DECODERS:
    _register(_name)


@ops.fast_path("dequantize", "F32", backend="numba")
def dequantize_f32(q):
    """The weights themselves, copied."""
    return np.ascontiguousarray(q.arrays["blocks"]).view(np.float32).copy()


@ops.fast_path("quantize", "F32", backend="numba")
def quantize_f32(w, format, importance=None):  # noqa: A002 (ops calls it that)
    """The reference: there is nothing to make faster."""
    return ops.quantize(w, format, importance=importance)
