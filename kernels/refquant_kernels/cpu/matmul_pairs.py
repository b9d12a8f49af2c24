"""matmul of a token or a few with Q4_0 Q4_1 Q5_0 Q5_1 MXFP4: two blocks of 32 at a time, no code moved.

Must move, 4096 x 4096 weights of Q5_0: 11,534,336 bytes: at 18 GB/s 0.64 ms. Must do, for two blocks, 64 weights: some
5 operations for their codes, 3 shifts, 4 look-ups and 4 multiplications (with AVX2 twice as many, and 3 masks), 5 for
the two scales: some 20, of which the processor does two at a time: 10 cycles for 44 bytes, less than the memory takes.

The idea is that of `matmul_k`: codes lie four in a lane, a shift brings the next one down, and the activations are put
in that order once; a block's fifth bits, 32 in a word, are set in all of its bytes at once. A minimum meets the sum of
its block's activations only.
"""

import numpy as np

from refquant_kernels.cpu.compile import aligned, inlined, specialized
from refquant_kernels.cpu.decode import E2M1, E2M1_WORDS, four_bits, four_bits_minus_8, halves, look_up
from refquant_kernels.cpu.machine import HAS_PICK, load_quarters, pick_of_32, prefetch, sum_lanes
from refquant_kernels.cpu.matmul_int8_blocks import (
    AHEAD,
    codes_q4_0,
    codes_q4_1,
    codes_q5_0,
    codes_q5_1,
    heads_mxfp4,
    in_mins,
    nibbles,
    padded,
    to_each_half,
)
from refquant_kernels.cpu.matmul_k import lowest_byte, of_bytes
from refquant_kernels.cpu.simd import LANES, fma, load, splat, to_float

UP_TO_31 = np.arange(32, dtype=np.float32)
MINUS_16 = UP_TO_31 - 16


@inlined
def five_bits(v):
    """F: the lowest five bits; without a table for them, of a byte that has no more."""
    return pick_of_32(load(UP_TO_31, 0), load(UP_TO_31, LANES), v) if HAS_PICK else lowest_byte(v)


@inlined
def five_bits_minus_16(v):
    """F: the same, minus 16."""
    return pick_of_32(load(MINUS_16, 0), load(MINUS_16, LANES), v) if HAS_PICK else to_float((v & 255) - 16)


@inlined
def places_mxfp4(blocks, i, j):
    """As the codes of the others: places in the table."""
    return nibbles(load_quarters(blocks, i + 1, j + 1))


@inlined
def e2m1(v):
    """F: the doubled value of the lowest four bits."""
    return look_up(E2M1, E2M1_WORDS, v)


record, codes, head, value, has_min = None, None, None, None, None  # given by `specialized`, for each format


def _rows(x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks each; x and sums as `in_pairs`."""
    for t in range(x.shape[0]):
        tokens, sums_of_token = x[t], sums[t]
        for r in range(first, last):
            total, rest = splat(0.0), splat(0.0)
            for b in range(0, per_row, 2):
                i = record * (r * per_row + b)
                j = i + record if b + 1 < per_row else i
                for line in range(0, 2 * record, 64):
                    prefetch(blocks, i + AHEAD + line)
                d_and_min = head(blocks, i, j)
                total = fma(of_bytes(codes(blocks, i, j), tokens, 32 * b, value), to_each_half(d_and_min), total)
                if has_min:
                    rest = fma(d_and_min, load(sums_of_token, 8 * b), rest)
            out[t, r] = sum_lanes(total + rest if has_min else total)


FORMATS = {
    "Q4_0": (18, codes_q4_0, halves, four_bits_minus_8, False),
    "Q4_1": (20, codes_q4_1, halves, four_bits, True),
    "Q5_0": (22, codes_q5_0, halves, five_bits_minus_16, False),
    "Q5_1": (24, codes_q5_1, halves, five_bits, True),
    "MXFP4": (17, places_mxfp4, heads_mxfp4, e2m1, False),
}
PAIRS = {
    name: specialized(
        _rows, f"matmul_{name.lower()}", record=size, codes=its_codes, head=its_head, value=its_value, has_min=with_min
    )
    for name, (size, its_codes, its_head, its_value, with_min) in FORMATS.items()
}


def in_pairs(tokens: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Activations [m, 64 p] in the order in which the codes of two blocks come, and their sums where there are minima
    (`in_mins`); 0 where the last pair is half.
    """  # fmt: skip
    m, k = tokens.shape
    wide = padded(tokens, 64).reshape(m, -(-k // 64), LANES, 4)
    ordered = aligned(wide.swapaxes(2, 3).reshape(m, wide.shape[1] * 64))
    return ordered, in_mins(tokens.reshape(m, k // 32, 32).sum(axis=2)) if FORMATS[name][-1] else ordered
