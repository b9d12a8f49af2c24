"""The cases: data in `vectors/<suite>/`, a manifest that `vectors/schema.json` describes and its tensors.

A case says which operation on which format is to give what, how the result is compared, which known mistakes it catches
(`mistakes`: numbers in vectors/mistakes.json, with the threads that reported them), and which independent programs made
the expected result. Nothing here computes anything.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import safe_open

from refquant.errors import BadInput

VECTORS = Path(__file__).with_name("vectors")


@dataclass(frozen=True, eq=False)
class Case:
    """One case, with the names of the manifest; `inputs` and `expected` are arrays by name, read when asked for."""

    id: str
    op: str
    format: str
    shape: tuple[int, ...]
    params: dict
    comparison: str
    flags: tuple[str, ...]
    catches: str
    mistakes: tuple[int, ...]
    issues: tuple[str, ...]
    provenance: dict
    value: object = None
    tolerance: dict = field(default_factory=dict)
    may_reject: bool = False
    needs: str | None = None
    stored: dict = field(default_factory=dict, repr=False)  # {"inputs": {name: key}, "expected": {name: key}}

    @property
    def suite(self) -> str:
        """The suite it belongs to."""
        return self.id.split("/")[0]

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The arrays that the operation is given."""
        return _tensors(self.suite, self.stored["inputs"])

    @property
    def expected(self) -> dict[str, np.ndarray]:
        """The arrays that it is to return."""
        return _tensors(self.suite, self.stored["expected"])

    @property
    def words(self) -> set[str]:
        """What `select` looks for: every part of the id, the flags, the suite, `mistake-27`, in lower case."""
        parts = [*re.split(r"[/]", self.id), *self.flags, *(f"mistake-{number}" for number in self.mistakes)]
        return {part.lower() for part in parts}


def _tensors(suite: str, keys: dict[str, str]) -> dict[str, np.ndarray]:
    with safe_open(VECTORS / suite / "tensors.safetensors", framework="np") as file:
        return {name: file.get_tensor(key) for name, key in keys.items()}


@cache
def load() -> tuple[Case, ...]:
    """Every case of every suite."""
    found = []
    for manifest in sorted(VECTORS.glob("*/manifest.json")):
        for entry in json.loads(manifest.read_text(encoding="utf-8"))["cases"]:
            stored = {name: entry.pop(name) for name in ("inputs", "expected")}
            for name in ("shape", "flags", "mistakes", "issues"):
                entry[name] = tuple(entry[name])
            found.append(Case(**entry, stored=stored))
    return tuple(found)


@cache
def mistakes() -> dict[int, dict]:
    """Known mistakes by number: `mistake`, a sentence, and `issues`, where it was reported."""
    table = json.loads((VECTORS / "mistakes.json").read_text(encoding="utf-8"))
    return {int(number): entry for number, entry in table.items()}


@cache
def flags() -> dict[str, str]:
    """What each flag means, with the usual cause of a failure."""
    return json.loads((VECTORS / "flags.json").read_text(encoding="utf-8"))


ALIASES = {"decode": "dequantize", "encode": "quantize", "gemv": "matmul", "gemm": "matmul"}


def select(expression: str | None = None) -> list[Case]:
    """Cases for which `expression` is true: words joined by `and`, `or`, `not` and parentheses.

    A word is a part of an id (`q4_k`, `dequantize` or `decode`, `gguf-decode`, `random`), a whole id, a flag, or
    `mistake-27`. Upper and lower case are the same.

    Raises
    ------
    BadInput
        An expression that cannot be read, or a word that no case has.
    """
    if not expression:
        return list(load())
    tokens = re.findall(r"[()]|[^\s()]+", expression.lower())
    known = set().union(*(case.words | {case.id.lower()} for case in load()))
    for token in tokens:
        if token not in ("(", ")", "and", "or", "not") and ALIASES.get(token, token) not in known:
            raise BadInput(f"no case has the word {token!r}; `refquant verify --list` shows them")
    return [case for case in load() if _Reader(tokens, case.words | {case.id.lower()}, expression).read()]


class _Reader:
    """Evaluate an expression for one case's words; `and` binds closer than `or`, `not` closest."""

    def __init__(self, tokens, words, text):
        self.tokens, self.words, self.text, self.at = tokens, words, text, 0

    def read(self) -> bool:
        result = self._either()
        if self.at != len(self.tokens):
            raise BadInput(f"cannot read {self.text!r} after {' '.join(self.tokens[: self.at])!r}")
        return result

    def _next(self, *wanted) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at] in wanted:
            self.at += 1
            return True
        return False

    def _either(self) -> bool:
        result = self._both()
        while self._next("or"):
            result = self._both() or result
        return result

    def _both(self) -> bool:
        result = self._one()
        while self._next("and"):
            result = self._one() and result
        return result

    def _one(self) -> bool:
        if self._next("not"):
            return not self._one()
        if self._next("("):
            result = self._either()
            if not self._next(")"):
                raise BadInput(f"cannot read {self.text!r}: a parenthesis is not closed")
            return result
        if self.at == len(self.tokens) or self.tokens[self.at] in ("and", "or", ")"):
            raise BadInput(f"cannot read {self.text!r}: a word is missing")
        word = self.tokens[self.at]
        self.at += 1
        return ALIASES.get(word, word) in self.words
