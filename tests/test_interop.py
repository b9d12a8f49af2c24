"""Folders that refquant writes, loaded by transformers with each format's own library on a CPU, and the other way.

Not in the default test line, because the libraries are heavy::

    pip install 'refquant[interop]'
    pip install --no-deps gptqmodel==7.6.0          # it pins newer versions than it needs; then what its import names
    pip install --no-deps llmcompressor==0.14.0.1 autoawq==0.2.9                # likewise
    GPTQMODEL_CPU_WORKERS=2 pytest -m interop tests/test_interop.py

The first GPTQ and AWQ models take minutes: gptqmodel compiles an extension.

The logits must equal refquant's within 1e-3 of their largest magnitude. Where a library computes in fewer bits on a
CPU, the test asks it not to: gptqmodel's ATen kernel for 4 bits works in bfloat16 (5e-3), so its plain torch kernel is
named; bitsandbytes' CPU kernels for 4 and 8 bits round activations, so its training path is taken; FP8 and FP4 files
ask for quantized activations, so weights are compared.
"""

import os

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import refquant as rq
from refquant import ops
from refquant.models import QuantLinear, checkpoint, walk

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

IDS = torch.randint(3, 500, (1, 16), generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128}


def make():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.02 + (parameter.ndim == 1)).half())
    return model.eval()


def quantized(name, act_order=False):
    model = make()
    for block in walk.blocks(model):
        for inner, layer in walk.linears(block).items():
            q = rq.quantize(walk.weight_array(layer), name)
            if act_order:
                fields = ops.unpack(q)
                fields["g_idx"] = np.random.default_rng(1).permutation(fields["g_idx"])
                q = ops.pack(fields, name, q.shape)
            walk.replace(block, inner, QuantLinear(q, layer.bias))
    return model


def layers(model):
    return {name: module.quantized for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def peer(folder, dtype=torch.float32, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", **options).eval()


def assert_same_logits(got, want):
    assert torch.isfinite(got).all()
    assert (got - want).abs().max() <= 1e-3 * want.abs().max()


@pytest.fixture(scope="session", autouse=True)
def few_workers():
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


GPTQ_GRIDS = ["int2-g64", "int2-g64-sym", "int3-g64", "int3-g64-sym", "int4-g128", "int4-g128-sym", "int8-g128"]


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("grid", [*GPTQ_GRIDS, "int8-row-sym"])
def test_gptq_through_gptqmodel(tmp_path, kind, grid):
    pytest.importorskip("gptqmodel")
    from transformers import GPTQConfig

    model = quantized(grid)
    checkpoint.save(model, tmp_path / "out", kind, dtype="float32")
    config = GPTQConfig(bits=int(grid[3]), backend="torch")
    assert_same_logits(logits(peer(tmp_path / "out", quantization_config=config)), logits(model))


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("grid", ["int4-g64", "int4-g64-sym", "int3-g64"])
def test_act_order_through_gptqmodel(tmp_path, kind, grid):
    pytest.importorskip("gptqmodel")
    from transformers import GPTQConfig

    model = quantized(grid, act_order=True)
    checkpoint.save(model, tmp_path / "out", kind, dtype="float32")
    config = GPTQConfig(bits=int(grid[3]), backend="torch")
    assert_same_logits(logits(peer(tmp_path / "out", quantization_config=config)), logits(model))


@pytest.mark.parametrize("grid", ["int4-g128", "int4-g64-sym"])
def test_awq_through_gptqmodel(tmp_path, grid):
    pytest.importorskip("gptqmodel")
    from transformers import AwqConfig

    model = quantized(grid)
    checkpoint.save(model, tmp_path / "out", "awq", dtype="float32")
    config = AwqConfig(bits=4, backend="torch_awq")
    assert_same_logits(logits(peer(tmp_path / "out", quantization_config=config)), logits(model))


@pytest.mark.parametrize("grid", ["int4-g128-sym", "int4-g64-sym", "int8-row-sym", "int8-g128-sym"])
def test_symmetric_compressed_tensors(tmp_path, grid):
    pytest.importorskip("compressed_tensors")
    model = quantized(grid)
    checkpoint.save(model, tmp_path / "out", "compressed-tensors", dtype="float32")
    assert_same_logits(logits(peer(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("grid", ["int4-g128", "int8-row", "fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block"])
def test_decoded_compressed_tensors(tmp_path, grid):
    """Asymmetric files load in transformers 5.23 only decoded; FP8 ones otherwise quantize activations too."""
    pytest.importorskip("compressed_tensors")
    from transformers import CompressedTensorsConfig

    model = quantized(grid)
    checkpoint.save(model, tmp_path / "out", "compressed-tensors", dtype="float32")
    loaded = peer(tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True))
    for name, q in layers(model).items():
        got, want = loaded.get_submodule(name).weight.detach().float().numpy(), ops.dequantize(q)
        step = np.spacing(np.abs(want).astype(np.float16)).astype(np.float32)  # the library decodes in the scales' type
        assert (np.abs(got - want) <= step).all()


@pytest.mark.parametrize("grid", ["nvfp4", "mxfp4"])
def test_decoded_fp4(tmp_path, grid):
    """The library decodes to bfloat16."""
    pytest.importorskip("compressed_tensors")
    from transformers import CompressedTensorsConfig

    model = quantized(grid)
    checkpoint.save(model, tmp_path / "out", "compressed-tensors", dtype="bfloat16")
    config = CompressedTensorsConfig(dequantize=True)
    loaded = peer(tmp_path / "out", torch.bfloat16, quantization_config=config)
    for name, q in layers(model).items():
        got, want = loaded.get_submodule(name).weight.detach().float().numpy(), ops.dequantize(q)
        assert (np.abs(got - want) <= 2**-7 * np.abs(want)).all()


def test_fine_grained_fp8(tmp_path):
    model = quantized("fp8-e4m3-block")
    checkpoint.save(model, tmp_path / "out", "fp8", dtype="float32")
    assert_same_logits(logits(peer(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("grid", ["nf4", "nf4-dq"])
def test_nf4_through_bitsandbytes(tmp_path, grid):
    bnb = pytest.importorskip("bitsandbytes")
    model = quantized(grid)
    checkpoint.save(model, tmp_path / "out", "bitsandbytes", dtype="float32")
    loaded = peer(tmp_path / "out").train()
    for name, q in layers(model).items():
        weight = loaded.get_submodule(name).weight
        got = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).numpy()
        np.testing.assert_array_equal(got, ops.dequantize(q))
    assert_same_logits(logits(loaded), logits(model))


def test_int8_through_bitsandbytes(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = quantized("llm-int8")
    checkpoint.save(model, tmp_path / "out", "bitsandbytes", dtype="float32")
    loaded = peer(tmp_path / "out").train()
    for name, q in layers(model).items():
        np.testing.assert_array_equal(loaded.get_submodule(name).weight.data.numpy(), q.arrays["CB"])
    decoded, _ = checkpoint.load(tmp_path / "out")
    assert_same_logits(logits(loaded), logits(decoded))


@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "llm-int8"])
def test_what_bitsandbytes_quantizes_and_saves_loads_here(tmp_path, kind):
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    make().save_pretrained(tmp_path / "float")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": kind == "nf4-dq"}
    config = BitsAndBytesConfig(**({"load_in_8bit": True} if kind == "llm-int8" else four))
    theirs = peer(tmp_path / "float", quantization_config=config)
    theirs.save_pretrained(tmp_path / "out")
    ours, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    assert checkpoint.inspect(tmp_path / "out").problems == []
    assert len(layers(ours)) == 14
    for name, q in layers(ours).items():
        weight = theirs.get_submodule(name).weight
        if kind == "llm-int8":
            want = bnb.functional.int8_vectorwise_dequant(weight.CB, weight.SCB).numpy()
        else:
            want = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).numpy()
        np.testing.assert_array_equal(ops.dequantize(q), want)


def test_what_compressed_tensors_compresses_and_saves_loads_here(tmp_path):
    """Asymmetric int4 by group, compressed by the library and saved by transformers."""
    compressed = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    assert compressed
    weights = QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=64)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized")
    model = make()
    compressed.quantization.apply_quantization_config(model, config)
    want = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight_scale"):
            q = rq.quantize(module.weight.detach().numpy(), "int4-g64")
            fields = ops.unpack(q)
            module.weight_scale.data = torch.from_numpy(fields["scales"].astype(np.float32))
            module.weight_zero_point.data = torch.from_numpy(fields["zeros"].astype(np.int8) - 8).to(torch.int8)
            module.weight.data = torch.from_numpy(ops.dequantize(q))  # so that no rounding is left to choose
            want[name] = q
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "out")
    compressor.update_config(tmp_path / "out")
    ours, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    assert layers(ours).keys() == want.keys()
    for name, q in layers(ours).items():
        np.testing.assert_array_equal(ops.dequantize(q), ops.dequantize(want[name]))


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A16", "FP8_DYNAMIC"])
def test_what_llm_compressor_quantizes_and_saves_loads_here(tmp_path, scheme):
    """A whole run of the program: its own rounding, its own files, decoded by its own library."""
    llmcompressor = pytest.importorskip("llmcompressor")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from llmcompressor.modifiers.quantization import QuantizationModifier

    make().save_pretrained(tmp_path / "float")
    theirs = peer(tmp_path / "float")
    recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    llmcompressor.oneshot(model=theirs, recipe=recipe)
    want = {}
    for name, module in theirs.named_modules():
        if hasattr(module, "weight_scale"):
            zeros = getattr(module, "weight_zero_point", None)
            args = module.quantization_scheme.weights
            want[name] = fake_quantize(module.weight, module.weight_scale, zeros, args).detach().float().numpy()
    theirs.save_pretrained(tmp_path / "out", save_compressed=True)
    ours, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    assert checkpoint.inspect(tmp_path / "out").problems == []
    assert layers(ours).keys() == want.keys()
    assert len(want) == 14
    for name, q in layers(ours).items():
        np.testing.assert_array_equal(ops.dequantize(q), want[name])


@pytest.mark.parametrize(("sym", "act_order"), [(False, True), (True, False)])
def test_what_gptqmodel_quantizes_and_saves_loads_here(tmp_path, sym, act_order):
    """A whole run of the program on the bundled model; its kernel decodes in float16."""
    gptqmodel = pytest.importorskip("gptqmodel")
    from refquant.models import tiny
    from refquant.models.load import load

    settings = gptqmodel.QuantizeConfig(bits=4, group_size=64, sym=sym, desc_act=act_order)
    theirs = gptqmodel.GPTQModel.load(str(tiny.FOLDER), settings, device="cpu")
    tokenizer = load("tiny", progress=False)[1]
    theirs.quantize([tokenizer.decode(part) for part in tiny.tokens("calibration")[:4096].reshape(16, 256)])
    theirs.save(str(tmp_path / "out"))
    ours, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    assert checkpoint.inspect(tmp_path / "out").problems == []
    backend = gptqmodel.BACKEND.TORCH
    again = gptqmodel.GPTQModel.load(str(tmp_path / "out"), device="cpu", backend=backend, dtype=torch.float16)
    assert len(layers(ours)) == 56
    for name, q in layers(ours).items():
        got, want = again.model.get_submodule(name).dequantize_weight().T.float().numpy(), ops.dequantize(q)
        assert (np.abs(got - want) <= np.spacing(np.abs(want).astype(np.float16)).astype(np.float32)).all()


def test_what_autoawq_packs_loads_here(tmp_path):
    """AutoAWQ's own packer, on codes given to it, in a folder like those that it writes."""
    gemm = pytest.importorskip("awq.modules.linear.gemm")
    from awq.utils.packing_utils import dequantize_gemm

    model, want = make(), {}
    for block in walk.blocks(model):
        for inner, layer in walk.linears(block).items():
            fields = ops.unpack(rq.quantize(walk.weight_array(layer), "int4-g64"))
            layer.weight.data = torch.from_numpy(ops.dequantize(rq.quantize(walk.weight_array(layer), "int4-g64")))
            scales, zeros = torch.from_numpy(fields["scales"]), torch.from_numpy(fields["zeros"])
            packed = gemm.WQLinear_GEMM.from_linear(layer.half(), 4, 64, False, scales.T.half(), zeros.T.int())
            walk.replace(block, inner, packed)
    for name, m in model.named_modules():
        if isinstance(m, gemm.WQLinear_GEMM):
            want[name] = dequantize_gemm(m.qweight, m.qzeros, m.scales, 4, 64).T.float().numpy()
    model.config.quantization_config = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
    model.config.quantization_config |= {"version": "gemm", "modules_to_not_convert": None}
    model.config.save_pretrained(tmp_path / "out")
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    ours, _ = checkpoint.load(tmp_path / "out", QuantLinear)
    assert checkpoint.inspect(tmp_path / "out").problems == []
    assert layers(ours).keys() == want.keys()
    for name, q in layers(ours).items():
        step = np.spacing(np.abs(want[name]).astype(np.float16)).astype(np.float32)
        assert (np.abs(ops.dequantize(q) - want[name]) <= step).all()
