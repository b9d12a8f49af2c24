"""Products of a token or a few with TQ1_0 and TQ2_0: codes 0, 1, 2 for -1, 0, 1, and one scale for 256 (`products`).

Must move, 4096 x 4096 weights of TQ2_0: 4,325,376 bytes: at 18 GB/s 0.24 ms. Must do, for 256 weights: 7 operations for
the codes, 4 for their products with activations of one byte, 14 of three, a conversion, a multiplication: the memory is
the floor. TQ1_0 has 15 more with VBMI, otherwise 33, to take its trits out of the bytes.

The idea: since all of a block has one scale, all of it is one sum of integers, and the bytes of the activations are put
together once for 256 weights.
"""

import numpy as np

from refquant_kernels.cpu.activations import in_order, starts_of
from refquant_kernels.cpu.compile import inlined, specialized
from refquant_kernels.cpu.decode import splat_half
from refquant_kernels.cpu.machine import (
    HAS_BYTE_TABLES,
    above_85,
    above_170,
    byte_of_64,
    dot_bytes,
    high_of_9_times,
    high_of_27_times,
    load_52,
    load_words,
    low_of_27_times,
    prefetch,
    sum_lanes,
    triple_bytes,
)
from refquant_kernels.cpu.products import AHEAD, TWO_BITS, Product
from refquant_kernels.cpu.simd import LANES, fma, load, splat, splat_int, to_float

# ruff: noqa: D103 (codes_x is what the comment below says, for the format x)

# codes(blocks, at): the 256 codes of the block at byte `at`, bytes of five vectors


@inlined
def codes_tq2_0(blocks, at):
    data = load_words(blocks, at)
    return data & TWO_BITS, (data >> 2) & TWO_BITS, (data >> 4) & TWO_BITS, (data >> 6) & TWO_BITS, splat_int(0)


@inlined
def trits(data):
    """The first trit of each byte, 0 to 2: byte * 3 / 256, without its fraction."""
    return above_85(data) + above_170(data)


# With VBMI: three trits of a byte are byte * 27 / 256, a number below 27, of which tables know the first, the second,
# the third; what is left of the product, the lower 8 bits, times 9 has two more.
THREE, TWO = np.arange(64) % 27, np.arange(64) % 9
OF_THREE = [(THREE // power % 3).astype(np.uint8) for power in (9, 3, 1)]
OF_TWO = [(TWO // power % 3).astype(np.uint8) for power in (3, 1)]
FIRST, SECOND, THIRD = OF_THREE
FOURTH, FIFTH = OF_TWO


@inlined
def codes_tq1_0(blocks, at):
    a = load_52(blocks, at, at + 32, at + 48)
    if HAS_BYTE_TABLES:
        three, two = high_of_27_times(a), high_of_9_times(low_of_27_times(a))
        return (
            byte_of_64(load_words(FIRST, 0), three),
            byte_of_64(load_words(SECOND, 0), three),
            byte_of_64(load_words(THIRD, 0), three),
            byte_of_64(load_words(FOURTH, 0), two),
            byte_of_64(load_words(FIFTH, 0), two),
        )
    b = triple_bytes(a)
    c = triple_bytes(b)
    d = triple_bytes(c)
    return trits(a), trits(b), trits(c), trits(d), trits(triple_bytes(d))


record, codes, vectors, bytes_each, d_at = None, None, None, None, None  # given by `specialized`, for each format


def _rows(x, starts, scale_x, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks each.

    x: uint8 [m, 64 vectors bytes_each per_row]; starts: int32 [m, 16 per_row], minus the activations that meet each
    lane; scale_x [m, per_row].
    """
    for t in range(x.shape[0]):
        tokens, starts_of_token, scales = x[t], starts[t], scale_x[t]
        for r in range(first, last):
            total = splat(0.0)
            for b in range(per_row):
                at, column = record * (r * per_row + b), 64 * vectors * bytes_each * b
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                c0, c1, c2, c3, c4 = codes(blocks, at)
                whole = splat_int(0)
                for i in range(column, column + 64 * bytes_each, 64):
                    digit = dot_bytes(splat_int(0), c0, load_words(tokens, i))
                    digit = dot_bytes(digit, c1, load_words(tokens, i + 64 * bytes_each))
                    digit = dot_bytes(digit, c2, load_words(tokens, i + 128 * bytes_each))
                    digit = dot_bytes(digit, c3, load_words(tokens, i + 192 * bytes_each))
                    if vectors == 5:
                        digit = dot_bytes(digit, c4, load_words(tokens, i + 256 * bytes_each))
                    whole = (whole << 8) + digit
                whole = whole + load(starts_of_token, LANES * b)
                total = fma(to_float(whole), splat_half(blocks, at + d_at) * splat(scales[b]), total)
            out[t, r] = sum_lanes(total)


def _order_tq2_0():
    return np.arange(256).reshape(2, 4, 32).swapaxes(0, 1).reshape(-1)


def _order_tq1_0():
    """Vector j has trit j of the 48 bytes, then of the last four, which have four; -1 where there is no weight."""
    order = np.full((5, 64), -1)
    order[:, :32], order[:, 32:48] = np.arange(160).reshape(5, 32), np.arange(160, 240).reshape(5, 16)
    order[:4, 48:52] = np.arange(240, 256).reshape(4, 4)
    return order.reshape(-1)


PARTS = {"TQ2_0": (66, codes_tq2_0, _order_tq2_0(), 64), "TQ1_0": (54, codes_tq1_0, _order_tq1_0(), 52)}


def _product(name):
    size, its_codes, order, its_d = PARTS[name]
    parts = {"record": size, "codes": its_codes, "vectors": len(order) // 64, "d_at": its_d}
    kernels = {
        1: specialized(_rows, f"matmul_int8_{name.lower()}", bytes_each=1, **parts),
        3: specialized(_rows, f"matmul_{name.lower()}", bytes_each=3, **parts),
    }

    def tables(whole, scales, digits):
        ordered, fours = in_order(whole, order, 256, digits)
        return ordered, starts_of(fours, len(order) // 64, -1), scales

    return Product(kernels, 256, tables)


TERNARY = {name: _product(name) for name in PARTS}
