"""The ledger: statements of the lesson, the code that tests each, and the verdict that the code reaches.

A test is a function that gets the `Evidence` and returns a `Finding`. Its verdict comes from one of the three rules
below, applied to numbers that the function computed, or that were measured or published (then with their source)::

    equal(value, claimed, tolerance)     holds within the tolerance, else corrected
    every(cases)                         holds where all cases do, corrected where none does, else under conditions
    within(values, low, high)            `every` on a range

The text of a finding (condition, correction) explains; it decides nothing.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources

from refquant.bandwidth.quality import Quality, measured
from refquant.errors import BadInput, UnknownName

HOLDS, CONDITIONS, CORRECTED = "holds", "holds under conditions", "corrected"
RECORDED = ("compare.json", "layers.json")
TOPICS = ("bandwidth", "gptq", "awq", "gguf", "choosing", "serving")


@dataclass
class Evidence:
    """What was measured on models.

    results : quality by label of a row, from `refquant compare --json`.
    layers : by model, statistics of its weights and activations, from `measure.layers`.
    """

    results: dict[str, Quality] = field(default_factory=dict)
    layers: dict[str, dict] = field(default_factory=dict)

    def of_layers(self, statistic: str) -> list[float]:
        """Return a statistic of every layer of every model."""
        return [value for found in self.layers.values() for value in found[statistic]]

    @property
    def models(self) -> str:
        """The models whose layers were measured."""
        return "measured on " + " and ".join(self.layers)


def evidence(results=None, layers: dict | None = None) -> Evidence:
    """Gather the evidence: what was recorded in this package (on `tiny` and SmolLM2), and what is given.

    results : a path or mapping of `refquant compare --json`; its rows take the place of the recorded ones
    layers : by model, of `measure.layers`, instead of the recorded ones
    """
    kept = {name: json.loads(resources.files(__package__).joinpath(name).read_text("utf-8")) for name in RECORDED}
    rows = measured(kept["compare.json"]) | (measured(results) if results is not None else {})
    return Evidence(rows, layers or kept["layers.json"])


@dataclass(frozen=True)
class Finding:
    """What a test found: the `value` in words and numbers, the `numbers` it decided on, and the verdict."""

    value: str
    verdict: str
    numbers: dict[str, float]
    note: str = ""
    source: str = "computed"

    def __post_init__(self):
        if self.verdict not in (HOLDS, CONDITIONS, CORRECTED) or not self.numbers:
            raise BadInput(f"a finding needs a verdict of the rules and the numbers behind it, got {self.verdict!r}")
        for name, number in self.numbers.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
                raise BadInput(f"a finding rests on numbers; {name} is {number!r}")


@dataclass(frozen=True)
class Claim:
    """One statement of the lesson, in our words, and its test."""

    name: str
    topic: str
    statement: str
    test: Callable[[Evidence], Finding]


_CLAIMS: dict[str, Claim] = {}


def claim(topic: str, statement: str):
    """Register the decorated function as the test of a statement; its own name names the claim."""
    if topic not in TOPICS:
        raise UnknownName("topic", topic, TOPICS)

    def register(test: Callable[[Evidence], Finding]) -> Callable[[Evidence], Finding]:
        name = test.__name__
        if name in _CLAIMS:
            raise BadInput(f"two claims are called {name}")
        _CLAIMS[name] = Claim(name, topic, statement, test)
        return test

    return register


def claims() -> list[Claim]:
    """Every claim, in the order of the lesson's topics."""
    return sorted(_CLAIMS.values(), key=lambda item: TOPICS.index(item.topic))


# ---- the rules


def equal(value: float, claimed: float, tolerance: float = 1e-9) -> str:
    """Holds when `value` is within `tolerance` (relative) of `claimed`."""
    return HOLDS if math.isclose(value, claimed, rel_tol=tolerance) else CORRECTED


def every(cases: Iterable[bool]) -> str:
    """Holds where all cases do, corrected where none does, under conditions otherwise. No case is no evidence."""
    found = [bool(case) for case in cases]
    if not found:
        raise BadInput("a verdict needs at least one case")
    return HOLDS if all(found) else CONDITIONS if any(found) else CORRECTED


def within(values: Iterable[float], low: float, high: float) -> str:
    """`every` on low <= value <= high."""
    return every(low <= value <= high for value in values)


# ---- running


@dataclass(frozen=True)
class Row:
    """A line of the ledger."""

    claim: Claim
    finding: Finding


def run(proof: Evidence | None = None, names: Iterable[str] | None = None) -> list[Row]:
    """Test every claim (or those called `names`); raise `UnknownName` for a name that does not exist."""
    proof = proof or evidence()
    chosen = list(_CLAIMS) if names is None else list(names)
    for name in chosen:
        if name not in _CLAIMS:
            raise UnknownName("claim", name, _CLAIMS)
    return [Row(item, item.test(proof)) for item in claims() if item.name in chosen]


def as_json(rows: list[Row]) -> dict:
    """The ledger as plain data: counts by verdict, then the rows."""
    return {
        "verdicts": {name: sum(row.finding.verdict == name for row in rows) for name in (HOLDS, CONDITIONS, CORRECTED)},
        "claims": [
            {
                "name": row.claim.name,
                "topic": row.claim.topic,
                "statement": row.claim.statement,
                "value": row.finding.value,
                "numbers": row.finding.numbers,
                "verdict": row.finding.verdict,
                "note": row.finding.note,
                "source": row.finding.source,
            }
            for row in rows
        ],
    }
