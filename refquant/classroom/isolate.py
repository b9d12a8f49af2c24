"""The step of nbgrader's autograding that runs a notebook, replaced.

nbgrader's own step runs every cell in one kernel, so that a student's code stands beside the tests that judge it and
can change them. Here the cells are divided: what the student wrote runs in a `Sandbox`; a graded cell, in the version
of the teacher's source notebook and never in the student's, runs in this process, where a student's function is a
proxy. So what a student's code does to `classroom`, NumPy or the interpreter stays in its own process, the hidden tests
and the right answers never enter that process, and only returned data decides about points.

Used by `refquant classroom grade`, and by nbgrader itself (`nbgrader autograde`, the formgrader) with the
configuration that `refquant classroom release` writes.
"""

import ast
import contextlib
import io
import secrets
import traceback
import warnings
from pathlib import Path

import numpy as np
from nbformat.v4 import new_output
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Dict, Float, Int, List, Unicode

from refquant import classroom
from refquant.classroom.checking import hidden_seed
from refquant.classroom.restore import is_test, settings
from refquant.classroom.sandbox import Limits, Sandbox

SHOWN = 4000  # characters of a cell's output in the feedback


class Isolate(NbGraderPreprocessor):
    """Run a submission with the students' code in a process of its own."""

    seed = Int(None, allow_none=True, help="Of the hidden tests' data; None: another in every process.").tag(
        config=True
    )
    seconds = Float(Limits.seconds, help="For one cell, or one call of a student's function.").tag(config=True)
    total = Float(Limits.total, help="Seconds for all of one submission.").tag(config=True)
    memory = Int(Limits.memory, help="Bytes of address space.").tag(config=True)
    wrap = Unicode(Limits.wrap, help="Command that starts the process; 'auto', or such as 'bwrap ...'.").tag(
        config=True
    )
    packages = Dict(
        per_key_traits=None,
        value_trait=List(Unicode()),
        default_value={"06_kernel": ["numba", "llvmlite"]},
        help="What an assignment's code may import beside NumPy and the standard library.",
    ).tag(config=True)

    def preprocess(self, nb, resources):
        """Run the cells in order and put what they printed, raised or scored in their outputs."""
        about = resources["nbgrader"]
        assignment, notebook = about["assignment"], about["notebook"]
        with Gradebook(about["db_url"]) as book:
            known = settings(book, notebook, assignment)
        tests = {name: own["source"] for name, own in known.items() if is_test(own)}
        limits = Limits(
            memory=self.memory,
            seconds=self.seconds,
            total=self.total,
            wrap=self.wrap,
            packages=tuple(self.packages.get(assignment, ())),
        )
        seed = secrets.randbits(62) if self.seed is None else self.seed
        with Sandbox(Path(resources["metadata"]["path"]), limits) as sandbox, hidden_seed(seed):
            for number, cell in enumerate(nb.cells, 1):
                if cell.cell_type != "code":
                    continue
                source = tests.get(cell.metadata.get("nbgrader", {}).get("grade_id"))
                if source is None:
                    cell.outputs = student_outputs(sandbox, number, cell.source)
                else:
                    cell.source, cell.outputs = source, graded_outputs(sandbox, source)
                cell.execution_count = number
        return nb, resources


def student_outputs(sandbox: Sandbox, number: int, source: str) -> list:
    """Run a cell of the student's; what it printed and raised, as a notebook's outputs."""
    outcome = sandbox.run_cell(number, plain_python(source))
    outputs = [_text(outcome.printed)] if outcome.printed else []
    if outcome.error:
        name, _, text = outcome.error.partition(": ")
        outputs.append(new_output("error", ename=name[:SHOWN], evalue=text[:SHOWN], traceback=[outcome.error[:SHOWN]]))
    return outputs


def graded_outputs(sandbox: Sandbox, source: str) -> list:
    """Run a graded cell in this process. Its last line's value is its points; an error means none."""
    printed, value, problem = io.StringIO(), None, None
    names = Names(sandbox)
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            exec(compile(ast.Module(body, []), "<graded cell>", "exec"), {}, names)
            if last:
                value = eval(compile(last, "<graded cell>", "eval"), {}, names)
        except Exception as raised:
            problem = raised
    outputs = [_text(printed.getvalue())] if printed.getvalue() else []
    if problem is not None:
        lines = traceback.format_exception_only(problem)
        outputs.append(new_output("error", ename=type(problem).__name__, evalue=str(problem)[:SHOWN], traceback=lines))
    elif value is not None:
        outputs.append(new_output("execute_result", data={"text/plain": repr(value)}))
    return outputs


class Names(dict):
    """The names that a graded cell sees: `classroom`, NumPy as `np`, and the student's functions as proxies."""

    def __init__(self, sandbox: Sandbox):
        super().__init__(classroom=classroom, np=np)
        self._sandbox = sandbox

    def __missing__(self, name):
        return self._sandbox.function(name)


def plain_python(source: str) -> str:
    """The cell without IPython's magics, whose calls do nothing in the sandbox."""
    if not any(
        line.lstrip().startswith(("%", "!", "?")) or line.rstrip().endswith("?") for line in source.splitlines()
    ):
        return source
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(source)


def _text(text: str):
    return new_output("stream", name="stdout", text=text if len(text) <= SHOWN else text[:SHOWN] + "\n[cut]\n")
