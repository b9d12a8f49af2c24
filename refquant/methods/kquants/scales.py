"""The searches: which scale (and minimum) serves a block of weights best.

Rounding to the nearest code leaves one free choice, the scale. The obvious one maps the largest weight to the last
code. But a slightly different scale may put most of the other weights nearer to a level, at a small cost for the
largest. So ggml tries a handful of scales around the obvious one and keeps the best by weighted squared error.

For given codes l the best scale is known in closed form. Minimizing sum w (x - s l)^2 over s gives::

    s = sum(w x l) / sum(w l l)             error = sum(w x x) - sum(w x l)^2 / sum(w l l)

so the trial with the largest `sum(w x l)^2 / sum(w l l)` wins, and no error needs to be summed. Each search therefore
goes: guess a scale, round to codes, take the best scale *for those codes*.

Shapes: x and weight float32 [g, ...], the g weights of a block along the first axis (see `arithmetic`); codes int32
[g, ...]; scales float32 [...]. `top` is the last code; where codes have a sign, -top is the first and top - 1 the last.
Products and sums associate to the left, as in C: `weight * x * l` is `(weight * x) * l`.

Source: ggml-quants.c, the function named in each docstring.
Leaves out: `make_qkx1_quants` (no longer used) and the `rmse_type` values that no format uses.
"""

import numpy as np

from refquant.codebooks import IQ4_VALUES
from refquant.methods.kquants.arithmetic import (
    EPS,
    as_byte,
    f32,
    highest,
    largest_magnitude,
    lowest,
    nearest,
    ordered_sum,
)


def symmetric_scale(x: np.ndarray, weight: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0..2 top - 1 and scale of x ~ scale * (code - top). ggml's `make_qx_quants` with rmse_type 1.

    The first guess sends the weight of largest magnitude to -top, the end that has one level more; hence the sign of
    the scale. Then 18 more, 0.1 to 0.9 levels longer or shorter. A block below 1e-15 has scale 0 and codes 0.
    """
    extreme = largest_magnitude(x)

    def trial(shift):
        codes = np.clip(nearest(-(f32(top) + shift) / extreme * x), -top, top - 1)
        l = codes.astype(f32)
        return codes, ordered_sum(weight * x * l), ordered_sum(weight * l * l)

    codes, sum_xl, sum_ll = trial(f32(0))
    scale = np.where(sum_ll != 0, sum_xl / sum_ll, f32(0))
    best = scale * sum_xl
    for step in (*range(-9, 0), *range(1, 10)):
        new, sum_xl, sum_ll = trial(f32(0.1) * f32(step))
        better = (sum_ll > 0) & (sum_xl * sum_xl > best * sum_ll)
        codes = np.where(better, new, codes)
        scale = np.where(better, sum_xl / sum_ll, scale)
        best = np.where(better, scale * sum_xl, best)
    empty = np.abs(extreme) < EPS
    return np.where(empty, 0, codes + top), np.where(empty, f32(0), scale)


def symmetric_scale_by_descent(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0..2 top - 1 and scale of x ~ scale * (code - top). ggml's `make_q3_quants`: Q3_K without importance.

    Coordinate descent: from the first guess, take one weight after the other, work out the scale that the *others*
    want, round this weight with it, and keep the new code if the whole block gains. At most five rounds over the block.
    Weights count with x^2, so that large ones are kept best.
    """
    extreme, weight = largest_magnitude(x), x * x
    codes = np.clip(nearest(f32(-top) / extreme * x), -top, top - 1)
    l = codes.astype(f32)
    sum_xl, sum_ll = ordered_sum(weight * x * l), ordered_sum(weight * l * l)
    codes, sum_xl, sum_ll = _descend(x, weight, codes, sum_xl, sum_ll, low=-top, top=top - 1)
    empty = np.abs(extreme) < EPS
    return np.where(empty, 0, codes + top), np.where(empty | ~(sum_ll > 0), f32(0), sum_xl / sum_ll)


def positive_scale(x: np.ndarray, weight: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0..top and scale of x ~ scale * code, for x that is not negative. ggml's `make_qp_quants`.

    Quantizes the sub-blocks' scales and minima when there is an importance; `weight` is then the sum of the sub-block's
    weights. Eight trials by summed error, then coordinate descent as above, then the best scale for the codes.

    A negative x (see `scale_and_min`) becomes a byte above `top`: ggml clamps on one side only. Callers deal with it.
    """
    peak = np.fmax(highest(x), f32(0))

    def error(inverse, codes):
        difference = x - f32(1) / inverse * codes.astype(f32)
        return ordered_sum(weight * difference * difference)

    inverse = f32(top) / peak
    least = error(inverse, as_byte(nearest(inverse * x)))
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        new = (f32(0.1) * f32(step) + f32(top)) / peak
        trial = error(new, np.minimum(nearest(new * x), top))
        inverse, least = np.where(trial < least, new, inverse), np.where(trial < least, trial, least)
    codes = np.minimum(nearest(inverse * x), top)
    l = codes.astype(f32)
    sum_xl, sum_ll = ordered_sum(weight * x * l), ordered_sum(weight * l * l)
    codes, sum_xl, sum_ll = _descend(x, weight, as_byte(codes), sum_xl, sum_ll, low=None, top=top)
    empty = peak < EPS
    return np.where(empty, 0, codes), np.where(empty | ~(sum_ll > 0), f32(0), sum_xl / sum_ll)


def _descend(x, weight, codes, sum_xl, sum_ll, low, top):
    """Improve codes [g, ...] one weight at a time, in at most five rounds; also returns their two sums.

    For weight i: the sums without it, the scale `others_xl / others_ll` inverted, the nearest code under it, and, if
    sum_xl^2 / sum_ll would grow, the change. `low` None means unsigned codes, which ggml's `make_qp_quants` keeps in a
    byte and does not limit from below.
    """
    codes = codes.copy()
    for _ in range(5):
        before = codes.copy()
        for i in range(len(x)):
            wx, l = weight[i] * x[i], codes[i].astype(f32)
            others_xl, others_ll = sum_xl - wx * l, sum_ll - weight[i] * l * l
            new = nearest(x[i] * others_ll / others_xl)
            new = np.minimum(new, top) if low is None else np.clip(new, low, top)
            l = new.astype(f32)
            new_xl, new_ll = others_xl + wx * l, others_ll + weight[i] * l * l
            gain = new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll
            legal = others_ll > 0 if low is None else new_ll > 0
            change = (others_xl > 0) & legal & (new != codes[i]) & gain
            codes[i] = np.where(change, as_byte(new) if low is None else new, codes[i])
            sum_xl, sum_ll = np.where(change, new_xl, sum_xl), np.where(change, new_ll, sum_ll)
        if np.array_equal(before, codes):
            break
    return codes, sum_xl, sum_ll


def scale_and_min(x, weight, top, first, step, steps, absolute=False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes 0..top, scale and minimum (never above 0) of x ~ scale * code + minimum.

    ggml's `make_qkx2_quants` and `make_qkx3_quants`, which compute the same. The minimum is at most 0, so that a weight
    of zero stays within the range. The first guess spreads the codes over [minimum, maximum]. Then `steps` + 1 trials
    stretch the range to `top + first`, `top + first + step`, ... levels; for the codes of each, scale and minimum come
    from a weighted straight-line fit (two unknowns, so a 2 x 2 system with determinant D)::

        scale = (sum w  sum wxl - sum wx  sum wl) / D       minimum = (sum wll  sum wx - sum wl  sum wxl) / D
        D     =  sum w  sum wll - sum wl  sum wl

    and the trial is kept when its weighted squared (`absolute`: absolute) error is smaller.

    The trials are not independent: a kept trial's minimum becomes the lower end of the range of those that follow. With
    the first minimum throughout, a quarter of the scales would differ from ggml's.

    A constant block needs no case of its own: its range is 0, so all codes come out 0 (0/0, taken as 0), and the scale.

    When all weight sits on one element D is 0 in exact arithmetic, but its roundings may leave it just above, and the
    "fit" is noise, sometimes with a negative scale.

    Trials limit the position to 0..top before they round it, as the ggml in xllamacpp 2026.10 does. Earlier ones round
    first; that gives another code only to a weight millions of steps below the minimum, with an importance of 0.
    """
    low, high, wx = lowest(x), highest(x), weight * x
    sum_w, sum_x = ordered_sum(weight[1:], weight[0]), ordered_sum(wx[1:], wx[0])
    low = np.where(low > 0, f32(0), low)

    def position(levels, minimum):
        return levels / (high - minimum) * (x - minimum)

    def error(scale, l, minimum):
        difference = scale * l + minimum - x
        return ordered_sum(weight * (np.abs(difference) if absolute else difference * difference))

    minimum, scale = low, f32(1) / (f32(top) / (high - low))
    codes = np.clip(nearest(position(f32(top), minimum)), 0, top)
    least = error(scale, codes.astype(f32), minimum)
    for i in range(steps + 1):
        new = nearest(np.clip(position(f32(first) + f32(step) * f32(i) + f32(top), minimum), 0, top))
        l = new.astype(f32)
        wl = weight * l
        sum_l, sum_ll, sum_xl = ordered_sum(wl), ordered_sum(wl * l), ordered_sum(wl * x)
        d = sum_w * sum_ll - sum_l * sum_l
        new_scale, new_min = (sum_w * sum_xl - sum_x * sum_l) / d, (sum_ll * sum_x - sum_l * sum_xl) / d
        above = new_min > 0
        new_scale, new_min = np.where(above, sum_xl / sum_ll, new_scale), np.where(above, f32(0), new_min)
        trial = error(new_scale, l, new_min)
        better = (d > 0) & (trial < least)
        codes, least = np.where(better, new, codes), np.where(better, trial, least)
        scale, minimum = np.where(better, new_scale, scale), np.where(better, new_min, minimum)
    return codes, scale, minimum


def table_codes(v: np.ndarray) -> np.ndarray:
    """Index of the nearest of the 16 values of IQ4; a tie goes to the upper one. ggml's `best_index_int8`."""
    values = IQ4_VALUES.astype(f32)
    upper = np.clip(np.searchsorted(values, v, side="right"), 1, 15)
    return upper - (v - values[upper - 1] < values[upper] - v)


def table_scale(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Scale of x ~ scale * value, the values of IQ4. The search inside ggml's `quantize_row_iq4_nl_impl`.

    The first guess sends the largest weight to the table's largest magnitude, -127, with the sign turned; then the
    largest weight is sent to each whole number from -134 to -120. The codes are not returned: they are chosen anew at
    the end.
    """
    extreme = largest_magnitude(x)

    def sums(inverse):
        q = IQ4_VALUES[table_codes(inverse * x)].astype(f32)
        return ordered_sum(weight * q * x), ordered_sum(weight * q * q)

    sum_xq, sum_qq = sums(f32(1) / (-extreme / f32(-127)))
    scale = np.where(sum_qq > 0, sum_xq / sum_qq, f32(0))
    best = scale * sum_xq
    for shift in range(-7, 8):
        sum_xq, sum_qq = sums(f32(shift - 127) / extreme)
        better = (sum_qq > 0) & (sum_xq * sum_xq > best * sum_qq)
        scale = np.where(better, sum_xq / sum_qq, scale)
        best = np.where(better, scale * sum_xq, best)
    return np.where(np.abs(extreme) < EPS, f32(0), scale)
