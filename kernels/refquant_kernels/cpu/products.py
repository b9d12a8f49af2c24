"""What the products of codes that stay bytes share: `matmul_pairs`, `matmul_k`, `matmul_ternary`, `matmul_grids`.

A vector of 64 codes, bytes as they come out of a block, meets 64 bytes of activations, put beforehand in the same
order: one instruction for 64 products and their sums by four (VNNI). The same kernels serve two operations:

- **`matmul_int8`**: activations of one byte, 8 bits.
- **`matmul`**: activations of three bytes, 24 bits in all, so that float32's accuracy is kept. Of a run x, scale =
  max |x| / 8,355,710, X = x / scale to the nearest, and X = 65536 a + 256 b + c, where a, b, c are -128..127. Then::

      sum code * X  =  ((sum code * a) * 256 + sum code * b) * 256 + sum code * c

  Every step may run over 32 bits, as long as the result does not: four codes up to 63 times 8,355,711 do fit. Three
  products of bytes, two shifts, a conversion: half of what 64 products of float32 need with their conversions.

So `matmul` errs by up to 2^-24 of the largest activation of a run of 32, 128 or 256 in each of them, where a product of
float32 errs by 2^-24 of itself and by the rounding of every sum. Here the sums are exact by four and more, and the
error of a row as a whole is the smaller one; but beside an activation a million times larger in the same run, one is as
good as 0, even where that large one meets a weight of 0. Activations that are not finite, or below 2^-77 altogether,
are left to the kernels that decode.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refquant_kernels.cpu.activations import rounded, well_rounded
from refquant_kernels.cpu.compile import PRODUCT, in_pieces, inlined
from refquant_kernels.cpu.machine import dot_bytes, dot_signed, load_words
from refquant_kernels.cpu.simd import lane_numbers, select, splat_int

AHEAD = 4096  # bytes
NIBBLES, TWO_BITS = 0x0F0F_0F0F, 0x0303_0303  # masks: so many bits of each byte
FEW = 8  # tokens up to which `matmul` goes row by row, for each of them


@inlined
def in_halves(v, low, high):
    """Shift lanes 0..7 right by `low`, lanes 8..15 by `high`."""
    return v >> select(lane_numbers() < 8, splat_int(low), splat_int(high))


# dot(start, codes, x, at): I, start + 64 codes times the activations whose bytes begin at `at`


@inlined
def dot_one(start, codes, x, at):
    """Of one byte, codes 0..64; with VNNI 0..255."""
    return dot_bytes(start, codes, load_words(x, at))


@inlined
def dot_one_signed(start, codes, x, at):
    """Of one byte, codes -128..127; see `machine.dot_signed`."""
    return dot_signed(start, codes, load_words(x, at))


@inlined
def dot_three(start, codes, x, at):
    """Of three bytes, the highest of 64 activations first, codes 0..64."""
    total = dot_bytes(splat_int(0), codes, load_words(x, at))
    total = dot_bytes(total << 8, codes, load_words(x, at + 64))
    return dot_bytes((total << 8) + start, codes, load_words(x, at + 128))


def padded(a: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros after the last column, up to a multiple."""
    short = -a.shape[1] % multiple
    return np.hstack([a, np.zeros((len(a), short), a.dtype)]) if short else a


@dataclass(frozen=True)
class Product:
    """Kernels of one block format, by the bytes that activations have; what they share a scale over; the tables.

    tables(whole int32 [m, k], scales [m, k / run], digits) are a kernel's arguments before the blocks.
    """

    kernels: dict
    run: int
    tables: Callable

    def rows(self, tokens: np.ndarray, data: np.ndarray, out: np.ndarray, digits: int) -> bool:
        """Fill out [m, n] with the product of tokens [m, k] and the rows of `data`; False where it cannot."""
        (_, n), k, run = out.shape, tokens.shape[1], self.run
        whole, scales = rounded(tokens, run, digits)
        if digits > 1 and not well_rounded(scales):
            return False
        tables, kernel = self.tables(whole, scales, digits), self.kernels[digits]
        in_pieces(lambda a, b: kernel(*tables, data, k // run, a, b, out), n, max(1, PRODUCT // k))
        return True
