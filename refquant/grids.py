"""Grids: the values that a code can stand for, and how a weight is rounded to one of them.

A grid is fitted to a group of weights (`fit`: a scale and a zero-point), then a weight becomes a code (`encode`) and a
code becomes a weight again (`decode`)::

    code   = clip(round(w / scale) + zero, 0, 2^bits - 1)          round: half to even, everywhere in refquant
    weight = (code - zero) * scale

Letters: n outputs, k inputs, g weights that share a scale.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refquant.errors import BadInput, UnknownName


def round_half_even(x: np.ndarray) -> np.ndarray:
    """Round to the nearest integer, ties to even: the one rounding rule (IEEE 754, `torch.round`, `np.rint`)."""
    return np.rint(x)


def check_weights(w: np.ndarray, name: str = "weights") -> np.ndarray:
    """Return `w` as float32 [n, k], not copied if it is; raise `BadInput` for another rank, integers, NaN, infinity."""
    w = np.asarray(w)
    if w.ndim != 2 or 0 in w.shape:
        raise BadInput(f"{name}: expected a matrix [out, in] with no empty axis, got shape {w.shape}")
    if w.dtype.kind != "f":
        raise BadInput(f"{name}: expected floating point, got {w.dtype}")
    bad = ~np.isfinite(w)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise BadInput(
            f"{name}: {int(bad.sum())} of {w.size} values are NaN or infinite, the first at [{row}, {column}]; "
            "repair or retrain the layer, a grid cannot hold them"
        )
    with np.errstate(over="ignore"):
        narrow = w.astype(np.float32, copy=False)
    if narrow is not w and not np.isfinite(narrow).all():
        raise BadInput(f"{name}: values beyond float32 (largest {np.abs(w).max():.3g})")
    return narrow


def check_inputs(x: np.ndarray, k: int, dtype=np.float32) -> np.ndarray:
    """Return inputs [..., k] as `dtype` [m, k]; raise `BadInput` for no token, a wrong width, NaN or infinity."""
    x = np.asarray(x)
    if x.ndim < 2 or x.shape[-1] != k or x.size == 0 or x.dtype.kind != "f":
        raise BadInput(
            f"calibration: expected floating-point inputs [tokens, {k}] with at least one token, got "
            f"{x.dtype} {list(x.shape)}"
        )
    x = x.reshape(-1, k).astype(dtype)
    if not np.isfinite(x).all():
        raise BadInput("calibration: the layer's inputs hold NaN or infinity")
    return x


@dataclass(frozen=True)
class IntGrid:
    """A uniform grid of 2^bits levels, one scale (and zero-point) for every `group_size` weights of a row.

    Parameters
    ----------
    bits : int
        1 to 8.
    group_size : int or None
        Weights of a row that share a scale; the last group of a row may be short. None or -1: the whole row.
    sym : bool
        Symmetric: the zero-point is the middle code 2^(bits-1), which decodes to exactly 0.0, and the scale is
        2 max|w| / (2^bits - 1); the top level then lies half a step inside max|w|. Asymmetric: the range [min, max],
        always widened to contain 0, is spread over all the codes.
    scale_dtype : str
        "float16" (what files store; the default) or "float32". Codes are chosen with the scale *as stored*, so that
        decoding and encoding again changes nothing.

    Notes
    -----
    Source: `Quantizer.find_params` of the GPTQ paper's code (IST-DASLab/gptq, quant.py).
    Against other code: the published code gives a symmetric group without a negative weight the scale max/15 with
    zero-point 8, which clips it at 0.47 max; here every symmetric group is centred. AWQ programs do not widen the range
    to 0 but clamp the zero-point, with scales of at least 1e-5; some use max|w|/7 for symmetric 4-bit.
    Leaves out: floating-point zero-points (HQQ, TinyChat), the search for a clipped range (see `methods.awq.clip`).
    """

    bits: int
    group_size: int | None = None
    sym: bool = False
    scale_dtype: str = "float16"

    def __post_init__(self):
        if self.group_size == -1:
            object.__setattr__(self, "group_size", None)
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 8):
            raise BadInput(f"an integer grid has 1 to 8 bits, got {self.bits!r}")
        if self.group_size is not None and not (isinstance(self.group_size, int) and self.group_size > 0):
            raise BadInput(f"group_size must be a positive integer, or -1 for the whole row, got {self.group_size!r}")
        if self.scale_dtype not in ("float16", "float32"):
            raise BadInput(f"scale_dtype must be 'float16' or 'float32', got {self.scale_dtype!r}")

    @property
    def name(self) -> str:
        """Such as `int4-g128` or `int8-row-sym`."""
        groups = "row" if self.group_size is None else f"g{self.group_size}"
        return f"int{self.bits}-{groups}" + ("-sym" if self.sym else "")

    @property
    def max_code(self) -> int:
        """The largest code, 2^bits - 1."""
        return 2**self.bits - 1

    def starts(self, k: int) -> np.ndarray:
        """First column of each group in a row of `k` weights."""
        return np.arange(0, k, self.group_size or k)

    def group_index(self, k: int) -> np.ndarray:
        """Group of each of the `k` columns, int32 [k]."""
        return (np.arange(k) // (self.group_size or k)).astype(np.int32)

    def fit_range(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero-point, float32 of the inputs' shape, for groups with this minimum and maximum."""
        low = np.minimum(low, 0).astype(np.float32)
        high = np.maximum(high, 0).astype(np.float32)
        if self.sym:
            high = np.maximum(-low, high)
            low = -high
        empty = (low == 0) & (high == 0)  # an all-zero group: any scale will do
        low, high = np.where(empty, np.float32(-1), low), np.where(empty, np.float32(1), high)
        with np.errstate(over="ignore"):
            scale = self._stored((high - low) / np.float32(self.max_code))
        zero = np.full_like(scale, 2 ** (self.bits - 1)) if self.sym else round_half_even(-low / scale)
        return scale, np.clip(zero, 0, self.max_code)

    def _stored(self, scale: np.ndarray) -> np.ndarray:
        """The scale as the file will hold it, back in float32; never 0, so that no group divides by zero."""
        dtype = np.dtype(self.scale_dtype)
        with np.errstate(over="ignore"):
            stored = scale.astype(dtype)
        if not np.isfinite(stored).all():
            raise BadInput(f"{self.name}: a scale of {scale.max():.3g} does not fit {dtype}; use scale_dtype='float32'")
        return np.maximum(stored, np.finfo(dtype).smallest_subnormal).astype(np.float32)

    def fit(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero-point, float32 [n], of one group `w` [n, g]."""
        return self.fit_range(w.min(axis=1), w.max(axis=1))

    def fit_groups(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scales and zero-points, float32 [n, groups], of every group of `w` [n, k]."""
        starts = self.starts(w.shape[1])
        return self.fit_range(np.minimum.reduceat(w, starts, axis=1), np.maximum.reduceat(w, starts, axis=1))

    def encode(self, w: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Codes, uint8 of `w`'s shape; `scale` and `zero` broadcast against `w`."""
        return np.clip(round_half_even(w / scale) + zero, 0, self.max_code).astype(np.uint8)

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Weights, float32 of the codes' shape."""
        return (codes.astype(np.float32) - zero) * scale

    def fields(self, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx=None) -> dict:
        """What a method hands to `ops.pack`: codes [n, k], scales and zero-points [n, G], perhaps the groups [k]."""
        fields = {"codes": codes, "scales": scales.astype(self.scale_dtype), "zeros": zeros.astype(np.uint8)}
        return fields if g_idx is None else fields | {"g_idx": g_idx}


@dataclass(frozen=True)
class CodebookGrid:
    """The levels of a codebook times a scale, one for every `group_size` weights of a row: floats, NF4, MXFP4::

        code   = nearest(w / scale)
        weight = value(code) * scale

    There is no zero-point; `fit` returns zeros in its place, so that a method works with either kind of grid. A
    subclass says what the scale of a group is (`scale`), and may hold more of the format's rules.

    Parameters
    ----------
    name : str
        Of the grid, and of the storage format that its codes and scales are packed in.
    codebook : codebooks.SmallFloat or codebooks.Levels
    group_size : int or None
        Weights of a row that share a scale; the last group of a row may be short. None: the whole row.
    rows : int or None
        Rows that share a scale too: 1 by default; None, all that `fit` is given.

    Notes
    -----
    Leaves out: a choice of scale that lowers the squared error below what the largest weight gives.
    """

    name: str
    codebook: object
    group_size: int | None = None
    rows: int | None = 1

    starts, group_index = IntGrid.starts, IntGrid.group_index

    def bound(self, w: np.ndarray) -> "CodebookGrid":
        """Return the grid for the matrix `w`: itself, unless its scales depend on the matrix as a whole (NVFP4)."""
        return self

    def scale(self, peak: np.ndarray) -> np.ndarray:
        """Scale of groups whose largest magnitude is `peak`, float32, as stored: it becomes the largest level."""
        return np.where(peak > 0, np.maximum(peak / np.float32(self.codebook.max), _TINY), np.float32(1))

    def fit(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zeros, float32 [n], of one group `w` [n, g]."""
        scale = self.scales(np.abs(w).max(axis=1, keepdims=True))[:, 0]
        return scale, np.zeros_like(scale)

    def fit_groups(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scales and zeros, float32 [n, groups], of every group of `w` [n, k]."""
        scales = self.scales(np.maximum.reduceat(np.abs(w), self.starts(w.shape[1]), axis=1))
        return scales, np.zeros_like(scales)

    def scales(self, peak: np.ndarray) -> np.ndarray:
        """Scales of groups whose largest magnitudes are `peak`, both [n, G]; rows that share one have it repeated."""
        first = np.arange(0, len(peak), self.rows or len(peak))
        shared = np.maximum.reduceat(peak, first, axis=0)  # [row blocks, groups]
        return np.repeat(self.scale(shared), np.diff(first, append=len(peak)), axis=0)

    def encode(self, w: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Codes, uint8 of `w`'s shape; `scale` broadcasts against `w`, `zero` is not used."""
        return self.codebook.encode(w / scale)

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Weights, float32 of the codes' shape."""
        return self.codebook.decode(codes) * scale

    def fields(self, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx=None) -> dict:
        """What a method hands to `ops.pack`: codes [n, k] and scales [n, G]; these formats store no order of groups."""
        if g_idx is not None and not np.array_equal(g_idx, self.group_index(len(g_idx))):
            raise BadInput(f"{self.name} has no g_idx: its groups are neighbouring columns; use static_groups=True")
        return {"codes": codes, "scales": scales}


_TINY = np.finfo(np.float32).tiny
_INT_NAME = re.compile(r"int([1-8])-(?:row|g([1-9][0-9]{0,6}))(-sym)?")
NAMED = tuple(
    f"int{bits}-{groups}{sym}"
    for bits in (8, 4, 3, 2)
    for groups in ("g32", "g64", "g128", "row")
    for sym in ("", "-sym")
)
_GRIDS: list[tuple[re.Pattern, Callable, tuple[str, ...]]] = []


def register_grids(pattern: str, make: Callable, examples: tuple[str, ...]) -> None:
    """Add grids whose names match `pattern`: `make(*groups of the match)` returns one; errors list the `examples`."""
    _GRIDS.append((re.compile(pattern), make, examples))


def _integer(bits: str, size: str | None, sym: str | None) -> IntGrid:
    return IntGrid(int(bits), int(size) if size else None, sym is not None)


register_grids(_INT_NAME.pattern, _integer, (*NAMED, "int<bits>-g<any group size>[-sym]"))


def as_grid(grid, w: np.ndarray | None = None):
    """Return a grid from its name (`int4-g128`, `int3-row-sym`, `nf4`), or `grid` itself when it is one already.

    With the weights `w` [n, k] that it is for, a grid that depends on the matrix as a whole is made for that matrix.
    """
    found = grid
    if isinstance(grid, str):
        matches = ((make, pattern.fullmatch(grid)) for pattern, make, _ in _GRIDS)
        found = next((make(*match.groups()) for make, match in matches if match), None)
    if not all(hasattr(found, needed) for needed in ("fit", "encode", "decode")):
        raise UnknownName("grid", grid, [name for _, _, examples in _GRIDS for name in examples])
    return found if w is None or not hasattr(found, "bound") else found.bound(w)
