"""A course in a folder, in nbgrader's layout: release assignments, grade what came back.

    DIR/source/NAME/NAME.ipynb                  with solutions and hidden tests: for teachers
    DIR/release/NAME/NAME.ipynb                 without: for students
    DIR/submitted/STUDENT/NAME/NAME.ipynb       what students gave back
    DIR/autograded/STUDENT/NAME/NAME.ipynb      as graded
    DIR/feedback/STUDENT/NAME/NAME.html         for the student
    DIR/scores.csv  DIR/gradebook.db            points

Everything that nbgrader does is nbgrader's: this module configures it, calls it once for each submission, so that one
that fails stops no other, and writes the scores.
"""

import contextlib
import csv
import importlib.metadata
import io
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from refquant.classroom.sandbox import Limits
from refquant.course import folder as checkout
from refquant.errors import BadInput, Unavailable, UnknownName
from refquant.formats.files import replacing

CONFIGURATION = '''"""nbgrader's settings for this course. Students' code runs in processes of its own."""

from refquant.classroom.gradebook import configure

configure(get_config())  # noqa: F821 (nbgrader defines it)
'''


@dataclass(frozen=True)
class Score:
    """One line of scores.csv. `score` is None where the submission could not be graded; `note` says why."""

    assignment: str
    student: str
    score: float | None
    max_score: float | None
    seed: int
    note: str = ""


def configure(settings, seed: int | None = None, limits: Limits | None = None):
    """Set what nbgrader needs for these assignments in its configuration, and return it."""
    from nbconvert.preprocessors import ClearMetadataPreprocessor
    from nbgrader import preprocessors as steps

    from refquant.classroom.isolate import Isolate
    from refquant.classroom.restore import Restore

    settings.CourseDirectory.course_id = "refquant"
    settings.Autograde.sanitize_preprocessors = [
        Restore,
        steps.ClearOutput,
        steps.DeduplicateIds,
        steps.OverwriteKernelspec,
        steps.OverwriteCells,
        steps.CheckCellMetadata,
    ]
    settings.Autograde.autograde_preprocessors = [
        Isolate,
        steps.IgnorePattern,
        ClearMetadataPreprocessor,
        steps.LimitOutput,
        steps.SaveAutoGrades,
        steps.AssignLatePenalties,
        steps.CheckCellMetadata,
    ]
    settings.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
    settings.HTMLExporter.sanitize_html = True  # a student's markdown must not run in the teacher's browser
    if limits:
        for name in ("memory", "seconds", "total", "wrap"):
            setattr(settings.Isolate, name, getattr(limits, name))
    if seed is not None:
        settings.Isolate.seed = seed
    return settings


def open_course(folder: Path, **options):
    """Return nbgrader's own interface to the course in `folder`."""
    try:
        from nbgrader.apps.api import NbGraderAPI
        from nbgrader.coursedir import CourseDirectory
        from traitlets.config import Config
    except ImportError as problem:
        raise Unavailable(f"{problem.name} is not installed; pip install 'refquant[notebooks]'") from problem
    settings = configure(Config(), **options)
    settings.CourseDirectory.root = str(folder)
    return NbGraderAPI(CourseDirectory(config=settings), config=settings)


def release(folder, names: Iterable[str] | None = None) -> list[Path]:
    """Put the assignments in the course `folder`, made where it is not there, and strip them for students.

    A source notebook that is there already is kept, so that a teacher's changes are. Returns the released notebooks.

    Raises
    ------
    UnknownName
        No such assignment.
    BadInput
        nbgrader refuses a source notebook.
    """
    folder = Path(folder).resolve()
    known = {path.parent.name: path for path in sorted((checkout() / "assignments" / "source").glob("*/*.ipynb"))}
    own = {path.parent.name: path for path in sorted(folder.glob("source/*/*.ipynb"))}
    names = list(names or known | own)
    if missing := [name for name in names if name not in known | own]:
        raise UnknownName("assignment", missing[0], known | own)
    for name in names:
        if name not in own:
            target = folder / "source" / name / f"{name}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                file.write(known[name].read_bytes())
    if not (folder / "nbgrader_config.py").exists():
        with replacing(folder / "nbgrader_config.py") as file:
            file.write(CONFIGURATION.encode())
    course, made = open_course(folder), []
    for name in tqdm(names, desc="release", unit="assignment", leave=False):
        done = _quietly(course.generate_assignment, name)
        if not done["success"]:
            raise BadInput(f"nbgrader refuses the assignment {name}: {_reason(done)}")
        made += sorted((folder / "release" / name).glob("*.ipynb"))
    return made


def submissions(folder: Path) -> list[tuple[str, str]]:
    """Assignment and student of every submission, assignments first."""
    return sorted((path.name, path.parent.name) for path in folder.glob("submitted/*/*") if path.is_dir())


def grade(folder, names=None, students=None, seed: int | None = None, limits: Limits | None = None) -> list[Score]:
    """Grade what students submitted to the course in `folder`; write feedback and `scores.csv`, and return the scores.

    Parameters
    ----------
    folder : path of a course that `release` made
    names, students : lists, optional
        Only these. Scores of others stay in the file.
    seed : int, optional
        Of the hidden tests' data, the same for all submissions of one run; drawn anew by default.
    limits : Limits, optional
        Of each submission's process.

    Raises
    ------
    BadInput
        No course there, or nothing submitted.
    """
    folder = Path(folder).resolve()
    if not (folder / "gradebook.db").exists():
        raise BadInput(f"{folder}: no course is there; refquant classroom release {folder} makes one")
    wanted = [
        (name, student)
        for name, student in submissions(folder)
        if (not names or name in names) and (not students or student in students)
    ]
    if not wanted:
        raise BadInput(f"{folder}: nothing to grade; expected submitted/STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb")
    seed = secrets.randbits(62) if seed is None else seed
    course = open_course(folder, seed=seed, limits=limits or Limits())
    scores = [
        _grade_one(course, folder, name, student, seed)
        for name, student in tqdm(wanted, desc="grade", unit="submission", leave=False)
    ]
    write_scores(folder / "scores.csv", scores)
    return scores


def _grade_one(course, folder: Path, name: str, student: str, seed: int) -> Score:
    shutil.rmtree(folder / "feedback" / student / name, ignore_errors=True)
    for step in (course.autograde, course.generate_feedback):
        try:
            done = _quietly(step, name, student)
        except Exception as problem:  # whatever one submission does to nbgrader, the others are graded
            done = {"success": False, "error": f"{type(problem).__name__}: {problem}"}
        if not done["success"]:
            return Score(name, student, None, None, seed, f"not graded: {_reason(done)}")
    found = _quietly(_points, course, name, student)
    return Score(name, student, *found, seed)


def _points(course, name: str, student: str) -> tuple[float, float]:
    with course.gradebook as book:
        found = book.find_submission(name, student)
        return found.score, found.max_score


def write_scores(path: Path, scores: list[Score]) -> None:
    """Write scores as CSV; lines of a file that is there already stay, but for the submissions graded now."""
    lines = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            lines = {(row["assignment"], row["student"]): row for row in csv.DictReader(file)}
    lines |= {(score.assignment, score.student): asdict(score) for score in scores}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[key] for key in sorted(lines))
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _quietly(step, *args):
    """Call a step of nbgrader, which keeps its log to itself; undo what it does to the process."""
    here, level, before = os.getcwd(), logging.root.manager.disable, os.environ.copy()
    try:
        # nbgrader starts `alembic`, and nbconvert looks for its templates, by paths that may not lead there
        _lead(os.environ, "PATH", _folders("alembic", "alembic"))
        _lead(os.environ, "JUPYTER_PATH", [folder.parents[2] for folder in _folders("nbconvert", "classic/conf.json")])
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nbgrader's use of its libraries is no news to a teacher
            return step(*args)
    finally:
        os.environ.clear()
        os.environ.update(before)
        logging.disable(level)
        os.chdir(here)


def _lead(environment, name: str, folders: list[Path]) -> None:
    """Add folders at the end of a path variable."""
    known = [environment[name]] if environment.get(name) else []
    environment[name] = os.pathsep.join([*known, *map(str, folders)])


def _folders(package: str, ending: str) -> list[Path]:
    """Folders of an installed package's files whose path ends so."""
    files = importlib.metadata.files(package) or []
    return sorted({Path(f.locate()).resolve().parent for f in files if f"/{f.as_posix()}".endswith(f"/{ending}")})


def _reason(done: dict) -> str:
    """What went wrong, in one line: the last exception that nbgrader logged, or what it said first."""
    text = "\n".join(str(done.get(key) or "") for key in ("log", "error"))
    raised = [line for line in text.splitlines() if re.match(r"\s*[\w.]+(Error|Exception|Invalid\w*|Entry): ", line)]
    raised = [line for line in raised if "NbGraderException: Please see" not in line]
    logged = [line for line in text.splitlines() if line.startswith(("[ERROR]", "[WARNING]"))]
    return ([*logged[:1], *raised[-1:]] or ["nbgrader gave no reason"])[-1].strip()[:300]
