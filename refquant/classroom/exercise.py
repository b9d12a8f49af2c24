"""An exercise: cases made from a random generator, the right answer, and what typical mistakes compute.

A case makes the arguments of one call. The student's function is called with copies of them, and what it returns is
compared with the reference, output by output, element by element. Where it differs, the known mistakes are tried on the
same arguments: if one of them computes exactly what the student's function returned, its hint names the mistake.

Nothing here depends on where the function runs: in the notebook's own kernel (`check`), or in a sandbox process behind
a proxy (`refquant classroom grade`). Only plain data comes back, and the verdict is reached on this side.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refquant.errors import RefquantError


class WrongAnswer(RefquantError, AssertionError):
    """An answer to an exercise that is not right; the message gives the first wrong value and, where known, a hint."""


class CodeFailed(RefquantError):
    """A student's code raised, ran out of time or memory, or ended its process; the message says which."""


@dataclass(frozen=True)
class Output:
    """One value that the function returns: its name and how near it must be.

    rtol None: equal. Otherwise the largest error allowed, as a part of the expected value (`of` "each") or of the
    largest magnitude in the expected array (`of` "largest", for sums whose terms cancel).
    """

    name: str
    rtol: float | None = None
    of: str = "each"


@dataclass(frozen=True)
class Case:
    """What is tried: `make(rng)` returns the arguments of one call. `points` are the case's share of the marks."""

    name: str
    points: float
    make: Callable[[np.random.Generator], tuple]


@dataclass(frozen=True)
class Mistake:
    """A typical mistake: the hint, and the function that makes it (or `shown(args, got)`, which recognises it)."""

    hint: str
    computes: Callable | None = None
    shown: Callable | None = None


@dataclass(frozen=True)
class Exercise:
    """One function to write.

    `differs(args, got)` replaces the comparison with `reference` where more than one answer is right: it returns what
    is wrong, or None. `score(args, got)` says how good a right answer is, in the assignment's unit. `measure(function,
    rng)` judges what cannot be seen in one answer (bytes moved, seconds): for each line of `measured` it yields the
    name and points, what is wrong or None, and what was measured.
    """

    name: str
    outputs: tuple[Output, ...]
    cases: tuple[Case, ...]
    reference: Callable | None = None
    mistakes: tuple[Mistake, ...] = ()
    differs: Callable | None = None
    score: Callable | None = None
    measure: Callable | None = None
    measured: tuple[tuple[str, float], ...] = ()

    @property
    def rubric(self) -> tuple[tuple[str, float], ...]:
        """Every line that carries marks, with its points."""
        return tuple((case.name, case.points) for case in self.cases) + self.measured

    @property
    def points(self) -> float:
        """All points of the exercise."""
        return sum(points for _, points in self.rubric)


def attempt(exercise: Exercise, function: Callable, case: Case, rng: np.random.Generator) -> tuple[tuple, object]:
    """Call `function` on one case; return the arguments and what came back, or raise `WrongAnswer`.

    What the function itself raises passes through.
    """
    args = case.make(rng)
    got = function(*copy.deepcopy(args))
    problem = difference(exercise, args, got)
    if problem:
        hint = diagnose(exercise, args, got)
        raise WrongAnswer(problem + (f"\nHint: {hint}" if hint else ""))
    return args, got


def difference(exercise: Exercise, args: tuple, got) -> str | None:
    """What is wrong with the answer `got`, in one line, or None."""
    with np.errstate(all="ignore"):
        if exercise.differs:
            return exercise.differs(args, got)
        return compare(exercise.outputs, exercise.reference(*copy.deepcopy(args)), got)


def diagnose(exercise: Exercise, args: tuple, got) -> str | None:
    """The hint of the first known mistake that computes what the student's function returned."""
    with np.errstate(all="ignore"):
        for mistake in exercise.mistakes:
            try:
                if mistake.shown:
                    found = mistake.shown(args, got)
                else:
                    found = compare(exercise.outputs, mistake.computes(*copy.deepcopy(args)), got) is None
            except (ValueError, IndexError, TypeError, ArithmeticError):
                continue  # the mistake cannot even be made on these arguments, or the answer has no such shape
            if found:
                return mistake.hint
    return None


def compare(outputs: tuple[Output, ...], expected, got) -> str | None:
    """Compare what was returned with what should have been: the first difference in words, or None."""
    if len(outputs) == 1:
        expected, got = (expected,), (got,)
    elif not isinstance(got, tuple | list) or len(got) != len(outputs):
        names = ", ".join(output.name for output in outputs)
        return f"expected {len(outputs)} values ({names}), got {kind_of(got)}"
    for output, right, value in zip(outputs, expected, got, strict=True):
        problem = compare_one(output, right, value)
        if problem:
            return problem
    return None


def compare_one(output: Output, expected, got) -> str | None:
    """Compare one output. A NaN equals nothing, not even a NaN."""
    if expected is None or isinstance(expected, str | bool):
        plain = got.item() if isinstance(got, np.generic) else got
        same = type(plain) is type(expected) and plain == expected
        return None if same else f"{output.name}: expected {expected!r}, got {shown(got)}"
    right = np.asarray(expected)
    value = as_numbers(got)
    if value is None:
        return f"{output.name}: expected numbers, got {kind_of(got)}"
    if value.shape != right.shape:
        return f"{output.name}: expected shape {right.shape}, got {value.shape}"
    with np.errstate(all="ignore"):
        if output.rtol is None:
            wrong = value != right
        else:
            size = np.abs(right) if output.of == "each" else np.abs(right).max(initial=0)
            wrong = ~(np.abs(value.astype(np.float64) - right) <= output.rtol * size)
    if not wrong.any():
        return None
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"[{', '.join(map(str, place))}]" if place else ""
    count = f" ({int(wrong.sum())} of {wrong.size} are wrong)" if wrong.size > 1 else ""
    return f"{output.name}{where}: expected {shown(right[place])}, got {shown(value[place])}{count}"


def as_numbers(value) -> np.ndarray | None:
    """The value as an array of numbers, or None."""
    if isinstance(value, str | bytes | dict) or value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    return array if array.dtype.kind in "biuf" else None


def kind_of(value) -> str:
    """A short description of an answer that has the wrong kind."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return "None (is there a return?)" if value is None else f"{type(value).__name__} {shown(value)}"


def shown(value) -> str:
    """A value, short enough for a message."""
    if isinstance(value, np.generic):
        value = value.item()
    text = f"{value:.7g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
