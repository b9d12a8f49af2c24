"""`refquant lab`: JupyterLab in the notebooks folder."""

import importlib.util
import subprocess
import sys

from refquant import course
from refquant.errors import Unavailable


def add_arguments(parser) -> None:
    """Add the options of `refquant lab`."""
    parser.add_argument("jupyter", nargs="*", help="arguments for JupyterLab, after `--`")


def run(args) -> int:
    """Start JupyterLab and wait for it."""
    folder = course.folder()
    if importlib.util.find_spec("jupyterlab") is None:
        raise Unavailable("jupyterlab is not installed; pip install 'refquant[notebooks]'")
    return subprocess.call([sys.executable, "-m", "jupyterlab", *args.jupyter], cwd=folder)
