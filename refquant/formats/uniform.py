"""Uniform integer grids in memory: `int{8,4,3,2}-{g<size>,row}[-sym]`, one scale per group of a row.

A matrix [n, k] with groups of g, G = ceil(k / g) groups a row (the last may be short)::

    array    dtype               shape                       meaning
    codes    uint8               [n, ceil(k * bits / 8)]     dense stream along k, see `bits`
    scales   float16 | float32   [n, G]
    zeros    uint8               [n, ceil(G * bits / 8)]     dense stream along the groups; absent when symmetric
    g_idx    int32               [k]                         group of each column, only where it is not column // g

Bits per weight: bits + (16 + bits) / g, so 4.15625 for int4-g128 and 4.125 for int4-g128-sym. (The usual "4.25" counts
a 16-bit zero-point.) Weight [i, j] is scales[i, g_idx[j]] * (codes[i, j] - zeros[i, g_idx[j]]); the symmetric
zero-point is 2^(bits-1).

Leaves out: the checkpoint layouts of GPTQ, AWQ and compressed-tensors, which hold the same numbers in other orders.
"""

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.formats.bits import pack_bits, packed_bytes, unpack_bits
from refquant.grids import NAMED, as_grid
from refquant.quantized import Format, register_family


def describe(name: str) -> Format:
    """Return the `Format` of a uniform grid from its name."""
    grid = as_grid(name)

    def layout(n, k):
        groups = len(grid.starts(k))
        arrays = {
            "codes": ((n, packed_bytes(k, grid.bits)), ("uint8",)),
            "scales": ((n, groups), ("float16", "float32")),
        }
        if not grid.sym:
            arrays["zeros"] = ((n, packed_bytes(groups, grid.bits)), ("uint8",))
        return arrays

    return Format(name, "int", layout, optional=lambda n, k: {"g_idx": ((k,), ("int32",))})


register_family(r"int[1-8]-(?:row|g[1-9][0-9]{0,6})(?:-sym)?", describe, NAMED)


@ops.part("pack", "int")
def pack(fields: dict, name: str) -> dict:
    """Pack codes [n, k], scales [n, G] (their dtype is kept), zeros [n, G] and perhaps g_idx [k]."""
    grid = as_grid(name)
    arrays = {"codes": pack_bits(fields["codes"], grid.bits), "scales": np.ascontiguousarray(fields["scales"])}
    if not grid.sym:
        arrays["zeros"] = pack_bits(fields["zeros"], grid.bits)
    g_idx = fields.get("g_idx")
    if g_idx is not None and not np.array_equal(g_idx, grid.group_index(len(g_idx))):
        arrays["g_idx"] = np.asarray(g_idx, np.int32)
    return arrays


@ops.part("unpack", "int")
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return codes uint8 [n, k], scales [n, G], zeros uint8 [n, G], g_idx int32 [k]."""
    grid = as_grid(name)
    n, k = shape
    groups = len(grid.starts(k))
    zeros = (
        unpack_bits(arrays["zeros"], grid.bits, groups)
        if not grid.sym
        else np.full((n, groups), 2 ** (grid.bits - 1), np.uint8)
    )
    g_idx = arrays.get("g_idx", grid.group_index(k))
    if g_idx.min() < 0 or g_idx.max() >= groups:
        raise BadInput(f"{name}: g_idx must lie in 0..{groups - 1}, got {g_idx.min()}..{g_idx.max()}")
    return {
        "codes": unpack_bits(arrays["codes"], grid.bits, k),
        "scales": arrays["scales"],
        "zeros": zeros,
        "g_idx": g_idx,
    }


@ops.part("decode", "int")
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]."""
    g_idx = fields["g_idx"]
    scales, zeros = fields["scales"].astype(np.float32), fields["zeros"].astype(np.float32)
    return as_grid(name).decode(fields["codes"], scales[:, g_idx], zeros[:, g_idx])
