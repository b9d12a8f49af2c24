"""The rubric of all assignments as Markdown: points, and the mistakes that have a hint. Read from the exercises."""

from refquant.classroom.exercises import ASSIGNMENTS, exercises

HEAD = """# Rubric

Made by `refquant classroom rubric` from the exercises themselves. Each line of points is all or nothing, on data that
is drawn anew for every grading run; a function must be right on three draws. Below the points: the mistakes that are
recognised by what they compute, as the hint that students see.
"""


def render() -> str:
    """The text of notebooks/assignments/RUBRIC.md."""
    lines = [HEAD]
    for assignment, module in ASSIGNMENTS.items():
        own = exercises(module)
        lines += [f"## {assignment}: {sum(each.points for each in own.values()):g} points", ""]
        for exercise in own.values():
            parts = ", ".join(f"{name} {points:g}" for name, points in exercise.rubric)
            lines += [f"**{exercise.name}**, {exercise.points:g}: {parts}", ""]
            lines += [f"- {hint}" for hint in dict.fromkeys(mistake.hint for mistake in exercise.mistakes)]
            lines += [""]
    return "\n".join(lines)
