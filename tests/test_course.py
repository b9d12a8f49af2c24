"""The course: every notebook is in step with its script, runs, and shows a reader neither errors nor warnings."""

import json
import re

import nbformat
import pytest

from refquant import course
from refquant.cli import main
from refquant.course import notebooks
from refquant.errors import BadFile, RefquantError, UnknownName

SCRIPTS = course.find_scripts()
stems = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def markdown(script) -> str:
    return "\n\n".join(cell.source for cell in course.read_script(script).cells if cell.cell_type == "markdown")


# ---- every notebook


@stems
def test_each_notebook_is_in_step_with_its_script(script):
    assert course.out_of_step(script) is None


@stems
def test_each_committed_notebook_shows_nothing_that_a_reader_should_not_see(script):
    path = course.notebook_of(script)
    assert path.stat().st_size <= notebooks.LARGEST
    notebook = nbformat.read(path, as_version=4)
    assert course.problems(notebook, script) == []
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "reads well on a page without widgets"
    assert not any(notebooks.WIDGET in output.get("data", {}) for output in outputs)


@stems
def test_each_notebook_ends_with_exercises_and_a_quiz_and_has_short_cells(script):
    cells = course.read_script(script).cells
    assert max(cell.source.count("\n") for cell in cells[:-1]) < 50, "a cell fits a screen; the quiz's is folded"
    assert cells[-1].metadata["jupyter"]["source_hidden"]
    assert "<details>" in markdown(script)
    assert "quiz(" in cells[-1].source
    names: dict = {}
    exec(cells[-1].source, names)
    assert len(names["questions"]) >= 3


@stems
def test_code_is_as_wide_as_jupyterlab_shows_at_900_pixels(script):
    cells = [cell for cell in course.read_script(script).cells[:-1] if cell.cell_type == "code"]
    wide = [line for cell in cells for line in cell.source.splitlines() if len(line) > 88]
    assert not wide


@stems
def test_each_notebook_runs_without_error_or_warning(script):
    notebook = course.execute(course.read_script(script), script.parent.parent)
    assert course.problems(notebook, script) == []


def test_the_table_of_the_readme_lists_every_notebook_and_no_other():
    text = (course.folder() / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d\d_\w+)\.ipynb\)", text) == [path.stem for path in SCRIPTS]


# ---- the machinery


@pytest.fixture
def one(tmp_path, monkeypatch):
    """A course of one script; returns a function that writes it."""
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    script = tmp_path / "notebooks" / "src" / "00_a.py"
    monkeypatch.setattr("refquant.course.scripts.find_scripts", lambda names=None: [script])
    monkeypatch.setattr("refquant.course.scripts.find_assignments", lambda names=None: [])

    def write(*cells):
        script.write_text("\n\n".join(cells) + "\n")
        return script

    return write


PICTURE = """# %%
from refquant.figures import style

style.picture(style.subplots()[0], "an empty plot")"""


def test_build_executes_and_a_changed_script_is_out_of_step(one, capsys):
    script = one("# %% [markdown]\n# # A title", "# %% tags=['x']\nprint(6 * 7)", PICTURE)
    assert main(["notebooks", "check"]) == 1
    assert "does not exist" in capsys.readouterr().out
    assert main(["notebooks", "build", "--quiet"]) == 0
    made = nbformat.read(course.notebook_of(script), as_version=4)
    assert [cell.cell_type for cell in made.cells] == ["markdown", "code", "code"]
    assert made.cells[1].outputs[0].text == "42\n"
    assert made.cells[1].metadata == {"tags": ["x"]}, "metadata of the script, and no times of execution"
    image = made.cells[2].outputs[0]
    assert image.data["image/png"]
    assert image.metadata["image/png"]["alt"] == "an empty plot"
    assert main(["notebooks", "check"]) == 0
    one("# %% [markdown]\n# # A title", "# %% tags=['x']\nprint(6 * 8)", PICTURE)
    capsys.readouterr()
    assert main(["notebooks", "check", "--json"]) == 1
    assert "cell 1" in json.loads(capsys.readouterr().out)[0]["problem"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings; warnings.warn('old')", "standard error"),
        ("import pathlib; print(pathlib.Path.cwd())", "this machine's path"),
    ],
)
def test_build_refuses_what_a_reader_should_not_see_and_keeps_the_old_notebook(one, cell, said):
    script = one(f"# %%\n{cell}")
    old = course.notebook_of(script)
    old.write_text("old")
    with pytest.raises(RefquantError, match=said):
        course.build(progress=False)
    assert old.read_text() == "old"
    assert [path.name for path in old.parent.iterdir() if path.is_file()] == ["00_a.ipynb"]


def test_an_insertion_leaves_the_ids_of_the_other_cells(one):
    first = course.read_script(one("# %%\na = 1", "# %%\nb = 1", "# %%\na = 1"))
    assert len({cell.id for cell in first.cells}) == 3
    second = course.read_script(one("# %%\na = 1", "# %%\nc = 1", "# %%\nb = 1", "# %%\na = 1"))
    assert [cell.id for cell in second.cells if cell.source != "c = 1"] == [cell.id for cell in first.cells]


def test_a_widget_is_replaced_by_what_it_offers_as_text(one):
    source = "from refquant.widgets.quiz import Question, quiz\n\nquiz(Question('2 + 2?', ('4', 'Yes'), [('5', 'No')]))"
    plain = "import ipywidgets\n\nipywidgets.IntSlider()"
    script = one(f"# %%\n{source}", f"# %%\n{plain}")
    course.build(progress=False)
    data = [cell.outputs[0].data for cell in nbformat.read(course.notebook_of(script), as_version=4).cells]
    assert "2 + 2?" in data[0]["text/html"]
    assert "<details>" in data[0]["text/html"]
    assert "run this cell" in data[1]["text/html"]
    assert not any(notebooks.WIDGET in each for each in data)


def test_a_notebook_above_the_limit_is_not_written(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * notebooks.LARGEST)])
    with pytest.raises(BadFile, match="a notebook may have"):
        course.write(notebook, tmp_path / "a.ipynb")
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_unreadable_scripts(tmp_path):
    with pytest.raises(UnknownName, match="02_rounding"):
        course.find_scripts(["99"])
    assert [path.stem for path in course.find_scripts(["02"])] == ["02_rounding"]
    with pytest.raises(BadFile):
        course.read_script(tmp_path / "missing.py")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile):
        course.read_script(tmp_path / "binary.py")
