"""`refquant lab`: JupyterLab in the notebooks folder."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import refquant
from refquant.errors import Unavailable


def add_arguments(parser) -> None:
    """Add the options of `refquant lab`."""
    parser.add_argument("jupyter", nargs="*", help="arguments for JupyterLab, after `--`")


def run(args) -> int:
    """Start JupyterLab and wait for it."""
    folder = Path(refquant.__file__).resolve().parents[1] / "notebooks"
    if not folder.is_dir():
        raise Unavailable("the notebooks are part of a clone of the repository: pip install -e '.[all]' in one")
    if importlib.util.find_spec("jupyterlab") is None:
        raise Unavailable("jupyterlab is not installed; pip install 'refquant[notebooks]'")
    return subprocess.call([sys.executable, "-m", "jupyterlab", *args.jupyter], cwd=folder)
