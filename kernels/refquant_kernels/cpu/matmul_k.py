"""matmul of a token or a few with Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS: the scales of a block kept out of the inner loop.

Must move, 4096 x 4096 weights of Q4_K: 9,437,184 bytes: at 18 GB/s 0.52 ms. Must do: for sixteen weights a shift, a
look-up (without AVX-512, or with codes of more than 4 bits: a mask and a conversion), a multiplication by x; for 64 a
multiplication by the scale. With the codes and the scales of a block some 80 operations for 256 weights, of which the
processor does two at a time: the arithmetic, not the memory, is the floor.

Two ideas:

- **No code is moved.** Bytes lie four in a lane (`matmul_int8`); a shift brings the next one down. Spreading them to a
  lane each, as `decode` does, all goes through the one port that shuffles. The activations are put in that order once.
- **The minimum of a sub-block meets the sum of its activations only**, which is the same for all rows::

      sum (scale * code - min) * x  =  scale * sum code * x  -  min * sum x

  So the minima of a block are one vector, multiplied once with a vector of sums; and so is the excess of the codes
  that are stored too large.
"""

import numpy as np

from refquant_kernels.cpu.compile import aligned, inlined, specialized
from refquant_kernels.cpu.decode import IQ4, IQ4_WORDS, four_bits, half, halves, look_up, next_two_bits, two_bits
from refquant_kernels.cpu.machine import arrange, load_words, load_words_twice, prefetch, sum_lanes, word_at
from refquant_kernels.cpu.matmul_int8 import AHEAD, NIBBLES, PARTS, in_halves, order_of, places, sums_in_lanes
from refquant_kernels.cpu.simd import LANES, fma, load, shift_right, splat, splat_int, to_float

PAIRWISE = np.repeat(np.arange(8, dtype=np.int32), 2)  # 0 0 1 1 2 2 ...: sub-blocks of 32 as pairs of sixteen


@inlined
def lowest_byte(v):
    """F: the lowest byte of each lane."""
    return to_float(v & 255)


@inlined
def scales_iq4_xs(blocks, at):
    """As in `matmul_int8`; there is nothing for sums to meet."""
    pairs = load(PAIRWISE, 0)
    low = shift_right(splat_int(np.int32(word_at(blocks, at + 4))), pairs << 2) & 15
    high = (splat_int(np.int32(blocks[at + 2]) | np.int32(blocks[at + 3]) << 8) >> (pairs << 1)) & 3
    return (low | (high << 4)) - 32, splat_int(0)


@inlined
def codes_iq4_xs(blocks, at):
    """As in `matmul_int8`: places in the table."""
    a, b = load_words_twice(blocks, at + 8), load_words_twice(blocks, at + 40)
    c, d = load_words_twice(blocks, at + 72), load_words_twice(blocks, at + 104)
    a, b, c, d = in_halves(a, 0, 4), in_halves(b, 0, 4), in_halves(c, 0, 4), in_halves(d, 0, 4)
    return a & NIBBLES, b & NIBBLES, c & NIBBLES, d & NIBBLES


@inlined
def iq4_value(v):
    """F: the value of the code in the lowest byte of each lane."""
    return look_up(IQ4, IQ4_WORDS, v)


@inlined
def codes_q2_k(blocks, at):
    """Of which two bits of each byte count: of the first and third vector the lowest, of the others the next."""
    data = load_words(blocks, at + 16)
    return data, data, data >> 4, data >> 4


broadcast_0, broadcast_1 = arrange([0] * LANES), arrange([1] * LANES)
# given by `specialized`, for each format: as in `matmul_int8`, and value(v), the number that the lowest byte stands for
# in the first and third vector, value_2(v) in the others
record, codes, scales, value, value_2, d_at, min_at, excess, place_0, place_1, place_2, place_3 = [None] * 12


@inlined
def of_bytes(v, x, column, value):
    """F: in each lane its four codes times four activations; those of the lanes' first bytes come first."""
    total = value(v) * load(x, column)
    total = fma(value(v >> 8), load(x, column + LANES), total)
    total = fma(value(v >> 16), load(x, column + 2 * LANES), total)
    return fma(value(v >> 24), load(x, column + 3 * LANES), total)


def _rows(x, sums, blocks, per_row, first, last, out):
    """out[t, r] for all tokens t, and rows first .. last - 1, of `per_row` blocks each; x and sums as `arranged`."""
    for t in range(x.shape[0]):
        tokens, sums_of_token = x[t], sums[t]
        for r in range(first, last):
            total, rest = splat(0.0), splat(0.0)
            for b in range(per_row):
                at, column = record * (r * per_row + b), 256 * b
                for line in range(0, record, 64):
                    prefetch(blocks, at + AHEAD + line)
                whole, for_sums = scales(blocks, at)
                if min_at:
                    both = halves(blocks, at + d_at, at + d_at)
                    d, subtracted = broadcast_0(both), broadcast_1(both)
                else:
                    d = splat(half(blocks, at + d_at))
                    subtracted = d * np.float32(1 << excess)
                scale = to_float(whole) * d
                if min_at or excess:
                    rest = fma(to_float(for_sums) * subtracted, load(sums_of_token, LANES * b), rest)
                c0, c1, c2, c3 = codes(blocks, at)
                total = fma(of_bytes(c0, tokens, column, value), place_0(scale), total)
                total = fma(of_bytes(c1, tokens, column + 64, value_2), place_1(scale), total)
                total = fma(of_bytes(c2, tokens, column + 128, value), place_2(scale), total)
                total = fma(of_bytes(c3, tokens, column + 192, value_2), place_3(scale), total)
            out[t, r] = sum_lanes(total - rest)


_VALUES = {"Q2_K": (two_bits, next_two_bits), **dict.fromkeys(("Q3_K", "Q4_K"), (four_bits, four_bits))}
_VALUES |= dict.fromkeys(("Q5_K", "Q6_K"), (lowest_byte, lowest_byte))
ALL = {name: (*part[:3], *_VALUES[name], *part[3:]) for name, part in PARTS.items()}
ALL["Q2_K"] = (84, codes_q2_k, *ALL["Q2_K"][2:])
ALL["IQ4_XS"] = (136, codes_iq4_xs, scales_iq4_xs, iq4_value, iq4_value, 0, 0, 0, "IQ4_XS")
_NAMES = ("record", "codes", "scales", "value", "value_2", "d_at", "min_at", "excess")
ROWS = {
    name: specialized(
        _rows, f"matmul_{name.lower()}", **dict(zip(_NAMES, part, strict=False)), **places(name, part[-1])
    )
    for name, part in ALL.items()
}
_ORDERS = {name: order_of(part[-1]).reshape(4, LANES, 4).swapaxes(1, 2).reshape(-1) for name, part in ALL.items()}


def arranged(tokens: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Activations [m, k] in the order in which the codes come, and their sums [m, k / 16], in the lanes' order."""
    m, k = tokens.shape
    by_block = tokens.reshape(m, k // 256, 256)
    sums = sums_in_lanes(by_block.reshape(m, k // 256, 16, 16).sum(axis=3), name)
    return aligned(np.take(by_block, _ORDERS[name], axis=2).reshape(m, k)), sums.reshape(m, k // 16)
