"""Every known mistake, re-created as a small wrong implementation, is caught by a case that is meant for it."""

import pytest

from refquant.verify import PythonObject, mistakes, run
from refquant.verify.cases import load
from refquant.verify.mutants import all_mutants, find


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda item: f"{item.number}-{item.function.__name__}")
def test_a_mutant_is_caught_by_a_case_meant_for_it(mutant):
    meant = [case for case in load() if mutant.number in case.mistakes and case.op == mutant.op]
    report = run(PythonObject(mutant, name=mutant.name), meant)
    caught = [result for result in report.results if result.status == "fail"]
    assert caught, f"{mutant.name}: {[(r.case.id, r.status, r.message) for r in report.results]}"
    for result in caught:
        accident = ("TypeError", "NameError", "AttributeError", "KeyError", "must be float32")
        assert not any(error in result.message for error in accident), result.message


def test_there_is_a_mutant_for_every_known_mistake():
    assert {mutant.number for mutant in all_mutants()} == mistakes().keys()


def test_mutants_can_be_run_by_name():
    assert find.m27.number == 27
    assert find.m32_2.number == 32
    with pytest.raises(AttributeError, match="unknown mutant"):
        find.m1000  # noqa: B018
