"""Choosing, the qualities it rests on, and the two commands."""

import json

import pytest

from refquant.bandwidth import choose, quality
from refquant.bandwidth.devices import find_device
from refquant.bandwidth.units import parse_bytes
from refquant.cli import main
from refquant.errors import BadFile, BadInput, UnknownName

TABLE = {
    "model": "tiny",
    "protocol": "llama.cpp",
    "context": 512,
    "windows": 24,
    "lines": [
        {"label": "Unquantized (BF16)", "perplexity": 10.0},
        {"label": "AWQ int4-g128", "perplexity": 10.9},
        {"label": "GPTQ int4-g128", "perplexity": 10.1},
        {"label": "GGUF Q4_K_M", "perplexity": 10.05},
    ],
}


# ---- quality


def test_published_pairs_are_those_of_their_tables():
    """llama.cpp's README for Llama-3-8B states the increases: Q4_K_M +.1754, Q2_K +3.5199, Q8_0 +.0026."""
    for mix, rise in (("Q4_K_M", 0.1754), ("Q2_K", 3.5199), ("Q8_0", 0.0026), ("Q3_K_M", 0.6569), ("Q5_K_M", 0.0569)):
        assert quality.published(mix, 8.03e9)[0].delta == pytest.approx(rise, abs=1e-9)
    old = {row.model: row for row in quality.published("Q4_K_M")}["llama-7b"]
    assert old.delta == pytest.approx(0.0535, abs=1e-9)


def test_the_nearest_model_by_size_comes_first():
    assert quality.published("AWQ int4-g128", 70e9)[0].model == "llama-2-70b"
    assert quality.published("AWQ int4-g128", 3e9)[0].model == "llama-2-7b"
    assert quality.published("no such method") == []


def test_measured_qualities_come_from_compare(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(TABLE))
    for source in (TABLE, tmp_path / "t.json"):
        found = quality.measured(source)
        assert found["GPTQ int4-g128"].relative == pytest.approx(0.01)
        assert found["Q4_K_M"].perplexity == 10.05
        assert found["AWQ int4-g128"].source == "measured: llama.cpp, context 512, 24 windows"
    (tmp_path / "bad.json").write_text("{")
    for bad in (tmp_path / "bad.json", tmp_path / "none.json", {"lines": []}, {"lines": [{"label": "a"}]}):
        with pytest.raises(BadFile):
            quality.measured(bad)


# ---- choose


def labels(options):
    return [option.candidate.label for option in options]


def reasons(answer):
    return {option.candidate.label: " ".join(option.rejected) for option in answer.rejected}


def test_24_gb_and_a_low_loss():
    answer = choose.choose("llama-3.1-8b", parse_bytes("24GB"), "gpu", "low", device=find_device("rtx-4090"))
    assert labels(answer.accepted)[0] == "Q4_K_M"
    assert "AWQ int4-g128" in labels(answer.accepted)
    assert "perplexity + 56.5 % on llama-3-8b" in reasons(answer)["Q2_K"]
    assert "4.8 %" in reasons(answer)["RTN int4-g128"]
    sizes = [option.weight_bytes for option in answer.accepted]
    assert sizes == sorted(sizes)
    assert all(option.tokens_per_second > 0 for option in answer.accepted)
    assert len(answer.accepted) + len(answer.rejected) == len(choose.CANDIDATES)


def test_memory_rejects_with_the_bytes_that_are_missing():
    answer = choose.choose("llama-3.1-8b", parse_bytes("8GB"), "gpu", "any")
    assert "needs 17.41 GB, there are 8 GB" in reasons(answer)["F16 (unquantized)"]
    assert all(option.total_bytes <= 8e9 for option in answer.accepted)
    without_room = choose.choose("llama-3.1-8b", parse_bytes("5GB"), "gpu", "any")  # Q4_K_M: 4.91 GB of weights alone
    assert "needs 6.258 GB" in reasons(without_room)["Q4_K_M"]
    tight = choose.choose("llama-3.1-8b", parse_bytes("1GB"), "gpu", "any")
    assert tight.accepted == ()


def test_loss_none_leaves_the_unquantized_model():
    assert labels(choose.choose("llama-2-7b", 10**11, "gpu", "none").accepted)[-1] == "F16 (unquantized)"
    lossless = labels(choose.choose("llama-2-7b", 10**11, "gpu", "lossless", prefer="quality").accepted)
    assert "Q8_0" in lossless
    assert "Q4_K_M" not in lossless


def test_a_cpu_and_a_hybrid_read_gguf_files_only():
    answer = choose.choose("llama-2-7b", parse_bytes("64GiB"), "cpu", "any", device=find_device("ddr5"))
    assert "GGUF" in reasons(answer)["GPTQ int4-g128"]
    assert labels(answer.accepted)[0] == "Q2_K"
    hybrid = choose.choose(
        "llama-3.1-70b",
        parse_bytes("24GiB"),
        "hybrid",
        "low",
        device=find_device("rtx-4090"),
        ram=find_device("ddr5"),
        ram_memory=parse_bytes("64GiB"),
    )
    assert labels(hybrid.accepted)[0] == "Q4_K_M"
    assert "main memory must hold" in reasons(hybrid)["F16 (unquantized)"]
    with pytest.raises(BadInput, match="both devices"):
        choose.choose("llama-3.1-70b", 10**10, "hybrid")


def test_what_was_measured_overrules_what_was_published():
    answer = choose.choose("llama-2-7b", 10**11, "gpu", "low", measured=quality.measured(TABLE))
    assert "9.0 % on tiny" in reasons(answer)["AWQ int4-g128"]
    assert "GPTQ int4-g128" in labels(answer.accepted)


def test_a_storage_that_cannot_hold_the_model_is_rejected_by_name():
    answer = choose.choose("smollm2", 10**9, "gpu", "any")
    assert labels(answer.accepted)  # rows of 576: no format of 256 weights, mixes fall back
    assert all(option.rejected for option in answer.rejected)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"hardware": "tpu"}, UnknownName, "gpu, cpu, hybrid"),
        ({"loss": "some"}, UnknownName, "none, lossless, low"),
        ({"prefer": "luck"}, UnknownName, "speed, quality"),
        ({"memory": -1}, BadInput, "memory"),
        ({"batch": 0}, BadInput, "batch"),
        ({"context": 0}, BadInput, "context"),
        ({"model": "llama-9"}, UnknownName, "llama-3.1-8b"),
    ],
)
def test_nonsense_questions_list_what_exists(options, error, text):
    with pytest.raises(error, match=text):
        choose.choose(**{"model": "llama-2-7b", "memory": 10**10} | options)


# ---- commands


def test_plan_of_the_lessons_case(capsys):
    assert main(["plan", "--model", "llama-3.1-70b", "--type", "Q4_K_M", "--gpu", "rtx-4090", "--ram", "ddr5"]) == 0
    text = capsys.readouterr().out
    for part in ("42.51 GB", "46 of 81 layers", "35-79", "0-34", "4.3 tokens/s"):
        assert part in text


def test_plan_of_one_device_as_json(capsys):
    assert (
        main(["plan", "--model", "llama-2-7b", "--type", "int4-g128", "--gpu", "a100", "--context", "16", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["fits"]
    assert result["bound_by"] == "memory"
    assert 40 < result["critical_batch"] < 60
    assert result["speedup_over_f16"][0]["ratio"] == pytest.approx(16 / 4.15625)
    assert main(["plan", "--model", "llama-2-7b", "--json"]) == 0
    assert "device" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("device", ["m4-max", "l4", "ddr4"])
def test_plan_is_printed_for_every_kind_of_device(device, capsys):
    assert main(["plan", "--model", "llama-2-70b", "--gpu", device]) == 0
    assert ("DOES NOT FIT" in capsys.readouterr().out) == (device == "l4")


def test_choose_prints_its_answer_and_reasons(capsys):
    question = ["choose", "--model", "llama-3.1-8b", "--memory", "24GB", "--hardware", "gpu", "--loss", "low"]
    assert main(question) == 0
    text = capsys.readouterr().out
    assert "Take Q4_K_M" in text
    assert "Rejected:" in text
    assert main([*question, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["accepted"][0]["option"] == "Q4_K_M"
    assert all(option["rejected"] for option in answer["rejected"])


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "--model", "llama-9"],
        ["plan", "--model", "llama-2-7b", "--type", "Q9"],
        ["plan", "--model", "llama-2-7b", "--gpu", "gtx-1"],
        ["plan", "--model", "llama-2-7b", "--gpu", "l4", "--gpu-layers", "3"],
        ["plan", "--model", "llama-2-7b", "--gpu", "l4", "--batch", "0"],
        ["plan", "--model", "llama-2-7b", "--gpu", "l4", "--gpu-memory", "24XB"],
        ["choose", "--model", "llama-2-7b", "--memory", "lots"],
        ["claims", "--only", "no_such_claim"],
    ],
)
def test_commands_fail_with_one_named_line(command, capsys):
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"refquant {command[0]}: ")
    assert captured.out == ""
