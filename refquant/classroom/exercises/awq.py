"""Assignment 4, AWQ: salient channels, the scale of a channel, the search, the absorption, and the proof.

    s(alpha) = r / sqrt(max r min r),  r = max((mean |x|)^alpha, 1e-4)        x Wᵀ = (x / s) (W s)ᵀ

Right answers: `refquant.methods.awq` in float64; the grid is asymmetric int`bits` in groups of neighbours in a row.
"""

import numpy as np

from refquant.classroom.exercise import Case, Exercise, Mistake, Output

ALPHAS = np.arange(20) / 20


def salient(x, count, measure=lambda x: np.abs(x).mean(axis=0)):
    """The channels with the largest mean |x|, ascending."""
    return np.sort(np.argsort(-measure(x), kind="stable")[:count])


def scales(mean, alpha, floor=1e-4, normal=True):
    """Scale of each channel, from mean |x| [k]."""
    s = np.maximum(mean**alpha, floor)
    return s / np.sqrt(s.max() * s.min()) if normal else s


def on_grid(w, bits, size):
    """Weights [n, k] after rounding on the grid: given to students as `on_grid`."""
    parts = w.reshape(len(w), -1, size)
    low, high = np.minimum(parts.min(axis=2, keepdims=True), 0), np.maximum(parts.max(axis=2, keepdims=True), 0)
    scale = np.where(high > low, high - low, 1) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(parts / scale) + zero, 0, 2**bits - 1) - zero) * scale).reshape(w.shape)


def errors(w, x, bits, size):
    """Mean squared output error at each alpha."""
    mean = np.abs(x).mean(axis=0)
    found = []
    for alpha in ALPHAS:
        s = scales(mean, alpha)
        found.append(np.square(x @ (on_grid(w * s, bits, size) / s - w).T).mean())
    return np.array(found)


def search(w, x, bits, size):
    """The alpha with the least output error, and the errors of all."""
    found = errors(w, x, bits, size)
    return float(ALPHAS[np.argmin(found)]), found


def absorb(norm, w, s):
    """Weights of the norm before the layer, and of the layer."""
    return norm / s, w * s


def largest_change(norm, w, new_norm, new_w, x):
    """The largest change of the output, relative to the largest output. x: inputs of the norm, normalised already."""
    before, after = (x * norm) @ w.T, (x * new_norm) @ new_w.T
    return float(np.abs(after - before).max() / np.abs(before).max())


# ---- data


def activations(rng, m, k, loud=0.1):
    """Inputs [m, k] in which some channels are much larger than the others."""
    size = np.where(rng.random(k) < loud, rng.uniform(8, 30, k), rng.uniform(0.3, 1.5, k))
    size[rng.integers(k)] = 25
    return rng.normal(size=(m, k)) * size


def for_salient(rng):
    """Channels whose mean, mean magnitude, maximum and weight would choose differently."""
    while True:
        k = int(rng.integers(16, 32))
        x = rng.normal(size=(24, k)) * rng.uniform(0.3, 1.5, k) + rng.choice([-1, 1], k) * rng.uniform(0, 3, k)
        x[rng.integers(24), rng.integers(k)] = 30
        count = int(rng.integers(2, 5))
        others = [salient(x, count, measure) for measure in (mean_with_sign, peak, smallest)]
        if all(not np.array_equal(other, salient(x, count)) for other in others):
            return x, count


def mean_with_sign(x):
    """The mean, positive and negative cancelling."""
    return x.mean(axis=0)


def peak(x):
    """The largest, one token deciding."""
    return np.abs(x).max(axis=0)


def smallest(x):
    """The wrong end of the order."""
    return -np.abs(x).mean(axis=0)


def for_scales(silent):
    """A maker of (mean, alpha); with `silent`, a channel that never fires."""

    def make(rng):
        mean = np.exp(rng.normal(size=24))
        mean[rng.integers(24)] = 0 if silent else 40
        return mean, float(rng.uniform(0.3, 0.9))

    return make


def for_search(bits):
    """A maker of (w, x, bits, size): a layer on which one alpha is clearly the best, and not the first."""

    def make(rng):
        while True:
            args = rng.normal(size=(12, 64)) * 0.05, activations(rng, 48, 64), bits, 16
            found = errors(*args)
            least, second = np.sort(found)[:2]
            if least < 0.98 * second and np.argmin(found) > 0:
                return args

    return make


def for_absorb(rng):
    """A norm, a square layer (so that rows can be taken for columns) and scales."""
    return rng.uniform(0.5, 2, 12), rng.normal(size=(12, 12)), rng.uniform(0.3, 3, 12)


def for_proof(right):
    """A maker of (norm, w, new_norm, new_w, x), absorbed rightly or with one channel forgotten."""

    def make(rng):
        norm, w, s = for_absorb(rng)
        new_norm, new_w = absorb(norm, w, s)
        if not right:
            new_norm[rng.integers(12)] *= rng.uniform(1.05, 1.3)
        return norm, w, new_norm, new_w, rng.normal(size=(20, 12)) * 5

    return make


# ---- mistakes


def choosing(error):
    """A search that minimises `error(w, q, s, x)` instead."""

    def computes(w, x, bits, size):
        mean = np.abs(x).mean(axis=0)
        found = [error(w, on_grid(w * s, bits, size), s, x) for s in (scales(mean, alpha) for alpha in ALPHAS)]
        return float(ALPHAS[np.argmin(found)]), np.array(found)

    return computes


by_weights = choosing(lambda w, q, s, x: np.square(q / s - w).mean())
without_dividing = choosing(lambda w, q, s, x: np.square(x @ (q - w).T).mean())
of_scaled_weights = choosing(lambda w, q, s, x: np.square(x @ (q - w * s).T).mean())


def worst(*args):
    """The alpha with the largest error."""
    found = errors(*args)
    return float(ALPHAS[np.argmax(found)]), found


def proof(args, got):
    """What is wrong with a claimed largest change: rounding noise counts as 0."""
    right = largest_change(*args)
    try:
        value = float(got)
    except (TypeError, ValueError):
        return f"largest change: expected a number, got {got!r}"
    near = 0 <= value < 1e-9 if right < 1e-12 else abs(value - right) <= 1e-6 * right
    return None if near else f"largest change: expected {right:.6g}, got {value:.6g}"


def proving(change):
    """A proof that measures something else."""
    return lambda args, got: abs(float(got) - change(*args)) <= 1e-9 * abs(float(got))


def search_score(args, got):
    """The least output error relative to that of alpha 0, which is RTN."""
    alpha, found = got
    return f"output error {min(found) / found[0]:.3f} of RTN's, at alpha {alpha:.2f}"


EXERCISES = (
    Exercise(
        "awq.salient",
        (Output("channels"),),
        (Case("by mean magnitude", 3, for_salient),),
        salient,
        (
            Mistake(
                "positive and negative activations cancel in that mean: take |x| first",
                lambda x, n: salient(x, n, mean_with_sign),
            ),
            Mistake("one large token decides a maximum: AWQ takes the mean of |x|", lambda x, n: salient(x, n, peak)),
            Mistake("those are the quietest channels: sort downwards", lambda x, n: salient(x, n, smallest)),
            Mistake("channels are the last axis of x: average over the tokens, axis 0", lambda x, n: salient(x.T, n)),
            Mistake(
                "the right channels, but not in ascending order",
                shown=lambda args, got: np.array_equal(np.sort(got), salient(*args)),
            ),
        ),
    ),
    Exercise(
        "awq.scales",
        (Output("s", 1e-6),),
        (Case("channels that fire", 2, for_scales(False)), Case("a silent channel", 2, for_scales(True))),
        scales,
        (
            Mistake("not normalised: divide by sqrt(max s * min s)", lambda mean, a: scales(mean, a, normal=False)),
            Mistake("upside down: large activations get a large s", lambda mean, a: 1 / scales(mean, a)),
            Mistake(
                "a silent channel has mean 0: s must be at least 1e-4",
                shown=lambda args, got: not np.isfinite(got).all(),
            ),
            Mistake("a silent channel has mean 0: s must be at least 1e-4", lambda mean, a: scales(mean, a, floor=0)),
            Mistake("alpha is an exponent, not a factor: mean ** alpha", lambda mean, a: scales(mean * a, 1)),
            Mistake(
                "the limit of 1e-4 is for mean ** alpha, before it is normalised",
                lambda mean, a: (
                    np.maximum(mean, 1e-4) ** a
                    / np.sqrt((np.maximum(mean, 1e-4) ** a).max() * (np.maximum(mean, 1e-4) ** a).min())
                ),
            ),
        ),
    ),
    Exercise(
        "awq.search",
        (Output("alpha", 1e-9), Output("errors", 1e-6)),
        (Case("4 bits", 3, for_search(4)), Case("3 bits", 2, for_search(3))),
        search,
        (
            Mistake(
                "those are errors of the weights; the output's error counts: x times the difference",
                by_weights,
            ),
            Mistake(
                "the rounded weights must be divided by s again (or x by s) before they are compared", without_dividing
            ),
            Mistake("x meets W s there, without being divided by s", of_scaled_weights),
            Mistake("that is the alpha with the largest error", worst),
        ),
        score=search_score,
    ),
    Exercise(
        "awq.absorb",
        (Output("norm", 1e-9), Output("W", 1e-9)),
        (Case("a norm before a layer", 4, for_absorb),),
        absorb,
        (
            Mistake(
                "s multiplies the rows of W: input channels are its columns",
                lambda norm, w, s: (norm / s, w * s[:, None]),
            ),
            Mistake(
                "both were multiplied: what the layer gains, the norm must lose", lambda norm, w, s: (norm * s, w * s)
            ),
            Mistake(
                "turned around: the layer is multiplied by s and the norm divided", lambda norm, w, s: (norm * s, w / s)
            ),
            Mistake("the norm before the layer must be divided by s", lambda norm, w, s: (norm, w * s)),
            Mistake("the layer's columns must be multiplied by s", lambda norm, w, s: (norm / s, w)),
        ),
    ),
    Exercise(
        "awq.largest_change",
        (Output("largest change"),),
        (Case("nothing changed", 2, for_proof(True)), Case("one channel was forgotten", 2, for_proof(False))),
        differs=proof,
        mistakes=(
            Mistake(
                "that compares the weights: they do change, only the output must not",
                shown=proving(lambda norm, w, norm2, w2, x: np.abs(w2 - w).max() / np.abs(w).max()),
            ),
            Mistake(
                "not relative: divide by the largest output",
                shown=proving(lambda n, w, n2, w2, x: largest_change(n, w, n2, w2, x) * np.abs((x * n) @ w.T).max()),
            ),
            Mistake(
                "a difference can be negative: take its magnitude before the maximum",
                shown=proving(
                    lambda n, w, n2, w2, x: ((x * n2) @ w2.T - (x * n) @ w.T).max() / np.abs((x * n) @ w.T).max()
                ),
            ),
            Mistake(
                "the norm is missing: the layer reads x times the norm's weights",
                shown=proving(lambda n, w, n2, w2, x: np.abs(x @ (w2 - w).T).max() / np.abs(x @ w.T).max()),
            ),
            Mistake(
                "that is the mean change, in which one wrong channel drowns: take the largest",
                shown=proving(
                    lambda n, w, n2, w2, x: np.abs((x * n2) @ w2.T - (x * n) @ w.T).mean() / np.abs((x * n) @ w.T).max()
                ),
            ),
        ),
    ),
)
