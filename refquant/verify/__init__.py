"""The conformance kit: check a quantizer, a decoder, a packer, a kernel or a file against what other programs say.

    from refquant import verify
    report = verify.check(my_module, only="q4_k and decode")     # an object, a class or a module, see `PythonObject`
    print(report)                                                # the matrix, and every failure explained
    report.ok, report.results

On the command line it is `refquant verify`. Modules, in reading order::

    cases           the vectors: data with provenance, in vectors/
    implementation  what is tested, and how it is called; command: the same over JSON lines, for any language
    compare         the comparisons
    runner          cases -> results
    explain         a failure in the format's own terms; explain_blocks, for GGUF's block formats
    report          terminal, JSON, JUnit, Markdown, badge
    files           a checkpoint or a GGUF file instead of a program; hypotheses: the likely mistake in it
    pytest_suite    the cases as tests of your own suite
    programs        real programs run through the kit
    mutants         known mistakes as small wrong implementations, which the kit must catch

Expected results never come from refquant. NumPy and safetensors are all that is needed.
"""

from refquant.verify.cases import Case, mistakes, select
from refquant.verify.implementation import Broken, Declined, PythonObject, Refused
from refquant.verify.runner import Report, Result, read_expectations, run

__all__ = [
    "Broken",
    "Case",
    "Declined",
    "PythonObject",
    "Refused",
    "Report",
    "Result",
    "check",
    "mistakes",
    "run",
    "select",
]


def check(implementation, only: str | None = None, expect=None, seconds: float = 30, progress=None) -> Report:
    """Run cases against a Python object, class or module.

    Parameters
    ----------
    implementation : object
        With any of the operations that `PythonObject` lists; the others are skipped.
    only : str, optional
        An expression such as "q4_k and decode"; see `select`.
    expect : path, optional
        A TOML file of known failures; see `read_expectations`.
    seconds : float
        Limit for each case.
    progress : callable, optional
        Called with 1 after each case.

    Raises
    ------
    BadInput, BadFile
        An expression or a file that cannot be read; an object without any of the operations.
    """
    expectations = read_expectations(expect) if expect else None
    return run(PythonObject(implementation, seconds=seconds), select(only), expectations, progress)
