"""What is tested: an implementation answers a case with arrays, declines it, refuses the input, or breaks.

    Declined   it does not do this operation or format: the case is skipped
    Refused    it ended in an error of its own: right where a case must be rejected, wrong elsewhere
    Broken     no answer that can be judged: it hung, died, wrote garbage, returned the wrong kind of thing

Names and versions of what is tested are in `name`; `declares` lists what it promises ("ggml bytes").
"""

import contextlib
import importlib
import inspect
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from refquant.errors import BadInput, RefquantError
from refquant.ggml_types import TYPES
from refquant.verify.cases import Case


class Declined(RefquantError):
    """The implementation does not offer this."""


class Refused(RefquantError):
    """The implementation ended in an error of its own."""


class Broken(RefquantError):
    """The implementation gave no answer that can be judged."""


# op -> (arguments by position, whether it is told the shape); "*" stands for all inputs, or the only one
CALLS = {
    "dequantize": (("*",), True),
    "unpack": (("*",), True),
    "pack": (("*",), True),
    "repack": (("*",), True),
    "matmul": (("x", "*"), True),
    "quantize": (("w",), False),
    "cast": (("x",), False),
    "gptq": (("w", "hessian"), False),
    "awq": (("w", "x"), False),
    "absorb": (("*", "scales"), False),
    "plan": ((), False),
    "perplexity": (("table", "ids"), False),
}
RESULT = {"dequantize": "w", "quantize": "blocks", "matmul": "y", "cast": "bits", "gptq": "w", "awq": "w"}
VALUES = ("plan", "perplexity")
HIDDEN = {"absorb": {"x"}}  # inputs that only the comparison uses


def answer(case: Case, result):
    """Return a result as the comparisons take it; `Broken` where it is no array, or no dict of arrays."""
    if case.op in VALUES:
        return result
    if isinstance(result, dict):
        arrays = {str(name): np.asarray(array) for name, array in result.items() if array is not None}
    elif result is not None and case.op in RESULT:
        arrays = {RESULT[case.op]: np.asarray(result)}
    else:
        raise Broken(
            f"expected {'an array or ' if case.op in RESULT else ''}a dict of arrays, got {type(result).__name__}"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise Broken(f"{name} is no array of numbers but of {array.dtype}")
    return arrays


def offered(formats, case: Case) -> bool:
    """Whether an implementation of these formats (None: any) is to be asked; an unknown type concerns all of GGUF."""
    if formats is None or case.format in formats:
        return True
    return "UnknownType" in case.flags and any(name in TYPES for name in formats)


def arguments(case: Case) -> tuple[list, dict]:
    """Arguments by position and by name for a case."""
    places, shape = CALLS[case.op]
    inputs = {name: array for name, array in case.inputs.items() if name not in HIDDEN.get(case.op, ())}
    named = {name: inputs.pop(name) for name in places if name in inputs}
    keywords = {"format": case.format, **case.params}
    if shape:
        keywords["shape"] = case.shape
    if case.op == "quantize" and "importance" in inputs:
        keywords["importance"] = inputs.pop("importance")
    if case.op == "plan":
        return [keywords.pop("shapes")], keywords
    rest = inputs["blocks"] if list(inputs) == ["blocks"] else inputs
    return [rest if place == "*" else named[place] for place in places], keywords


class PythonObject:
    """A Python object, module or class: any of the operations as functions.

    Each gets its arrays by position; `format`, `shape` and the case's parameters by name, those that it takes::

        dequantize(data, *, format, shape, ...)  -> float32 [out, in]     data: uint8 [rows, bytes] for a GGUF type or
        matmul(x, data, *, format, shape, ...)   -> float32 [m, out]            an 8-bit float, else tensors by name
        quantize(w, *, format, importance, ...)  -> uint8 [rows, bytes], or fields {codes, scales, zeros}, or tensors
        pack(fields, *, format, shape, ...)      -> tensors by name;  unpack(tensors, ...) -> {codes, zeros}
        repack(tensors, *, format, to, shape, ...), cast(x, *, format, overflow) -> bits
        gptq(w, hessian, ...), awq(w, x, ...) -> float32 [out, in], or {w, scales}
        absorb(tensors, scales, *, kind) -> tensors;  plan(shapes, *, format, model) -> {tensor: type}
        perplexity(table, ids, *, format, context, bos, words) -> number

    An attribute `formats`, a collection of names, limits the formats; `declares` lists promises. Raising
    NotImplementedError declines a case. `prepare(op)`, where there is one, is called without a limit before the first
    case of an operation: the place for slow imports and for compilation. A call is interrupted after `seconds` (in the
    main thread, on POSIX systems).
    """

    def __init__(self, target, name: str | None = None, seconds: float = 30):
        self.target = target() if inspect.isclass(target) else target
        self.name = name or getattr(target, "name", None) or getattr(target, "__name__", type(target).__name__)
        self.seconds, self.prepared = seconds, set()
        self.declares = tuple(getattr(self.target, "declares", ()))
        formats = getattr(self.target, "formats", None)
        self.formats = set(formats) if isinstance(formats, Iterable) and not isinstance(formats, str) else None
        if not any(callable(getattr(self.target, op, None)) for op in CALLS):
            raise BadInput(f"{self.name} has none of the operations {', '.join(CALLS)}")

    @classmethod
    def find(cls, path: str, **options) -> "PythonObject":
        """Import `package.module:attribute` (or only a module); `BadInput` says what is missing."""
        module, _, attribute = path.partition(":")
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            target = importlib.import_module(module)
            for part in filter(None, attribute.split(".")):
                target = getattr(target, part)
        except (ImportError, AttributeError) as problem:
            raise BadInput(f"--impl {path}: {problem}") from problem
        return cls(target, name=path, **options)

    def run(self, case: Case):
        """Answer a case; `Declined`, `Refused` or `Broken`."""
        function = getattr(self.target, case.op, None)
        if not callable(function):
            raise Declined(f"{case.op} is not offered")
        if not offered(self.formats, case):
            raise Declined(f"{case.format} is not offered")
        places, keywords = arguments(case)
        accepted = inspect.signature(function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            keywords = {name: value for name, value in keywords.items() if name in accepted}
        self._prepare(case.op)
        try:
            inspect.signature(function).bind(*places, **keywords)
        except TypeError as problem:
            names = ", ".join(keywords)
            raise Declined(
                f"{case.op} does not take what this case hands over ({problem}; by name: {names})"
            ) from problem
        try:
            with _limit(self.seconds), np.errstate(all="ignore"):
                result = function(*places, **keywords)
        except NotImplementedError as reason:
            raise Declined(str(reason) or "not implemented") from reason
        except _TooLong:
            raise Broken(f"no answer after {self.seconds:g} s") from None
        except Exception as problem:  # anything that someone else's code may raise
            raise Refused(f"{type(problem).__name__}: {problem}") from problem
        return answer(case, result)

    def _prepare(self, op: str) -> None:
        prepare = getattr(self.target, "prepare", None)
        if callable(prepare) and op not in self.prepared:
            self.prepared.add(op)
            prepare(op)

    def close(self) -> None:
        """Nothing to end."""


class _TooLong(BaseException):
    """The call took too long; not an Exception, so that the code under test does not swallow it."""


@contextlib.contextmanager
def _limit(seconds: float):
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_):
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
