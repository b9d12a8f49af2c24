"""A first step for nbgrader's autograding: every cell's settings as in the teacher's notebook, whatever came back.

A student, or a student's editor, may have lost, doubled, moved or changed the settings by which nbgrader knows a cell.
nbgrader restores the text of the cells it knows, and refuses a notebook whose settings do not make sense; a submission
should rather be graded for what it holds.
"""

from nbformat.v4 import new_code_cell, new_markdown_cell
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor

SCHEMA = 3  # of nbgrader's settings


def settings(book, notebook: str, assignment: str) -> dict[str, dict]:
    """The settings of every cell that nbgrader knows, by id, with `source`: as the teacher released them."""
    known = book.find_notebook(notebook, assignment)
    points = {cell.name: cell.max_score for cell in [*known.grade_cells, *known.task_cells]}
    graded, solved, tasks = (
        {cell.name for cell in cells} for cells in (known.grade_cells, known.solution_cells, known.task_cells)
    )
    found = {}
    for cell in known.source_cells:
        name = cell.name
        about = {"grade": name in graded, "grade_id": name, "locked": cell.locked, "solution": name in solved}
        about |= {"task": name in tasks, "schema_version": SCHEMA, "cell_type": cell.cell_type, "source": cell.source}
        found[name] = about | ({"points": points[name]} if name in points else {})
    return found


def is_test(about: dict) -> bool:
    """Whether a cell is graded by running it, not by a person."""
    return about["grade"] and not about["solution"] and about["cell_type"] == "code"


class Restore(NbGraderPreprocessor):
    """Give each cell its own settings back; put cells that carry points and were removed at the end."""

    def preprocess(self, nb, resources):
        """Restore one submission."""
        about = resources["nbgrader"]
        with Gradebook(about["db_url"]) as book:
            known = settings(book, about["notebook"], about["assignment"])
        present = set()
        for cell in nb.cells:
            claimed = cell.metadata.pop("nbgrader", None)
            name = claimed.get("grade_id") if isinstance(claimed, dict) else None
            if name in known and name not in present:
                present.add(name)
                cell.metadata["nbgrader"] = {key: value for key, value in known[name].items() if key != "source"}
        for name, own in known.items():
            if name not in present and "points" in own:
                make = new_code_cell if own["cell_type"] == "code" else new_markdown_cell
                plain = {key: value for key, value in own.items() if key != "source"}
                nb.cells.append(make(own["source"], metadata={"nbgrader": plain}))
        return nb, resources
