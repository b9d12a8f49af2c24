"""Codebooks: the value of every code where the levels are not evenly spaced, and rounding to the nearest of them.

Two kinds. A small float is derived from its bit fields; a listed codebook is a table, derived where a rule for it is
known. Both turn numbers into codes (`encode`) and codes into numbers (`decode`), without a scale::

    E4M3   s eeee fff   8 bits, bias  7   largest 448     no infinity; NaN is s 1111 111 ("FN": finite and NaN)
    E5M2   s eeeee ff   8 bits, bias 15   largest 57344   infinity and NaN as IEEE 754 has them
    E2M1   s ee f       4 bits, bias  1   largest 6       every pattern is a number
    FNUZ   the same fields, bias one larger; the pattern of -0 is the one NaN, so zero has no sign

    value = (-1)^s (1 + f / 2^F) 2^(e - bias)   where e > 0;   (-1)^s (f / 2^F) 2^(1 - bias)   where e = 0

Sources: Micikevicius et al., "FP8 formats for deep learning" (arXiv 2209.05433); OCP Microscaling Formats (MX) v1.0 for
E2M1 and E8M0; Noune et al. (arXiv 2206.02915) for FNUZ; Dettmers et al., "QLoRA" (arXiv 2305.14314) for NF4;
`kvalues_iq4nl` and `kvalues_fp4` in ggml-common.h.
"""

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from refquant.errors import BadInput


@dataclass(frozen=True)
class SmallFloat:
    """A float of at most 8 bits: a sign, `exponent_bits`, `fraction_bits`; the exponent is stored plus `bias`.

    `special` says which patterns are no finite numbers: "ieee", those with the largest exponent (infinity, NaN); "fn",
    all ones (NaN); "fnuz", negative zero's (NaN); "none".
    """

    name: str
    exponent_bits: int
    fraction_bits: int
    bias: int
    special: str = "none"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 1 + self.exponent_bits + self.fraction_bits

    @cached_property
    def magnitudes(self) -> np.ndarray:
        """The finite values without their sign, float32, ascending: magnitude i has the code i."""
        code = np.arange(1 << self.bits - 1)
        exponent, fraction = code >> self.fraction_bits, code & (1 << self.fraction_bits) - 1
        significand = fraction / (1 << self.fraction_bits) + (exponent > 0)
        values = np.ldexp(significand, np.maximum(exponent, 1) - self.bias)
        not_finite = {"ieee": 1 << self.fraction_bits, "fn": 1}.get(self.special, 0)
        return values[: len(values) - not_finite].astype(np.float32)

    @property
    def max(self) -> float:
        """The largest finite value."""
        return float(self.magnitudes[-1])

    @cached_property
    def values(self) -> np.ndarray:
        """The value of every code, float32 [2^bits]."""
        half = np.full(1 << self.bits - 1, np.nan, np.float32)
        half[: len(self.magnitudes)] = self.magnitudes
        if self.special == "ieee":
            half[len(self.magnitudes)] = np.inf
        values = np.concatenate([half, -half])
        if self.special == "fnuz":
            values[len(half)] = np.nan
        return values

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Halfway from each magnitude to the next; the last, to the one that would follow the largest."""
        step = self.magnitudes[-1] - self.magnitudes[-2]
        return self.magnitudes + np.diff(self.magnitudes, append=self.max + step) / 2

    def encode(self, x: np.ndarray, overflow: str = "saturate") -> np.ndarray:
        """Round float32 [...] to the nearest value, ties to the even code: uint8 [...].

        Parameters
        ----------
        x : float32 [...]
            Rounded once; a float64 would be rounded to float32 first.
        overflow : "saturate" or "nan"
            What becomes of a number that rounds beyond the largest value, and of infinity: that largest value, or what
            the format has beyond it (infinity in E5M2, otherwise NaN). NaN stays NaN either way.

        Raises
        ------
        BadInput
            Another `overflow`; one of "nan", or a NaN in `x`, for a format that has no NaN.

        Notes
        -----
        E4M3 keeps 464, halfway from 448 to the 480 that it lacks, as 448, whose code is even; 465 overflows.
        Against other code: ml_dtypes casts as "nan". torch 2.13 casts float8_e4m3fn as "saturate" (older ones as "nan")
        and the other three as "nan". The NaN of E5M2 is 0x7F, as in torch and CUDA; ml_dtypes writes 0x7E.
        Leaves out: stochastic rounding.
        """
        x = np.asarray(x, np.float32)
        if overflow not in ("saturate", "nan"):
            raise BadInput(f"overflow must be 'saturate' or 'nan', got {overflow!r}")
        if self.special == "none" and (overflow == "nan" or np.isnan(x).any()):
            raise BadInput(f"{self.name} has no NaN: every pattern of its {self.bits} bits is a number")
        half, largest = 1 << self.bits - 1, len(self.magnitudes) - 1
        size, negative = np.abs(x), np.signbit(x)
        code = np.searchsorted(self._bounds, size)  # of a tie the lower code, to be raised where that is odd
        code += (code & 1 == 1) & (size == self._bounds[np.minimum(code, largest)])
        code = np.minimum(code, largest if overflow == "saturate" else largest + 1)  # what follows is infinity or NaN
        code = np.where(np.isnan(x), half if self.special == "fnuz" else half - 1, code)
        if self.special == "fnuz":
            negative = negative & (code > 0) & (code <= largest)
        return (code + half * negative).astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Values, float32 of the codes' shape."""
        return self.values[codes]


E4M3 = SmallFloat("E4M3", 4, 3, 7, "fn")
E5M2 = SmallFloat("E5M2", 5, 2, 15, "ieee")
E4M3_FNUZ = SmallFloat("E4M3 FNUZ", 4, 3, 8, "fnuz")
E5M2_FNUZ = SmallFloat("E5M2 FNUZ", 5, 2, 16, "fnuz")
E2M1 = SmallFloat("E2M1", 2, 1, 1)


# ---- E8M0: a scale that is an exponent and nothing else, 2^(e - 127); e = 255 is NaN


def e8m0(e: np.ndarray) -> np.ndarray:
    """Scales float32 of exponents uint8; e = 0 is subnormal, 255 is NaN."""
    return np.where(e == 255, np.float32(np.nan), np.ldexp(np.float32(1), np.minimum(e, 254).astype(np.int32) - 127))


def e8m0_code(scale: np.ndarray) -> np.ndarray:
    """Exponents uint8 of scales that are powers of two from 2^-127 to 2^127."""
    fraction, exponent = np.frexp(scale)
    if not ((fraction == 0.5) & (exponent > -127) & (exponent < 129)).all():
        raise BadInput("E8M0 holds powers of two from 2^-127 to 2^127 and nothing else")
    return (exponent - 1 + 127).astype(np.uint8)


def e8m0_half(e: np.ndarray) -> np.ndarray:
    """Half of the E8M0 scale: 2^(e - 128), float32, for e uint8. The two smallest are subnormal; 255 is not NaN."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)


# ---- listed codebooks


@dataclass(frozen=True, eq=False)
class Levels:
    """A listed codebook: `values` float32, ascending; code i stands for values[i]."""

    name: str
    values: np.ndarray

    @property
    def max(self) -> float:
        """The largest magnitude."""
        return float(np.abs(self.values).max())

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Code of the nearest level, uint8 of x's shape; exactly halfway between two, the lower one."""
        between = (self.values[:-1] + self.values[1:]) / np.float32(2)
        return np.searchsorted(between, x).astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Values, float32 of the codes' shape."""
        return self.values[codes]


def _evenly(start: float, stop: float, count: int) -> np.ndarray:
    """`torch.linspace` in float32: a float32 step taken from the nearer end, with one rounding. Published tables do."""
    start, stop = np.float32(start), np.float32(stop)
    step, i = np.float64((stop - start) / np.float32(count - 1)), np.arange(count)
    return np.where(i < count // 2, start + step * i, stop - step * (count - 1 - i)).astype(np.float32)


def _normal_float() -> np.ndarray:
    """NF4: quantiles of the normal distribution, eight steps from 1/2 up and seven down, divided by the largest.

    Each level is to stand for the same number of normally distributed weights. The outermost probability is the mean of
    1 - 1/30 and 1 - 1/32, so that both sides end alike; the published table has it to seven digits.
    """
    quantile = np.vectorize(NormalDist().inv_cdf)
    above, below = (quantile(_evenly(0.9677083, 0.5, count)[:-1].astype(float)) for count in (9, 8))
    levels = np.sort(np.concatenate([-below, [0], above])).astype(np.float32)
    return levels / levels.max()


def _dynamic() -> np.ndarray:
    """The signed dynamic 8-bit map: for each decade 10^(i - 6), 2^i means of neighbours among 2^i + 1 even steps.

    So the steps are relative to the value, and a decade has the more of them the larger it is; 0 and 1 are added.
    """
    levels = [0, 1]
    for i in range(7):
        steps = _evenly(0.1, 1, 2**i + 1)
        means = np.float32(10.0 ** (i - 6)) * ((steps[:-1] + steps[1:]) / np.float32(2))
        levels += [*means, *-means]
    return np.sort(np.array(levels, np.float32))


NF4 = Levels("NF4", _normal_float())
DYNAMIC8 = Levels("dynamic 8-bit", _dynamic())

# IQ4_NL, IQ4_XS: sixteen levels for weights that crowd around zero; chosen by hand, from ggml.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)

# ggml's MXFP4: twice the E2M1 values, so that they are integers: 0 1 2 3 4 6 8 12 and their negatives, -0 as 0.
E2M1_DOUBLED = (2 * E2M1.values).astype(np.int8)
