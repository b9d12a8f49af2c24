"""Execute the course's scripts and write the notebooks, so that two builds of the same script differ in outputs only.

What an executed notebook keeps: sources, printed text, figures, tables. What it loses: times of execution, counters of
widgets, and the widgets themselves, whose state means nothing without a kernel. In their place stands what the widget
offers as HTML (a quiz offers its questions), or else a line that says to run the cell.
"""

import copy
import os
import time
from pathlib import Path

from tqdm import tqdm

from refquant.course.scripts import find_all, is_assignment, notebook_of, read_script
from refquant.errors import BadFile, RefquantError
from refquant.formats.files import replacing

WIDGET = "application/vnd.jupyter.widget-view+json"
RUN_ME = (
    "<p><em>Controls: run this cell in JupyterLab to move them. The fixed figure beside shows one setting.</em></p>"
)
LARGEST = 10**6  # bytes of a notebook
SECONDS = 300  # of one cell
# `tiny` gains little from a second thread, and loses much where other work shares the cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def execute(notebook, cwd: Path):
    """Run every cell in a fresh `python3` kernel with the working folder `cwd`; returns a copy with outputs.

    Raises
    ------
    RefquantError
        A cell raised; the message has its number and its error.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = copy.deepcopy(notebook)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(cwd)}},
        record_timing=False,
        store_widget_state=False,
    )
    try:
        client.execute(env={**ENVIRONMENT, **os.environ})
    except CellExecutionError as problem:
        number = next((i for i, cell in enumerate(notebook.cells) if _raised(cell)), len(notebook.cells))
        raise RefquantError(f"cell {number}: {problem}") from problem
    return notebook


def _raised(cell) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", ()))


def normalise(notebook):
    """Remove from an executed notebook, in place, what differs between two runs or means nothing without a kernel."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if WIDGET in data:
                kept = {kind: value for kind, value in data.items() if kind not in (WIDGET, "text/plain")}
                output["data"] = {"text/html": RUN_ME, **kept, "text/plain": "widget"}
    notebook.metadata.pop("widgets", None)
    return notebook


def problems(notebook, script: Path) -> list[str]:
    """What a reader should not see in an executed notebook: errors, warnings, paths of this machine.

    Returns a line a problem, with the cell's number.
    """
    private = {str(script.resolve().parents[2]), str(Path.home())} - {"/"}
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            text = str(output)
            if output.output_type == "error":
                found.append(f"cell {number}: {output.ename}: {output.evalue}")
            elif output.get("name") == "stderr":
                found.append(f"cell {number}: writes to standard error: {output.text.strip()[:300]}")
            found += [f"cell {number}: shows this machine's path {path}" for path in private if path in text]
    return found


def write(notebook, path: Path) -> int:
    """Write a notebook, whole or not at all; returns its bytes. Raise `BadFile` for one above a megabyte."""
    import nbformat

    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    if len(text.encode()) > LARGEST:
        raise BadFile(f"{path}: {len(text.encode())} bytes; a notebook may have {LARGEST}: fewer or smaller figures")
    with replacing(path) as file:
        file.write(text.encode())
    return len(text.encode())


def build(names: list[str] | None = None, progress: bool = True, on_built=None) -> None:
    """Execute the scripts of the course (all, or those of `names`) and write their notebooks.

    Assignments (names such as "assignments/01_rtn") become nbgrader's source notebooks, without being executed.

    `on_built(stem, seconds, bytes)` is called after each.

    Raises
    ------
    UnknownName
        No such notebook.
    RefquantError
        A cell raised, or the notebook shows what `problems` finds; its old version stays.
    """
    scripts = find_all(names)
    for script in tqdm(scripts, desc="build", unit="notebook", disable=not progress, leave=False):
        start = time.perf_counter()
        target = notebook_of(script)
        try:
            notebook = read_script(script)
            if not is_assignment(script):
                notebook = normalise(execute(notebook, target.parent))
        except RefquantError as problem:
            raise RefquantError(f"{script.name}: {problem}") from problem
        if wrong := problems(notebook, script):
            raise RefquantError(f"{script.name}: " + "; ".join(wrong))
        target.parent.mkdir(parents=True, exist_ok=True)
        size = write(notebook, target)
        if on_built:
            on_built(script.stem, time.perf_counter() - start, size)


def out_of_step(script: Path) -> str | None:
    """Why the notebook of `script` is not the one that `build` would write from it; None where it is.

    Compares the cells (type, id, source, metadata), and that every code cell was executed; outputs are a machine's own.
    """
    import nbformat

    path = notebook_of(script)
    if not path.exists():
        return f"{path.name} does not exist"
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError) as problem:
        return f"{path.name} cannot be read: {str(problem)[:200]}"
    expected = read_script(script)
    if len(notebook.cells) != len(expected.cells):
        return f"{path.name} has {len(notebook.cells)} cells, its script {len(expected.cells)}"
    for number, (cell, wanted) in enumerate(zip(notebook.cells, expected.cells, strict=True)):
        for part in ("cell_type", "id", "source", "metadata"):
            if cell[part] != wanted[part]:
                return f"{path.name}: the {part} of cell {number} differs from the script's"
        if cell.cell_type == "code" and cell.execution_count is None and not is_assignment(script):
            return f"{path.name}: cell {number} was not executed"
    return None
