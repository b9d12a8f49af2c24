"""Reading memory and nothing else: the roof that `refquant bench cpu` measures products against.

Must move: every byte once. Must do: one operation for 64 bytes. The idea is that of the products: a prefetch 4 KiB
ahead, since the processor's own prefetcher stops at every page.
"""

from refquant_kernels.cpu.compile import kernel
from refquant_kernels.cpu.machine import load_words, prefetch, sum_lanes_int
from refquant_kernels.cpu.simd import splat_int

AHEAD = 4096  # bytes


@kernel()
def combine(data):
    """All words of 32 bits of `data`, uint8, by "or", what they have in common aside; whole 256 bytes only."""
    a, b, c, d = splat_int(0), splat_int(0), splat_int(0), splat_int(0)
    for i in range(0, data.size // 256 * 256, 256):
        prefetch(data, i + AHEAD)
        prefetch(data, i + AHEAD + 64)
        prefetch(data, i + AHEAD + 128)
        prefetch(data, i + AHEAD + 192)
        a, b = a | load_words(data, i), b | load_words(data, i + 64)
        c, d = c | load_words(data, i + 128), d | load_words(data, i + 192)
    return sum_lanes_int((a | b) | (c | d))
