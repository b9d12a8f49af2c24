"""MXFP4 and NVFP4: four-bit floats in small blocks with a scale of eight bits, which new GPUs multiply as they are.

Both have E2M1 codes, 0 0.5 1 1.5 2 3 4 6 and their negatives; they differ in the block and in the scale::

    mxfp4   32 weights   scale 2^e           E8M0, e = floor(log2 max|w|) - 2                        4.25 bits
    nvfp4   16 weights   scale s / global    s E4M3, the nearest to global * max|w| / 6              4.5 bits
                                             global = 448 * 6 / (max|w| of the matrix), one float32

The largest value of E2M1 is 6 = 1.5 * 2^2; hence the 2. In mxfp4 the largest weight of a block becomes 4 to just under
8 in units of the scale, and what rounds beyond 6 saturates: that is the OCP specification's rule. In nvfp4 it becomes
6, up to the rounding of s; the global scale puts the largest s at E4M3's largest value, 448.

Source: OCP Microscaling Formats (MX) v1.0, section 6.3; Rouhani et al. (arXiv 2310.10537), Algorithm 1; for NVFP4,
compressed-tensors 0.20.0, quantization/utils/helpers.py, `calculate_qparams` and `generate_gparam`.
Against other code: ggml's formats are `MXFP4` and `NVFP4`, in blocks with the codes in another order. Its MXFP4 takes
floor(log2) of a float32 logarithm, which a weight just below a power of two may reach; halfway between two values it
takes the smaller where refquant and the specification take the even code. Its NVFP4 rounds the scale half up and, in
the block, has no global scale. compressed-tensors' MXFP4 adds a quarter of the power of two to max|w| before the floor:
1.75 * 2^i and above get the next exponent, and nothing that rounds to 8 saturates. Its NVFP4 is equal to this one, but
where s rounds to 0, it puts 0.125 in its place, here the smallest E4M3, 2^-9.
Leaves out: MXFP8 and MXFP6, rotations before rounding, the search for a better scale (four over six).
"""

from dataclasses import dataclass, replace

import numpy as np

from refquant import ops
from refquant.codebooks import E2M1, E4M3, e8m0_code
from refquant.errors import BadInput
from refquant.grids import CodebookGrid, register_grids
from refquant.methods import rtn

E2M1_EXPONENT = 2  # of its largest value, 6
E8M0_LIMIT = 127


class _Blocks(CodebookGrid):
    """Only whole blocks: neither format says what a short one looks like."""

    def starts(self, k: int) -> np.ndarray:
        """First column of each block."""
        if k % self.group_size:
            raise BadInput(
                f"{self.name} has blocks of {self.group_size}; a row of {k} weights does not divide into them"
            )
        return super().starts(k)


class MXFP4Grid(_Blocks):
    """The grid `mxfp4`."""

    def scale(self, peak: np.ndarray) -> np.ndarray:
        """2^e with e = floor(log2 peak) - 2, from 2^-127 (also for a block of zeros) to 2^125."""
        _, exponent = np.frexp(peak)  # peak = [0.5, 1) * 2^exponent, so floor(log2 peak) = exponent - 1
        e = np.where(peak > 0, exponent - 1 - E2M1_EXPONENT, -E8M0_LIMIT)
        return np.ldexp(np.float32(1), np.maximum(e, -E8M0_LIMIT))

    def fields(self, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx=None) -> dict:
        """Codes uint8 [n, k]; scales uint8 [n, G], E8M0."""
        return super().fields(codes, e8m0_code(scales), zeros, g_idx)


@dataclass(frozen=True)
class NVFP4Grid(_Blocks):
    """The grid `nvfp4`; `global_scale` is None until it is made for a matrix (`grids.as_grid("nvfp4", w)`)."""

    global_scale: np.float32 | None = None

    def bound(self, w: np.ndarray) -> "NVFP4Grid":
        """Return the grid with the global scale of `w`, unless it has one; 1 where the quotient is not finite."""
        if self.global_scale is not None:
            return self
        with np.errstate(over="ignore", divide="ignore"):
            scale = np.float32(E4M3.max * E2M1.max) / np.abs(w).max()
        return replace(self, global_scale=scale if np.isfinite(scale) else np.float32(1))

    def scale(self, peak: np.ndarray) -> np.ndarray:
        """S / global with s in E4M3, at least its smallest value."""
        if self.global_scale is None:
            raise BadInput("nvfp4: its scales need the global scale of the matrix; use grids.as_grid('nvfp4', w)")
        s = E4M3.decode(E4M3.encode(self.global_scale * (peak / np.float32(E2M1.max))))
        return np.maximum(s, E4M3.magnitudes[1]) / self.global_scale

    def fields(self, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx=None) -> dict:
        """Codes uint8 [n, k]; scales uint8 [n, G], E4M3; global_scale float32 [1], which divides."""
        s = E4M3.encode(scales * self.global_scale)  # undoes the division of `scale`: its rounding is far below a step
        return super().fields(codes, s, zeros, g_idx) | {"global_scale": np.array([self.global_scale])}


register_grids("mxfp4", lambda: MXFP4Grid("mxfp4", E2M1, 32), ("mxfp4",))
register_grids("nvfp4", lambda: NVFP4Grid("nvfp4", E2M1, 16), ("nvfp4",))
ops.part("search", "mxfp4", "nvfp4")(rtn.search)
