"""Text that every Python installation holds: nothing to download, and the two kinds never overlap.

evaluation    the language reference behind Python's `help()`: the values of `pydoc_data.topics` in sorted key order
calibration   docstrings of the standard library's modules, classes and functions, in sorted order

The text changes a little with the Python version, so perplexities compare within one version (`name` records it).
"""

import ast
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refquant.errors import BadInput, Unavailable

_SKIP = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "pydoc_data", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """A text and where it comes from."""

    name: str
    text: str


def evaluation(path: str | Path | None = None) -> Text:
    """Return the evaluation text: the file at `path`, or the language reference of this Python."""
    if path is not None:
        return read(path)
    from pydoc_data.topics import topics

    return Text(
        f"pydoc_data.topics of Python {platform.python_version()}", "\n".join(topics[k] for k in sorted(topics))
    )


def calibration(path: str | Path | None = None, characters: int = 400_000) -> Text:
    """Return the calibration text: the file at `path`, or docstrings of the standard library up to `characters`."""
    if path is not None:
        return read(path)
    pieces, size = [], 0
    for file in _spread(sorted(_sources())):
        for docstring in _docstrings(file):
            pieces.append(docstring)
            size += len(docstring)
        if size >= characters:
            break
    if not pieces:
        raise Unavailable("the standard library's sources are not installed; name a text file for calibration")
    return Text(f"standard library docstrings of Python {platform.python_version()}", "\n\n".join(pieces)[:characters])


def read(path: str | Path) -> Text:
    """Read a UTF-8 text file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"cannot read {path} as text: {problem}") from problem
    if not text.strip():
        raise BadInput(f"{path} holds no text")
    return Text(str(path), text)


def _sources():
    root = Path(sysconfig.get_path("stdlib"))
    return (f for f in root.rglob("*.py") if not _SKIP.intersection(f.relative_to(root).parts))


def _spread(files: list[Path]) -> list[Path]:
    """Order files so that a prefix is spread over the alphabet instead of taken from its start."""
    return [files[i] for i in np.argsort(np.arange(len(files)) * 0.6180339887498949 % 1, kind="stable")]


def _docstrings(file: Path):
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) > 80:
                yield docstring
