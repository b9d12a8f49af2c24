"""Submissions for the tests: the instructor's answers, with some of them replaced."""

import contextlib
import copy
import io
import re

import nbformat

from refquant import classroom, course

NAMES = [path.stem for path in course.find_assignments()]
REGION = re.compile(r"^ *### BEGIN (SOLUTION|HIDDEN TESTS)\n.*?^ *### END \1\n?", re.S | re.M)


def source(name: str):
    """The instructor's notebook."""
    (script,) = course.find_assignments([f"assignments/{name}"])
    return nbformat.read(course.notebook_of(script), as_version=4)


def about(cell) -> dict:
    return cell.metadata.get("nbgrader", {})


def graded(notebook) -> list:
    return [cell for cell in notebook.cells if about(cell).get("grade")]


def calls(notebook) -> list[tuple[str, str]]:
    """Function and exercise of each graded cell."""
    return [re.search(r"classroom\.grade\((\w+), \"([\w.]+)\"\)", cell.source).groups() for cell in graded(notebook)]


def solved(name: str, answers: dict[str, str] | None = None, first: str = ""):
    """The notebook as a student gives it back: every answer the instructor's, but for `answers` by cell.

    `first` is the source of a cell of the student's own, after the imports.
    """
    notebook = copy.deepcopy(source(name))
    for cell in notebook.cells:
        if about(cell).get("solution") and about(cell)["grade_id"] in (answers or {}):
            cell.source = answers[about(cell)["grade_id"]]
        elif about(cell).get("grade"):
            cell.source = REGION.sub("", cell.source)
        cell.source = re.sub(r" *### (BEGIN|END) SOLUTION\n?", "", cell.source)
    if first:
        at = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code") + 1
        notebook.cells.insert(at, nbformat.v4.new_code_cell(first))
    return notebook


def functions(notebook) -> dict:
    """What the student's cells define, run here."""
    names: dict = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and not about(cell).get("grade"):
            exec(cell.source, names)
    return names


def marks(name: str, answers: dict[str, str], only: set[str] | None = None) -> tuple[dict[str, float], str]:
    """Points of each exercise, graded in this process, and what was printed."""
    names = functions(solved(name, answers))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        points = {
            exercise: classroom.grade(names[function], exercise)
            for function, exercise in calls(source(name))
            if only is None or exercise in only
        }
    return points, printed.getvalue()
