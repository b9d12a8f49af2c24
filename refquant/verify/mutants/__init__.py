"""Mutants: the known mistakes (vectors/mistakes.json) as small wrong implementations.

Each does one operation, wrongly in the one way that its number stands for, and otherwise as refquant does. They show
that the kit catches what it says: a test demands that every mutant fails a case that is meant for its number. They are
also bugs to practise on; `refquant verify --impl refquant.verify.mutants:find.m27` shows what the kit says about one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from refquant.errors import UnknownName


@dataclass(frozen=True)
class Mutant:
    """One wrong implementation: the number of its mistake, what it does wrong, its operation and formats."""

    number: int
    wrong: str
    op: str
    formats: tuple[str, ...]
    function: Callable
    declares: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Number and sentence."""
        return f"mutant {self.number}: {self.wrong}"

    def __getattr__(self, name):
        if name == self.op:
            return self.function
        raise AttributeError(name)


_MUTANTS: list[Mutant] = []


def mutant(number: int, wrong: str, op: str, *formats: str, declares: tuple[str, ...] = ()):
    """Register the decorated function as a mutant of these formats (none: of whatever it is asked)."""

    def register(function):
        _MUTANTS.append(Mutant(number, wrong, op, formats or None, function, declares))
        return function

    return register


def all_mutants() -> list[Mutant]:
    """Every mutant, by number."""
    from refquant.verify.mutants import checkpoints, gguf, methods, numbers  # noqa: F401 (they register themselves)

    return sorted(_MUTANTS, key=lambda item: item.number)


class _Find:
    """Mutants as attributes: `find.m27`, and `find.m32_2` for the second of several."""

    def __getattr__(self, name):
        named = {}
        for item in all_mutants():
            same = sum(
                other.startswith(f"m{item.number}") and other.split("_")[0] == f"m{item.number}" for other in named
            )
            named[f"m{item.number}" + (f"_{same + 1}" if same else "")] = item
        if name not in named:
            raise AttributeError(UnknownName("mutant", name, named))
        return named[name]


find = _Find()
