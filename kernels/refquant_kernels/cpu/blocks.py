"""Registers the encoders of the block formats, and cuts their work into pieces.

An encoder is a kernel(w, importance, weighted, extra, k, first, last, out, which). It fills the records of groups
first .. last - 1, each of sixteen consecutive blocks of the matrix, whatever rows they belong to.
"""

import numpy as np

from refquant import ops
from refquant.methods.kquants.blocks import check_importance
from refquant.quantized import Quantized, find_format
from refquant_kernels.cpu.compile import in_pieces, kernel
from refquant_kernels.cpu.lanes import block_starts
from refquant_kernels.cpu.simd import LANES, load, splat, store, turn

NONE = np.zeros(0, np.float32)
PIECE = 1 << 16  # weights: some 500 microseconds of work, so that handing it out costs nothing


def encoder(name: str, kernel, which: int, weights: int = 256, uses_importance: bool = True, extra=None) -> None:
    """Register `kernel` as the `quantize` of a format.

    `extra(w, n, k)`, if given, makes the numbers that the kernel needs beside the weights (with an importance only,
    where the format uses one).
    """

    @ops.fast_path("quantize", name, backend="numba")
    def quantize(w, format, importance=None):  # noqa: A002 (ops calls it that)
        """Quantize `w`, float32 [n, k]; the same bytes as backend "numpy"."""
        check_importance(importance)
        n, k = w.shape
        ((dims, _),) = find_format(format).layout(n, k).values()
        groups = -(-(n * k // weights) // LANES)
        out = np.empty(groups * LANES * find_format(format).nbytes((1, weights)), np.uint8)  # room for whole groups
        flat = np.ascontiguousarray(w, np.float32).reshape(-1)
        weighted = importance is not None and uses_importance
        column = np.ascontiguousarray(importance, np.float32) if weighted else NONE
        rows = extra(flat, n, k) if extra and (weighted or not uses_importance) else NONE

        def run(first, last):
            kernel(flat, column, weighted, rows, k, first, last, out, which)

        in_pieces(run, groups, max(1, PIECE // (LANES * weights)))
        return Quantized(format, (n, k), {"blocks": out[: n * dims[1]].reshape(dims)})


@kernel()
def sums_of_squares(w, k, first, last, out):
    """Sum of x^2 over each row, from left to right, of groups first .. last - 1 of sixteen rows; k a multiple of 16."""
    starts, x = np.empty(LANES, np.int64), np.empty(LANES * LANES, np.float32)
    for group in range(first, last):
        block_starts(LANES * group, w.size // k, k, w.size // k, starts)
        total = splat(0.0)
        for i in range(0, k, LANES):
            turn(w, starts, i, x, 0, LANES)
            for j in range(0, LANES * LANES, LANES):
                v = load(x, j)
                total = total + v * v
        store(out, LANES * group, total)


def row_sums_of_squares(w: np.ndarray, n: int, k: int) -> np.ndarray:
    """Sum of x^2 over each row of `w`, float32 [n * k] flat: float32 [n], rounded after every addition."""
    groups = -(-n // LANES)
    out = np.empty(LANES * groups, np.float32)
    in_pieces(lambda first, last: sums_of_squares(w, k, first, last, out), groups, max(1, PIECE // (LANES * k)))
    return out[:n]
