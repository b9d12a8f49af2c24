"""ggml's searches for the best scale, sixteen blocks at a time: `methods.kquants.scales`, function by function.

What they compute and why is told there; here is only how. Each returns the scale and what it takes to find the codes
again (`inverse`, and where the codes are counted from), not the codes: nearly always they are chosen anew from the
stored scale, and a trial that is kept would otherwise have to copy 16 to 32 vectors.

Per weight and trial of `scale_and_min`: 9 multiplications, 10 additions, 2 comparisons, 3 loads and a store, all state
in registers. One AVX-512 core does that for sixteen blocks in some 14 cycles; ggml needs about 90 for sixteen.
"""

from itertools import pairwise

import numpy as np

from refquant.codebooks import IQ4_VALUES
from refquant_kernels.cpu.compile import helper, inlined
from refquant_kernels.cpu.lanes import EPS, clip, largest_magnitude, nearest, nearest_within
from refquant_kernels.cpu.simd import (
    LANES,
    any_lane,
    load,
    select,
    splat,
    splat_int,
    store,
    to_float,
)

f32 = np.float32
ONE, TENTH, CODE127, INFINITY = f32(1), f32(0.1), f32(-127), f32(np.inf)
VALUES = tuple(f32(v) for v in IQ4_VALUES)
MIDDLES = tuple((a + b) / 2 for a, b in pairwise(VALUES))  # exact: halves of small integers


# ---- scale * code + minimum


@inlined
def error_of(x, at, weight, p, n, codes, scale, minimum, absolute):
    """Sum of weight * (scale * code + minimum - x)^2, or of its magnitude."""
    total = splat(0.0)
    if absolute:
        for i in range(0, LANES * n, LANES):
            difference = scale * load(codes, i) + minimum - load(x, at + i)
            total = total + load(weight, p + i) * abs(difference)
    else:
        for i in range(0, LANES * n, LANES):
            difference = scale * load(codes, i) + minimum - load(x, at + i)
            total = total + load(weight, p + i) * (difference * difference)
    return total


@inlined
def code_with_minimum(x, inverse, start, top):
    """F: the code of x, 0..top."""
    return nearest_within(inverse * (x - start), top)


@helper
def scale_and_min(x, at, weight, p, n, top, first, step, steps, absolute, codes):
    """Scale, minimum, and what the codes follow from: `inverse` and `start` of `code_with_minimum`.

    x and weight: runs of `n` vectors at `at` and `p`. `codes` is room for `n` vectors. top, first, step: float32.
    """
    low = load(x, at)
    high = low
    sum_w = load(weight, p)
    sum_x = sum_w * low
    for i in range(LANES, LANES * n, LANES):
        v, w = load(x, at + i), load(weight, p + i)
        low, high = select(v < low, v, low), select(v > high, v, high)
        sum_w, sum_x = sum_w + w, sum_x + w * v
    low = select(low > 0.0, splat(0.0), low)

    minimum = low
    scale = splat(ONE) / (splat(top) / (high - low))
    inverse = splat(top) / (high - low)
    inverse = select(inverse < INFINITY, inverse, splat(0.0))  # rounding infinity gives code 0
    for i in range(0, LANES * n, LANES):
        store(codes, i, code_with_minimum(load(x, at + i), inverse, low, top))
    least = error_of(x, at, weight, p, n, codes, scale, minimum, absolute)
    best_inverse, best_start = inverse, low
    for trial in range(steps + 1):
        inverse = splat(first + step * f32(trial) + top) / (high - minimum)
        sum_l, sum_ll, sum_xl = splat(0.0), splat(0.0), splat(0.0)
        for i in range(0, LANES * n, LANES):
            v = load(x, at + i)
            l = code_with_minimum(v, inverse, minimum, top)
            store(codes, i, l)
            wl = load(weight, p + i) * l
            sum_l, sum_ll, sum_xl = sum_l + wl, sum_ll + wl * l, sum_xl + wl * v
        d = sum_w * sum_ll - sum_l * sum_l
        new_scale, new_min = (sum_w * sum_xl - sum_x * sum_l) / d, (sum_ll * sum_x - sum_l * sum_xl) / d
        above = new_min > 0.0
        new_scale, new_min = select(above, sum_xl / sum_ll, new_scale), select(above, splat(0.0), new_min)
        error = error_of(x, at, weight, p, n, codes, new_scale, new_min, absolute)
        better = (d > 0.0) & (error < least)
        best_inverse, best_start = select(better, inverse, best_inverse), select(better, minimum, best_start)
        least = select(better, error, least)
        scale, minimum = select(better, new_scale, scale), select(better, new_min, minimum)
    return scale, minimum, best_inverse, best_start


# ---- scale * code, codes with a sign


@helper
def symmetric_scale(x, at, weight, p, n, top):
    """Scale and `inverse`: the codes are clip(nearest(inverse * x), -top, top - 1); both 0 below 1e-15. top: int32."""
    extreme = largest_magnitude(x, at, n)
    inverse, scale, best = splat(0.0), splat(0.0), splat(0.0)
    for step in range(-10, 10):
        shift = TENTH * f32(step) if step > -10 else f32(0)  # the first guess, then -9 to 9
        if step == 0:
            continue
        new = splat(-(f32(top) + shift)) / extreme
        sum_xl, sum_ll = splat(0.0), splat(0.0)
        for i in range(0, LANES * n, LANES):
            v = load(x, at + i)
            w = load(weight, p + i)
            l = to_float(clip(nearest(new * v), -top, top - 1))
            sum_xl, sum_ll = sum_xl + w * v * l, sum_ll + w * l * l
        if step == -10:
            inverse = new
            scale = select(sum_ll != 0.0, sum_xl / sum_ll, splat(0.0))
            best = scale * sum_xl
        else:
            better = (sum_ll > 0.0) & (sum_xl * sum_xl > best * sum_ll)
            inverse, scale = select(better, new, inverse), select(better, sum_xl / sum_ll, scale)
            best = select(better, scale * sum_xl, best)
    empty = abs(extreme) < EPS
    return select(empty, splat(0.0), scale), inverse, empty


@helper
def symmetric_scale_by_descent(x, at, n, top, weight, p, codes, c):
    """Scale; the codes, 0..2 top - 1, go to the `n` vectors of int32 at codes[c]. x^2 goes to `weight` at `p`."""
    extreme = largest_magnitude(x, at, n)
    inverse = splat(-f32(top)) / extreme
    sum_xl, sum_ll = splat(0.0), splat(0.0)
    for i in range(0, LANES * n, LANES):
        v = load(x, at + i)
        w = v * v
        code = clip(nearest(inverse * v), -top, top - 1)
        l = to_float(code)
        sum_xl, sum_ll = sum_xl + w * v * l, sum_ll + w * l * l
        store(weight, p + i, w)
        store(codes, c + i, code)
    sum_xl, sum_ll = descend(x, at, weight, p, n, codes, c, sum_xl, sum_ll, -top, top - 1, False)
    empty = abs(extreme) < EPS
    for i in range(c, c + LANES * n, LANES):
        store(codes, i, select(empty, splat_int(0), load(codes, i) + top))
    return select(empty, splat(0.0), select(sum_ll > 0.0, sum_xl / sum_ll, splat(0.0)))


@helper
def descend(x, at, weight, p, n, codes, c, sum_xl, sum_ll, low, top, as_bytes):
    """Improve the codes one weight at a time, in at most five rounds; return the two sums."""
    for _ in range(5):
        changed = splat(0.0) > 1.0
        for i in range(0, LANES * n, LANES):
            v, w, code = load(x, at + i), load(weight, p + i), load(codes, c + i)
            wx, l = w * v, to_float(code)
            others_xl, others_ll = sum_xl - wx * l, sum_ll - w * l * l
            new = nearest(v * others_ll / others_xl)
            new = select(new > top, splat_int(top), new)
            if not as_bytes:
                new = select(new < low, splat_int(low), new)
            l = to_float(new)
            new_xl, new_ll = others_xl + wx * l, others_ll + w * l * l
            gain = new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll
            legal = (others_ll > 0.0) if as_bytes else (new_ll > 0.0)
            change = (others_xl > 0.0) & legal & (new != code) & gain
            if as_bytes:
                new = new & 255
            store(codes, c + i, select(change, new, code))
            sum_xl, sum_ll = select(change, new_xl, sum_xl), select(change, new_ll, sum_ll)
            changed = changed | change
        if not any_lane(changed):
            break
    return sum_xl, sum_ll


# ---- scale * code, nothing negative


@helper
def positive_scale(x, weight, n, top, codes):
    """Scale; the codes go to the first `n` vectors of `codes`, int32. x and weight: runs of `n` vectors at 0."""
    peak = splat(0.0)
    for i in range(0, LANES * n, LANES):
        v = load(x, i)
        peak = select(v > peak, v, peak)
    inverse, least = splat(f32(top)) / peak, splat(0.0)
    for step in range(-5, 5):
        if step == 0:
            continue
        new = splat(TENTH * f32(step) + f32(top)) / peak if step > -5 else inverse
        width = splat(ONE) / new
        error = splat(0.0)
        for i in range(0, LANES * n, LANES):
            v = load(x, i)
            code = nearest(new * v)
            code = (code & 255) if step == -5 else select(code > top, splat_int(top), code)
            difference = v - width * to_float(code)
            error = error + load(weight, i) * difference * difference
        if step == -5:
            least = error
        else:
            better = error < least
            inverse, least = select(better, new, inverse), select(better, error, least)
    sum_xl, sum_ll = splat(0.0), splat(0.0)
    for i in range(0, LANES * n, LANES):
        v, w = load(x, i), load(weight, i)
        code = nearest(inverse * v)
        code = select(code > top, splat_int(top), code)
        l = to_float(code)
        sum_xl, sum_ll = sum_xl + w * v * l, sum_ll + w * l * l
        store(codes, i, code & 255)
    sum_xl, sum_ll = descend(x, 0, weight, 0, n, codes, 0, sum_xl, sum_ll, 0, top, True)
    empty = peak < EPS
    for i in range(0, LANES * n, LANES):
        store(codes, i, select(empty, splat_int(0), load(codes, i)))
    return select(empty, splat(0.0), select(sum_ll > 0.0, sum_xl / sum_ll, splat(0.0)))


# ---- scale * value, the values of IQ4
#
# The nearest of 16 values is found by comparing with the 15 points halfway between neighbours: ggml's rule, the lower
# value if x - lower < upper - x, is x < (lower + upper) / 2 exactly, since both differences are exact in float32 for x
# next to such a point, and rounding keeps their order elsewhere. NaN is below none and gets the last value, as in ggml.


@inlined
def table_value(v):
    """F: the nearest of the sixteen values."""
    value = splat(VALUES[0])
    for k in range(15):
        value = select(v < MIDDLES[k], value, splat(VALUES[k + 1]))
    return value


@inlined
def table_code(v):
    """I: the number of the nearest of the sixteen values."""
    code = splat_int(0)
    for k in range(15):
        code = select(v < MIDDLES[k], code, splat_int(k + 1))
    return code


@helper
def table_scale(x, at, weight, p, n):
    """Scale; 0 below 1e-15."""
    extreme = largest_magnitude(x, at, n)
    scale, best = splat(0.0), splat(0.0)
    for step in range(-8, 8):
        inverse = splat(ONE) / (-extreme / CODE127) if step == -8 else splat(f32(step - 127)) / extreme
        sum_xq, sum_qq = splat(0.0), splat(0.0)
        for i in range(0, LANES * n, LANES):
            v = load(x, at + i)
            q = table_value(inverse * v)
            wq = load(weight, p + i) * q
            sum_xq, sum_qq = sum_xq + wq * v, sum_qq + wq * q
        if step == -8:
            scale = select(sum_qq > 0.0, sum_xq / sum_qq, splat(0.0))
            best = scale * sum_xq
        else:
            better = (sum_qq > 0.0) & (sum_xq * sum_xq > best * sum_qq)
            scale = select(better, sum_xq / sum_qq, scale)
            best = select(better, scale * sum_xq, best)
    return select(abs(extreme) < EPS, splat(0.0), scale)
