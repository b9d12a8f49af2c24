"""The comparisons. Each takes a case, its inputs, what is expected and what came; it returns None or a `Difference`.

    bits       the same type, shape and bits; NaN of any payload where NaN is expected; +0 and -0 are one weight; a case
               may allow a relative difference, where the oracle itself rounds its result
    codes      the same scales; another code only where the weight lies within 2^-20 of halfway between two levels
    error      weights to blocks: finite, and the squared error at most (1 + error) times that of the oracle's bytes
    nearest    each code the nearest with the scale that was returned; the error as in `error`
    layer      finite, on a grid, and the error of the layer's output at most (1 + error) times the oracle's
    matvec     against float64, at most twice the largest error of a plain float32 loop
    function   the same function after as before, within a relative tolerance
    value      equal JSON;   close: a number within a relative tolerance
    reject     must end in an error; the runner sees to that

NaN never passes: it is only equal to NaN, in the same place.
"""

from dataclasses import dataclass

import numpy as np

from refquant.verify import blocks, functions
from refquant.verify.cases import Case

TIE = 2.0**-20  # of a step
FLOAT_NAN = {  # format -> (mask of the magnitude, largest magnitude that is not NaN), or the one code that is NaN
    "F16": (0x7FFF, 0x7C00),
    "BF16": (0x7FFF, 0x7F80),
    "E4M3FN": (0x7F, 0x7E),
    "E5M2": (0x7F, 0x7C),
    "E4M3FNUZ": 0x80,
    "E5M2FNUZ": 0x80,
}


@dataclass(frozen=True)
class Difference:
    """How a result differs: a sentence, the array and the index of the first difference, where there is one."""

    message: str
    array: str | None = None
    index: tuple[int, ...] | None = None


def compare(case: Case, got, inputs: dict | None = None, expected: dict | None = None) -> Difference | None:
    """Compare a result (arrays by name; for `value` and `close`, the value) with what the case expects."""
    inputs = case.inputs if inputs is None else inputs
    expected = case.expected if expected is None else expected
    if case.comparison not in ("value", "close"):
        missing = _needed(case, expected) - set(got)
        if missing:
            return Difference(f"the result lacks {', '.join(sorted(missing))}; it has {', '.join(sorted(got)) or 'no'}")
    with np.errstate(all="ignore"):
        return COMPARISONS[case.comparison](case, got, inputs, expected)


def _needed(case: Case, expected: dict) -> set[str]:
    special = {"nearest": {"codes", "scales", "zeros"}, "function": set(), "matvec": {"y"}, "layer": {"w"}}
    return special.get(case.comparison, set(expected))


def _shape(name: str, got: np.ndarray, want: np.ndarray, kinds: str | None = None) -> Difference | None:
    if got.shape != want.shape:
        return Difference(f"{name} must have the shape {list(want.shape)}, got {list(got.shape)}", name)
    if (kinds and got.dtype.kind not in kinds) or (kinds is None and got.dtype != want.dtype):
        return Difference(f"{name} must be {want.dtype}, got {got.dtype}", name)
    return None


def _first(name: str, wrong: np.ndarray, got: np.ndarray, want: np.ndarray) -> Difference:
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    share = f"{int(wrong.sum()):,} of {wrong.size:,} values of {name} differ"
    at = f"[{', '.join(map(str, index))}]"
    return Difference(f"{share}; the first, {name}{at}: expected {want[index]}, got {got[index]}", name, index)


def _unequal(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    if want.dtype.kind == "f":
        return ~((got == want) | (np.isnan(got) & np.isnan(want)))
    return got != want


def _nan_codes(bits: np.ndarray, fmt: str) -> np.ndarray:
    rule = FLOAT_NAN.get(fmt)
    if rule is None:
        return np.zeros(bits.shape, bool)
    return bits == rule if isinstance(rule, int) else (bits & rule[0]) > rule[1]


def bits(case, got, inputs, expected):
    """Same type, shape, bits."""
    for name, want in expected.items():
        have = got[name]
        if problem := _shape(name, have, want):
            return problem
        wrong = _unequal(have, want)
        if "relative" in case.tolerance and want.dtype.kind == "f":
            wrong &= ~(np.abs(have - want) <= case.tolerance["relative"] * np.abs(want))
        if case.op == "cast":
            wrong &= ~(_nan_codes(have, case.format) & _nan_codes(want, case.format))
        if wrong.any():
            return _first(name, wrong, have, want)
    return None


def codes(case, got, inputs, expected):
    """NF4: the same scales, and codes that differ only at ties."""
    for name, want in expected.items():
        if problem := _shape(name, got[name], want):
            return problem
    wrong = _unequal(got["absmax"], expected["absmax"])
    if wrong.any():
        return _first("absmax", wrong, got["absmax"], expected["absmax"])
    have, want = (np.stack([a["weight"] >> 4, a["weight"] & 15], -1).reshape(-1) for a in (got, expected))
    w = inputs["w"].ravel()
    scale = np.repeat(expected["absmax"], case.params["blocksize"])[: w.size]
    low, high = blocks.NF4[np.minimum(have, want)[: w.size]], blocks.NF4[np.maximum(have, want)[: w.size]]
    tie = np.abs(w / scale - (low + high) / 2) <= TIE
    wrong = (have != want)[: w.size] & ~(tie & (np.abs(have.astype(int) - want)[: w.size] == 1))
    return _first("codes", wrong, have[: w.size], want[: w.size]) if wrong.any() else None


def _squares(w: np.ndarray, decoded: np.ndarray, weight=None) -> float:
    change = np.square(decoded.astype(np.float64) - w)
    return float((change if weight is None else change * weight).sum())


def _worse(case, have: float, oracle: float, floor: float) -> Difference | None:
    limit = oracle * (1 + case.tolerance["error"]) + floor
    if have <= limit:
        return None
    times = f"{have / oracle:.3g} times" if oracle else "above"
    return Difference(f"the squared error, {have:.6g}, is {times} the oracle's, {oracle:.6g}")


def error(case, got, inputs, expected):
    """Blocks whose squared error is no larger than that of the oracle's bytes."""
    if problem := _shape("blocks", got["blocks"], expected["blocks"]):
        return problem
    have, want = (blocks.decode(a["blocks"], case.format, case.shape) for a in (got, expected))
    bad = ~np.isfinite(have)
    if bad.any():
        return _first("w", bad, have, want)
    w, weight = inputs["w"].astype(np.float64), inputs.get("importance")
    if weight is None or not np.isfinite(weight).all() or not weight.any():
        weight = None
    oracle = _squares(w, want, weight)
    return _worse(case, _squares(w, have, weight), oracle, 1e-12 * _squares(w, np.zeros_like(w), weight))


def nearest(case, got, inputs, expected):
    """Codes that are the nearest with the returned scales, whatever these are; the error close to the oracle's."""
    w, g = inputs["w"].astype(np.float64), case.params["group_size"]
    n, k = w.shape
    group = np.arange(k) // g
    dims = {"codes": (n, k), "scales": (n, group[-1] + 1), "zeros": (n, group[-1] + 1)}
    for name, shape in dims.items():
        kinds = "f" if name == "scales" else "iu"
        if problem := _shape(name, got[name], np.empty(shape, np.float16 if kinds == "f" else np.uint8), kinds):
            return problem
    top = 2 ** case.params["bits"] - 1
    have = {name: got[name].astype(np.float64) for name in dims}
    for name in ("scales", "zeros"):
        bad = ~np.isfinite(have[name]) | ((have[name] < 0) if name == "scales" else False)
        if bad.any():
            return Difference(f"{name} must be finite{' and not negative' if name == 'scales' else ''}: "
                              f"{have[name][bad][0]} at {np.argwhere(bad)[0].tolist()}", name)  # fmt: skip
    if (outside := (have["codes"] < 0) | (have["codes"] > top)).any():
        return _first("codes", outside, got["codes"], np.full((n, k), top))
    if case.params["sym"] and (got["zeros"] != 2 ** (case.params["bits"] - 1)).any():
        return Difference(
            f"a symmetric zero-point is {2 ** (case.params['bits'] - 1)}, got {got['zeros'].min()}", "zeros"
        )
    scale, zero = have["scales"][:, group], have["zeros"][:, group]
    best = np.clip(w / scale + zero, 0, top)
    wrong = (np.abs(best - have["codes"]) > 0.5 + 2.0**-12) & (scale > 0)  # with a scale of 0 any code will do
    if wrong.any():
        return _first("codes", wrong, have["codes"], best)
    oracle = _squares(w, expected["w"])
    return _worse(case, _squares(w, (have["codes"] - zero) * scale), oracle, 1e-9 * _squares(w, 0 * w))


def layer(case, got, inputs, expected):
    """Weights of a method that looks at activations: on a grid, with a small error of the layer's output."""
    have, want, w = got["w"], expected["w"], inputs["w"]
    if problem := _shape("w", have, want, "f"):
        return problem
    if (bad := ~np.isfinite(have)).any():
        return _first("w", bad, have, want)
    s = got.get("scales", np.ones(w.shape[1]))
    if s.shape != w.shape[1:] or not (np.isfinite(s) & (s > 0)).all():
        return Difference(f"scales must be {w.shape[1]} finite positive numbers", "scales")
    problem = _grid(case, have * s)
    x = inputs.get("x")
    h = inputs["hessian"].astype(np.float64) if x is None else x.astype(np.float64).T @ x.astype(np.float64)
    cost = lambda a: float(np.einsum("ni,ij,nj->", a - w, h, a - w, optimize=True))  # noqa: E731
    return problem or _worse(
        case, cost(have.astype(np.float64)), cost(want.astype(np.float64)), 1e-9 * abs(cost(0 * w))
    )


def _grid(case, w) -> Difference | None:
    """Whether each group has at most 2^bits different values, so that it can be stored."""
    g, levels = case.params["group_size"], 2 ** case.params["bits"]
    values = np.sort(w.reshape(-1, g), axis=1)
    gap = np.diff(values, axis=1) > 1e-3 * np.ptp(values, axis=1, keepdims=True)
    most = 1 + int(gap.sum(axis=1).max())
    if most > levels:
        return Difference(f"a group of {g} weights has {most} different values; {levels} can be stored", "w")
    return None


def matvec(case, got, inputs, expected):
    """Products: finite, at most twice the largest error of a float32 loop."""
    y, want = got["y"], expected["y"]
    if problem := _shape("y", y, want, "f"):
        return problem
    limit = 2 * np.abs(expected["loop"] - want).max() + 4 * np.finfo(np.float32).eps * np.abs(want).max()
    wrong = ~(np.abs(y.astype(np.float64) - want) <= limit)
    if not wrong.any():
        return None
    found = _first("y", wrong, y, want)
    return Difference(f"{found.message} (allowed: {limit:.3g})", "y", found.index)


def function(case, got, inputs, expected):
    """Tensors after an absorption compute the same function as before."""
    before = {name: a for name, a in inputs.items() if name not in ("x", "scales")}
    for name, tensor in before.items():
        if name not in got or got[name].shape != tensor.shape:
            return Difference(f"the result must hold {name} of shape {list(tensor.shape)}", name)
    y, want = functions.output(case.params["kind"], got, inputs["x"]), expected["y"]
    reads = {"up": "down", "qkv": "o", "v": "o"}
    moved = next((name for name in ("w0", *reads.values()) if name in before), None)
    if np.array_equal(got[moved], before[moved]):
        return Difference(f"{moved} is as it was: nothing was absorbed", moved)
    wrong = ~(np.abs(y - want) <= case.tolerance["relative"] * np.abs(want).max())
    return _first("the block's output", wrong, y, want) if wrong.any() else None


def value(case, got, inputs, expected):
    """Equal JSON."""
    if got == case.value:
        return None
    if isinstance(case.value, dict) and isinstance(got, dict):
        wrong = [key for key in case.value if got.get(key) != case.value[key]]
        key = wrong[0] if wrong else next(iter(got.keys() - case.value.keys()))
        text = f"{len(wrong)} of {len(case.value)} differ; the first, {key}"
        return Difference(f"{text}: expected {case.value.get(key)}, got {got.get(key)}")
    return Difference(f"expected {case.value!r}, got {got!r}")


def close(case, got, inputs, expected):
    """A number within a relative tolerance."""
    if isinstance(got, int | float | np.floating) and abs(got - case.value) <= case.tolerance["relative"] * abs(
        case.value
    ):
        return None
    return Difference(f"expected {case.value:.6f}, got {got!r}")


COMPARISONS = {f.__name__: f for f in (bits, codes, error, nearest, layer, matvec, function, value, close)}
