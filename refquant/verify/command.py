"""An implementation in another process, over JSON lines (PROTOCOL.md), and a shared library with ggml's row functions.

Whatever the other side does, a case ends within its limit: a program that hangs, dies or writes garbage is killed, the
case fails with the reason, and the next case starts it anew. Nothing it says is trusted: results must lie in files of
the folder that it was given, of just the size that it states.
"""

import json
import math
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from refquant.errors import BadInput
from refquant.verify.cases import Case
from refquant.verify.implementation import CALLS, HIDDEN, VALUES, Broken, Declined, Refused, answer, offered

PROTOCOL = 1
LONGEST_LINE = 1 << 20  # characters of an answer
LARGEST_RESULT = 1 << 28  # bytes of a result: no case needs more
DTYPES = {
    np.dtype(name).name: np.dtype(name).newbyteorder("<")
    for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
}


class Command:
    """A program that speaks the protocol, started when first needed; `start` is its limit, in seconds, to say hello."""

    def __init__(self, arguments: list[str], seconds: float = 30, name: str | None = None, start: float = 30):
        self.arguments, self.seconds, self.start = arguments, seconds, start
        self.title = name or shlex.join(arguments)
        self.folder = tempfile.TemporaryDirectory(prefix="refquant-verify-")
        self.process, self.lines, self.about = None, None, None
        self.trouble: str | None = None

    @classmethod
    def parse(cls, text: str, seconds: float = 30) -> "Command":
        """From a command line as a shell would split it."""
        arguments = shlex.split(text)
        if not arguments:
            raise BadInput("--cmd needs a command")
        return cls(arguments, seconds)

    @classmethod
    def library(cls, path: str, seconds: float = 30) -> "Command":
        """A shared library, loaded in a process of its own, which it may crash."""
        if not Path(path).is_file():
            raise BadInput(f"--library {path}: no such file")
        worker = [sys.executable, "-m", "refquant.verify.library_worker", str(Path(path).resolve())]
        return cls(worker, seconds, name=path)

    @property
    def name(self) -> str:
        """What the program calls itself, once it has said so."""
        return (self.about or {}).get("name") or self.title

    @property
    def declares(self) -> tuple[str, ...]:
        """What it promises; starts it."""
        try:
            self._start()
        except Broken:
            return ()
        return tuple(self.about.get("declares", ()))

    def run(self, case: Case):
        """Answer a case; `Declined`, `Refused` or `Broken`."""
        self._start()
        if case.op not in self.about["ops"]:
            raise Declined(f"{case.op} is not offered")
        if not offered(self.about.get("formats"), case):
            raise Declined(f"{case.format} is not offered")
        for old in Path(self.folder.name).iterdir():
            old.unlink()
        reply = self._ask(self._message(case), self.seconds)
        try:
            return self._result(case, reply)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as problem:
            raise Broken(f"an answer that cannot be read ({problem!r}): {json.dumps(reply)[:200]}") from problem

    def _message(self, case: Case) -> dict:
        inputs = {}
        for i, (name, array) in enumerate(case.inputs.items()):
            if name not in HIDDEN.get(case.op, ()):
                path = Path(self.folder.name) / f"in{i}"
                path.write_bytes(np.ascontiguousarray(array).astype(DTYPES[array.dtype.name]).tobytes())
                inputs[name] = {"path": str(path), "dtype": array.dtype.name, "shape": list(array.shape)}
        return {
            "type": "case", "id": case.id, "op": case.op, "format": case.format, "shape": list(case.shape),
            "params": case.params, "inputs": inputs, "output": str(Path(self.folder.name) / "out"),
        }  # fmt: skip

    def _result(self, case: Case, reply: dict):
        if reply["type"] == "skip":
            raise Declined(str(reply.get("reason", "skipped")))
        if reply["type"] == "error":
            raise Refused(str(reply.get("message", "an error")))
        if reply["type"] != "ok":
            raise Broken(f"an answer of the type {reply['type']!r}; expected ok, skip or error")
        if case.op in VALUES:
            return reply["value"]
        return answer(case, {name: self._array(name, item) for name, item in reply["outputs"].items()})

    def _array(self, name: str, item: dict) -> np.ndarray:
        path, dtype, shape = Path(item["path"]), DTYPES.get(item["dtype"]), item["shape"]
        if dtype is None or not all(type(size) is int and size >= 0 for size in shape):
            raise Broken(f"{name}: dtype {item['dtype']!r} and shape {shape!r}; known: {', '.join(DTYPES)}")
        if path.resolve().parent != Path(self.folder.name).resolve() or not path.name.startswith("out"):
            raise Broken(f"{name}: the result must lie in a file whose path begins with `output`, not in {path}")
        need = math.prod(shape) * dtype.itemsize
        if not path.is_file() or path.stat().st_size != need or need > LARGEST_RESULT:
            have = path.stat().st_size if path.is_file() else "no"
            raise Broken(f"{name}: {item['dtype']} {shape} takes {need} bytes, the file has {have}")
        return np.fromfile(path, dtype).reshape(shape).astype(dtype.newbyteorder("="))

    def _start(self) -> None:
        if self.process is not None:
            return
        if self.trouble and self.about is None:
            raise Broken(self.trouble)  # it never said hello: it will not do so now
        try:
            self.process = subprocess.Popen(
                self.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
        except OSError as problem:
            self.trouble = f"cannot be started: {problem}"
            raise Broken(self.trouble) from problem
        self.lines, self.errors = queue.Queue(), []
        threading.Thread(target=_read, args=(self.process.stdout, self.lines.put), daemon=True).start()
        threading.Thread(target=_read, args=(self.process.stderr, self.errors.append), daemon=True).start()
        try:
            about = self._ask({"type": "hello", "protocol": PROTOCOL}, self.start)
            if about.get("type") != "hello" or about.get("protocol") != PROTOCOL or not _names(about.get("ops")):
                raise Broken(f"hello was answered with {json.dumps(about)[:200]}; see PROTOCOL.md")
            if not all(_names(about.get(key, [])) for key in ("formats", "declares")):
                raise Broken("hello: formats and declares must be lists of names")
        except Broken as problem:
            self.trouble = str(problem)
            if self.process is not None:
                self._kill()
            raise
        self.about = about | {"ops": [op for op in about["ops"] if op in CALLS]}

    def _ask(self, message: dict, seconds: float) -> dict:
        try:
            self.process.stdin.write(json.dumps(message, separators=(",", ":")) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has died; what it left to read, or the end, tells so
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            self._kill()
            raise Broken(f"no answer after {seconds:g} s") from None
        if line is None:
            code = self._kill()
            said = "".join(self.errors[:-1] if self.errors and self.errors[-1] is None else self.errors).strip()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
            raise Broken(f"the program {how}" + (f": {said[-300:]}" if said else ""))
        try:
            reply = json.loads(line)
            if not isinstance(reply, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            self._kill()
            raise Broken(f"garbage instead of a JSON object: {line[:100]!r}") from None
        return reply

    def _kill(self) -> int:
        """End the program, whatever it does; its status."""
        try:
            code = self.process.wait(0.2)  # one that has closed its output is about to end by itself
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdin.close()
        self.process = None
        return code

    def close(self) -> None:
        """Say goodbye, and remove the folder."""
        if self.process is not None:
            try:
                self.process.stdin.write('{"type":"bye"}\n')
                self.process.stdin.flush()
            except OSError:
                pass
            self._kill()
        self.folder.cleanup()


def _names(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read(stream, put) -> None:
    """Hand on lines, cut where they are too long, then None."""
    with stream:
        while line := stream.readline(LONGEST_LINE):
            put(line)
    put(None)
