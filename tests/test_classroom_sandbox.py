"""The process that a student's code runs in: what it may not do, and what the grader makes of it."""

import struct
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from refquant.classroom import CodeFailed, worker
from refquant.classroom.sandbox import Limits, Sandbox, namespaces
from refquant.errors import BadInput

QUICK = Limits(seconds=1.5)
GOOD = "import numpy as np\ndef double(x):\n    return 2 * np.asarray(x)\n"


def lives(pid) -> bool:
    """Whether a process still runs a moment later; one that nobody has waited for yet does not."""
    for _ in range(50):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def shared():
    with Sandbox(None, Limits(seconds=20)) as sandbox:
        assert sandbox.run_cell(0, GOOD).error is None
        yield sandbox


def test_values_come_back_as_they_are_and_only_plain_ones(shared):
    source = """
def echo(*args):
    return args
def strange(kind):
    return {"object": object(), "class": int, "complex": 1j, "text array": np.array(["a"]), "deep": deep()}[kind]
def deep():
    inner = []
    for _ in range(20):
        inner = [inner]
    return inner
"""
    assert shared.run_cell(1, source).error is None
    echo = shared.function("echo")
    values = (None, True, 3, 2**70, 0.1, float("inf"), "ä", [1, (2.5,)], {"a": np.float32(0.1)})
    assert echo(*values) == values
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    (back,) = echo(array.T)
    assert back.dtype == np.int16
    assert np.array_equal(back, array.T)
    for kind in ("object", "class", "complex", "text array", "deep"):
        with pytest.raises(CodeFailed, match=r"cannot be an answer|too deeply"):
            shared.function("strange")(kind)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from refquant.methods import rtn", "refquant"),
        ("import sys\ndel sys.modules['refquant']\nimport refquant.methods.rtn", "may not be"),
        (
            "import importlib.util, numpy\nprint(open(importlib.util.find_spec('gguf').origin).read())",
            "may not be read",
        ),
        ("import gguf", "may not be imported"),
        ("import torch", "may not be imported"),
        ("import os\nos.fork()", "os.fork is not allowed"),
        ("import subprocess\nsubprocess.run(['true'])", "not allowed"),
        ("import os\nos.system('true')", "not allowed"),
        ("import multiprocessing\nmultiprocessing.Process(target=print).start()", "not allowed"),
        ("import os\nos.kill(os.getppid(), 9)", "not allowed"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "not allowed"),
        ("import ctypes\nctypes.CDLL(None)", "not allowed"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (1, 1))", "not allowed"),
        ("import shutil\nshutil.rmtree('/')", "outside the working folder"),
        ("print(open('/etc/hostname').read())", "may not be read"),
        ("x = [0] * 10**12", "MemoryError"),
        ("1 / 0", "ZeroDivisionError: division by zero (line 1 of cell 5)"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_cell_that_does_what_it_may_not_fails_alone(shared, source, said):
    assert said in shared.run_cell(5, source).error
    assert np.array_equal(shared.function("double")([1, 2]), [2, 4])


def test_files_outside_the_working_folder_are_safe(shared, tmp_path):
    victim = tmp_path / "gradebook.db"
    victim.write_text("points")
    attempts = [
        f"os.remove({str(victim)!r})",
        f"os.remove(os.path.relpath({str(victim)!r}))",
        f"os.rename({str(victim)!r}, 'mine')",
        f"os.truncate({str(victim)!r}, 0)",
        f"open({str(victim)!r}, 'w')",
        f"os.open({str(victim)!r}, os.O_WRONLY)",
        f"pathlib.Path({str(victim)!r}).unlink()",
        f"shutil.rmtree({str(tmp_path)!r})",
        f"shutil.copy(__import__('numpy').__file__, {str(victim)!r})",
        f"os.symlink({str(victim)!r}, 'link')",
        f"os.chmod({str(victim)!r}, 0)",
        f"print(open({str(victim)!r}).read())",
    ]
    for attempt in attempts:
        assert "PermissionError" in shared.run_cell(6, f"import os, pathlib, shutil\n{attempt}").error, attempt
    assert victim.read_text() == "points"
    # in its own folder it may do as it likes
    cell = shared.run_cell(7, "open('a.txt', 'w').write('b')\nprint(open('a.txt').read())\nos.remove('a.txt')")
    assert (cell.error, cell.printed) == (None, "b\n")
    shared.run_cell(8, "shutil.rmtree(os.getcwd())")  # under bubblewrap the folder itself stays
    assert np.array_equal(shared.function("double")([1]), [2])


def test_the_environment_is_empty_and_the_files_of_the_submission_are_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    (tmp_path / "helper.py").write_text("three = 3\n")
    (tmp_path / "a.ipynb").write_text("{}")
    with Sandbox(tmp_path, QUICK) as sandbox:
        source = "import os, helper\nprint(helper.three, 'SECRET' in os.environ, sorted(os.listdir()))"
        cell = sandbox.run_cell(1, source + "\nos.remove('helper.py')")
    assert (cell.error, cell.printed) == (None, "3 False ['helper.py']\n")
    assert (tmp_path / "helper.py").exists()


def test_what_ends_or_hangs_costs_that_call_only_and_leaves_no_process():
    source = """
import os, sys, time
def leave():
    os._exit(0)
def loop():
    while True:
        pass
def sleep():
    time.sleep(100)
def eat():
    kept = []
    while True:
        kept.append(bytes(10**7) + b"x")
def forge():
    for number in range(3, 20):
        try:
            os.write(number, b"x" * 100)
        except OSError:
            pass
    return 1
def flood():
    for _ in range(30):
        print("x" * 10**6)
    return 5
def huge():
    return np.zeros(2**26)
"""
    expected = {
        "leave": "ended the process",
        "loop": "loop without an end",
        "sleep": "loop without an end",
        "eat": "MemoryError|needs more memory|loop without",
        "forge": "no answer",
        "huge": "too many for an answer|MemoryError",
    }
    with Sandbox(None, Limits(seconds=1.5, memory=2**30)) as sandbox:
        assert sandbox.run_cell(1, GOOD + source).error is None
        assert sandbox.function("flood")() == 5
        for name, said in expected.items():
            with pytest.raises(CodeFailed, match=said):
                sandbox.function(name)()
            assert np.array_equal(sandbox.function("double")([3]), [6]), name
        pids = {sandbox.pid, sandbox._process.pid}
    assert not any(lives(pid) for pid in pids)


@pytest.mark.parametrize("source", ["import os\nos._exit(1)", "while True:\n    pass"])
def test_a_cell_that_never_returns_is_left_out_and_the_others_are_run_again(source):
    with Sandbox(None, QUICK) as sandbox:
        sandbox.run_cell(1, GOOD)
        assert "this cell was left out" in sandbox.run_cell(2, source).error
        assert sandbox.run_cell(3, "print(double(4))").printed == "8\n"
        assert np.array_equal(sandbox.function("double")([3]), [6])


def test_the_time_of_a_submission_is_limited_as_a_whole():
    said = []
    with Sandbox(None, Limits(seconds=0.5, total=2)) as sandbox:
        sandbox.run_cell(1, "def loop():\n    while True: pass\n")
        while len(said) < 9:
            with pytest.raises(CodeFailed) as raised:
                sandbox.function("loop")()
            said.append(str(raised.value))
    assert "loop without an end" in said[0]
    assert "used up" in said[-1]
    with pytest.raises(BadInput, match="total"):
        Limits(total=0)


@pytest.mark.skipif(not namespaces(), reason="this system lets no ordinary user make namespaces")
def test_in_namespaces_even_what_python_cannot_refuse_stays_inside():
    # Numba needs ctypes, so its process may call fork in C: the audit hook does not see it
    source = textwrap.dedent("""
        import ctypes, os, time
        libc = ctypes.CDLL(None)
        def fork():
            if libc.fork() == 0:
                os.setsid()
                time.sleep(60)
            return os.getpid()
        def others():
            return [libc.kill(pid, 9) for pid in range(100, 2000)].count(0)
    """)
    with Sandbox(None, Limits(packages=("numba", "llvmlite"), seconds=30)) as sandbox:
        assert sandbox.run_cell(1, source).error is None
        assert sandbox.function("fork")() < 100, "its own numbering"
        assert sandbox.function("others")() == 0, "it sees no process but its own"
        children = Path(f"/proc/{sandbox.pid}/task/{sandbox.pid}/children").read_text().split()
        assert len(children) == 1
    assert not lives(children[0]), "it dies with the sandbox"


def test_a_frame_that_is_not_one_is_refused():
    good = worker.encode({"value": [np.arange(5), 1.5]})[8:]
    assert np.array_equal(worker.decode(good)["value"][0], np.arange(5))
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 3):
            bad[place] = rng.integers(256)
        try:
            worker.decode(bytes(bad))
        except ValueError:
            continue
    heads = [
        '{"array": "|O", "shape": [1]}',
        '{"array": "<f8", "shape": [1000000000]}',
        '{"array": "<f8", "shape": [-1]}',
    ]
    heads += ['{"what": 1}', "[1]", '{"dict": [1]}', "{" * 10**5, '{"list": [' * 20 + "1" + "]}" * 20]
    for head in heads:
        with pytest.raises(ValueError):
            worker.decode(struct.pack("<I", len(head)) + head.encode())
    for cut in range(len(good)):
        with pytest.raises(ValueError):
            worker.decode(good[:cut])
