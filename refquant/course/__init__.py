"""The course as files: percent-format scripts become executed notebooks, and a check that the two are in step.

    scripts    read a script as a notebook; the cells' ids; where the course's files are
    notebooks  execute, normalise, write; what is wrong with a notebook; which are out of step

The scripts are what people edit and what reviews read; the notebooks are what people open. jupytext reads the scripts,
nbclient runs the cells, nbformat checks the result: nothing here parses.
"""

from refquant.course.notebooks import ENVIRONMENT, build, execute, out_of_step, problems, write
from refquant.course.scripts import find_all, find_assignments, find_scripts, folder, notebook_of, read_script

__all__ = [
    "ENVIRONMENT",
    "build",
    "execute",
    "find_all",
    "find_assignments",
    "find_scripts",
    "folder",
    "notebook_of",
    "out_of_step",
    "problems",
    "read_script",
    "write",
]
