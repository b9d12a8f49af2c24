"""`refquant classroom`: assignments out, scores in, with nbgrader; the rubric."""

import json
import sys
from dataclasses import asdict

from refquant.classroom import gradebook, rubric
from refquant.classroom.sandbox import Limits, namespaces


def add_arguments(parser) -> None:
    """Add `release` and `grade` with their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    out = actions.add_parser("release", help="make the students' notebooks in DIR/release")
    back = actions.add_parser("grade", help="grade DIR/submitted; write DIR/scores.csv and DIR/feedback")
    actions.add_parser("rubric", help="print the points and the known mistakes as Markdown")
    for action in (out, back):
        action.add_argument("folder", metavar="DIR", help="the course's folder")
        action.add_argument("--assignment", action="append", metavar="NAME", help="only this one; may be repeated")
    back.add_argument("--student", action="append", metavar="ID", help="only this one; may be repeated")
    back.add_argument("--seed", type=int, help="of the hidden tests' data: repeats an earlier run")
    back.add_argument("--seconds", type=float, default=Limits.seconds, help="for one call (default: %(default)g)")
    back.add_argument(
        "--total", type=float, default=Limits.total, help="seconds for a submission (default: %(default)g)"
    )
    back.add_argument("--memory", type=float, default=2, help="GiB of address space (default: %(default)g)")
    back.add_argument("--wrap", default="auto", help="command that starts a submission's process, such as 'bwrap ...'")
    back.add_argument("--json", action="store_true", help="print the scores as JSON")


def run(args) -> int:
    """Release, grade or print the rubric; 1 where a submission could not be graded."""
    if args.action == "rubric":
        print(rubric.render(), end="")
        return 0
    if args.action == "release":
        for path in gradebook.release(args.folder, args.assignment):
            print(path)
        return 0
    limits = Limits(int(args.memory * 2**30), Limits.file, args.seconds, args.total, args.wrap)
    scores = gradebook.grade(args.folder, args.assignment, args.student, args.seed, limits)
    if args.json:
        print(json.dumps([asdict(score) for score in scores], indent=2))
    else:
        print(render(scores))
        how = namespaces() if args.wrap == "auto" else args.wrap
        print(f"\nseed {scores[0].seed}; processes started through: {how or 'nothing (limits and audit hook only)'}")
    failed = [score for score in scores if score.score is None]
    for score in failed:
        print(f"refquant classroom: {score.assignment}, {score.student}: {score.note}", file=sys.stderr)
    return 1 if failed else 0


def render(scores) -> str:
    """The scores as a table."""
    wide = max(len(score.student) for score in scores)
    lines = []
    for score in scores:
        points = "not graded" if score.score is None else f"{score.score:5.1f} of {score.max_score:g}"
        lines.append(f"{score.assignment:14} {score.student:{wide}}  {points}")
    return "\n".join(lines)
