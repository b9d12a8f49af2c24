"""Notebook 10, verify yours: what the kit says of an implementation, and the shape of its error."""

import numpy as np

from refquant.figures import style
from refquant.verify import select
from refquant.verify.implementation import PythonObject
from refquant.verify.mutants import Mutant, all_mutants
from refquant.verify.report import matrix
from refquant.verify.runner import Report, judge


def decoders() -> list[Mutant]:
    """The known mistakes of decoders of GGUF blocks: those that answer with another number, not with an error."""
    return [m for m in all_mutants() if m.op == "dequantize" and m.formats and m.formats[0].startswith("Q")]


@style.figure_function
def results(report: Report):
    """The matrix of a report: formats down, operations across, cases passed and failed. Returns (Figure, text)."""
    ops, rows = matrix(report)
    rows = [row for row in rows if any(cell not in ("", "-") for cell in row[1:])]  # what was tried
    figure, axes = style.subplots(
        width=1.8 + 1.5 * len(ops), height=0.75 + 0.3 * len(rows), left=1.5, bottom=0.1, top=0.6
    )
    for y, (_, *cells) in enumerate(rows):
        for x, cell in enumerate(cells):
            colour = style.ORANGE if cell.startswith(("FAIL", "PASS?")) else style.SKY if "ok" in cell else "0.94"
            axes.barh(y, 0.96, left=x - 0.48, height=0.9, color=colour)
            axes.text(x, y, cell, ha="center", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_xticks(range(len(ops)), ops)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.5, len(ops) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    passed, failed = report.count("pass"), report.count("fail")
    return figure, f"{report.name}: {passed} cases passed, {failed} failed."


@style.figure_function
def bug(number: int, told: bool = False):
    """What a wrong decoder (number `number` of `decoders`) makes of the first case that it fails. (Figure, text).

    Left: its weights against the right ones; right: the error along the row.
    """
    mutant = decoders()[number]
    implementation = PythonObject(mutant)
    name = mutant.formats[0]
    cases = [case for case in select("gguf-decode") if case.format == name and case.op == "dequantize"]
    judged = [judge(implementation, case) for case in cases]
    failed = [result for result in judged if result.bad]
    case = next((r.case for r in failed if "differ" in r.message), failed[0].case)
    want = np.asarray(case.expected["w"])
    got = np.asarray(implementation.run(case)["w"], np.float32)
    if got.shape != want.shape:  # too short, or of another shape: compare what there is
        got = np.resize(got, want.shape)
    clean = np.isfinite(want[0]) & np.isfinite(got[0])
    x, y = want[0, clean], got[0, clean]
    figure, (left, right) = style.subplots(1, 2, width=8.4, height=3.2, width_ratios=(2, 3))
    ends = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    left.plot(ends, ends, color=style.GREY, linewidth=1)
    left.plot(x, y, "o", color=style.VERMILION, markersize=3, fillstyle="none")
    left.set(xlabel="right weight", ylabel="decoded", title=f"{name}, {case.id.rsplit('/', 1)[-1]}")
    right.plot(np.flatnonzero(clean), y - x, ".", color=style.VERMILION, markersize=4)
    right.set(xlabel="weight of the row", ylabel="error", title="Where it is wrong")
    wrong = np.mean(want.view(np.uint32) != got.view(np.uint32))
    text = f"{name}: {len(failed)} of {len(cases)} cases failed; {100 * wrong:.0f} % of this one's weights are wrong."
    return figure, text + (f" What it does: {mutant.wrong}." if told else "")
