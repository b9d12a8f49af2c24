"""matmul of a token or a few with TQ1_0 and TQ2_0: codes 0, 1, 2 for -1, 0, 1, and one scale for 256.

Must move, 4096 x 4096 weights of TQ2_0: 4,325,376 bytes: at 18 GB/s 0.24 ms. Must do, for 256 weights: 7 shifts, 16
look-ups, 16 multiplications (with AVX2 twice as many, and 16 masks): 40 operations for 66 bytes, so that the
arithmetic, not the memory, is the floor. TQ1_0 has 40 more, to take its trits out of the bytes.

The idea is that of `matmul_k`: codes lie four in a lane, a shift brings the next one down, and the activations are put
in that order once. A table gives -1, 0 or 1, so that nothing has to be subtracted afterwards.
"""

import numpy as np

from refquant_kernels.cpu.compile import aligned, inlined, specialized
from refquant_kernels.cpu.decode import PAIRS, SECOND_PAIRS, half
from refquant_kernels.cpu.machine import HAS_PICK, load_52, load_words, pick, prefetch, sum_lanes, triple_bytes
from refquant_kernels.cpu.matmul_int8_blocks import AHEAD, OF_256, trits
from refquant_kernels.cpu.matmul_k import of_bytes
from refquant_kernels.cpu.simd import LANES, fma, load, splat, to_float

LOWEST, NEXT = PAIRS - 1, SECOND_PAIRS - 1


@inlined
def two_bits_minus_1(v):
    """F: the lowest two bits, minus 1."""
    return pick(load(LOWEST, 0), v) if HAS_PICK else to_float((v & 3) - 1)


@inlined
def next_two_bits_minus_1(v):
    """F: the two bits above those, minus 1."""
    return pick(load(NEXT, 0), v) if HAS_PICK else to_float(((v >> 2) & 3) - 1)


# whole(blocks, at, x, column): F, the codes of the block at byte `at` times the activations from `column` on


@inlined
def whole_tq2_0(blocks, at, x, column):  # noqa: D103
    data = load_words(blocks, at)
    total = of_bytes(data, x, column, two_bits_minus_1) + of_bytes(data, x, column + 64, next_two_bits_minus_1)
    data = data >> 4
    more = of_bytes(data, x, column + 128, two_bits_minus_1) + of_bytes(data, x, column + 192, next_two_bits_minus_1)
    return total + more


@inlined
def whole_tq1_0(blocks, at, x, column):  # noqa: D103
    data, total = load_52(blocks, at, at + 32, at + 48), splat(0.0)
    for j in range(5):
        total = total + of_bytes(trits(data), x, column + 64 * j, two_bits_minus_1)
        data = triple_bytes(data)
    return total


record, whole, width, d_at = None, None, None, None  # given by `specialized`, for each format


def _rows(x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks; x as `in_trits`; `sums` is unused."""
    for t in range(x.shape[0]):
        tokens = x[t]
        for r in range(first, last):
            total = splat(0.0)
            for b in range(per_row):
                at = record * (r * per_row + b)
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                total = fma(whole(blocks, at, tokens, width * b), splat(half(blocks, at + d_at)), total)
            out[t, r] = sum_lanes(total)


TERNARY = {
    name: specialized(
        _rows, f"matmul_{name.lower()}", record=OF_256[name][0], whole=its_whole, width=len(OF_256[name][2]), d_at=d_at
    )
    for name, its_whole, d_at in (("TQ1_0", whole_tq1_0, 52), ("TQ2_0", whole_tq2_0, 64))
}


def in_trits(tokens: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Activations [m, k] in the order in which the codes come, 0 where a vector has no code; twice."""
    order, (m, k) = OF_256[name][2], tokens.shape
    ordered = np.take(tokens.reshape(m, k // 256, 256), order, axis=2)
    ordered[..., order < 0] = 0
    lanes = ordered.reshape(m, k // 256, len(order) // 64, LANES, 4).swapaxes(3, 4)
    lanes = aligned(lanes.reshape(m, k // 256 * len(order)))
    return lanes, lanes
