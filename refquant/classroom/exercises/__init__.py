"""The exercises of the six assignments, by name: `rtn.groups` is `groups` in the module `rtn`."""

import importlib

from refquant.classroom.exercise import Exercise
from refquant.errors import UnknownName

ASSIGNMENTS = {
    "01_rtn": "rtn",
    "02_bandwidth": "bandwidth",
    "03_gptq": "gptq",
    "04_awq": "awq",
    "05_kquants": "kquants",
    "06_kernel": "kernel",
}


def exercises(module: str) -> dict[str, Exercise]:
    """The exercises of one module, by full name."""
    if module not in ASSIGNMENTS.values():
        raise UnknownName("assignment", module, ASSIGNMENTS.values())
    found = importlib.import_module(f"{__name__}.{module}").EXERCISES
    return {exercise.name: exercise for exercise in found}


def find_exercise(name: str) -> Exercise:
    """The exercise called `name`; raise `UnknownName`, which lists those of the module."""
    found = exercises(str(name).partition(".")[0])
    if name not in found:
        raise UnknownName("exercise", name, found)
    return found[name]
