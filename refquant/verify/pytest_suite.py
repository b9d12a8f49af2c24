"""The cases as tests of your own suite. In a test file::

    from refquant.verify.pytest_suite import conformance
    import my_package.decoders

    test_conformance = conformance(my_package.decoders, only="gguf-decode", expect="expectations.toml")

pytest then shows one test a case: skipped where the operation is not offered, xfailed where the failure is known.
"""

from refquant.verify.cases import select
from refquant.verify.implementation import PythonObject
from refquant.verify.report import failure
from refquant.verify.runner import read_expectations, run


def conformance(implementation, only: str | None = None, expect=None, seconds: float = 30):
    """Return a parametrized test function.

    `implementation` is a Python object as for `refquant.verify.check`, or anything with `name`, `declares` and `run`.
    """
    import pytest

    expectations = read_expectations(expect) if expect else None
    if not (hasattr(implementation, "run") and hasattr(implementation, "declares")):
        implementation = PythonObject(implementation, seconds=seconds)

    @pytest.mark.parametrize("case", select(only), ids=lambda case: case.id)
    def test(case):
        (result,) = run(implementation, [case], expectations).results
        if result.bad:
            pytest.fail(failure(result), pytrace=False)
        if result.status == "skip":
            pytest.skip(result.message)
        if result.status == "known":
            pytest.xfail(result.message)

    return test
