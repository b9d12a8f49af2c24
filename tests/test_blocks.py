"""GPTQ and AWQ block by block from files: the same folder as from the model in memory, also after an interruption."""

import json
import os

import numpy as np
import pytest
import torch
from small_models import make, token_windows
from transformers import AutoModelForCausalLM

from refquant import models
from refquant.errors import BadFile, BadInput
from refquant.models import checkpoint, walk
from refquant.models.checkpoint import blocks, writer
from refquant.models.checkpoint.folder import Folder

IDS = token_windows(5)  # two batches of 2 and one of 1
RUNS = {
    "gptq": ("gptq", "int4-g32", {"act_order": True}),
    "gptq-static": ("compressed-tensors", "int4-g32-sym", {"act_order": True, "static_groups": True}),
    "awq": ("awq", "int4-g32", {"duo_scaling": True}),
}


def source_of(folder, layout="llama-gqa"):
    model = make(layout).half()
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def tensors_of(folder):
    with Folder(folder) as opened:
        return {name: opened.tensor(name) for name in opened.tensors}


def stream(source, target, run="gptq", **changes):
    kind, grid, options = RUNS[run]
    settings = {"method": run.partition("-")[0], "grid": grid, "batch": 2, "command": "refquant", **options} | changes
    return checkpoint.quantize_blocks(source, target, kind, IDS, **settings)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", ["llama-gqa", "gemma3", "phi3", "gpt2"])
def test_the_folder_is_the_one_of_the_model_in_memory(tmp_path, layout, run):
    kind, grid, options = RUNS[run]
    source = source_of(tmp_path / "source", layout)
    report = stream(source, tmp_path / "out", run)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    want = models.quantize(model, run.partition("-")[0], grid, IDS, batch=2, **options)
    checkpoint.save(model, tmp_path / "memory", kind)
    one, two = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "memory")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    assert report.layers == want.layers
    assert report.model_bytes == want.model_bytes
