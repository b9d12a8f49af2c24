"""The grader's side of the process that runs a student's code.

    with Sandbox(files, limits) as sandbox:
        sandbox.run_cell(3, source)             what it printed, what it raised
        sandbox.function("scale_zero")(w, 4)    a proxy: arguments go over, plain data comes back

Each submission has a process group of its own, a working folder that is thrown away, an empty environment, and limits
of memory, processor time, file size, seconds a call and seconds in all. Where the system lets an ordinary user make
namespaces (`WRAPS`), the process also has no network and sees no other process; when it ends, so does everything that
it started. A process that ends, hangs or answers nonsense costs that call only: the next one starts a fresh process and
runs the cells again, but for the one that did it.
"""

import functools
import json
import os
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from refquant.classroom import worker
from refquant.classroom.exercise import CodeFailed
from refquant.errors import BadInput

# The first that works here starts the process: both give it no network and a process list of its own; with bubblewrap
# the whole file system is read-only, too, but for the working folder.
WRAPS = (
    "bwrap --unshare-all --die-with-parent --ro-bind / / --dev /dev --proc /proc --bind {folder} {folder}",
    "unshare --user --map-current-user --net --pid --fork --kill-child",
)
PRINTED = 20_000  # bytes kept of what one cell or call prints; the rest is read and forgotten
CLEAN = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
STARTING = 60.0  # seconds for the interpreter and its imports
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Limits:
    """Bytes of address space and of a file; seconds of a call and of all calls of one submission.

    `wrap` is a command that the process is started through: "auto" for the first of `WRAPS` that works here, "" for
    none, or one of your own, in which `{folder}` is the working folder.
    `packages` are imported before the limits of the audit hook, and may be used by students beside NumPy.
    """

    memory: int = 2 * 2**30
    file: int = 64 * 2**20
    seconds: float = 10.0
    total: float = 120.0
    wrap: str = "auto"
    packages: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("memory", "file", "seconds", "total"):
            if not getattr(self, name) > 0:
                raise BadInput(f"limits: {name} must be above 0, got {getattr(self, name)!r}")


@functools.cache
def namespaces() -> str:
    """The first of `WRAPS` that this user may use here, or nothing."""
    for wrap in WRAPS:
        try:
            command = [*shlex.split(wrap.format(folder=tempfile.gettempdir())), "true"]
            if subprocess.run(command, capture_output=True, timeout=10).returncode == 0:
                return wrap
        except (OSError, subprocess.TimeoutExpired):
            continue
    return ""


@dataclass
class Cell:
    """What became of a cell: what it printed, and what it raised."""

    printed: str
    error: str | None


@dataclass
class Function:
    """A student's function, called over there. `hold` sends leading arguments once, for calls that are timed."""

    sandbox: "Sandbox"
    name: str

    def __call__(self, *args):
        """Call it; raise `CodeFailed` where it fails."""
        return self.sandbox.call({"do": "call", "name": self.name, "args": list(args)})

    def hold(self, *args):
        """Return the function of the remaining arguments."""
        self.sandbox.call({"do": "hold", "name": self.name, "args": list(args)})
        return lambda *rest: self.sandbox.call({"do": "call", "name": self.name, "args": list(rest), "held": True})

    @property
    def pid(self) -> int:
        """The process in which it runs."""
        return self.sandbox.pid

    def clock(self) -> float:
        """Processor seconds that all threads of that process have used; elsewhere than on Linux, the time of day."""
        if sys.platform == "linux":
            return time.clock_gettime(~self.pid << 3 | 2)  # what clock_getcpuclockid(3) makes of a process
        return time.perf_counter()


@dataclass
class Sandbox:
    """One submission's process.

    files : folder, optional
        Its files, but for notebooks, are copied for the code to find.
    limits : Limits
    functions : names of the functions that the cells so far define
    pid : the process that runs the code
    """

    files: Path | None
    limits: Limits = field(default_factory=Limits)
    functions: set[str] = field(default_factory=set)
    pid: int = 0

    def __post_init__(self):
        if not sys.platform.startswith(("linux", "darwin")):
            raise BadInput(f"grading needs Linux or macOS for the limits of a process, this is {sys.platform}")
        self._cells: list[tuple[int, str]] = []
        self._process = None
        self._left = self.limits.total
        self._printed = bytearray()

    def __enter__(self):
        self._home = Path(tempfile.mkdtemp(prefix="refquant-"))
        return self

    def __exit__(self, *_):
        self._end()
        shutil.rmtree(self._home, ignore_errors=True)

    # ---- what the grader asks

    def run_cell(self, number: int, source: str) -> Cell:
        """Run a cell of the student's; never raises for what the student did."""
        self._printed.clear()  # what calls printed since the last cell
        try:
            self._ready()
            reply = self._exchange({"do": "cell", "number": number, "source": source})
            self._cells.append((number, source))
            self._know(reply)
            error = reply.get("error")
        except CodeFailed as problem:
            error = f"{problem}; this cell was left out"
        return Cell(self._take(), error)

    def function(self, name: str) -> Function:
        """A proxy for the function `name`; raise `KeyError` where the student's cells define none."""
        if name not in self.functions:
            raise KeyError(name)
        return Function(self, name)

    def call(self, request: dict):
        """Send one request; return the value, or raise `CodeFailed` with what the student's code did."""
        self._ready()
        reply = self._exchange(request)
        if "value" not in reply:
            raise CodeFailed(f"raised {reply.get('error')}")
        return reply["value"]

    def _know(self, reply: dict) -> None:
        names = reply.get("functions")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            self.functions = set(names)

    # ---- the process

    def _ready(self) -> None:
        """Start the process, or start it again and run the cells so far."""
        if self._process and self._process.poll() is None:
            return
        self._end()
        self._start()
        for number, source in self._cells:
            self._know(self._exchange({"do": "cell", "number": number, "source": source}))
        self._printed.clear()

    def _start(self) -> None:
        folder = Path(tempfile.mkdtemp(dir=self._home)).resolve()
        if self.files:
            ignore = shutil.ignore_patterns("*.ipynb", ".*", "*.db")
            shutil.copytree(self.files, folder, ignore=ignore, dirs_exist_ok=True, symlinks=True)
        options = {
            "memory": self.limits.memory,
            "file": self.limits.file,
            "cpu": int(self.limits.total) + 10,
            "packages": self.limits.packages,
        }
        wrap = namespaces() if self.limits.wrap == "auto" else self.limits.wrap
        command = [*shlex.split(wrap.format(folder=shlex.quote(str(folder)))), sys.executable, "-I", "-B"]
        places = CLEAN | ONE_THREAD | {"HOME": str(folder), "TMPDIR": str(folder), "NUMBA_CACHE_DIR": str(folder)}
        self._process = subprocess.Popen(
            [*command, worker.__file__, json.dumps(options)],
            cwd=folder,
            env=places,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            os.set_blocking(pipe.fileno(), False)
        self._exchange({"do": "hold", "name": "", "args": []}, STARTING)  # it is there
        self.pid = _last_child(self._process.pid)

    def _drain(self, most: int = 1) -> bool:
        """Read what was printed, and keep its beginning; returns whether the pipe is still open."""
        for _ in range(most):
            try:
                data = os.read(self._process.stderr.fileno(), 65536)
            except BlockingIOError:
                break
            if not data:
                return False
            self._printed += data[: max(0, PRINTED - len(self._printed))]
        return True

    def _take(self) -> str:
        text = self._printed.decode(errors="replace")
        self._printed.clear()
        return text

    def _end(self) -> None:
        """Kill the process and all that it started."""
        if not self._process:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._drain(64)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            pipe.close()
        self._process = None

    def _exchange(self, request: dict, seconds: float | None = None) -> dict:
        """Send a request and read the reply within the time; otherwise end the process and raise `CodeFailed`."""
        if self._left <= 0:
            raise CodeFailed(f"not run: the {self.limits.total:g} seconds of this submission are used up")
        began = time.monotonic()
        seconds = min(seconds or self.limits.seconds, self._left)
        try:
            self._send(worker.encode(request), began + seconds)
            size = struct.unpack("<Q", self._receive(8, began + seconds))[0]
            if size > worker.MAX_FRAME:
                raise ValueError("a reply that is too long")
            reply = worker.decode(self._receive(size, began + seconds))
            if not isinstance(reply, dict):
                raise ValueError("not a reply")
            self._drain(64)  # it flushed before it replied
            return reply
        except TimeoutError:
            self._end()
            raise CodeFailed(f"stopped after {seconds:.3g} seconds: is there a loop without an end?") from None
        except (EOFError, BrokenPipeError):
            self._end()
            raise CodeFailed("ended the process: it exits, or needs more memory than allowed") from None
        except ValueError as problem:
            self._end()
            raise CodeFailed(f"sent the grader something that is no answer ({problem})") from None
        finally:
            self._left -= time.monotonic() - began

    def _send(self, data: bytes, deadline: float) -> None:
        pipe, view = self._process.stdin.fileno(), memoryview(data)
        while view:
            self._wait(deadline, [], [pipe])
            try:
                view = view[os.write(pipe, view[:65536]) :]
            except BlockingIOError:
                continue

    def _receive(self, size: int, deadline: float) -> bytes:
        pipe, data = self._process.stdout.fileno(), bytearray()
        while len(data) < size:
            self._wait(deadline, [pipe], [])
            part = os.read(pipe, min(size - len(data), 2**20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _wait(self, deadline: float, reading: list, writing: list) -> None:
        """Wait until a pipe is ready, taking in what is printed meanwhile; raise `TimeoutError` at the deadline."""
        printing = [self._process.stderr.fileno()]
        while (left := deadline - time.monotonic()) > 0:
            readable, writable, _ = select.select(reading + printing, writing, [], left)
            if printing and printing[0] in readable:
                readable.remove(printing[0])
                printing = printing if self._drain() else []
            if readable or writable:
                return
        raise TimeoutError


def _last_child(pid: int) -> int:
    """The process at the end of the chain that `pid` started: the one that runs the code."""
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
    except OSError:  # this system does not tell
        pass
    return pid
