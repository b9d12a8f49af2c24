"""Implementations in other processes: the examples in C and JavaScript, a shared library, programs that misbehave."""

import shutil
import subprocess
import sys
import time

import pytest

from refquant.cli import main
from refquant.errors import BadInput
from refquant.verify import run, select
from refquant.verify.cases import VECTORS
from refquant.verify.command import Command

HARNESS = VECTORS.parent / "harness"


def tool(*names):
    found = next((path for path in map(shutil.which, names) if path), None)
    return found or pytest.skip(f"none of {', '.join(names)} is installed")


def outcome(command, only, seconds=None):
    try:
        return {result.case.id: result for result in run(command, select(only)).results}
    finally:
        command.close()


def everything_passes(command):
    results = outcome(command, "gguf-decode")
    assert len(results) == len(select("gguf-decode"))
    assert {result.status for result in results.values()} == {"pass"}, [
        r.message for r in results.values() if r.message
    ]


def test_the_example_in_c_passes_the_decode_suite(tmp_path):
    program = tmp_path / "harness"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    subprocess.run([tool("cc", "gcc", "clang"), *flags, "-o", program, HARNESS / "harness.c", "-lm"], check=True)
    command = Command([str(program)])
    everything_passes(command)
    assert command.name == "example in C"


def test_the_example_in_javascript_passes_the_decode_suite():
    everything_passes(Command([tool("node"), str(HARNESS / "harness.js")]))


LIBRARY = """
#include <stdint.h>
#include <string.h>
void dequantize_row_q8_0(const void *blocks, float *out, int64_t count) {
    const int8_t *b = blocks;
    for (int64_t i = 0; i < count; i++) {
        _Float16 d;
        memcpy(&d, b + i / 32 * 34, 2);
        out[i] = (float)d * b[i / 32 * 34 + 2 + i % 32];
    }
}
void dequantize_row_q4_0(const void *blocks, float *out, int64_t count) { *(volatile int *)0 = 1; }
void dequantize_row_q4_K(const void *blocks, float *out, int64_t count) { for (;;); }
"""


def test_a_library_may_crash_or_hang_and_the_run_goes_on(tmp_path):
    (tmp_path / "mine.c").write_text(LIBRARY)
    path = tmp_path / "libmine.so"
    compiler = tool("gcc", "clang")
    subprocess.run([compiler, "-O2", "-w", "-shared", "-fPIC", "-o", path, tmp_path / "mine.c"], check=True)
    results = outcome(
        Command.library(str(path), seconds=2), "(q8_0 or q4_0 or q4_k or q6_k or q9_z) and decode and not odd-scales"
    )
    by_format = {}
    for result in results.values():
        by_format.setdefault(result.case.format, set()).add((result.status, result.message.split(":")[0]))
    assert by_format["Q8_0"] == {("pass", "")}
    assert by_format["Q4_0"] == {("fail", "the program was ended by signal 11")}
    assert ("fail", "no answer after 2 s") in by_format["Q4_K"]
    assert by_format["Q6_K"] == {("skip", "the library has no function to dequantize Q6_K")}
    with pytest.raises(BadInput, match="no such file"):
        Command.library(str(tmp_path / "absent.so"))


def test_ggml_itself_as_a_library():
    import ggml

    results = outcome(Command.library(ggml.library()._name), "gguf-decode or gguf-encode")
    assert [result.message for result in results.values() if result.bad] == []
    assert sum(result.status == "pass" for result in results.values()) > 150


BAD = """
import json, os, sys, time
hello = {"type": "hello", "protocol": 1, "name": "bad", "ops": ["dequantize"]}
for line in sys.stdin:
    m = json.loads(line)
    if m["type"] == "hello":
        print(json.dumps(hello), flush=True)
        continue
    kind, out = m["format"], m["output"]
    say = lambda reply: print(json.dumps(reply), flush=True)
    ok = lambda *item: say({"type": "ok", "outputs": {"w": dict(zip(("path", "dtype", "shape"), item))}})
    if kind == "Q4_0": time.sleep(100)
    elif kind == "Q4_1": sys.exit("no memory left")
    elif kind == "Q5_0": print("12 weights decoded\\n" * 3, flush=True)
    elif kind == "Q5_1": open(out, "wb").write(b"1234"); ok(out, "float32", [1])
    elif kind == "Q8_0": open(out, "wb").write(b"1234"); ok(out, "float32", m["shape"])
    elif kind == "Q2_K": ok("/etc/passwd", "uint8", [1])
    elif kind == "Q3_K": ok(out, "object", [1])
    elif kind == "Q4_K": ok(out, "float32", [-1])
    elif kind == "Q5_K": print("[1]", flush=True)
    elif kind == "Q6_K": say({"type": "ok"})
    elif kind == "IQ4_NL": say({"type": "error", "message": "cannot"})
    elif kind == "IQ4_XS": sys.stderr.write("x" * 10_000_000); say({"type": "skip", "reason": "later"})
    elif kind == "MXFP4": sys.stdout.write("x" * 3_000_000); sys.stdout.flush(); time.sleep(100)
    else: print("{}", flush=True)
"""
WANTED = {
    "Q4_0": ("fail", "no answer after 1 s"),
    "Q4_1": ("fail", "the program ended with status 1: no memory left"),
    "Q5_0": ("fail", "garbage instead of a JSON object: '12 weights decoded"),
    "Q5_1": ("fail", "w must have the shape [2, 288], got [1]"),
    "Q8_0": ("fail", "w: float32 [2, 288] takes 2304 bytes, the file has 4"),
    "Q2_K": ("fail", "w: the result must lie in a file whose path begins with `output`"),
    "Q3_K": ("fail", "w: dtype 'object'"),
    "Q4_K": ("fail", "w: dtype 'float32' and shape [-1]"),
    "Q5_K": ("fail", "garbage instead of a JSON object"),
    "Q6_K": ("fail", "an answer that cannot be read"),
    "IQ4_NL": ("fail", "ended in an error: cannot"),
    "IQ4_XS": ("skip", "later"),
    "MXFP4": ("fail", "garbage instead of a JSON object: 'xxx"),
    "TQ1_0": ("fail", "an answer that cannot be read"),
}


def test_programs_that_misbehave_are_reported_and_the_run_goes_on(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    began = time.monotonic()
    results = outcome(Command([sys.executable, str(tmp_path / "bad.py")], seconds=1), "gguf-decode and random")
    assert time.monotonic() - began < 30
    got = {result.case.format: (result.status, result.message) for result in results.values()}
    for fmt, (status, message) in WANTED.items():
        assert got[fmt][0] == status, (fmt, got[fmt])
        assert got[fmt][1].startswith(message), (fmt, got[fmt])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; time.sleep(100)", "no answer after 5 s"),
        ("print('ready')", "garbage"),
        ("""print('{"type":"hello","protocol":2,"ops":[]}')""", "hello was answered with"),
        ("""print('{"type":"hello","protocol":1,"ops":["dequantize"],"formats":"Q4_0"}')""", "hello: formats"),
        ("", "the program ended with status 0"),
    ],
)
def test_a_program_that_never_says_hello_fails_each_case_at_once(program, message):
    began = time.monotonic()
    results = outcome(Command([sys.executable, "-c", program], start=5), "q4_k and decode")
    assert {result.status for result in results.values()} == {"fail"}
    assert all(result.message.startswith(message) for result in results.values())
    assert time.monotonic() - began < 15, "it is not tried again for each case"


def test_command_line(tmp_path, capsys):
    node = tool("node")
    assert main(["verify", "--cmd", f"{node} '{HARNESS / 'harness.js'}'", "--only", "gguf-decode and ramp"]) == 0
    assert "example in JavaScript: 16 passed, 0 failed" in capsys.readouterr().out
    assert main(["verify", "--cmd", str(tmp_path / "absent"), "--only", "q4_0"]) == 1
    assert "cannot be started" in capsys.readouterr().out
    assert main(["verify", "--library", str(tmp_path / "absent.so")]) == 2
    assert main(["verify", "--cmd", ""]) == 2
