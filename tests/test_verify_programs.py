"""Real programs through the kit: those that the tests install are run again, and the page is what the results say."""

import json

import pytest

from refquant.cli import main
from refquant.errors import BadInput
from refquant.verify import cases, programs

KNOWN = json.loads(programs.RESULTS.read_text())
PAGE = programs.NOTES.parents[1] / "PROGRAMS.md"


@pytest.mark.parametrize("key", ["gguf_py", "torch", "ml_dtypes"])
def test_a_program_still_does_what_the_page_says(key):
    program = programs.find(key)
    report = programs.trial(program)
    entry = programs.entry(program, report)
    assert [(r.case.id, r.message) for r in report.results if r.bad] == []
    assert entry["tried"] == entry["passed"] >= 10
    if entry["version"] == KNOWN[key]["version"]:
        assert {**entry, "date": None} == {**KNOWN[key], "date": None}


def test_the_page_is_what_the_results_say():
    assert PAGE.read_text() == programs.page(KNOWN)
    assert KNOWN.keys() == programs.PROGRAMS.keys(), "all have been run"


def test_every_failure_on_the_page_is_a_case_and_has_a_note():
    ids = {case.id for case in cases.load()}
    for key, entry in KNOWN.items():
        for failure in entry["failures"]:
            assert failure["case"] in ids
            assert programs._notes(key, failure["case"]), failure


def test_a_program_can_be_run_by_name(capsys):
    assert main(["verify", "--impl", "refquant.verify.programs:torch", "--only", "casts and bf16"]) == 0
    assert "1 passed" in capsys.readouterr().out
    with pytest.raises(BadInput, match="gguf_py"):
        programs.find("abc")


def test_programs_that_are_not_installed_are_left_as_they_were(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(programs, "version", lambda program: None)
    monkeypatch.setattr(programs, "RESULTS", tmp_path / "results.json")
    (tmp_path / "results.json").write_text(json.dumps(KNOWN))
    assert main(["verify", "--programs", str(tmp_path / "page.md")]) == 0
    assert "not installed" in capsys.readouterr().out
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
