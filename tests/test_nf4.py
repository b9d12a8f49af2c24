"""NF4 against what bitsandbytes computed (tests/data/make_bitsandbytes.py), and LoRA through it."""

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest

import refquant as rq
from refquant.codebooks import DYNAMIC8, NF4
from refquant.errors import BadInput
from refquant.methods import nf4

MAKER = Path(__file__).parent / "data" / "make_bitsandbytes.py"
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@pytest.fixture(scope="module")
def theirs():
    with np.load(MAKER.with_name("bitsandbytes.npz")) as file:
        return dict(file)


def name_of(block, dq):
    return "nf4" + ("" if block == 64 else f"-b{block}") + ("-dq" if dq else "")


def sha256(w):
    return hashlib.sha256(w.tobytes()).hexdigest()


@pytest.mark.parametrize("block", BLOCKS)
def test_codes_absmax_and_weights_are_bitsandbytes(theirs, block):
    q = rq.quantize(theirs["w"], name_of(block, False))
    assert np.array_equal(q.arrays["weight"], theirs[f"b{block}_codes"])
    assert np.array_equal(q.arrays["absmax"], theirs[f"b{block}_absmax"])
    assert sha256(rq.dequantize(q)) == str(theirs[f"b{block}_decoded"])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dq", [False, True])
def test_case_44_every_block_size_with_and_without_double_quantization(theirs, block, dq):
    """What bitsandbytes wrote decodes to what bitsandbytes reads, to the bit."""
    key = f"b{block}" + ("_dq" if dq else "")
    arrays = {"weight": theirs[f"{key}_codes"], "absmax": theirs[f"{key}_absmax"], "quant_map": theirs["nf4"]}
    if dq:
        arrays |= {"nested_absmax": theirs[f"{key}_nested"], "nested_offset": theirs[f"{key}_offset"]}
        arrays |= {"nested_quant_map": theirs["dynamic"]}
    q = rq.Quantized(name_of(block, dq), theirs["w"].shape, arrays)
    assert sha256(rq.dequantize(q)) == str(theirs[f"{key}_decoded"])


@pytest.mark.parametrize("block", BLOCKS)
def test_double_quantization_is_bitsandbytes(theirs, block):
    a, key = rq.quantize(theirs["w"], name_of(block, True)).arrays, f"b{block}_dq"
    ulp = np.spacing(theirs[f"{key}_offset"])
    assert abs(a["nested_offset"] - theirs[f"{key}_offset"]) <= ulp  # theirs is a float32 sum
    assert np.array_equal(a["absmax"], theirs[f"{key}_absmax_python"])
    assert np.array_equal(a["absmax"], theirs[f"{key}_absmax"])
    assert np.abs(a["nested_absmax"] - theirs[f"{key}_nested"]).max() <= ulp
    if a["nested_offset"] == theirs[f"{key}_offset"]:
        assert np.array_equal(a["nested_absmax"], theirs[f"{key}_nested"])
    assert a["nested_offset"] == np.float32(np.mean(theirs[f"b{block}_absmax"], dtype=np.float64))


def test_an_odd_count_and_blocks_that_run_on_into_the_next_row(theirs):
    q = rq.quantize(theirs["odd"], "nf4")  # 3 x 65
    assert np.array_equal(q.arrays["weight"], theirs["odd_codes"])
    assert np.array_equal(q.arrays["absmax"], theirs["odd_absmax"])
    assert sha256(rq.dequantize(q)) == str(theirs["odd_decoded"])
    with pytest.raises(BadInput, match="next row"):
        rq.methods.rtn.quantize(theirs["odd"], "nf4")


def test_weights_are_multiplied_with_the_inverse_not_divided(theirs):
    w = theirs["inverse"]
    assert np.array_equal(rq.quantize(w, "nf4").arrays["weight"], theirs["inverse_codes"])
    divided = NF4.encode(w / np.abs(w).max(axis=1, keepdims=True))
    assert (divided != rq.ops.unpack(rq.quantize(w, "nf4"))["codes"]).any(axis=1).all()  # a row is a block


def test_the_first_value_is_in_the_high_half():
    w = np.float32([[1, -1, 0, 0.5]])  # codes 15, 0, 7, and the nearest to 0.5: 12 (0.44), not 13 (0.56)
    q = rq.quantize(w, "nf4")
    assert q.arrays["weight"].tolist() == [[0xF0], [0x7C]]
    assert rq.dequantize(q).tolist() == [[1, -1, 0, float(NF4.values[12])]]


def test_bits_per_weight_without_the_maps():
    shape = (4096, 4096)
    blocks, maps = 4096 * 64, 64
    assert rq.quantized.find_format("nf4").nbytes(shape) == 4096 * 2048 + 4 * blocks + maps
    nested = rq.quantized.find_format("nf4-dq").nbytes(shape)
    assert nested == 4096 * 2048 + blocks + 4 * (blocks // 256) + 4 + maps + 1024
    assert 8 * (nested - maps - 1024 - 4) / 4096**2 == pytest.approx(4.127, abs=5e-4)


def test_the_use_of_the_levels_by_normal_weights_is_what_the_docstring_says():
    """Not equal, as often said: a block's maximum is a random quantile, and only it reaches an end."""
    w = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    counts = np.bincount(rq.ops.unpack(rq.quantize(w, "nf4"))["codes"].ravel(), minlength=16)
    share = 100 * counts / w.size
    assert share[[0, 15]] == pytest.approx([1.8, 1.8], abs=0.15)
    assert share.argmax() == 6
    assert share.max() == pytest.approx(9.3, abs=0.3)


def test_the_dynamic_map_is_fine_where_values_are_small():
    x = np.float32([1e-6, 1e-4, 1e-2, 0.5])
    error = np.abs(DYNAMIC8.decode(DYNAMIC8.encode(x)) / x - 1)
    assert (error < [0.6, 0.15, 0.05, 0.02]).all()


@pytest.mark.interop
def test_bitsandbytes_still_computes_the_committed_arrays(theirs):
    pytest.importorskip("bitsandbytes")
    maker = runpy.run_path(str(MAKER))
    inputs = {key: theirs[key] for key in ("w", "odd", "x", "inverse")}
    for key, value in maker["compute"](inputs).items():
        if key != "version":
            assert np.array_equal(value, theirs[key]), key


# ---- LoRA: training, not serving


def network(seed=0):
    """Two quantized layers, tokens, and the outputs of the layers as they were before quantization."""
    rng = np.random.default_rng(seed)
    ws = [rng.normal(0, 64**-0.5, (64, 64)).astype(np.float32) for _ in range(2)]
    x = rng.normal(size=(256, 64)).astype(np.float32)
    layers = [nf4.LoRALinear(rq.quantize(w, "nf4-dq"), seed=i) for i, w in enumerate(ws)]
    return layers, x, np.maximum(x @ ws[0].T, 0) @ ws[1].T


def loss_and_gradients(layers, x, y):
    h = layers[0].forward(x)
    out = layers[1].forward(np.maximum(h, 0))
    error = out - y
    layers[0].backward(layers[1].backward(2 * error / error.size) * (h > 0))
    return np.square(error).mean()


def test_lora_mends_what_the_rounding_broke_and_the_base_stays_untouched():
    layers, x, y = network()
    base = [{key: a.copy() for key, a in layer.base.arrays.items()} for layer in layers]
    losses = []
    for _ in range(60):
        losses.append(loss_and_gradients(layers, x, y))
        for layer in layers:
            layer.step(1.0)
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.any(layer.B) for layer in layers)  # the first layer learned too: its gradient came through the second
    for layer, before in zip(layers, base, strict=True):
        assert all(np.array_equal(layer.base.arrays[key], before[key]) for key in before)


def test_training_starts_from_the_quantized_model():
    layers, x, _ = network()
    assert np.array_equal(layers[0].forward(x), rq.matmul(x, layers[0].base))


@pytest.mark.parametrize("name", ["A", "B"])
def test_gradients_are_those_of_finite_differences(name):
    layers, x, y = network(1)
    for layer in layers:
        layer.B += np.random.default_rng(2).normal(0, 0.1, layer.B.shape).astype(np.float32)
    loss_and_gradients(layers, x, y)
    for layer in layers:
        gradient, at = getattr(layer, "d" + name).copy(), getattr(layer, name)
        i = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        before, h, ends = at[i], np.float32(2e-2), []
        for to in (before + h, before - h):
            at[i] = to
            ends.append(loss_and_gradients(layers, x, y))
        at[i] = before
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(gradient[i], rel=0.02)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(BadInput, match="rank"):
        nf4.LoRALinear(rq.quantize(np.ones((2, 64), np.float32), "nf4"), rank=0)
