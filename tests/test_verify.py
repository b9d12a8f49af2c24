"""The conformance kit: its data, its runner and its reports. (The comparisons: test_verify_compare.)"""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

from refquant import verify
from refquant.cli import main
from refquant.errors import BadFile, BadInput, UnknownName
from refquant.verify import cases, report
from refquant.verify.cases import VECTORS, load, select

ROOT = Path(__file__).parents[1]
INDEPENDENT = ("ggml", "gguf", "gptqmodel", "autoawq", "IST-DASLab/gptq", "bitsandbytes", "compressed-tensors", "torch",
               "ml_dtypes", "numpy", "llama.cpp")  # fmt: skip


# ---- data


@pytest.mark.parametrize("manifest", sorted(VECTORS.glob("*/manifest.json")), ids=lambda path: path.parent.name)
def test_every_manifest_fits_the_schema(manifest):
    content = json.loads(manifest.read_text())
    jsonschema.Draft202012Validator(json.loads((VECTORS / "schema.json").read_text())).validate(content)
    assert content["suite"] == manifest.parent.name
    for case in content["cases"]:
        suite, fmt, op, _ = case["id"].split("/")
        assert (suite, fmt, op) == (content["suite"], case["format"], case["op"])
        assert (case["comparison"] in ("value", "close")) == ("value" in case)


def test_ids_are_unique_and_every_word_is_explained():
    ids = [case.id for case in load()]
    assert len(ids) == len(set(ids)) > 350
    assert {flag for case in load() for flag in case.flags} == cases.flags().keys()
    assert {number for case in load() for number in case.mistakes} == cases.mistakes().keys()


def test_expected_results_come_from_independent_programs():
    for case in load():
        assert case.provenance["programs"], case.id
        for program in case.provenance["programs"]:
            assert program.startswith(INDEPENDENT), (case.id, program)
            assert re.search(r"\d", program), "a version"
        assert "refquant" not in " ".join(case.provenance["programs"])
    decoded = [case for case in load() if case.suite == "gguf-decode" and case.comparison == "bits"]
    assert all(len(case.provenance["programs"]) >= 2 for case in decoded), "two sources where two exist"


def test_tensors_are_all_used_and_small_and_readable_with_numpy_alone():
    from safetensors.numpy import load_file

    total = 0
    for folder in sorted(path.parent for path in VECTORS.glob("*/manifest.json")):
        stored = load_file(folder / "tensors.safetensors")
        names = [keys for case in load() if case.suite == folder.name for keys in case.stored.values()]
        used = {key for keys in names for key in keys.values()}
        assert stored.keys() == used
        total += sum(file.stat().st_size for file in folder.iterdir())
    assert total < 8e6


def test_the_committed_script_makes_the_same_vectors():
    script = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "make_vectors"), "--check"]
    for package in ("bitsandbytes", "torch"):
        pytest.importorskip(package)
    made = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert made.returncode == 0, made.stdout + made.stderr


def test_the_kit_needs_numpy_and_safetensors_only(tmp_path):
    code = """
import sys
class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in {"torch", "transformers", "numba", "gguf", "jsonschema", "ml_dtypes", "matplotlib"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {"torch", "transformers"} else found(name, *rest)
from refquant import verify
from refquant.verify import reference
report = verify.check(reference.numpy, "q4_k or awq or casts or methods or model")
print(report.exit_code, {result.message for result in report.results if result.status == "skip"})
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert out.split(" ", 1)[0] == "0"
    assert "torch is not installed" in out


# ---- selection


def test_expressions_select():
    assert len(select("q4_k and decode")) == 5
    assert {case.format for case in select("(q4_k or q5_k) and not encode")} == {"Q4_K", "Q5_K"}
    assert {case.op for case in select("not dequantize")} == {case.op for case in load()} - {"dequantize"}
    assert {27} <= {number for case in select("mistake-27") for number in case.mistakes}
    assert [case.id for case in select("gguf-decode/q3_k/dequantize/ramp")] == ["gguf-decode/Q3_K/dequantize/ramp"]
    assert len(select(None)) == len(load())
    a, b, c = (set(map(id, select(word))) for word in ("q4_k", "multiblock", "q6_k"))
    assert set(map(id, select("q6_k or q4_k and multiblock"))) == c | (a & b)


@pytest.mark.parametrize(
    "text", ["q4_k and", "(q4_k", "q4_k q5_k", "and", "q4_k) or q5_k", "not", "no-such-word", "()"]
)
def test_expressions_that_cannot_be_read_are_refused(text):
    with pytest.raises(BadInput):
        select(text)


# ---- the reference, and wrong ones


@pytest.fixture(scope="module")
def reference_report():
    from refquant.verify import reference

    return verify.check(reference.numpy)


def test_the_reference_passes_every_case(reference_report):
    assert [(r.case.id, r.message) for r in reference_report.results if r.bad] == []
    skipped = {r.case.id for r in reference_report.results if r.status == "skip"}
    assert skipped == {"model/block/absorb/grouped-query"}, "refquant leaves v and o alone there, as its module says"
    assert reference_report.exit_code == 0
    assert sum(r.seconds for r in reference_report.results) < 60


class Wrong:
    """A decoder with every kind of bad manners, by format."""

    name = "wrong"

    def dequantize(self, blocks, *, format, shape):  # noqa: A002
        if format == "Q4_K":
            while True:
                pass
        if format == "Q5_K":
            raise RuntimeError("out of memory")
        if format == "Q6_K":
            return None
        if format == "Q2_K":
            return np.zeros(7, np.float32)
        if format == "Q3_K":
            return np.full(shape, np.nan, np.float32)
        if format == "Q8_0":
            return "garbage"
        if format == "Q9_Z":
            return np.zeros(shape, np.float32)
        raise NotImplementedError(f"{format} later")


def test_bad_manners_are_reported_and_the_run_goes_on():
    found = verify.check(Wrong, "random and decode or unknown-type", seconds=0.2)
    messages = {r.case.format: (r.status, r.message) for r in found.results}
    assert messages["Q4_K"] == ("fail", "no answer after 0.2 s")
    assert messages["Q5_K"] == ("fail", "ended in an error: RuntimeError: out of memory")
    assert messages["Q6_K"] == ("fail", "expected an array or a dict of arrays, got NoneType")
    assert messages["Q2_K"] == ("fail", "w must have the shape [2, 768], got [7]")
    assert "expected" in messages["Q3_K"][1]
    assert "got nan" in messages["Q3_K"][1]
    assert messages["Q8_0"] == ("fail", "w is no array of numbers but of <U7")
    assert messages["Q9_Z"] == ("fail", "accepted an input that must be refused")
    assert messages["TQ1_0"] == ("skip", "TQ1_0 later")
    assert found.exit_code == 1


def test_nothing_tested_is_not_success():
    class Nothing:
        def plan(self, shapes, **rest):
            raise NotImplementedError

    found = verify.check(Nothing, "plan")
    assert found.exit_code == 2
    assert "nothing was tested:\n  not implemented" in str(found)

    class Misnamed:
        def dequantize(self, blocks, kind):
            raise AssertionError

    found = verify.check(Misnamed, "q4_k and decode")
    assert found.exit_code == 2
    assert "dequantize does not take what this case hands over (missing a required argument: 'kind'" in str(found)
    with pytest.raises(BadInput, match="none of the operations"):
        verify.check(object())


def test_formats_limit_what_is_asked():
    class One:
        formats = ("Q8_0",)

        def dequantize(self, blocks, *, shape, **rest):
            b = blocks.reshape(-1, 34)
            d = b[:, :2].copy().view(np.float16).astype(np.float32)
            return (d * b[:, 2:].view(np.int8).astype(np.float32)).reshape(shape)

    found = verify.check(One, "gguf-decode and not unknowntype")
    assert {r.case.format for r in found.results if r.status == "pass"} >= {"Q8_0"}
    assert {r.case.format for r in found.results if r.status == "fail"} <= {"Q4_K"}, "the cut-off rows only"


# ---- expectations


def test_known_failures_and_unexpected_passes(tmp_path):
    file = tmp_path / "expectations.toml"
    file.write_text(
        '[[known]]\ncase = "gguf-decode/Q5_K/*"\nreason = "not written yet"\n'
        '[[known]]\ncase = "gguf-decode/TQ1_0/dequantize/random"\nreason = "skipped stays skipped"\n'
    )
    found = verify.check(Wrong, "(q5_k or tq1_0) and random", expect=file)
    assert [r.status for r in found.results] == ["known", "skip"]
    assert found.exit_code == 0
    from refquant.verify import reference

    passing = verify.check(reference.numpy, "q5_k and random", expect=file)
    assert [r.status for r in passing.results] == ["unexpected"]
    assert passing.exit_code == 1


@pytest.mark.parametrize(
    "text", ["[[known]]\ncase = 'a'\n", "known = 3\n", "[[known", "[[known]]\ncase='a'\nreason=' '\n"]
)
def test_expectations_without_reasons_are_refused(tmp_path, text):
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(BadFile):
        verify.read_expectations(tmp_path / "e.toml")


# ---- reports


@pytest.fixture(scope="module")
def failing():
    return verify.check(Wrong, "(q5_k or q2_k or tq1_0) and random and decode")


def test_the_terminal_report_has_a_matrix_and_explains(failing):
    text = str(failing)
    assert re.search(r"^Q5_K +FAIL 1/1$", text, re.M)
    assert re.search(r"^TQ1_0 +-$", text, re.M)
    assert "known mistake 29" in text
    assert "paiml/aprender#1924" in text
    assert text.endswith("wrong: 0 passed, 2 failed, 1 not offered")


def test_json_junit_markdown_and_badge(failing):
    found = json.loads(report.write(failing, "json"))
    assert found["counts"]["fail"] == 2
    assert not found["ok"]
    assert {entry["status"] for entry in found["results"]} == {"fail", "skip"}
    suite = ElementTree.fromstring(report.write(failing, "junit"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "2", "1")
    assert len(suite.findall("testcase/failure")) == 2
    table = report.write(failing, "markdown")
    assert "| Q5_K | FAIL 1/1 |" in table
    badge = json.loads(report.write(failing, "badge"))
    assert badge == {"schemaVersion": 1, "label": "refquant verify", "message": "0/2", "color": "red"}
    with pytest.raises(UnknownName):
        report.write(failing, "pdf")


def test_control_characters_do_not_break_junit():
    class Rude:
        def dequantize(self, blocks, **rest):
            raise ValueError("\x1b[31m\x00 bad \ud800")

    ElementTree.fromstring(report.write(verify.check(Rude, "q4_k and ramp"), "junit"))


def test_a_q3_k_decoder_with_4_bit_scales_is_told_which_field_it_misreads():
    class FourBits:
        def dequantize(self, blocks, *, shape, **rest):
            out = []
            for b in blocks.reshape(-1, 110):
                d = b[108:].copy().view(np.float16)[0].astype(np.float32)
                e = np.arange(256)
                half, plane, lane, sub = e // 128, e % 128 // 32, e % 32, e // 16
                low = b[32 + 32 * half + lane] >> 2 * plane & 3
                code = low.astype(int) - 4 * (1 - (b[lane] >> 4 * half + plane & 1))
                scale = (b[96 + sub % 8] >> 4 * (sub // 8) & 15).astype(int) - 8
                out.append(d * scale.astype(np.float32) * code.astype(np.float32))
            return np.concatenate(out).reshape(shape)

    text = str(verify.check(FourBits, "q3_k and decode and random"))
    assert "the codes are read right; the weights imply these scales" in text
    assert "(stored & 15) - 8, the format has stored - 32: only the low 4 bits of each were read" in text
    assert "bits 3..0 of scale j in byte 96 + j % 8" in text


def test_codes_in_plain_order_are_recognized():
    class Plain:
        def dequantize(self, blocks, *, shape, **rest):
            b = blocks.reshape(-1, 18)
            d = b[:, :2].copy().view(np.float16).astype(np.float32)
            codes = np.stack([b[:, 2:] & 15, b[:, 2:] >> 4], -1).reshape(-1, 32)
            return (d * (codes.astype(np.float32) - 8)).reshape(shape)

    text = str(verify.check(Plain, "q4_0 and random and decode"))
    assert "the scales are read right; the weights imply these codes" in text
    assert "neighbours in a byte are taken for neighbours in the row; the format has planes of 16" in text


def test_a_wrong_version_of_gptq_is_recognized():
    from refquant.verify import reference

    class Swapped:
        def dequantize(self, tensors, *, format, shape, **params):  # noqa: A002
            return reference.numpy.dequantize(tensors, format="gptq", shape=shape, **params)

    text = str(verify.check(Swapped, "gptq_v2 and dequantize and zeros-4bit"))
    assert "zero-points" in text
    assert "+1" in text


# ---- the command line


def test_command_line(tmp_path, capsys):
    assert main(["verify", "--only", "q4_0 and decode"]) == 0
    out = capsys.readouterr().out
    assert "Q4_0    ok 4" in out
    assert main(["verify", "--list", "--only", "mistake-27"]) == 0
    assert "gguf-decode/Q3_K/dequantize/random" in capsys.readouterr().out
    assert main(["verify", "--only", "q4_0 and decode", "--format", "badge", "--output", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["message"] == "4/4"
    assert main(["verify", "--only", "nothing-like-it"]) == 2
    assert main(["verify", "--impl", "no_such_module"]) == 2
    assert main(["verify", "--format", "pdf"]) == 2
    assert "unknown report" in capsys.readouterr().err


def test_pytest_integration(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "from refquant.verify import reference\n"
        "from refquant.verify.pytest_suite import conformance\n"
        "class Bad:\n"
        "    def dequantize(self, data, *, format, shape):\n"
        "        if format == 'Q4_1': raise NotImplementedError('later')\n"
        "        return reference.numpy.dequantize(data, format=format, shape=shape) * (2 if format == 'Q8_0' else 1)\n"
        "test_it = conformance(Bad, only='gguf-decode and ramp and (q8_0 or q4_0 or q4_1 or q5_0)', expect='e.toml')\n"
    )
    (tmp_path / "e.toml").write_text('[[known]]\ncase = "*/Q5_0/*/ramp"\nreason = "wrong reason"\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "2 failed, 1 passed, 1 skipped" in run.stdout, run.stdout
    assert "gguf-decode/Q8_0/dequantize/ramp" in run.stdout
