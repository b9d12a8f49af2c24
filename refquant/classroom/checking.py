"""`check`, for students: the visible cases. `grade`, in locked cells: the same cases on fresh data, for points."""

import contextlib
import contextvars
import os
import secrets
import zlib

import numpy as np

from refquant.classroom.exercise import CodeFailed, Exercise, WrongAnswer, attempt
from refquant.classroom.exercises import find_exercise

DRAWS = 3  # calls of each case when grading: a lucky guess does not pass three times
_seed = contextvars.ContextVar("seed of the hidden tests")


@contextlib.contextmanager
def hidden_seed(seed: int):
    """Within this, hidden tests draw their data from `seed`: one grading run is fair, and can be repeated."""
    token = _seed.set(seed)
    try:
        yield
    finally:
        _seed.reset(token)


def check(function, name: str) -> None:
    """Try a function on the visible cases of the exercise `name`; print its score.

    Raises
    ------
    WrongAnswer
        With the first wrong value, expected and got, and a hint if the mistake is a known one.
    UnknownName
        No such exercise.
    """
    exercise = find_exercise(name)
    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        return  # `grade` follows, and gives marks in parts
    for case in exercise.cases:
        try:
            args, got = attempt(exercise, function, case, _generator(0, exercise, case.name))
        except WrongAnswer as wrong:
            raise WrongAnswer(f"{name}, {case.name}: {wrong}") from None
    if exercise.measure:
        for line, _, problem, note in exercise.measure(function, _generator(0, exercise, "measure")):
            if problem:
                raise WrongAnswer(f"{name}, {line}: {problem}")
            print(f"{name}, {line}: {note}")
    score = f": {exercise.score(args, got)}" if exercise.score else ""
    print(f"{name}: right on {len(exercise.cases)} cases{score}")


def grade(function, name: str) -> float:
    """Try a function on fresh data; print a line for each part of the rubric and return the points.

    As the last line of a graded cell: nbgrader takes the value as the points of the cell.
    """
    exercise = find_exercise(name)
    try:
        seed = _seed.get()
    except LookupError:
        seed = secrets.randbits(64)
    total = 0.0
    for case in exercise.cases:
        total += _report(case.name, case.points, _problem(exercise, function, case, seed))
    if exercise.measure:
        if total:
            lines = exercise.measure(function, _generator(seed, exercise, "measure"))
        else:
            lines = ((line, points, "not measured: no answer is right", "") for line, points in exercise.measured)
        for line, points, problem, note in lines:
            total += _report(line, points, problem, note)
    return total


def _problem(exercise: Exercise, function, case, seed: int) -> str | None:
    rng = _generator(seed, exercise, case.name)
    for _ in range(DRAWS):
        try:
            attempt(exercise, function, case, rng)
        except (WrongAnswer, CodeFailed) as problem:
            return str(problem)
        except Exception as problem:  # the function itself failed, whatever it is
            return f"raised {type(problem).__name__}: {problem}"
    return None


def _report(name: str, points: float, problem: str | None, note: str = "") -> float:
    said = problem or note
    print(f"{0 if problem else points:g} of {points:g}  {name}" + (f": {said}" if said else ""))
    return 0.0 if problem else points


def _generator(seed: int, exercise: Exercise, part: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{exercise.name} {part}".encode())])
