"""Reports: a matrix for the terminal, JSON, JUnit XML, Markdown, a badge."""

import json
from xml.etree import ElementTree

from refquant.errors import UnknownName
from refquant.verify import cases
from refquant.verify.runner import Report, Result

MARKS = {"pass": "ok", "fail": "FAIL", "skip": "-", "known": "known", "unexpected": "PASS?"}


def matrix(report: Report) -> tuple[list[str], list[list[str]]]:
    """Operations, and a row for each format: its name and a cell for each operation, such as `ok 12` or `FAIL 2/12`."""
    ops = list(dict.fromkeys(result.case.op for result in report.results))
    rows = []
    for fmt in dict.fromkeys(result.case.format for result in report.results):
        cells = [_cell([r for r in report.results if (r.case.format, r.case.op) == (fmt, op)]) for op in ops]
        rows.append([fmt, *cells])
    return ops, rows


def _cell(results: list[Result]) -> str:
    tried = [result for result in results if result.status != "skip"]
    if not tried:
        return "-" if results else ""
    bad = [result for result in tried if result.bad]
    if bad:
        return f"{MARKS[bad[0].status]} {len(bad)}/{len(tried)}"
    known = sum(result.status == "known" for result in tried)
    return f"ok {len(tried) - known}" + (f", known {known}" if known else "")


def summary(report: Report) -> str:
    """One line."""
    counts = {"passed": "pass", "failed": "fail", "unexpectedly passed": "unexpected", "known failures": "known",
              "not offered": "skip"}  # fmt: skip
    parts = [f"{report.count(status)} {text}" for text, status in counts.items()
             if report.count(status) or status in ("pass", "fail")]  # fmt: skip
    return f"{report.name}: {', '.join(parts)}"


def failure(result: Result) -> str:
    """Everything about one failure: what differs, where, what usually causes it, who met it before."""
    case = result.case
    lines = [f"{MARKS[result.status]}  {case.id}", f"  {result.message}"]
    lines += [f"  {line}" if line else "" for line in result.details.splitlines()]
    lines.append(f"  catches: {case.catches}")
    lines += [f"  {flag}: {cases.flags()[flag]}" for flag in case.flags]
    for number in case.mistakes:
        known = cases.mistakes()[number]
        lines.append(f"  known mistake {number}: {known['mistake']} ({', '.join(known['issues'])})")
    lines.append(f"  expected result by {', '.join(case.provenance['programs'])}")
    return "\n".join(lines)


def terminal(report: Report, most: int = 5) -> str:
    """Matrix, the first failures in full, the rest by name."""
    ops, rows = matrix(report)
    table = [["format", *ops], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    bad = [result for result in report.results if result.bad]
    said = set()  # a format's layout or a flag's meaning need not be told twice
    for result in bad[:most]:
        new = [line for line in failure(result).splitlines() if len(line) < 60 or line not in said]
        said.update(new)
        lines += ["", *new]
    if len(bad) > most:
        lines += ["", f"and {len(bad) - most} more:"]
        lines += [f"  {MARKS[result.status]}  {result.case.id}: {result.message}" for result in bad[most:]]
    if not any(result.status != "skip" for result in report.results):
        reasons = list(dict.fromkeys(result.message for result in report.results))
        lines += ["", "nothing was tested:", *(f"  {reason}" for reason in reasons[:most])]
    return "\n".join([*lines, "", summary(report)])


def as_json(report: Report) -> str:
    """Results and counts as JSON."""
    counts = {status: report.count(status) for status in MARKS}
    results = [
        {
            "id": r.case.id, "op": r.case.op, "format": r.case.format, "status": r.status, "message": r.message,
            "details": r.details, "seconds": round(r.seconds, 6), "mistakes": list(r.case.mistakes),
        }
        for r in report.results
    ]  # fmt: skip
    return json.dumps({"name": report.name, "ok": report.ok, "counts": counts, "results": results}, indent=1) + "\n"


def junit(report: Report) -> str:
    """JUnit XML, one testcase a case."""
    bad = sum(result.bad for result in report.results)
    root = ElementTree.Element(
        "testsuite", name=f"refquant verify {report.name}", tests=str(len(report.results)), failures=str(bad),
        errors="0", skipped=str(report.count("skip") + report.count("known")),
    )  # fmt: skip
    for r in report.results:
        item = ElementTree.SubElement(root, "testcase", classname=f"{r.case.suite}.{r.case.format}.{r.case.op}",
                                      name=r.case.id, time=f"{r.seconds:.6f}")  # fmt: skip
        if r.bad:
            ElementTree.SubElement(item, "failure", message=_clean(r.message)).text = _clean(failure(r))
        elif r.status != "pass":
            ElementTree.SubElement(item, "skipped", message=_clean(r.message))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c if c in "\t\n" or (ord(c) >= 32 and not 0xD800 <= ord(c) < 0xE000) else "?" for c in text)


def markdown(report: Report) -> str:
    """The matrix as a Markdown table."""
    ops, rows = matrix(report)
    lines = [f"**{summary(report)}**", "", "| format | " + " | ".join(ops) + " |", "| --- " * (len(ops) + 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- `{r.case.id}`: {r.message}" for r in report.results if r.bad or r.status == "known")]
    return "\n".join(lines).rstrip() + "\n"


def badge(report: Report) -> str:
    """JSON for a shields.io endpoint badge."""
    tried = sum(report.count(status) for status in MARKS if status != "skip")
    good = report.count("pass")
    color = "brightgreen" if report.ok else "red"
    return json.dumps({"schemaVersion": 1, "label": "refquant verify", "message": f"{good}/{tried}", "color": color})


WRITERS = {"terminal": terminal, "json": as_json, "junit": junit, "markdown": markdown, "badge": badge}


def check(kind: str) -> None:
    """Raise `UnknownName` for a kind of report that does not exist, before any work is done."""
    if kind not in WRITERS:
        raise UnknownName("report", kind, WRITERS)


def write(report: Report, kind: str) -> str:
    """A report as text, one of `WRITERS`."""
    check(kind)
    return WRITERS[kind](report)
