"""awq on uniform grids: `methods.awq`'s search, with the rounding of its candidates by `int_grids`.

4096 x 4096 weights, 512 tokens, 20 exponents. Must do: 21 products of 17.2 GFLOP, which are the caller's (`forward`) or
BLAS; the rounding of 20 scaled copies, of which NumPy makes some ten passes over memory for each. Here the codes are
made and decoded by the kernels that write and read checkpoints: two passes, the same values.
"""

from refquant import ops
from refquant.grids import as_grid
from refquant.methods import awq, rtn


def rounded(w, grid):
    """`rtn.rounded`: the same values."""
    if grid != as_grid(grid.name):  # scales in float32, which no format stores
        return rtn.rounded(w, grid)
    return ops.dequantize(ops.quantize(w, grid.name, backend="numba"), backend="numba")


@ops.fast_path("awq", "int", backend="numba")
def search(ws, x, grid, candidates, forward=None):
    """`awq.output_errors`: the same errors."""
    return awq.output_errors(ws, x, grid, candidates, forward, rounded)
