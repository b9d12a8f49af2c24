"""Checkpoint folders: what is saved loads and computes the same, conversions change no number.

The model's logits before saving are the reference here; that the bytes are the peers' is held by test_formats_*, and
that the peers load the folders by tests/test_interop.py.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import refquant as rq
from refquant import ops
from refquant.errors import BadFile, BadInput, UnknownName
from refquant.models import QuantLinear, checkpoint, walk
from refquant.models.checkpoint import stream, writer
from refquant.models.checkpoint.folder import INDEX, Folder
from refquant.models.checkpoint.schemes import read_scheme

IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
CASES = [
    *[(name, f"int4-g32{sym}") for name in ("gptq", "gptq_v2", "awq", "compressed-tensors") for sym in ("", "-sym")],
    *[(name, grid) for name in ("gptq", "gptq_v2") for grid in ("int2-g32", "int3-g32-sym", "int8-row", "int4-g64")],
    *[("compressed-tensors", name) for name in ("int8-row-sym", "int3-g32", "fp8-e4m3", "fp8-e4m3-tensor")],
    *[("compressed-tensors", name) for name in ("fp8-e4m3-block", "nvfp4", "mxfp4")],
    ("fp8", "fp8-e4m3-block"),
    *[("bitsandbytes", name) for name in ("llm-int8", "nf4", "nf4-dq")],
]


def make(tied=False, bias=True, seed=0):
    torch.manual_seed(seed)
    settings = SIZES | {"attention_bias": bias, "tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * 0.1
            parameter.copy_((noise + (parameter.ndim == 1)).half())  # float16 holds it
    return model.eval()


def quantized(name, tied=False, bias=True, act_order=False, seed=0):
    model = make(tied, bias, seed)
    for block in walk.blocks(model):
        for inner, layer in walk.linears(block).items():
            q = rq.quantize(walk.weight_array(layer), name)
            if act_order:
                fields = ops.unpack(q)
                g_idx = np.random.default_rng(1).permutation(fields["g_idx"])
                q = ops.pack(fields | {"g_idx": g_idx}, name, q.shape)
            walk.replace(block, inner, QuantLinear(q, layer.bias))
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def layers(model):
    return {name: m.quantized for name, m in model.named_modules() if isinstance(m, QuantLinear)}


def edit(path, change):
    """Apply a function to the JSON object in a file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def retensor(folder, change, name="model.safetensors"):
    """Apply a function to the tensors of a file."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


@pytest.fixture
def gptq(tmp_path):
    model = quantized("int4-g32")
    checkpoint.save(model, tmp_path / "gptq", "gptq_v2", dtype="float32")
    return tmp_path / "gptq"


# ---- save and load


@pytest.mark.parametrize(("kind", "grid"), CASES)
def test_a_saved_model_loads_with_the_same_arrays_and_the_same_logits(tmp_path, kind, grid):
    model = quantized(grid)
    checkpoint.save(model, tmp_path / "out", kind, dtype="float32", command="refquant quantize here out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] in (kind, kind.removesuffix("_v2"))
    assert checkpoint.is_quantized(tmp_path / "out")
    again, tokenizer = checkpoint.load(tmp_path / "out", QuantLinear)
    assert tokenizer is None
    found = layers(again)
    for name, q in layers(model).items():
        if (kind, found[name].format) == ("awq", grid.removesuffix("-sym")):
            q = ops.pack(ops.unpack(q), found[name].format, q.shape)  # awq files always have zero-points
        assert found[name].format == q.format
        for key, array in q.arrays.items():
            np.testing.assert_array_equal(found[name].arrays[key], array)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    plain, _ = checkpoint.load(tmp_path / "out")
    assert not layers(plain)
    for name, q in layers(model).items():
        np.testing.assert_array_equal(plain.get_submodule(name).weight.detach().numpy(), ops.dequantize(q))
    if grid != "llm-int8":  # whose layers round their inputs too
        torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=0)
    inspection = checkpoint.inspect(tmp_path / "out")
    assert inspection.problems == []
    assert len(inspection.layers) == 14
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "refquant quantize here out" in readme
    assert "vllm serve out" in readme


@pytest.mark.parametrize("backend", ["dense", "numpy"])
def test_a_loaded_model_runs_on_the_backend_of_its_layers(gptq, backend):
    model, _ = checkpoint.load(gptq, lambda q, bias: QuantLinear(q, bias, backend))
    assert {m.backend for m in model.modules() if isinstance(m, QuantLinear)} == {backend}
    torch.testing.assert_close(logits(model), logits(quantized("int4-g32")), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2"])
def test_act_order_is_kept(tmp_path, kind):
    model = quantized("int4-g32", act_order=True)
    checkpoint.save(model, tmp_path / "out", kind, dtype="float32")
    assert read_scheme(
        json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    ).layout.desc_act
    again, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert checkpoint.inspect(tmp_path / "out").problems == []


def test_tied_weights_are_written_once(tmp_path):
    model = quantized("int4-g32-sym", tied=True)
    checkpoint.save(model, tmp_path / "out", "awq", dtype="float32")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    again, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert checkpoint.inspect(tmp_path / "out").problems == []


def test_large_models_are_cut_into_shards_with_an_index(tmp_path):
    model = quantized("int4-g32")
    checkpoint.save(model, tmp_path / "one", "gptq", dtype="float16")
    checkpoint.save(model, tmp_path / "many", "gptq", dtype="float16", shard_bytes=20_000)
    whole, shards = load_file(tmp_path / "one" / "model.safetensors"), {}
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    for file in files:
        part = load_file(file)
        assert all(index["weight_map"][name] == file.name for name in part)
        assert len(part) == 1 or sum(t.nbytes for t in part.values()) <= 20_000
        shards |= part
    assert shards.keys() == whole.keys()
    assert all(torch.equal(shards[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    one, many = (checkpoint.load(tmp_path / name, QuantLinear)[0] for name in ("one", "many"))
    torch.testing.assert_close(logits(one), logits(many), rtol=0, atol=0)


def test_tokenizer_and_generation_files_travel_along(tmp_path, gptq):
    (gptq / "generation_config.json").write_text('{"top_k": 7, "do_sample": true}')
    (gptq / "chat_template.jinja").write_text("{{ messages }}")
    checkpoint.convert(gptq, tmp_path / "awq", "awq")
    assert (tmp_path / "awq" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((tmp_path / "awq" / "generation_config.json").read_text())["top_k"] == 7


def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    for kind, grid, complaint in [
        ("awq", "int3-g32", "AWQ files hold 4 bits, not 3"),
        ("gptq", "nf4", "nf4 is another kind of format"),
        ("fp8", "fp8-e4m3", "fp8 checkpoints hold fp8-e4m3-block, not fp8-e4m3"),
        ("bitsandbytes", "int4-g32", "holds nf4 formats"),
        ("compressed-tensors", "nf4", "no place for nf4"),
        ("compressed-tensors", "int4-g48", r"model.layers.0.self_attn.q_proj: .* groups of 48 do not divide 64"),
        ("awq", "int4-g48", "in a multiple of the group size, 48"),
    ]:
        with pytest.raises(BadInput, match=complaint):
            checkpoint.save(quantized(grid), tmp_path / "out", kind)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="act-order"):
        checkpoint.save(quantized("int4-g32", act_order=True), tmp_path / "out", "compressed-tensors")
    with pytest.raises(UnknownName, match="known: gptq, gptq_v2"):
        checkpoint.save(quantized("int4-g32"), tmp_path / "out", "exl2")
    with pytest.raises(BadInput, match="quantize the model first"):
        checkpoint.save(make(), tmp_path / "out")
    large = quantized("int4-g32")
    large.model.norm.weight.data[3] = 1e6
    with pytest.raises(BadInput, match=r"model.norm.weight holds NaN, infinity or values beyond float16"):
        checkpoint.save(large, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_layers_of_several_formats_go_into_groups(tmp_path):
    model = quantized("int4-g32")
    block = walk.blocks(model)[1]
    wide = rq.quantize(walk.weight_array(walk.linears(walk.blocks(make())[1])["mlp.down_proj"]), "int8-row-sym")
    walk.replace(block, "mlp.down_proj", QuantLinear(wide))
    with pytest.raises(BadInput, match="one format for all layers, these are int4-g32, int8-row-sym"):
        checkpoint.save(model, tmp_path / "out", "gptq")
    checkpoint.save(model, tmp_path / "out", "compressed-tensors", dtype="float32")
    again, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    assert layers(again)["model.layers.1.mlp.down_proj"].format == "int8-row-sym"
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_layers_left_alone_are_named_where_the_format_can(tmp_path):
    model = quantized("int4-g32")
    plain = walk.linears(walk.blocks(make())[0])["mlp.up_proj"]
    walk.replace(walk.blocks(model)[0], "mlp.up_proj", plain)
    for kind in ("awq", "compressed-tensors"):
        checkpoint.save(model, tmp_path / kind, kind, dtype="float32")
        again, _ = checkpoint.load(tmp_path / kind, QuantLinear)
        assert len(layers(again)) == 13
        torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
        assert checkpoint.inspect(tmp_path / kind).problems == []
    with pytest.raises(BadInput, match=r"such as model.layers.0.mlp.up_proj; take compressed-tensors"):
        checkpoint.save(model, tmp_path / "gptq", "gptq")


# ---- whole or not at all


def fail(*args, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place", ["save_file", "take_place"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_folder_or_none(tmp_path, monkeypatch, place, existing):
    if existing:
        checkpoint.save(quantized("int4-g32"), tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*")}
    monkeypatch.setattr(writer, place, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(quantized("int4-g32", seed=1), tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    checkpoint.save(quantized("int4-g32"), tmp_path / "out")
    rename, calls = Path.rename, []

    def second_fails(self, target):
        calls.append(self)
        if self.name.endswith(".part") and self.is_dir():
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        checkpoint.save(quantized("int4-g32", seed=1), tmp_path / "out")
    assert len(calls) >= 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    torch.testing.assert_close(
        logits(checkpoint.load(tmp_path / "out")[0]), logits(quantized("int4-g32")), rtol=0, atol=5e-3
    )


def test_an_existing_model_is_replaced_and_another_folder_is_not(tmp_path):
    checkpoint.save(quantized("int4-g32"), tmp_path / "out", dtype="float32", shard_bytes=20_000)
    checkpoint.save(quantized("int4-g32", seed=1), tmp_path / "out", dtype="float32")
    again, _ = checkpoint.load(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(quantized("int4-g32", seed=1)), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="not the folder of a model"):
        checkpoint.save(quantized("int4-g32"), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


# ---- broken folders


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "gptq_model-4bit-128g.ckpt"])
def test_pickled_weights_are_never_loaded(gptq, tmp_path, name):
    (gptq / "model.safetensors").unlink()
    (gptq / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    for function in (checkpoint.load, checkpoint.inspect, lambda path: checkpoint.convert(path, tmp_path / "x", "awq")):
        with pytest.raises(BadFile, match=f"the weights are in {name}, a pickle"):
            function(gptq)
    assert not (tmp_path / "ran").exists()


def header(length, text=b""):
    return int(length).to_bytes(8, "little") + text


HOSTILE = {
    "empty": b"",
    "short": b"\x10\x00",
    "a header beyond the file": header(2**62),
    "a header of 4 GB": header(2**32, b"{}"),
    "no JSON": header(2, b"}{"),
    "offsets beyond the file": header(61, b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1000000]}}  '),
    "offsets that are negative": header(58, b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}}    '),
    "a shape that overflows": header(
        81, b'{"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,0]}}         '
    ),
    "a type that is not one": header(57, b'{"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,1]}} \x00'),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused_by_the_name_of_the_file(gptq, kind):
    (gptq / "model.safetensors").write_bytes(HOSTILE[kind])
    with pytest.raises(BadFile, match=r"model.safetensors is not a whole safetensors file"):
        checkpoint.load(gptq)


def test_a_file_cut_off_is_refused(gptq):
    data = (gptq / "model.safetensors").read_bytes()
    for length in (len(data) - 1, len(data) // 2, 100):
        (gptq / "model.safetensors").write_bytes(data[:length])
        with pytest.raises(BadFile, match="not a whole safetensors file"):
            checkpoint.load(gptq)


@pytest.fixture
def sharded(tmp_path):
    checkpoint.save(quantized("int4-g32"), tmp_path / "out", "gptq", dtype="float32", shard_bytes=20_000)
    return tmp_path / "out"


def test_a_missing_shard_is_named(sharded):
    (sharded / sorted(file.name for file in sharded.glob("*.safetensors"))[2]).unlink()
    with pytest.raises(BadFile, match=r"model-00003-of-.*safetensors is missing"):
        checkpoint.load(sharded)


@pytest.mark.parametrize(
    ("shard", "complaint"),
    [
        ("../secret.safetensors", "no safetensors file of the folder"),
        ("/etc/passwd", "no safetensors file of the folder"),
        ("pytorch_model.bin", "no safetensors file of the folder"),
        (7, "no safetensors file of the folder"),
        ("model-00001-of-99999.safetensors", "is missing"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(sharded, shard, complaint):
    edit(sharded / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    with pytest.raises(BadFile, match=complaint):
        checkpoint.load(sharded)


def test_an_index_and_shards_that_differ_are_refused(sharded):
    edit(
        sharded / INDEX,
        lambda index: index["weight_map"].update({"model.other": sorted(index["weight_map"].values())[0]}),
    )
    with pytest.raises(BadFile, match=r"model.other is not in it, though"):
        checkpoint.load(sharded)
    (sharded / INDEX).unlink()
    with pytest.raises(BadFile, match=r"and no model.safetensors.index.json"):
        checkpoint.load(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(BadFile, match=INDEX):
        checkpoint.load(sharded)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c.update(quantization_config=7), "must be an object"),
        (lambda c: c["quantization_config"].update(quant_method="exl3"), "quant_method 'exl3'; known: gptq, awq"),
        (lambda c: c["quantization_config"].update(bits=3), "down_proj: gptq: "),
        (lambda c: c["quantization_config"].update(group_size=64), r"scales must be .* \[2, 64\], got"),
        (lambda c: c.update(hidden_size=128), r"has the shape \[64, 96\] \(out, in\), the config asks for \[128, 96\]"),
        (lambda c: c.update(num_hidden_layers=1), "has no such layer"),
        (lambda c: c.update(num_hidden_layers=3), "tensors are missing, such as model.layers.2"),
        (lambda c: c.update(model_type="no-such-model"), "config.json: "),
        (lambda c: c.update(auto_map={"AutoConfig": "evil.Config"}, model_type="evil"), "config.json: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused(gptq, change, complaint):
    (gptq / "evil.py").write_text(f"open({str(gptq / 'ran')!r}, 'w')")
    edit(gptq / "config.json", change)
    with pytest.raises(BadFile, match=complaint):
        checkpoint.load(gptq)
    assert not (gptq / "ran").exists()


def test_a_wrong_shape_or_a_missing_tensor_is_named(gptq):
    name = "model.layers.1.mlp.up_proj"
    retensor(gptq, lambda t: t.update({f"{name}.scales": t[f"{name}.scales"][:1].clone()}))
    with pytest.raises(BadFile, match=rf"{name}: gptq: scales must be F16 or BF16 or F32 \[2, 96\], got F16 \[1, 96\]"):
        checkpoint.load(gptq)
    retensor(gptq, lambda t: t.pop(f"{name}.scales"))
    with pytest.raises(BadFile, match=f"{name}: gptq: scales is missing"):
        checkpoint.load(gptq)
    retensor(gptq, lambda t: [t.pop(key) for key in list(t) if key.startswith(name)])
    with pytest.raises(BadFile, match=f"1 tensors are missing, such as {name}.weight"):
        checkpoint.load(gptq)


def test_older_files_beside_the_config_are_read(gptq):
    """Before transformers, GPTQ's settings were in quantize_config.json only."""
    edit(gptq / "config.json", lambda config: config.pop("quantization_config"))
    assert checkpoint.is_quantized(gptq)
    again, _ = checkpoint.load(gptq)
    torch.testing.assert_close(logits(again), logits(quantized("int4-g32")), rtol=0, atol=0)
    (gptq / "quantize_config.json").unlink()
    assert not checkpoint.is_quantized(gptq)


# ---- lint


def test_case_01_zero_points_of_the_other_version_are_found(tmp_path):
    checkpoint.save(quantized("int4-g32-sym"), tmp_path / "out", "gptq_v2")
    edit(tmp_path / "out" / "config.json", lambda c: c["quantization_config"].update(checkpoint_format="gptq"))
    found = checkpoint.inspect(tmp_path / "out")
    assert len(found.problems) == 14
    assert "they fit 'gptq_v2': correct the config" in found.problems[0]
    with pytest.raises(BadFile, match="they fit 'gptq_v2'"):
        checkpoint.load(tmp_path / "out")


def test_case_03_zero_points_of_0_in_version_1_are_remarked_on(tmp_path):
    model = quantized("int4-g32")
    layer = model.model.layers[0].mlp.up_proj
    positive = rq.quantize(
        np.random.default_rng(0).uniform(0.1, 1, layer.quantized.shape).astype(np.float32), "int4-g32"
    )
    layer.quantized = positive
    checkpoint.save(model, tmp_path / "out", "gptq")
    found = checkpoint.inspect(tmp_path / "out")
    assert found.problems == []
    assert found.remarks == [
        "model.layers.0.mlp.up_proj: 192 zero-points are 0; version 1 has no agreed way to store them, "
        "and readers differ"
    ]
    assert "192 zero-points are 0" in (tmp_path / "out" / "README.md").read_text()


def test_case_06_and_12_everything_that_does_not_fit_is_listed(tmp_path):
    checkpoint.save(quantized("int4-g32", act_order=True), tmp_path / "out", "gptq")
    name = "model.layers.{}.{}".format

    def damage(t):
        t[name(0, "self_attn.q_proj.qzeros")] = torch.zeros(2, 64, dtype=torch.uint8)  # unpacked
        t[name(0, "self_attn.k_proj.g_idx")][5] = 9
        t[name(0, "self_attn.v_proj.g_idx")][:] = 0
        t[name(0, "mlp.up_proj.scales")][1, 3] = torch.nan
        t.pop(name(1, "mlp.down_proj.g_idx"))
        t[name(1, "mlp.up_proj.weight")] = torch.zeros(96, 64)
        t.pop("model.norm.weight")
        t["model.layers.7.extra"] = torch.zeros(3)
        for key in [key for key in t if key.startswith(name(1, "mlp.gate_proj."))]:
            t.pop(key)

    retensor(tmp_path / "out", damage)
    assert checkpoint.inspect(tmp_path / "out").problems == [
        name(0, "mlp.up_proj: gptq: scales hold NaN or infinity"),
        name(0, "self_attn.k_proj: gptq: g_idx[5] is 9; there are 2 groups, numbered from 0"),
        name(0, "self_attn.q_proj: qzeros must be I32 [2, 8], got U8 [2, 64]"),
        name(0, "self_attn.v_proj: g_idx gives 64 columns to group 0, whose size is 32"),
        name(1, "mlp.down_proj: g_idx is missing"),
        name(1, "mlp.up_proj: weight is left over: this format has no such tensor"),
        name(1, "mlp.gate_proj: not quantized, though the config says so"),
        "model.norm.weight is missing",
        "model.layers.7.extra is left over: the model has no such tensor",
    ]


def test_case_22_a_zero_point_repacked_without_the_interleave_is_another_model(tmp_path):
    """The lint cannot see it, since any code is legal; the logits do."""
    model = quantized("int4-g32")
    checkpoint.save(model, tmp_path / "out", "awq", dtype="float32")
    assert torch.equal(logits(checkpoint.load(tmp_path / "out")[0]), logits(model))

    def linear_order(t):
        for key in [key for key in t if key.endswith("qzeros")]:
            nibbles = (t[key].numpy().view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
            in_order = nibbles[..., [0, 4, 1, 5, 2, 6, 3, 7]]
            words = (in_order << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=-1).astype(np.uint32)
            t[key] = torch.from_numpy(words.view(np.int32))

    retensor(tmp_path / "out", linear_order)
    assert not torch.allclose(logits(checkpoint.load(tmp_path / "out")[0]), logits(model), atol=1e-2)


def test_a_model_that_transformers_does_not_know_is_still_looked_over(gptq):
    edit(gptq / "config.json", lambda config: config.update(model_type="no-such-model"))
    found = checkpoint.inspect(gptq)
    assert len(found.layers) == 14
    assert found.problems == []
    assert "not compared with the model" in found.remarks[0]


# ---- convert


def tensors_of(folder):
    with Folder(folder) as opened:
        return {name: opened.read(name) for name in opened.tensors}


def same_folder(one, two):
    first, second = tensors_of(one), tensors_of(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        np.testing.assert_array_equal(tensor.array, second[name].array, err_msg=name)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, two)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("sym", ["", "-sym"])
def test_every_path_between_the_formats_of_4_bits_comes_back_to_the_same_bytes(tmp_path, sym):
    model = quantized(f"int4-g32{sym}")
    formats = ("gptq", "gptq_v2", "awq", "compressed-tensors")
    for kind in formats:
        checkpoint.save(model, tmp_path / kind, kind)
    for one in formats:
        for two in formats:
            if one != two:
                checkpoint.convert(tmp_path / one, tmp_path / "made", two)
                same_folder(tmp_path / "made", tmp_path / two)
                assert checkpoint.inspect(tmp_path / "made").problems == []


@pytest.mark.parametrize(("one", "two", "grid"), [
    ("gptq", "compressed-tensors", "int8-row"),
    ("gptq", "gptq_v2", "int3-g32"),
    ("compressed-tensors", "gptq_v2", "int2-g32-sym"),
    ("fp8", "compressed-tensors", "fp8-e4m3-block"),
])  # fmt: skip
def test_other_widths_and_fp8_convert_where_both_can_hold_them(tmp_path, one, two, grid):
    checkpoint.save(quantized(grid), tmp_path / "one", one)
    checkpoint.save(quantized(grid), tmp_path / "two", two)
    checkpoint.convert(tmp_path / "one", tmp_path / "there", two)
    same_folder(tmp_path / "there", tmp_path / "two")
    checkpoint.convert(tmp_path / "there", tmp_path / "back", one)
    same_folder(tmp_path / "back", tmp_path / "one")


@pytest.mark.parametrize(
    ("kind", "grid", "act_order", "goal", "complaint"),
    [
        ("gptq", "int3-g32", False, "awq", "AWQ files hold 4 bits, not 3"),
        ("gptq", "int4-g32", True, "awq", r"model.layers.0.mlp.down_proj: awq: the layer maps columns to groups"),
        ("gptq", "int4-g32", True, "compressed-tensors", "map columns to groups"),
        ("gptq", "int4-g64", False, "compressed-tensors", "groups of 64 do not divide 96 in_features"),
        ("gptq", "int4-g32", False, "fp8", "fp8 checkpoints hold fp8-e4m3-block, not int4-g32"),
        ("bitsandbytes", "nf4", False, "gptq", "nf4 is another kind of format"),
        ("compressed-tensors", "nvfp4", False, "awq", "nvfp4 is another kind of format"),
    ],
)
def test_what_cannot_be_repacked_is_refused_and_nothing_is_left(tmp_path, kind, grid, act_order, goal, complaint):
    checkpoint.save(quantized(grid, act_order=act_order), tmp_path / "in", kind)
    with pytest.raises(BadInput, match=complaint):
        checkpoint.convert(tmp_path / "in", tmp_path / "out", goal)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bfloat16_scales_and_tensors_survive_a_conversion(tmp_path, gptq):
    def narrow(t):
        for name in list(t):
            if t[name].is_floating_point():
                t[name] = t[name].bfloat16()

    retensor(gptq, narrow)
    edit(gptq / "config.json", lambda config: config.update(dtype="bfloat16"))
    checkpoint.convert(gptq, tmp_path / "ct", "compressed-tensors")
    before, after = tensors_of(gptq), tensors_of(tmp_path / "ct")
    np.testing.assert_array_equal(after["model.norm.weight"].array, before["model.norm.weight"].array)
    assert after["model.norm.weight"].dtype == "BF16"
    name = "model.layers.0.mlp.up_proj"
    assert after[f"{name}.weight_scale"].dtype == "BF16"
    np.testing.assert_array_equal(after[f"{name}.weight_scale"].array.T, before[f"{name}.scales"].array)


# ---- tensor by tensor


@pytest.fixture
def source(tmp_path):
    model = make()
    model.half().save_pretrained(tmp_path / "source", max_shard_size="30KB")
    return tmp_path / "source"


@pytest.mark.parametrize(("kind", "grid"), [
    ("gptq", "int4-g32"), ("awq", "int4-g32-sym"), ("compressed-tensors", "fp8-e4m3"), ("compressed-tensors", "nvfp4"),
    ("fp8", "fp8-e4m3-block"), ("bitsandbytes", "nf4-dq"), ("bitsandbytes", "llm-int8"),
])  # fmt: skip
def test_a_folder_quantized_tensor_by_tensor_is_the_model_quantized_in_memory(
    tmp_path, source, monkeypatch, kind, grid
):
    monkeypatch.setattr(stream, "ROW_WEIGHTS", 1000)  # 15 or 10 rows at a time
    checkpoint.quantize_folder(source, tmp_path / "out", kind, grid)
    checkpoint.save(quantized(grid), tmp_path / "memory", kind)
    one, two = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "memory")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor.array, two[name].array, err_msg=name)
    assert checkpoint.inspect(tmp_path / "out").problems == []
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("stop", [1, 3, 7, 20])
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, source, monkeypatch, stop):
    def run(target, resume=False):
        checkpoint.quantize_folder(
            source, tmp_path / target, "gptq", "int4-g32", resume=resume, shard_bytes=2_200, command="refquant"
        )

    run("whole")
    save_whole, calls = save_file, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == stop:
            raise KeyboardInterrupt
        save_whole(*args, **options)

    monkeypatch.setattr(writer, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("out")
    assert not (tmp_path / "out").exists()
    calls = [None] * 1000
    quantize, done = ops.quantize, []
    monkeypatch.setattr(ops, "quantize", lambda w, grid: (w.any() and done.append(w.shape)) or quantize(w, grid))
    run("out", resume=True)
    assert len(done) == 14 if stop == 1 else len(done) <= 14
    assert len(done) < 14 or stop < 7
    for file in sorted((tmp_path / "whole").iterdir()):
        other = (tmp_path / "out" / file.name).read_bytes()
        assert other.replace(b"out", b"whole") == file.read_bytes().replace(b"out", b"whole"), file.name
    assert len(list((tmp_path / "out").iterdir())) == len(list((tmp_path / "whole").iterdir()))


def test_a_run_of_other_settings_is_not_continued(tmp_path, source, monkeypatch):
    calls = []

    def third_fails(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save_file(*args, **options)

    monkeypatch.setattr(writer, "save_file", third_fails)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.quantize_folder(source, tmp_path / "out", "gptq", "int4-g32", shard_bytes=9_000)
    with pytest.raises(BadFile, match="left by a run with other settings"):
        checkpoint.quantize_folder(source, tmp_path / "out", "gptq", "int4-g32-sym", resume=True, shard_bytes=9_000)


def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(tmp_path):
    model = make()
    model.model.layers[1].mlp.up_proj.weight.data[2, 3] = torch.nan
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(BadInput, match=r"model.layers.1.mlp.up_proj.weight: .* the first at \[2, 3\]"):
        checkpoint.quantize_folder(tmp_path / "source", tmp_path / "out", "gptq", "int4-g32")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_quantized_folder_is_not_quantized_again(gptq, tmp_path):
    with pytest.raises(BadFile, match="quantized already; use convert"):
        checkpoint.quantize_folder(gptq, tmp_path / "out", "gptq", "int4-g32")
    make().save_pretrained(tmp_path / "plain")
    with pytest.raises(BadFile, match="is not quantized; quantize it first"):
        checkpoint.convert(tmp_path / "plain", tmp_path / "out", "awq")


# ---- command line


def run_command(module, *arguments):
    import argparse
    import importlib

    command = importlib.import_module(f"refquant.cli.{module}")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_convert_and_inspect_from_the_command_line(gptq, tmp_path, capsys):
    assert run_command("convert", gptq, tmp_path / "awq", "--format", "awq") == 0
    assert run_command("inspect", tmp_path / "awq") == 0
    assert "int4-g32" in capsys.readouterr().out
    retensor(tmp_path / "awq", lambda t: t.pop("model.norm.weight"))
    assert run_command("inspect", tmp_path / "awq", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == ["model.norm.weight is missing"]
    assert found["layers"][0]["format"] == "int4-g32"
