"""GPTQ and AWQ block by block from files: the same folder as from the model in memory, also after an interruption."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import make, token_windows
from transformers import AutoModelForCausalLM

from refquant import models
from refquant.errors import BadFile, BadInput
from refquant.models import checkpoint
from refquant.models.checkpoint import blocks, journal, stream, writer
from refquant.models.checkpoint.folder import Folder

IDS = token_windows(5, 16)  # two batches of 2 and one of 1
RUNS = {
    "gptq": ("gptq", "int4-g32", {"act_order": True}),
    "gptq-static": ("compressed-tensors", "int4-g32-sym", {"act_order": True, "static_groups": True}),
    "awq": ("awq", "int4-g32", {"duo_scaling": True}),
}


def source_of(folder, layout="llama-gqa", shard="40KB"):
    make(layout).half().save_pretrained(folder, max_shard_size=shard)
    return folder


def tensors_of(folder):
    with Folder(folder) as opened:
        return {name: opened.tensor(name) for name in opened.tensors}


def quantize(source, target, run="gptq", **changes):
    kind, grid, options = RUNS[run]
    settings = {"method": run.partition("-")[0], "grid": grid, "batch": 2, "command": "refquant", **options} | changes
    return checkpoint.quantize_blocks(source, target, kind, IDS, **settings)


@pytest.mark.parametrize(
    ("layout", "run"), [("llama-gqa", "gptq"), ("gemma3", "gptq-static"), ("phi3", "awq"), ("gpt2", "gptq")]
)
def test_the_folder_is_the_one_of_the_model_in_memory(tmp_path, layout, run):
    kind, grid, options = RUNS[run]
    source = source_of(tmp_path / "source", layout)
    report = quantize(source, tmp_path / "out", run)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    want = models.quantize(model, run.partition("-")[0], grid, IDS, batch=2, **options)
    checkpoint.save(model, tmp_path / "memory", kind)
    one, two = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "memory")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    assert report.layers == want.layers
    assert report.model_bytes == want.model_bytes
    assert checkpoint.inspect(tmp_path / "out").problems == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "out", "source"]


@pytest.mark.parametrize(("place", "call"), [
    ("activations", 2), ("activations", 5), ("shard", 1), ("shard", 2), ("shard", 3), ("journal", 2), ("rename", 6),
    ("tokenizer", 1), ("end", 1),
])  # fmt: skip
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, monkeypatch, place, call):
    source = source_of(tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    quantize(source, tmp_path / "whole")
    owner, name = {
        "activations": (np, "save"),
        "shard": (writer, "save_file"),
        "journal": (journal, "write_json"),
        "rename": (Path, "rename"),  # 3 shards and 2 journals before it
        "tokenizer": (shutil, "copyfile"),
        "end": (stream, "take_place"),
    }[place]
    original, calls = getattr(owner, name), []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == call:
            if place == "tokenizer":
                Path(args[1]).write_text("{")  # half of it
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    done, loop = [], blocks.quantize_block
    monkeypatch.setattr(blocks, "quantize_block", lambda *args, **options: done.append(args) or loop(*args, **options))
    report = quantize(source, tmp_path / "out", resume=True)
    assert len(report.layers) == 14
    first = place == "activations" or (place, call) == ("shard", 1)
    assert len(done) == (2 if first else 1 if (place, call) in (("shard", 2), ("journal", 2)) else 0)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in files:
        have, want = ((tmp_path / folder / name).read_bytes() for folder in ("out", "whole"))
        assert have.replace(b"out", b"whole") == want.replace(b"out", b"whole"), name
    assert not list(tmp_path.glob(".*"))


def interrupt_after_first_block(tmp_path, monkeypatch):
    source, original = source_of(tmp_path / "source"), blocks.quantize_block

    def second_stops(block, index, *args, **options):
        if index == 1:
            raise KeyboardInterrupt
        original(block, index, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "quantize_block", second_stops)
        with pytest.raises(KeyboardInterrupt):
            quantize(source, tmp_path / "out")
    return source, tmp_path / ".out.partial"


def test_what_another_run_left_is_refused_and_kept(tmp_path, monkeypatch):
    source, left = interrupt_after_first_block(tmp_path, monkeypatch)
    for changes in ({"damp": 0.1}, {"grid": "int4-g64"}, {"dtype": "float32"}):
        with pytest.raises(BadFile, match="left by a run with other settings"):
            quantize(source, tmp_path / "out", resume=True, **changes)
    file = left / "activations-00001" / "00001.npy"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadFile, match=r"00001.npy is broken"):
        quantize(source, tmp_path / "out", resume=True)


def test_lost_activations_are_named(tmp_path, monkeypatch):
    source, left = interrupt_after_first_block(tmp_path, monkeypatch)
    (left / "activations-00001").rename(left / "elsewhere")
    with pytest.raises(BadFile, match=r"activations-00001 is missing; run without resume"):
        quantize(source, tmp_path / "out", resume=True)


def test_a_source_that_does_not_fit_its_config_is_refused_before_any_work(tmp_path):
    source = source_of(tmp_path / "source", shard="5GB")
    name, tensors = "model.layers.1.mlp.up_proj.weight", load_file(source / "model.safetensors")

    def refused(change, error, complaint):
        save_file(tensors | change, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(error, match=complaint):
            quantize(source, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    refused({name: torch.zeros(64, 96)}, BadFile, r"up_proj.weight has the shape \[64, 96\], the config asks for")
    wrong = tensors[name].clone()
    wrong[2, 3] = torch.nan
    refused({name: wrong}, BadInput, "NaN")
    without = {key: value for key, value in tensors.items() if key != name}
    tensors = without
    refused({}, BadFile, f"the tensor {name} is missing")


def test_what_the_format_cannot_hold_is_said_before_any_work(tmp_path):
    source = source_of(tmp_path / "source")
    for kind, changes, complaint in [
        ("awq", {"grid": "int3-g32"}, "AWQ files hold 4 bits, not 3"),
        ("compressed-tensors", {}, "act-order"),
        ("compressed-tensors", {"grid": "int4-g48", "static_groups": True}, "groups of 48 do not divide"),
        ("gptq", {"dtype": "int8"}, "dtype must be float16"),
        ("gptq", {"method": "rtn"}, "looks at weights only"),
    ]:
        with pytest.raises(BadInput, match=complaint):
            checkpoint.quantize_blocks(
                source, tmp_path / "out", kind, IDS, **({"grid": "int4-g32", "act_order": True} | changes)
            )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
