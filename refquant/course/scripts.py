"""A percent-format script as a notebook without outputs."""

import hashlib
from collections import Counter
from pathlib import Path

import refquant
from refquant.errors import BadFile, Unavailable, UnknownName

# No versions of anybody's machine: they would change with every build.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def folder() -> Path:
    """The checkout's `notebooks` folder; raise `Unavailable` where refquant was installed without one."""
    found = Path(refquant.__file__).resolve().parents[1] / "notebooks"
    if not found.is_dir():
        raise Unavailable("the notebooks are part of a clone of the repository: pip install -e '.[all]' in one")
    return found


def find_scripts(names: list[str] | None = None) -> list[Path]:
    """The course's scripts in order: all, or those that `names` (a stem "02_rounding" or its number "02") choose.

    Raises
    ------
    UnknownName
        No script of that name; the message lists them.
    """
    scripts = sorted((folder() / "src").glob("[0-9]*.py"))
    if not names:
        return scripts
    known = {key: path for path in scripts for key in (path.stem, path.stem.split("_")[0])}
    for name in names:
        if name not in known:
            raise UnknownName("notebook", name, [path.stem for path in scripts])
    return sorted({known[name] for name in names})


def find_assignments(names: list[str] | None = None) -> list[Path]:
    """List the scripts of the assignments: all, or those that `names`, such as "assignments/01_rtn", choose.

    Raises
    ------
    UnknownName
        No assignment of that name; the message lists them.
    """
    known = {f"assignments/{path.stem}": path for path in sorted((folder() / "assignments" / "src").glob("*.py"))}
    if missing := [name for name in names or () if name not in known]:
        raise UnknownName("assignment", missing[0], known)
    return sorted({known[name] for name in names or known})


def find_all(names: list[str] | None = None) -> list[Path]:
    """Scripts of notebooks, then of assignments: all, or those that `names` choose."""
    if not names:
        return find_scripts() + find_assignments()
    own = [name for name in names if name.startswith("assignments/")]
    rest = [name for name in names if name not in own]
    return (find_scripts(rest) if rest else []) + (find_assignments(own) if own else [])


def is_assignment(script: Path) -> bool:
    """Whether a script is an assignment's: its notebook is nbgrader's source, and is not executed."""
    return script.parent.parent.name == "assignments"


def notebook_of(script: Path) -> Path:
    """Where the notebook of a script is: `src/02_rounding.py` becomes `02_rounding.ipynb` beside `src`.

    An assignment's `src/01_rtn.py` becomes `source/01_rtn/01_rtn.ipynb`, as nbgrader wants it.
    """
    beside = script.parent.parent
    return (beside / "source" / script.stem if is_assignment(script) else beside) / f"{script.stem}.ipynb"


def read_script(path: Path):
    """Read a script as an `nbformat` notebook (version 4.5) that has no outputs.

    A cell's metadata are those of its `# %%` line; the input of a quiz is folded, since the answers stand there. Its id
    is a hash of its type and source, so that it survives every change elsewhere in the script.

    Raises
    ------
    BadFile
        No script that jupytext can read as a notebook.
    """
    import jupytext
    import nbformat

    try:
        notebook = jupytext.read(path, fmt="py:percent")
    except (OSError, ValueError) as problem:  # also UnicodeDecodeError and jupytext's own errors
        raise BadFile(f"{path}: not a percent-format script: {problem}") from problem
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        if cell.source.startswith("from refquant.widgets.quiz import"):
            cell.metadata["jupyter"] = nbformat.from_dict({"source_hidden": True})
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    nbformat.validate(notebook)
    return notebook
