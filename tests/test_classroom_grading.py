"""Release and grade through nbgrader: the instructor, the blank version, and submissions that misbehave."""

import csv
import json
import re

import classrooms
import nbformat
import pytest

from refquant import classroom
from refquant.classroom import gradebook
from refquant.classroom.checking import hidden_seed
from refquant.classroom.isolate import graded_outputs, plain_python, student_outputs
from refquant.classroom.sandbox import Limits, Sandbox
from refquant.cli import main
from refquant.errors import BadInput, UnknownName

every = pytest.mark.parametrize("name", classrooms.NAMES)
SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A course with all assignments released."""
    folder = tmp_path_factory.mktemp("course")
    gradebook.release(folder)
    return folder


def released(folder, name):
    return nbformat.read(folder / "release" / name / f"{name}.ipynb", as_version=4)


def score(notebook, name: str) -> list[float]:
    """Points of the graded cells, without nbgrader around the sandbox."""
    packages = ("numba", "llvmlite") if name == "06_kernel" else ()
    master = {classrooms.about(cell)["grade_id"]: cell.source for cell in classrooms.graded(classrooms.source(name))}
    points = []
    with Sandbox(None, Limits(packages=packages, seconds=60, total=300)) as sandbox, hidden_seed(SEED):
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "code" and classrooms.about(cell).get("grade"):
                outputs = graded_outputs(sandbox, master[classrooms.about(cell)["grade_id"]])
                results = [o for o in outputs if o.output_type == "execute_result"]
                points.append(float(results[0].data["text/plain"]) if results else 0.0)
            elif cell.cell_type == "code":
                student_outputs(sandbox, number, cell.source)
    return points


# ---- release


@every
def test_the_released_version_contains_no_solution_and_no_hidden_test(folder, name):
    notebook = released(folder, name)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "SOLUTION" not in text
    assert "HIDDEN" not in text
    assert "classroom.grade" not in text
    assert not any(cell.get("outputs") for cell in notebook.cells)
    given = {line.strip() for line in text.splitlines()}
    for cell in classrooms.source(name).cells:
        for found in classrooms.REGION.finditer(cell.source):
            lines = {line.strip() for line in found[0].splitlines()}
            # an import, a loop head or a bracket may also stand in what is given
            assert not {line for line in lines if len(line) > 15 and not line.startswith("for ")} & given, name
    for cell in classrooms.graded(notebook):
        assert cell.metadata.editable is False
        assert cell.metadata.deletable is False


@every
def test_every_graded_cell_of_the_blank_version_fails_where_a_student_runs_it(folder, name):
    names: dict = {}
    for cell in released(folder, name).cells:
        if cell.cell_type != "code":
            continue
        if classrooms.about(cell).get("grade"):
            with pytest.raises(NotImplementedError):
                exec(cell.source, names)
        else:
            exec(cell.source, names)


@every
def test_the_blank_version_gets_nothing_and_the_instructor_everything(folder, name, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert sum(score(released(folder, name), name)) == 0
    points = score(classrooms.solved(name), name)
    assert points == [classrooms.about(cell)["points"] for cell in classrooms.graded(classrooms.source(name))]


def test_release_keeps_what_a_teacher_changed_and_refuses_what_nbgrader_refuses(tmp_path):
    gradebook.release(tmp_path, ["02_bandwidth"])
    path = tmp_path / "source" / "02_bandwidth" / "02_bandwidth.ipynb"
    path.write_text(path.read_text().replace("Assignment 2", "Homework 2"))
    (made,) = gradebook.release(tmp_path, ["02_bandwidth"])
    assert "Homework 2" in made.read_text()
    assert {each.name for each in (tmp_path / "source").iterdir()} == {"02_bandwidth"}
    compile((tmp_path / "nbgrader_config.py").read_text(), "nbgrader_config.py", "exec")
    path.write_text(path.read_text().replace("### END SOLUTION", "###"))
    with pytest.raises(BadInput, match=r"02_bandwidth.*solution"):
        gradebook.release(tmp_path, ["02_bandwidth"])
    with pytest.raises(UnknownName, match="01_rtn"):
        gradebook.release(tmp_path, ["99"])
    with pytest.raises(BadInput, match="refquant classroom release"):
        gradebook.grade(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="submitted"):
        gradebook.grade(tmp_path)


# ---- misbehaving submissions: the cells that differ from the instructor's, a cell of the student's own, points

WRONG_DECODE = "def decode(codes, scale, zero):\n    return codes * 0.0\n"
SYMMETRIC = """
def symmetric(w, bits):
    {}
    top = 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / top or 1.0
    return np.clip(np.rint(w / scale), -top, top), scale
"""
PATCHES = """
import builtins, sys, types
import refquant.classroom as c
c.grade = c.check = lambda *args, **options: 20.0
sys.modules["refquant.classroom.checking"] = types.SimpleNamespace(grade=c.grade, check=c.check)
np.array_equal = np.allclose = np.all = lambda *args, **options: True
class Yes(np.ndarray):
    def __eq__(self, other): return np.ones(self.shape, bool)
    def __ne__(self, other): return np.zeros(self.shape, bool)
builtins.abs = lambda x: 0
import atexit, os
os.environ["NBGRADER_EXECUTION"] = "no"
print("20.0 of 20")
get_ipython().run_cell = None
"""
IMPORTS = """
from refquant.methods import rtn
def groups(w, bits, size):
    found = rtn.search(w, f"int{bits}-g{size}")
    return found["codes"], found["scales"], found["zeros"]
"""
FORGES = """
def decode(codes, scale, zero):
    [__import__("os").write(n, b"1" * 99) for n in range(3, 7)]
"""
MISBEHAVING = {
    "loops": ({"decode": "def decode(codes, scale, zero):\n    while True: pass\n"}, "", 18),
    "loops in a cell": ({}, "while True:\n    pass\n", 20),
    "eats memory": ({"symmetric": SYMMETRIC.format("x = [bytes(10**7) + b'x' for _ in range(10**6)]")}, "", 17),
    "deletes files": ({"symmetric": SYMMETRIC.format("__import__('shutil').rmtree(VICTIM)")}, "", 17),
    "deletes its own": ({}, "import os, shutil\nshutil.rmtree(os.getcwd())\n", 20),
    "exits": ({"symmetric": SYMMETRIC.format("__import__('os')._exit(0)")}, "", 17),
    "exits in a cell": ({}, "import os\nos._exit(1)\n", 20),
    "patches": ({"decode": "def decode(codes, scale, zero):\n    return np.zeros(16).view(Yes)\n"}, PATCHES, 18),
    "imports": ({"groups": IMPORTS}, "", 14),
    "forks": ({"symmetric": SYMMETRIC.format("while __import__('os').fork(): pass")}, "", 17),
    "floods": ({"symmetric": SYMMETRIC.format("print('x' * 10**7)")}, "print('y' * 10**7)\n", 20),
    "returns too much": ({"decode": "def decode(codes, scale, zero):\n    return np.zeros(2**26)\n"}, "", 18),
    "forges": ({"decode": FORGES}, "", 18),
    "raises in a cell": ({}, "%matplotlib inline\n1 / 0\n", 20),
}  # fmt: skip


def tampered(kind: str):
    """Submissions whose graded cells are not what they were."""
    notebook = classrooms.solved("01_rtn", {"decode": WRONG_DECODE})
    cells = {classrooms.about(cell).get("grade_id"): cell for cell in notebook.cells}
    cell = cells["graded_decode"]
    if kind == "rewrites a test":
        cell.source = "2.0"
    elif kind == "removes a test":
        notebook.cells.remove(cell)
    elif kind == "raises the points":
        cell.metadata.nbgrader["points"] = 100
        cells["graded_encode"].metadata.nbgrader["grade_id"] = "graded_decode"
    elif kind == "adds a test":
        settings = {"nbgrader": classrooms.about(cell) | {"grade_id": "graded_more"}}
        notebook.cells.append(nbformat.v4.new_code_cell("open(VICTIM, 'w')\n100.0", metadata=settings))
    return notebook


TAMPERED = {"rewrites a test": 18, "removes a test": 18, "raises the points": 18, "adds a test": 18}


@pytest.fixture(scope="module")
def graded(folder, tmp_path_factory):
    """The scores of all of them, graded in one run by the command, and the file that they try to delete."""
    victim = tmp_path_factory.mktemp("teacher")
    (victim / "grades.txt").write_text("points")
    students = {who: classrooms.solved("01_rtn", answers, first) for who, (answers, first, _) in MISBEHAVING.items()}
    students |= {who: tampered(who) for who in TAMPERED} | {"instructor": classrooms.source("01_rtn")}
    students |= {"blank": released(folder, "01_rtn")}
    for who, notebook in students.items():
        path = folder / "submitted" / who.replace(" ", "-") / "01_rtn" / "01_rtn.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(nbformat.writes(notebook).replace("VICTIM", repr(str(victim)).strip('"')))
    for who, text in (("no-notebook", "{"), ("other-json", '{"cells": 3}')):
        path = folder / "submitted" / who / "01_rtn" / "01_rtn.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert main(["classroom", "grade", str(folder), "--seed", str(SEED), "--seconds", "2", "--memory", "1"]) == 1
    with (folder / "scores.csv").open(newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}, victim


@pytest.mark.parametrize(
    ("who", "points"),
    [
        *((who, points) for who, (*_, points) in MISBEHAVING.items()),
        *TAMPERED.items(),
        ("instructor", 20),
        ("blank", 0),
    ],
)
def test_each_gets_its_points_for_what_is_right_and_nothing_else(graded, who, points):
    row = graded[0][who.replace(" ", "-")]
    assert (row["score"], row["max_score"], row["note"]) == (f"{points:.1f}", "20.0", "")


def test_what_is_no_notebook_is_reported_and_stops_nobody(graded):
    for who in ("no-notebook", "other-json"):
        assert graded[0][who]["score"] == ""
        assert graded[0][who]["note"].startswith("not graded: ")


def test_nothing_of_the_teachers_was_touched(graded, folder):
    assert (graded[1] / "grades.txt").read_text() == "points"
    assert (folder / "submitted" / "deletes-its-own" / "01_rtn" / "01_rtn.ipynb").exists()


def test_feedback_names_the_mistake_and_runs_nothing(graded, folder):
    page = (folder / "feedback" / "patches" / "01_rtn" / "01_rtn.html").read_text()
    assert "0 of 2  codes on both sides of the zero-point: weights[0]: expected" in page
    page = (folder / "feedback" / "loops" / "01_rtn" / "01_rtn.html").read_text()
    assert "is there a loop without an end?" in page
    assert len((folder / "feedback" / "floods" / "01_rtn" / "01_rtn.html").read_text()) < 10**6


def test_one_run_is_repeated_by_its_seed_and_other_lines_stay(graded, folder, capsys):
    arguments = ["classroom", "grade", str(folder), "--student", "instructor", "--seed", "6", "--json", "--wrap", ""]
    assert main(arguments) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert (printed["score"], printed["seed"]) == (20.0, 6)
    lines = (folder / "scores.csv").read_text().splitlines()
    assert len(lines) == len(graded[0]) + 1
    assert len([line for line in lines if f",{SEED}," in line]) == len(graded[0]) - 1


# ---- details


def test_hidden_data_differs_from_run_to_run_and_is_the_same_within_one():
    seen: list = []

    def spy(w, bits):
        seen.append(w.copy())
        return 1.0, 0

    for seed in (1, 1, 2):
        with hidden_seed(seed):
            classroom.grade(spy, "rtn.scale_zero")
    third = len(seen) // 3
    assert all((a == b).all() for a, b in zip(seen[:third], seen[third : 2 * third], strict=True))
    assert not (seen[0] == seen[2 * third]).any()


def test_magics_become_calls_that_do_nothing():
    assert plain_python("x = 1  # 100%\n") == "x = 1  # 100%\n"
    plain = plain_python("%matplotlib inline\n!ls\nx = 5\n")
    assert "%" not in re.sub(r"'[^']*'", "", plain)
    with Sandbox(None) as sandbox:
        cell = sandbox.run_cell(1, plain + "print(x)")
    assert (cell.error, cell.printed) == (None, "5\n")
