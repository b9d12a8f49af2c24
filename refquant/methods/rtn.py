"""RTN: round every weight to the nearest level of its group's grid. The baseline that the other methods improve on.

For each group of g weights of a row: the scale and zero-point from its minimum and maximum, then every weight alone::

    code = clip(round(w / scale) + zero, 0, 2^bits - 1)

No calibration, no interaction between weights: the error of a weight is at most half a step, whatever the inputs are.

Source: the baseline of the GPTQ paper (arXiv 2210.17323, section 4).
Leaves out: clipping the range to lower the squared error (`methods.awq.clip` searches it).
"""

import numpy as np

from refquant import ops
from refquant.grids import as_grid, check_weights
from refquant.methods.registry import Method, gpu_rows, register_method
from refquant.quantized import Quantized


def quantize(w: np.ndarray, grid) -> Quantized:
    """Quantize `w`, float [out, in], on `grid` (a name such as "int4-g128", or a grid).

    Raises
    ------
    BadInput
        NaN or infinity, an empty matrix, a scale that float16 cannot hold.
    UnknownName
        No such grid.
    """
    w = check_weights(w)
    grid = as_grid(grid, w)
    return ops.pack(search(w, grid), grid.name, w.shape)


def rounded(w: np.ndarray, grid) -> np.ndarray:
    """Return the weights, float32 [n, k], that RTN leaves of `w`: `quantize` and decode, without packing."""
    grid = as_grid(grid, w)
    scales, zeros = grid.fit_groups(w)  # [n, G]
    g_idx = grid.group_index(w.shape[1])  # [k]
    scale, zero = scales[:, g_idx], zeros[:, g_idx]  # [n, k]
    return grid.decode(grid.encode(w, scale, zero), scale, zero)


def search(w: np.ndarray, grid, importance=None) -> dict:
    """Codes uint8 [n, k], scales [n, G] in the grid's dtype, zeros uint8 [n, G]. RTN knows no importance."""
    grid = as_grid(grid, w)
    scales, zeros = grid.fit_groups(w)  # [n, G]
    g_idx = grid.group_index(w.shape[1])  # [k]
    codes = grid.encode(w, scales[:, g_idx], zeros[:, g_idx])  # [n, k]
    return grid.fields(codes, scales, zeros)


ops.part("search", "int")(search)

register_method(
    Method(
        "rtn",
        layer=lambda w, grid, inputs: quantize(w, grid),
        rows=gpu_rows(
            "rtn",
            "RTN",
            {
                "int8-row": "Simple, safe compression",
                "int4-g128": "Baseline: no calibration data",
                "int3-g128": "Baseline: shows what 3 bits cost",
            },
        ),
    )
)
