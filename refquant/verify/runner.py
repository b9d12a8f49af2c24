"""Run cases and judge the answers."""

import time
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from refquant.errors import BadFile
from refquant.verify import explain
from refquant.verify.cases import Case
from refquant.verify.compare import compare
from refquant.verify.implementation import Broken, Declined, Refused

STATUSES = ("pass", "fail", "skip", "known", "unexpected")


@dataclass(frozen=True)
class Result:
    """What became of a case: `pass`, `fail`, `skip`, `known` (a failure that was expected), `unexpected` (a pass)."""

    case: Case
    status: str
    message: str = ""
    details: str = ""
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether it counts against the implementation."""
        return self.status in ("fail", "unexpected")


@dataclass
class Report:
    """All results of one implementation."""

    name: str
    results: list[Result] = field(default_factory=list)

    def count(self, status: str) -> int:
        """How many cases ended so."""
        return sum(result.status == status for result in self.results)

    @property
    def ok(self) -> bool:
        """Whether nothing counts against the implementation and something was tested."""
        return not any(result.bad for result in self.results) and bool(self.count("pass") + self.count("known"))

    def __str__(self):
        from refquant.verify import report

        return report.terminal(self)

    @property
    def exit_code(self) -> int:
        """0: all as it should be; 1: a failure or an unexpected pass; 2: nothing could be tested."""
        return 0 if self.ok else 1 if any(result.bad for result in self.results) else 2


def judge(implementation, case: Case) -> Result:
    """Run one case."""
    began = time.perf_counter()
    status, message, details = _judge(implementation, case)
    return Result(case, status, message, details, time.perf_counter() - began)


def _judge(implementation, case: Case) -> tuple[str, str, str]:
    if case.needs and case.needs not in implementation.declares:
        return "skip", f"only for implementations that declare {case.needs!r}", ""
    try:
        got = implementation.run(case)
    except Declined as reason:
        return "skip", str(reason), ""
    except Refused as problem:
        if case.comparison == "reject" or case.may_reject:
            return "pass", f"refused: {problem}", ""
        return "fail", f"ended in an error: {problem}", ""
    except Broken as problem:
        return "fail", str(problem), ""
    if case.comparison == "reject":
        return "fail", "accepted an input that must be refused", ""
    difference = compare(case, got)
    if difference is None:
        return "pass", "", ""
    return "fail", difference.message, explain.explain(case, got, difference)


def run(implementation, cases, expectations: dict[str, str] | None = None, progress=None) -> Report:
    """Run cases; `expectations` (patterns of ids -> reason) turn failures into `known`, passes into `unexpected`."""
    report = Report(implementation.name)
    for case in cases:
        result = judge(implementation, case)
        reason = next((why for pattern, why in (expectations or {}).items() if fnmatch(case.id, pattern)), None)
        if reason is not None and result.status in ("pass", "fail"):
            known = result.status == "fail"
            text = f"{reason} ({result.message})" if known else f"passes, though expected to fail: {reason}"
            result = Result(case, "known" if known else "unexpected", text, result.details, result.seconds)
        report.results.append(result)
        if progress:
            progress(1)
    report.name = implementation.name  # a program says what it is called when it is started
    return report


def read_expectations(path) -> dict[str, str]:
    """Read a TOML file of known failures: `[[known]]` tables with `case`, an id or a pattern with *, and `reason`."""
    try:
        entries = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("known", [])
        found = {entry["case"]: entry["reason"] for entry in entries}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise BadFile(f"{path}: expected [[known]] tables with a case and a reason each: {problem}") from problem
    if not all(isinstance(reason, str) and reason.strip() for reason in found.values()):
        raise BadFile(f"{path}: every known failure needs a reason")
    return found
