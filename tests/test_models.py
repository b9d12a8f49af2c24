"""Walking, calibrating and quantizing models; small random ones of each layout."""

import copy

import numpy as np
import pytest
import torch
from small_models import LAYOUTS, make, token_windows
from torch import nn
from transformers import AutoModelForCausalLM

import refquant as rq
from refquant.errors import BadFile, BadInput, UnknownName
from refquant.methods import gptq
from refquant.models import QuantLinear, absorb, calibrate, load, quantize, walk
from refquant.models.calibrate import Hessian, InMemory, Stream, watch
from refquant.models.mix import plan


def logits(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_stream_of_activations_ends_where_the_model_does(layout):
    model, ids = make(layout), token_windows(5)
    seen = []
    blocks = walk.blocks(model)
    blocks[-1].register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    logits(model, ids)
    expected = seen[-1]
    stream = Stream(model, ids, batch=2)  # 5 windows: the last batch is smaller
    for index, block in enumerate(blocks):
        stream.advance(block, index)
    torch.testing.assert_close(torch.cat(stream.hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_case_25_absorbed_scales_leave_the_logits_as_they_were(layout):
    model, ids = make(layout), token_windows()
    before = logits(model, ids)
    weights = [p.detach().clone() for p in walk.blocks(model)[0].parameters()]
    stream = Stream(model, ids)
    for index, block in enumerate(walk.blocks(model)):
        with watch(block, frozenset({"x", "mean_abs"})) as inputs:
            list(stream.run(block, index))
        absorb.prepare_awq(block, index, stream, inputs, rq.as_grid("int3-g32"), clip=False)
        stream.advance(block, index)
    after = logits(model, ids)
    assert (after - before).abs().max() <= 2e-5 * before.abs().max()
    moved = [not torch.equal(a, b) for a, b in zip(weights, walk.blocks(model)[0].parameters(), strict=True)]
    assert any(moved), "the search chose no scale, so nothing was tested"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_case_25_each_single_absorption_keeps_the_block_in_float64(layout):
    model = make(layout).double()
    x = torch.randn(2, 8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    block = walk.blocks(model)[0]
    stream = Stream(model, token_windows(2, 8))
    args, kwargs = stream.arguments[2][0]

    def run():
        with torch.no_grad():
            out = block(x, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    groups = absorb.scale_groups(block)
    expected = {"phi3-gqa": 3, "gpt2": 3}.get(layout, 4 if "gqa" not in layout else 3)
    if layout in ("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"):
        expected = 3  # grouped queries: v has fewer rows than o has columns
    assert len(groups) == expected
    for group in groups:
        before = run()
        width = walk.weight(block.get_submodule(group.layers[0])).shape[1]
        absorb.absorb(block, group, np.exp(np.random.default_rng(2).normal(size=width)))
        # Gemma's norms multiply by their weight in float32, whatever the model's dtype.
        tolerance = 1e-6 if layout.startswith("gemma") else 1e-12
        assert (run() - before).abs().max() < tolerance * before.abs().max()


def test_a_layout_that_only_looks_known_is_refused():
    model = make("llama")
    block = walk.blocks(model)[0]
    inner = block.mlp.forward
    block.mlp.forward = lambda x: inner(x) + 0.1 * x  # the norm now feeds something besides gate and up
    stream = Stream(model, token_windows())
    with watch(block, frozenset({"x", "mean_abs"})) as inputs:
        list(stream.run(block, 0))
    with pytest.raises(BadInput, match="absorbing"):
        absorb.prepare_awq(block, 0, stream, inputs, rq.as_grid("int2-g32"))
    with pytest.raises(BadInput, match="does not know the layout"):
        absorb.scale_groups(block.mlp)


@pytest.mark.parametrize("layout", ["llama-gqa", "gpt2", "phi3"])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_a_quantized_model_runs_from_its_arrays(layout, method):
    model, ids = make(layout), token_windows()
    plain = logits(model, ids)
    report = quantize(model, method, "int8-g32", calibration=ids)
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == len(report.layers)
    assert not walk_linears_left(model)
    dense = logits(model, ids)
    assert (dense - plain).abs().max() < 0.05 * plain.abs().max()
    for layer in layers:
        layer.backend = "numpy"
    torch.testing.assert_close(logits(model, ids), dense, rtol=1e-4, atol=1e-4)


def walk_linears_left(model):
    return [m for block in walk.blocks(model) for m in block.modules() if isinstance(m, torch.nn.Linear)]


def test_the_report_counts_real_bytes():
    model = make("llama-gqa")
    parameters = sum(p.numel() for p in model.parameters())
    report = quantize(model, "rtn", "int4-g32")
    nbytes = sum(m.quantized.nbytes for m in model.modules() if isinstance(m, QuantLinear))
    assert report.bits_per_weight == 8 * nbytes / report.weights
    assert report.layers[0].nbytes == 64 * 64 * (4 + (16 + 4) / 32) / 8  # q_proj, 64 x 64
    assert report.model_bytes == nbytes + 2 * (parameters - report.weights)


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "Q2_K"])
def test_a_mix_takes_the_bytes_that_its_plan_says(mix):
    model, ids = make("llama-gqa"), token_windows()
    plain = logits(model, ids)
    chosen = plan(model, mix)
    report = quantize(model, "gguf", mix)
    assert report.model_bytes == chosen.nbytes
    assert sorted(layer.format for layer in report.layers) == sorted(t for t in chosen.types.values() if t != "F32")
    assert not walk_linears_left(model)
    assert isinstance(model.lm_head, QuantLinear)
    error = (logits(model, ids) - plain).abs().max() / plain.abs().max()
    assert 0 < error < (0.02 if mix == "Q8_0" else 0.5)


def test_a_mix_for_an_architecture_that_gguf_does_not_know_is_refused():
    model = make("gpt2")
    with pytest.raises(BadInput, match="gpt2"):
        quantize(model, "gguf", "Q4_K_M")
    with pytest.raises(UnknownName, match="Q4_K_M"):
        quantize(make("llama"), "gguf", "Q4_K_XXL")


@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("name", ["self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_gptq_layers_are_calibrated_on_what_is_quantized_before_them(name, true_sequential):
    model, ids = make("llama"), token_windows(8)
    original = copy.deepcopy(model)
    quantize(model, "gptq", "int3-g32", calibration=ids, batch=3, true_sequential=true_sequential)
    # By hand: the inputs of a layer of the last block, from a model whose earlier blocks, and layers, are quantized.
    hybrid = copy.deepcopy(model)
    if not true_sequential:
        walk.blocks(hybrid)[1] = walk.blocks(original)[1]
    inputs = []
    layer = walk.blocks(hybrid)[1].get_submodule(name)
    layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0].flatten(0, -2).numpy()))
    logits(hybrid, ids)
    w, H = walk.weight_array(walk.blocks(original)[1].get_submodule(name)), gptq.hessian(np.concatenate(inputs))
    expected = gptq.quantize(w, H, "int3-g32").quantized
    got = walk.blocks(model)[1].get_submodule(name).quantized
    different = np.mean(rq.dequantize(got) != rq.dequantize(expected))
    assert different < 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_taking_turns_with_weights_as_they_are_is_watching_and_advancing(layout):
    model, ids = make(layout), token_windows(5)
    plain, turns, needs = Stream(model, ids, 2), Stream(model, ids, 2), frozenset({"hessian", "x"})
    for index, block in enumerate(walk.blocks(model)):
        met = {}
        turns.in_turn(block, index, needs, met.__setitem__, last=False)
        with watch(block, needs) as inputs:
            plain.advance(block, index)
        assert met.keys() == inputs.keys() == walk.linears(block).keys()
        for name, each in inputs.items():
            np.testing.assert_array_equal(met[name].x, each.x)
            np.testing.assert_array_equal(met[name].hessian.H, each.hessian.H)
            sharing = [[other for other in by if by[other] is by[name]] for by in (met, inputs)]
            assert sharing[0] == sharing[1]
        assert all(map(torch.equal, turns.hidden, plain.hidden))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_last_block_needs_no_product_behind_the_last_turn():
    model, ids, ran = make("llama"), token_windows(5), []
    stream, block = Stream(model, ids, 2), walk.blocks(model)[0]
    for name, layer in walk.linears(block).items():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    before = [each.clone() for each in stream.hidden]
    stream.in_turn(block, 0, frozenset({"hessian"}), lambda *_: None, last=True)
    assert set(ran) == set(walk.linears(block)) - {"mlp.down_proj"}
    assert all(map(torch.equal, stream.hidden, before))


def test_a_turn_that_fails_ends_all_runs_of_the_block(monkeypatch):
    model, ids, runs = make("llama"), token_windows(5), []

    class Kept(calibrate.greenlet.greenlet):
        def __init__(self, run):
            super().__init__(run)
            runs.append(self)

    monkeypatch.setattr(calibrate.greenlet, "greenlet", Kept)
    stream, block = Stream(model, ids, 2), walk.blocks(model)[0]

    def refuse(name, inputs):
        raise BadInput(f"not {name}")

    with pytest.raises(BadInput, match="q_proj"):
        stream.in_turn(block, 0, frozenset({"hessian"}), refuse, last=False)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [run.dead for run in runs] == [True] * 3
    stream.in_turn(block, 0, frozenset({"hessian"}), lambda *_: None, last=False)


class Choosy(nn.Module):
    """A block whose second layer only some windows reach."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(x)) if x.sum() > 0 else self.first(x)


def test_windows_that_run_through_different_layers_are_refused():
    stream = Stream.__new__(Stream)
    stream.hidden, stream.arguments = InMemory([torch.ones(1, 4, 8), -torch.ones(1, 4, 8)]), {1: [((), {})]}
    with pytest.raises(BadInput, match="different layers"):
        stream.in_turn(Choosy(), 0, frozenset({"hessian"}), lambda *_: None, last=False)


def test_a_layer_that_no_token_reaches_is_named():
    model, ids = make("llama"), token_windows()
    walk.blocks(model)[1].never = nn.Linear(64, 64)
    for true_sequential in (True, False):
        with pytest.raises(BadInput, match="block 1: no calibration token reached never"):
            quantize(copy.deepcopy(model), "gptq", "int3-g32", calibration=ids, true_sequential=true_sequential)


def test_layers_that_share_an_input_share_its_statistics():
    model, ids = make("llama"), token_windows()
    stream = Stream(model, ids)
    block = walk.blocks(model)[0]
    with watch(block, frozenset({"hessian", "mean_square", "mean_abs", "x"}), sample=50) as inputs:
        list(stream.run(block, 0))
    q, v, o = (inputs[f"self_attn.{name}_proj"] for name in "qvo")
    assert q is v
    assert q is not o
    assert q.tokens == ids.size
    assert q.x.shape == (50, 64)
    np.testing.assert_allclose(np.diag(q.hessian.H) / 2, q.mean_square, rtol=1e-4)


def test_a_model_without_parameters_has_its_buffers():
    config = make("llama").config
    with walk.without_parameters():
        model = AutoModelForCausalLM.from_config(config)
        assert torch.empty(3).is_meta, "or the heap would fall into pieces"
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    assert torch.empty(3).device.type == "cpu"
    assert not nn.Linear(2, 2).weight.is_meta


def test_observing_is_watching_without_the_last_product():
    model, ids = make("llama"), token_windows()
    stream, block = Stream(model, ids), walk.blocks(model)[0]
    needs, ran = frozenset({"hessian", "x"}), []
    with watch(block, needs) as whole:
        list(stream.run(block, 0))
    for name, layer in walk.linears(block).items():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    observed = stream.observe(block, 0, needs)
    assert set(ran) == set(walk.linears(block)) - {"mlp.down_proj"}
    for name, inputs in whole.items():
        assert observed[name].tokens == inputs.tokens == ids.size
        np.testing.assert_array_equal(observed[name].x, inputs.x)
        np.testing.assert_array_equal(observed[name].hessian.H, inputs.hessian.H)
    assert [len(batch) for batch in stream.run(block, 0)] == [len(batch) for batch in stream.hidden[:]]


@pytest.mark.parametrize("k", [1, 255, 256, 700])
def test_the_hessian_by_panels_is_the_whole_one(k):
    x = np.random.default_rng(k).normal(size=(90, k)).astype(np.float32)
    H = Hessian(torch.from_numpy(x[:50]))
    for part in (x[:50], x[50:]):
        H.add(torch.from_numpy(part))
        H.H  # noqa: B018 (it is kept, and must be made anew)
    exact = 2 / 90 * x.T.astype(np.float64) @ x
    np.testing.assert_allclose(H.H, exact, rtol=0, atol=1e-5 * exact.max())
    np.testing.assert_array_equal(H.H, H.H.T)


def test_named_errors():
    with pytest.raises(UnknownName, match="gptq"):
        quantize(make("llama"), "magic")
    with pytest.raises(UnknownName, match="int4-g128"):
        quantize(make("llama"), "rtn", "int99")
    with pytest.raises(BadInput, match="needs calibration"):
        quantize(make("llama"), "gptq", "int4-g32")
    with pytest.raises(BadInput, match="at least one window"):
        quantize(make("llama"), "gptq", "int4-g32", calibration=np.zeros((0, 16), int))
    broken = make("llama")
    with torch.no_grad():
        walk.blocks(broken)[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(BadInput, match=r"block 1 mlp.up_proj.*\[3, 4\]"):
        quantize(broken, "rtn", "int4-g32")
    assert walk_linears_left(broken), "nothing is changed when the weights are refused"
    with torch.no_grad():
        walk.blocks(broken)[1].mlp.up_proj.weight[3, 4] = 1
        walk.blocks(broken)[1].post_attention_layernorm.weight[:] = 3e38  # finite, but the activations overflow
    with pytest.raises(BadInput, match="NaN or infinite activations"):
        quantize(broken, "gptq", "int4-g32", calibration=token_windows())
    done = make("llama")
    quantize(done, "rtn", "int4-g32")
    with pytest.raises(BadInput, match="already quantized"):
        quantize(done, "rtn", "int4-g32")


def test_load_says_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.gguf").write_bytes(b"hello, this is no model")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    for bad in ("empty", "note.gguf", "broken"):
        with pytest.raises(BadFile):
            load(str(tmp_path / bad))
    with pytest.raises(UnknownName, match="smollm2"):
        load("no-such-model")
