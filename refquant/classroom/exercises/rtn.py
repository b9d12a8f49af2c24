"""Assignment 1, round to nearest: scale and zero-point, codes, groups, the symmetric grid.

    code   = clip(round(w / scale) + zero, 0, 2^bits - 1)          round: half to even
    weight = (code - zero) * scale

Right answers: the grid of `refquant.grids.IntGrid` with scales in float32; a group of zeros gets scale 1 and
zero-point 0 (the grid of refquant takes another scale there, which decodes to the same zeros).
"""

import numpy as np

from refquant.classroom.exercise import Case, Exercise, Mistake, Output

NEAR_TIE = 1e-4  # quotients this near to a half may fall either way in float32: such data is drawn again


def scale_zero(w, bits, top=None, widen=True):
    """Scale and zero-point of one group w [g]."""
    low, high = (min(w.min(), 0), max(w.max(), 0)) if widen else (w.min(), w.max())
    if low == high:
        return 1.0, 0
    scale = (high - low) / (2**bits - 1 if top is None else top)
    return float(scale), int(np.rint(-low / scale))


def encode(w, scale, zero, bits, rounding=np.rint):
    """Codes uint8 of the weights."""
    return np.clip(rounding(w / scale) + zero, 0, 2**bits - 1).astype(np.uint8)


def decode(codes, scale, zero):
    """Weights float32."""
    return (codes.astype(np.float32) - zero) * np.float32(scale)


def groups(w, bits, size, fit=scale_zero):
    """Codes [n, k], scales [n, G] and zero-points [n, G] of a matrix, `size` weights of a row to a group."""
    n, k = w.shape
    starts = range(0, k, size)
    codes = np.empty((n, k), np.uint8)
    scales, zeros = np.empty((n, len(starts)), np.float32), np.empty((n, len(starts)), np.uint8)
    for i in range(n):
        for g, start in enumerate(starts):
            part = w[i, start : start + size]
            scales[i, g], zeros[i, g] = fit(part, bits)
            codes[i, start : start + size] = encode(part, scales[i, g], zeros[i, g], bits)
    return codes, scales, zeros


def symmetric(w, bits):
    """Signed codes int8 and the scale of one group on the symmetric grid."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / top or 1.0
    return np.clip(np.rint(w / scale), -top, top).astype(np.int8), float(scale)


# ---- data


def clear_of_ties(quotients) -> bool:
    """Whether float32 and float64 round all of them to the same integers."""
    return bool((np.abs(np.abs(quotients - np.trunc(quotients)) - 0.5) > NEAR_TIE).all())


def draw(rng, make, quotients):
    """Draw data until no quotient that is rounded lies near a tie."""
    while True:
        data = make(rng)
        if clear_of_ties(np.asarray(quotients(data), np.float64)):
            return data


def normal(*shape, sigma=0.05, shift=0.0):
    """A maker of normal weights, float32."""
    return lambda rng: (rng.normal(size=shape) * sigma + shift).astype(np.float32)


def one_group(bits, make):
    """A maker of (w, bits) for `scale_zero`."""

    def quotient(w):
        scale, _ = scale_zero(w, bits)
        return [-min(w.min(), 0) / scale]

    return lambda rng: (draw(rng, make, quotient), bits)


def to_encode(bits, stretch):
    """A maker of (w, scale, zero, bits): weights that fill `stretch` times the range of the grid."""

    def make(rng):
        scale, zero = np.float32(rng.uniform(0.01, 0.1)), int(rng.integers(3, 2**bits - 3))
        low, high = -zero * scale * stretch, (2**bits - 1 - zero) * scale * stretch
        w = draw(rng, lambda r: r.uniform(low, high, 64).astype(np.float32), lambda w: w / scale)
        return w, float(scale), zero, bits

    return make


def ties(rng):
    """Weights that are odd multiples of half a step, exactly: the step is a power of two."""
    return rng.integers(-5, 6, 32).astype(np.float32) * np.float32(0.25) + np.float32(0.125), 0.25, 6, 4


def to_decode(rng):
    """Codes on both sides of the zero-point."""
    return rng.permutation(16).astype(np.uint8), float(np.float32(rng.uniform(0.01, 0.1))), int(rng.integers(5, 11))


def matrix(n, k, size, bits, outlier=False):
    """A maker of (w, bits, size)."""

    def make(rng):
        w = normal(n, k)(rng) * rng.uniform(0.5, 2, (n, k)).astype(np.float32)
        if outlier:
            w[n // 2, k // 3] = 1.5
        return w

    def quotients(w):
        _, scales, _ = groups(w, bits, size)
        spread = np.repeat(scales, size, axis=1)[:, : w.shape[1]]
        lows = np.minimum(np.minimum.reduceat(w, np.arange(0, w.shape[1], size), axis=1), 0)
        return np.concatenate([(w / spread).ravel(), (-lows / scales).ravel()])

    return lambda rng: (draw(rng, make, quotients), bits, size)


def for_symmetric(bits, sign):
    """A maker of (w, bits) whose largest magnitude has this sign."""

    def make(rng):
        w = normal(48)(rng)
        w[rng.integers(48)] = sign * rng.uniform(0.2, 0.3)
        return w

    return lambda rng: (draw(rng, make, lambda w: w / symmetric(w, bits)[1]), bits)


# ---- mistakes


def one_scale_for_all(w, bits, size):
    """Per tensor instead of per group."""
    scale, zero = scale_zero(w, bits)
    shape = len(w), -(-w.shape[1] // size)
    return encode(w, scale, zero, bits), np.full(shape, scale, np.float32), np.full(shape, zero, np.uint8)


def one_scale_for_a_row(w, bits, size):
    """Per row instead of per group."""
    codes, scales, zeros = groups(w, bits, w.shape[1])
    count = -(-w.shape[1] // size)
    return codes, np.repeat(scales, count, axis=1), np.repeat(zeros, count, axis=1)


def stale_scale(w, bits, size):
    """Codes made with the scale of the group before."""
    codes, scales, zeros = groups(w, bits, size)
    for g in range(1, scales.shape[1]):
        part = slice(g * size, (g + 1) * size)
        codes[:, part] = encode(w[:, part], scales[:, g - 1, None], zeros[:, g - 1, None], bits)
    return codes, scales, zeros


def wrong_axis(w, bits, size):
    """Groups of rows in a column instead of columns in a row."""
    return tuple(each.T for each in groups(w.T, bits, size))


def signed_max(w, bits):
    """The largest weight instead of the largest magnitude."""
    top = 2 ** (bits - 1) - 1
    scale = w.max() / top
    return np.clip(np.rint(w / scale), -top, top).astype(np.int8), float(scale)


def short_scale(w, bits):
    """One level too many."""
    top = 2 ** (bits - 1)
    scale = np.abs(w).max() / top
    return np.clip(np.rint(w / scale), 1 - top, top - 1).astype(np.int8), float(scale)


def shifted(by):
    """A zero-point that is off by `by`."""

    def computes(w, bits):
        scale, zero = scale_zero(w, bits)
        return scale, zero + by

    return computes


NAN_HINT = "a group of zeros divides 0 by 0: give it a scale of 1"
CLIP_HINT = "there is no clip: codes beyond the grid wrap around when they become uint8; np.clip before the cast"
LEVELS_HINT = "the grid has 2^bits levels, so 2^bits - 1 steps between the lowest and the highest: divide by that"


def with_nan(args, got):
    """Whether a NaN came back."""
    return any(
        np.isnan(np.asarray(each, np.float64)).any() for each in (got if isinstance(got, tuple | list) else [got])
    )


def grid_score(args, got):
    """Bits per weight, and the error relative to the largest possible of one step."""
    (w, bits, size), (codes, scales, zeros) = args, (np.asarray(each) for each in got)
    stored = bits + scales.size * (16 + bits) / w.size
    spread = [np.repeat(each.astype(np.float32), size, axis=1)[:, : w.shape[1]] for each in (scales, zeros)]
    error = np.square((codes - spread[1]) * spread[0] - w).mean() / np.square(w).mean()
    return f"{stored:.3f} bits per weight with float16 scales; relative squared error {error:.2e}"


EXERCISES = (
    Exercise(
        "rtn.scale_zero",
        (Output("scale", 1e-5), Output("zero")),
        (
            Case("weights of both signs", 2, one_group(4, normal(32, shift=0.02))),
            Case("only positive weights", 1, one_group(4, lambda rng: rng.uniform(0.1, 0.3, 32).astype(np.float32))),
            Case("only negative weights", 1, one_group(3, lambda rng: rng.uniform(-0.3, -0.1, 32).astype(np.float32))),
            Case("a group of zeros", 1, lambda rng: (np.zeros(int(rng.integers(8, 64)), np.float32), 4)),
        ),
        scale_zero,
        (
            Mistake("the zero-point is one too high: round(-low / scale) and nothing more", shifted(1)),
            Mistake("the zero-point is one too low: round(-low / scale) and nothing more", shifted(-1)),
            Mistake(LEVELS_HINT, lambda w, bits: scale_zero(w, bits, top=2**bits)),
            Mistake(
                "the range must contain 0: take min(low, 0) and max(high, 0), or a weight of 0 has no code",
                lambda w, bits: scale_zero(w, bits, widen=False),
            ),
            Mistake(
                "the zero-point has the wrong sign: it is the code of 0, round(-low / scale)",
                lambda w, bits: (scale_zero(w, bits)[0], -scale_zero(w, bits)[1]),
            ),
            Mistake(
                "that is the largest weight, not the range: the scale spreads high - low over the steps",
                lambda w, bits: (float(w.max() / (2**bits - 1)), scale_zero(w, bits)[1]),
            ),
            Mistake(NAN_HINT, shown=with_nan),
        ),
    ),
    Exercise(
        "rtn.encode",
        (Output("codes"),),
        (
            Case("weights inside the range", 2, to_encode(4, 0.98)),
            Case("weights outside the range", 1, to_encode(4, 1.6)),
            Case("exact ties", 1, ties),
        ),
        encode,
        (
            Mistake(
                CLIP_HINT,
                lambda w, scale, zero, bits: (np.rint(w / scale) + zero).astype(np.int64).astype(np.uint8),
            ),
            Mistake(CLIP_HINT, lambda w, scale, zero, bits: np.rint(w / scale) + zero),
            Mistake(
                "a cast to integer cuts toward 0; round to the nearest first (np.rint)",
                lambda w, scale, zero, bits: encode(w, scale, zero, bits, np.trunc),
            ),
            Mistake(
                "floor is not rounding: np.rint goes to the nearest",
                lambda w, scale, zero, bits: encode(w, scale, zero, bits, np.floor),
            ),
            Mistake(
                "ties go to the even integer: floor(x + 0.5) sends them up, np.rint to even",
                lambda w, scale, zero, bits: encode(w, scale, zero, bits, lambda x: np.floor(x + 0.5)),
            ),
            Mistake(
                "the largest code is 2^bits - 1: a code of 2^bits does not fit",
                lambda w, scale, zero, bits: np.clip(np.rint(w / scale) + zero, 0, 2**bits),
            ),
            Mistake(
                "the zero-point is subtracted: a code is round(w / scale) + zero",
                lambda w, scale, zero, bits: encode(w, scale, -zero, bits),
            ),
        ),
    ),
    Exercise(
        "rtn.decode",
        (Output("weights", 1e-5),),
        (Case("codes on both sides of the zero-point", 2, to_decode),),
        decode,
        (
            Mistake(
                "codes are uint8: code - zero below 0 wraps around to 255; cast the codes to float first",
                lambda codes, scale, zero: (codes - np.uint8(zero)).astype(np.float32) * np.float32(scale),
            ),
            Mistake(
                "the zero-point is a code, so it is subtracted before the scale: (code - zero) * scale",
                lambda codes, scale, zero: codes * np.float32(scale) - zero,
            ),
            Mistake(
                "the zero-point is added: a weight is (code - zero) * scale",
                lambda codes, scale, zero: decode(codes, scale, -zero),
            ),
        ),
    ),
    Exercise(
        "rtn.groups",
        (Output("codes"), Output("scales", 1e-5), Output("zeros")),
        (
            Case("groups that fill the rows", 3, matrix(6, 64, 16, 4)),
            Case("a short last group", 2, matrix(4, 56, 16, 4)),
            Case("one outlier", 1, matrix(4, 48, 16, 3, outlier=True)),
        ),
        groups,
        (
            Mistake("one scale for the whole matrix: each group of a row has its own", one_scale_for_all),
            Mistake("one scale for a whole row: each group of the row has its own", one_scale_for_a_row),
            Mistake("a group is coded with the scale of the group before it: a stale scale", stale_scale),
            Mistake(
                "the groups run down the columns: a group is `size` neighbours in one row (the last axis)", wrong_axis
            ),
            Mistake(LEVELS_HINT, lambda w, bits, size: groups(w, bits, size, lambda w, b: scale_zero(w, b, top=2**b))),
            Mistake(
                "the last group is missing: where k is no multiple of the size, the rest is a short group of its own",
                shown=lambda args, got: (
                    np.shape(got[1])[1] == args[0].shape[1] // args[2] < -(-args[0].shape[1] // args[2])
                ),
            ),
        ),
        score=grid_score,
    ),
    Exercise(
        "rtn.symmetric",
        (Output("codes"), Output("scale", 1e-5)),
        (
            Case("the largest weight is positive", 1, for_symmetric(4, 1)),
            Case("the largest magnitude is negative", 1, for_symmetric(4, -1)),
            Case("a group of zeros", 1, lambda rng: (np.zeros(int(rng.integers(8, 64)), np.float32), 4)),
        ),
        symmetric,
        (
            Mistake("the scale comes from max(w): it must be the largest magnitude, max |w|", signed_max),
            Mistake("the largest code is 2^(bits-1) - 1, so 7 for 4 bits: divide max |w| by that", short_scale),
            Mistake(NAN_HINT, shown=with_nan),
        ),
    ),
)
