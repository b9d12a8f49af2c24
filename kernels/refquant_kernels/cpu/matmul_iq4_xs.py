"""Products of a token or a few with IQ4_XS: values of 8 bits from a table, a scale for every 32.

Must move, 4096 x 4096 weights: 8,912,896 bytes: at 18 GB/s 0.5 ms. Must do, 64 weights: a shift, a mask, a look-up;
with activations of one byte a product, a conversion, a multiplication; of float32 3 shifts, 4 look-ups, 4
multiplications.

The idea: no code is moved. Bytes lie four in a lane, and a shift brings the next one down; spreading them to a lane
each, as `decode` does, all goes through the one port that shuffles. The activations are put in that order once. (Three
bytes of activations, as in `products`, times values of 8 bits do not fit 32.)
"""

import numpy as np

from refquant_kernels.cpu.activations import in_order, starts_of
from refquant_kernels.cpu.compile import aligned, inlined, specialized
from refquant_kernels.cpu.decode import IQ4, IQ4_WORDS, look_up, splat_half
from refquant_kernels.cpu.machine import (
    SIGNED_EXCESS,
    arrange,
    load_words_twice,
    look_up_bytes,
    prefetch,
    sum_lanes,
    word_at,
)
from refquant_kernels.cpu.matmul_pairs import IQ4_CODES, product_one_signed
from refquant_kernels.cpu.products import AHEAD, NIBBLES, Product, in_halves
from refquant_kernels.cpu.simd import LANES, fma, load, shift_right, splat, splat_int, to_float

PAIRWISE = np.repeat(np.arange(8, dtype=np.int32), 2)  # 0 0 1 1 2 2 ...: sub-blocks of 32 as pairs of sixteen


@inlined
def scales_iq4_xs(blocks, at):
    """The scales of sub-blocks, in the order of the weights, each twice."""
    pairs = load(PAIRWISE, 0)
    low = shift_right(splat_int(np.int32(word_at(blocks, at + 4))), pairs << 2) & 15
    high = (splat_int(np.int32(blocks[at + 2]) | np.int32(blocks[at + 3]) << 8) >> (pairs << 1)) & 3
    return (low | (high << 4)) - 32


@inlined
def codes_iq4_xs(blocks, at):
    """256 places in the table, bytes of four vectors."""
    a, b = load_words_twice(blocks, at + 8), load_words_twice(blocks, at + 40)
    c, d = load_words_twice(blocks, at + 72), load_words_twice(blocks, at + 104)
    a, b, c, d = in_halves(a, 0, 4), in_halves(b, 0, 4), in_halves(c, 0, 4), in_halves(d, 0, 4)
    return a & NIBBLES, b & NIBBLES, c & NIBBLES, d & NIBBLES


@inlined
def of_bytes(v, x, column):
    """F: in each lane its four codes' values times four activations; those of the lanes' first bytes come first."""
    total = look_up(IQ4, IQ4_WORDS, v) * load(x, column)
    total = fma(look_up(IQ4, IQ4_WORDS, v >> 8), load(x, column + LANES), total)
    total = fma(look_up(IQ4, IQ4_WORDS, v >> 16), load(x, column + 2 * LANES), total)
    return fma(look_up(IQ4, IQ4_WORDS, v >> 24), load(x, column + 3 * LANES), total)


@inlined
def of_signed(v, x, column, starts, i):
    """F: the same with activations of one byte; starts: minus SIGNED_EXCESS times the sum of each lane's four."""
    return product_one_signed(starts, i, look_up_bytes(load(IQ4_CODES, 0), v), x, column)


# sixteen low halves of a sub-block, of the next one, then the high ones
ORDER = np.arange(256).reshape(4, 2, 2, 16).swapaxes(1, 2).reshape(-1)
LANES_OF = (ORDER[::4] // 16).reshape(4, LANES)  # the sub-block of sixteen that each lane of a vector belongs to
place_0, place_1, place_2, place_3 = (arrange([int(i) for i in lanes]) for lanes in LANES_OF)


def _float32(x, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1, of `per_row` blocks each; x as `arranged`."""
    for t in range(x.shape[0]):
        tokens = x[t]
        for r in range(first, last):
            total = splat(0.0)
            for b in range(per_row):
                at, column = 136 * (r * per_row + b), 256 * b
                for line in range(0, 136, 64):
                    prefetch(blocks, at + AHEAD + line)
                scale = to_float(scales_iq4_xs(blocks, at)) * splat_half(blocks, at)
                c0, c1, c2, c3 = codes_iq4_xs(blocks, at)
                total = fma(of_bytes(c0, tokens, column), place_0(scale), total)
                total = fma(of_bytes(c1, tokens, column + 64), place_1(scale), total)
                total = fma(of_bytes(c2, tokens, column + 128), place_2(scale), total)
                total = fma(of_bytes(c3, tokens, column + 192), place_3(scale), total)
            out[t, r] = sum_lanes(total)


def _one_byte(x, starts, scale_x, blocks, per_row, first, last, out):
    """As above. x: uint8 [m, k]; starts: int32 [m, k / 4]; scale_x [m, per_row]."""
    for t in range(x.shape[0]):
        tokens, starts_of_token, scales = x[t], starts[t], scale_x[t]
        for r in range(first, last):
            total = splat(0.0)
            for b in range(per_row):
                at, column, i = 136 * (r * per_row + b), 256 * b, 64 * b
                for line in range(0, 136, 64):
                    prefetch(blocks, at + AHEAD + line)
                scale = to_float(scales_iq4_xs(blocks, at))
                c0, c1, c2, c3 = codes_iq4_xs(blocks, at)
                part = of_signed(c0, tokens, column, starts_of_token, i) * place_0(scale)
                part = fma(of_signed(c1, tokens, column + 64, starts_of_token, i + 16), place_1(scale), part)
                part = fma(of_signed(c2, tokens, column + 128, starts_of_token, i + 32), place_2(scale), part)
                part = fma(of_signed(c3, tokens, column + 192, starts_of_token, i + 48), place_3(scale), part)
                total = fma(part * splat_half(blocks, at), splat(scales[b]), total)
            out[t, r] = sum_lanes(total)


FLOAT32 = specialized(_float32, "matmul_iq4_xs")


def arranged(tokens: np.ndarray) -> np.ndarray:
    """Activations [m, k] in the order in which the codes come."""
    order = ORDER.reshape(4, LANES, 4).swapaxes(1, 2).reshape(-1)
    return aligned(np.take(tokens.reshape(len(tokens), -1, 256), order, axis=2).reshape(tokens.shape))


def _tables(whole, scales, digits):
    ordered, fours = in_order(whole, ORDER, 256, digits)
    return ordered, starts_of(fours, 1, -SIGNED_EXCESS), scales


IQ4_XS = {"IQ4_XS": Product({1: specialized(_one_byte, "matmul_int8_iq4_xs")}, 256, _tables)}
