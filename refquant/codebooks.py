"""Value tables: grids whose levels are listed because no formula gives them, or because the table is the formula.

Sources: `kvalues_iq4nl` and `kvalues_fp4` in ggml-common.h; E2M1 and E8M0 from the OCP Microscaling Formats (MX) v1.0.
"""

import numpy as np

# IQ4_NL, IQ4_XS: sixteen levels for weights that crowd around zero; chosen by hand, from ggml.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _e2m1_doubled(code: int) -> int:
    sign, exponent, fraction = code >> 3, code >> 1 & 3, code & 1
    doubled = (2 + fraction) << exponent >> 1 if exponent else fraction  # 2 * (1 + f/2) * 2^(e-1); subnormal: 2 * f/2
    return -doubled if sign else doubled


# MXFP4: twice the E2M1 values, so that they are integers: 0 1 2 3 4 6 8 12 and their negatives.
E2M1_DOUBLED = np.array([_e2m1_doubled(code) for code in range(16)], np.int8)


def e8m0_half(e: np.ndarray) -> np.ndarray:
    """Half of the E8M0 scale: 2^(e - 128), float32, for e uint8. The two smallest are subnormal; 255 is not NaN."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)
