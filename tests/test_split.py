"""A model split between two backends computes what the whole one does, and the measurement's predictions add up."""

import json
import sys

import numpy as np
import pytest
import small_models
import torch

from refquant import models, ops
from refquant.bench import split as bench
from refquant.cli import main
from refquant.errors import BackendUnavailable, BadInput
from refquant.models import split, walk


@pytest.fixture
def quantized():
    model = small_models.make("llama-gqa")
    models.quantize(model, "rtn", "int4-g32")
    return model


def logits(model, ids):
    with torch.inference_mode():
        return model(torch.from_numpy(ids)).logits.numpy()


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("layout", ["llama", "gemma3", "phi3", "gpt2"])
def test_a_split_model_gives_the_logits_of_dequantized_weights(layout, first):
    model = small_models.make(layout)
    models.quantize(model, "rtn", "int4-g32")  # "dense": dequantized once, multiplied by torch
    ids = small_models.token_windows(2, 16)
    expected = logits(model, ids)
    split.place(model, first, "numba", "numpy")
    got = logits(model, ids)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_each_side_computes_on_its_own_backend(quantized, monkeypatch):
    seen = []
    original = ops.multiplier
    monkeypatch.setattr(ops, "multiplier", lambda q, backend: (seen.append(backend), original(q, backend))[1])
    per_block = len([m for m in walk.blocks(quantized)[0].modules() if isinstance(m, models.QuantLinear)])
    split.place(quantized, 1, "numba", "numpy")
    logits(quantized, small_models.token_windows(1, 8))
    assert seen == ["numba"] * per_block + ["numpy"] * per_block


def test_placing_again_replaces_the_hooks(quantized):
    split.place(quantized, 1, "numba", "numpy")
    before = len(walk.blocks(quantized)[0]._forward_pre_hooks)
    split.place(quantized, 2, "numpy", "numba")
    assert len(walk.blocks(quantized)[0]._forward_pre_hooks) == before == 1
    assert {m.backend for m in quantized.modules() if isinstance(m, models.QuantLinear)} == {"numpy"}


def test_generation_keeps_its_cache_through_a_split(quantized):
    prompt = torch.from_numpy(small_models.token_windows(1, 8))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = quantized.generate(prompt, **options)
    assert torch.equal(split.place(quantized, 1, "numba", "numpy").generate(prompt, **options), expected)


def test_what_cannot_be_placed_is_refused(quantized):
    with pytest.raises(BadInput, match="3 blocks"):
        split.place(quantized, 3)
    with pytest.raises(BadInput, match="quantize the model first"):
        split.place(small_models.make("llama"), 1)
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="GPU"):
            split.place(quantized, 1, "cuda", "numba")


def test_the_bench_measures_and_predicts(tmp_path, capsys):
    arguments = ["bench", "split", "--near", "numba", "--far", "numpy", "--tokens", "4", "--runs", "1"]
    assert main([*arguments, "--json", str(tmp_path / "split.json")]) == 0
    result = json.loads((tmp_path / "split.json").read_text())
    blocks = [row["near_blocks"] for row in result["rows"]]
    assert blocks == [0, 2, 4, 6, 8]
    for row in result["rows"]:  # the ends predict themselves; a machine cannot be faster than its memory and arithmetic
        assert row["measured"] > 0
        assert row["from_bytes"] > row["measured"]
    ends = {row["near_blocks"]: 1 / row["from_ends"] for row in result["rows"]}
    assert ends[4] == pytest.approx((ends[0] + ends[8]) / 2)
    assert "tokens/s" in capsys.readouterr().out


def test_random_weights_of_a_known_shape():
    model = bench.random_model("smollm2-135m", 1)
    assert len(walk.blocks(model)) == 1
    assert walk.blocks(model)[0].mlp.gate_proj.weight.shape == (1536, 576)
    out = logits(model, np.arange(4, 12)[None])
    assert np.isfinite(out).all()
    assert "refquant.models" in sys.modules


def test_a_layer_that_has_computed_can_change_its_backend_and_be_copied(quantized):
    import copy

    ids = small_models.token_windows(1, 8)
    split.place(quantized, 1, "numba", "numpy")
    first = logits(quantized, ids)
    split.place(quantized, 1, "numpy", "numba")
    np.testing.assert_allclose(logits(quantized, ids), first, atol=1e-4 * np.abs(first).max())
    layers = [m for m in quantized.modules() if isinstance(m, models.QuantLinear)]
    assert all(set(m._multiply) == {m.backend} for m in layers)
    assert all(copy.deepcopy(m)._multiply == {} for m in layers)
