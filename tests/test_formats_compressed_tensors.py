"""compressed-tensors' layouts against the library's own output, a packer that goes bit by bit, and old mistakes."""

import numpy as np
import pytest
from goldens import CASES, changed, golden, quantized, same_numbers, same_tensors, slow_words

import refquant as rq
from refquant import ops
from refquant.errors import BadFile, BadInput
from refquant.formats.bits import pack_words
from refquant.formats.compressed_float import FP4, FineGrainedFP8, FloatQuantized
from refquant.formats.compressed_int import PackQuantized
from refquant.formats.compressed_tensors import CompressedTensors, matches
from refquant.formats.file_tensor import FileTensor
from refquant.formats.gptq import GPTQ
from refquant.grids import IntGrid
from refquant.quantized import Quantized


def layout_of(case):
    """The layout of a golden case, from its name."""
    bits = int(case[8]) if case[5:8] == "int" else 4
    size = None if "channel" in case else 20 if bits == 3 else 32
    return PackQuantized(bits, size, "asym" not in case)


def numbers(bits=4, n=20, k=64, g=32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "codes": rng.integers(0, 1 << bits, (n, k)).astype(np.uint8),
        "scales": rng.uniform(1e-4, 1e-2, (n, k // g)).astype(np.float16),
        "zeros": rng.integers(0, 1 << bits, (n, k // g)).astype(np.uint8),
    }


# ---- integers


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("pack-")])
def test_the_library_packs_the_same_bytes(case):
    fields, tensors = golden(case)
    layout = layout_of(case)
    same_tensors(layout.write(quantized(layout.grid, fields)), tensors)
    same_numbers(layout.read(tensors), fields)


def test_case_45_minus_8_to_7_pack_to_the_published_words():
    codes = np.arange(-8, 8) + 8  # what is stored is the signed code plus 8
    words = pack_words(codes[None].astype(np.uint8), 4).view(np.uint32)
    assert [hex(word) for word in words[0]] == ["0x76543210", "0xfedcba98"]


@pytest.mark.parametrize("k", [1, 7, 9, 20, 31, 33])
def test_case_45_every_code_comes_back_where_in_features_do_not_fill_words(k):
    codes = np.random.default_rng(k).permutation(np.arange(16 * k) % 16).reshape(16, k).astype(np.uint8)
    layout = PackQuantized(4, None, True)
    fields = {"codes": codes, "scales": np.ones((16, 1), np.float16), "zeros": np.full((16, 1), 8, np.uint8)}
    tensors = layout.write(quantized(layout.grid, fields))
    np.testing.assert_array_equal(tensors["weight_packed"].array, slow_words(codes, 4))
    np.testing.assert_array_equal(ops.dequantize(layout.read(tensors)), codes.astype(np.float32) - 8)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_case_45_zero_points_run_down_the_outputs(bits):
    fields = numbers(bits)  # 20 outputs: their zero-points end inside a word
    layout = PackQuantized(bits, 32, False)
    tensors = layout.write(quantized(layout.grid, fields))
    assert tensors["weight_zero_point"].shape == (-(-20 * bits // 32), 2)
    np.testing.assert_array_equal(tensors["weight_zero_point"].array.T, slow_words(fields["zeros"].T, bits))
    same_numbers(layout.read(tensors), fields)


def test_case_12_a_map_of_columns_needs_actorder_and_is_checked():
    g_idx = np.random.default_rng(3).permutation(np.arange(64) // 32).astype(np.int32)
    q = quantized(IntGrid(4, 32), numbers() | {"g_idx": g_idx})
    with pytest.raises(BadInput, match="has no weight_g_idx; take GPTQ"):
        PackQuantized(4, 32, False).write(q)
    layout = PackQuantized(4, 32, False, actorder=True)
    tensors = layout.write(q)
    np.testing.assert_array_equal(tensors["weight_g_idx"].array, g_idx)
    assert layout.group()["weights"]["actorder"] == "group"
    assert PackQuantized.from_group(layout.group()) == layout
    same_numbers(layout.read(tensors), ops.unpack(q), g_idx)
    for change, complaint in (
        ({"weight_g_idx": None}, "weight_g_idx is missing"),
        ({"weight_g_idx": g_idx + 1}, "there are 2 groups"),
    ):
        with pytest.raises(BadFile, match=complaint):
            layout.read(changed(tensors, **change))
    with pytest.raises(BadFile, match="weight_g_idx is left over"):
        PackQuantized(4, 32, False).read(tensors)


def test_case_12_actorder_weight_leaves_no_map():
    group = PackQuantized(4, 32, True).group()
    for value in ("weight", "static", None, False):
        assert not PackQuantized.from_group({"weights": group["weights"] | {"actorder": value}}).actorder
    channel = PackQuantized(8, None, True).group()["weights"]
    assert channel["strategy"] == "channel"
    assert channel["group_size"] is None
    assert "actorder" not in channel


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weight_zero_point": np.zeros((20, 2), np.int32)}, r"weight_zero_point must be I32 \[3, 2\]"),  # unpacked
        ({"weight_zero_point": None}, "weight_zero_point is missing"),
        ({"weight_scale": np.zeros((20, 1), np.float16)}, r"weight_scale must be .* \[20, 2\]"),
        ({"weight_shape": np.array([20, 72])}, r"takes weight_packed \[20, 9\] for 4 bits, got \[20, 8\]"),
        ({"weight_shape": np.array([-20, 64])}, "weight_shape says"),
        ({"weight_shape": np.array([2**62, 2**62])}, "weight_shape says"),
        ({"weight_shape": None}, "must be there"),
        ({"weight_packed": np.zeros((20, 8), np.int64)}, "weight_packed must be I32"),
    ],
)
def test_case_06_every_tensor_has_the_type_and_shape_of_the_config(change, complaint):
    layout = PackQuantized(4, 32, False)
    tensors = layout.write(quantized(layout.grid, numbers()))
    with pytest.raises(BadFile, match=complaint):
        layout.read(changed(tensors, **change))


def test_groups_that_do_not_divide_the_inputs_are_refused():
    ragged = quantized(IntGrid(4, 48), {name: v[:, :64] for name, v in numbers(k=96, g=48).items()})
    with pytest.raises(BadInput, match="groups of 48 do not divide 64"):
        PackQuantized(4, 48, False).write(ragged)


@pytest.mark.parametrize("layout", [GPTQ(4, 32, False, version=2), PackQuantized(4, 32, False)])
def test_case_43_tiny_bfloat16_scales_and_outputs_beyond_float16(layout):
    """bfloat16 scales down to 2^-112 and up to 2^110 survive, and a product beyond 65504 stays finite."""
    fields = numbers(n=32)
    exponents = np.linspace(-112, 110, 64).round().reshape(32, 2)
    fields["scales"] = np.exp2(exponents).astype(np.float32)
    tensors = layout.write(quantized(layout.grid, fields))
    name = next(name for name in tensors if name.endswith(("scale", "scales")))
    bits = (fields["scales"].view(np.uint32) >> 16).astype(np.uint16)
    if name == "scales":
        bits = np.ascontiguousarray(bits.T)
    stored = changed(tensors, **{name: FileTensor("BF16", bits)})
    q = layout.read(stored)
    want = (fields["codes"].astype(np.float64) - np.repeat(fields["zeros"], 32, axis=1)) * np.repeat(
        np.exp2(exponents), 32, axis=1
    )
    np.testing.assert_array_equal(ops.dequantize(q), want)
    large = quantized(layout.grid, fields | {"scales": np.full((32, 2), 100, np.float16)})
    x = np.full((1, 64), 1000, np.float32)
    y = rq.matmul(x, layout.read(layout.write(large)))
    assert np.isfinite(y).all()
    assert np.abs(y).max() > 65504
    np.testing.assert_allclose(y, x.astype(np.float64) @ ops.dequantize(large).T.astype(np.float64), rtol=1e-5)


# ---- floats


def float_layout(case):
    if "pack" in case:
        return FP4(case[:5])
    return FloatQuantized(case.rsplit("-", 1)[1])


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith(("float-", "nvfp4-", "mxfp4-"))])
def test_the_librarys_float_files_decode_to_its_values_and_come_back(case):
    fields, tensors = golden(case)
    layout = float_layout(case)
    q = layout.read(tensors)
    same_tensors(layout.write(q), tensors)
    got, want = ops.dequantize(q), fields["decoded"]
    if "nvfp4" in case:  # the library decodes to bfloat16, through a scale rounded to bfloat16
        assert np.abs(got - want).max() <= 2**-7 * np.abs(want).max()
        assert (np.abs(got - want) <= 2**-6.9 * np.abs(want)).all()
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("n", "k"), [(256, 384), (130, 200)])
def test_weight_scale_inv_multiplies_its_block(n, k):
    rng = np.random.default_rng(0)
    scale = np.exp2(rng.integers(-9, 0, (-(-n // 128), -(-k // 128)))).astype(np.float32)
    weight = np.full((n, k), 0x38, np.uint8)  # 1.0 in E4M3
    layout = FineGrainedFP8()
    q = Quantized("fp8-e4m3-block", (n, k), {"weight": weight, "weight_scale_inv": scale})
    tensors = layout.write(q)
    assert tensors["weight"].dtype == "F8_E4M3"
    want = np.repeat(np.repeat(scale, 128, axis=0)[:n], 128, axis=1)[:, :k]
    np.testing.assert_array_equal(ops.dequantize(layout.read(tensors)), want)
    with pytest.raises(BadFile, match="weight_scale_inv must be"):
        layout.read(changed(tensors, weight_scale_inv=scale[:-1]))


@pytest.mark.parametrize(
    "layout", [FloatQuantized(), FineGrainedFP8(), FP4("nvfp4"), FP4("mxfp4"), PackQuantized(4, 32, True)]
)
def test_case_47_every_layout_states_its_kind_of_zero_point(layout):
    assert layout.zero_domain == ("integer" if isinstance(layout, PackQuantized) else "none")


def test_float_scales_that_are_not_finite_are_refused():
    _, tensors = golden("float-quantized-channel")
    bad = tensors["weight_scale"].array.copy()
    bad[3] = np.nan
    with pytest.raises(BadFile, match="scales hold NaN"):
        FloatQuantized("channel").read(changed(tensors, weight_scale=bad))
    with pytest.raises(BadFile, match=r"weight must be F8_E4M3 \[12, 96\], got U8"):
        FloatQuantized("channel").read(changed(tensors, weight=tensors["weight"].array))


# ---- configs


@pytest.mark.parametrize(
    "layout",
    [
        PackQuantized(4, 128, True),
        PackQuantized(8, None, False),
        FloatQuantized("channel"),
        FloatQuantized("tensor"),
        FloatQuantized("block"),
        FP4("nvfp4"),
        FP4("mxfp4"),
    ],
)
def test_a_config_says_what_its_layout_is(layout):
    config = CompressedTensors(((("Linear",), layout),), ("lm_head",)).config()
    assert config["format"] == layout.name
    read = CompressedTensors.from_config(config)
    assert read.layout_of("model.layers.0.mlp.up_proj") == layout
    assert read.layout_of("lm_head") is None


def test_targets_by_name_go_before_targets_by_class():
    four, eight = PackQuantized(4, 32, True), PackQuantized(8, None, True)
    groups = ((("Linear",), four), (("re:.*down_proj$", "model.layers.0.self_attn.q_proj"), eight))
    read = CompressedTensors.from_config(CompressedTensors(groups, ("re:.*lm_head",)).config())
    assert read.layout_of("model.layers.3.mlp.down_proj") == eight
    assert read.layout_of("model.layers.0.self_attn.q_proj") == eight
    assert read.layout_of("model.layers.1.self_attn.q_proj") == four
    assert read.layout_of("model.lm_head") is None
    assert matches("re:model", "model.layers")
    assert not matches("re:layers", "model.layers")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"config_groups": {}}, "config_groups must list"),
        ({"config_groups": {"group_0": {}}}, "has no settings for weights"),
        ({"format": "marlin-24"}, "format 'marlin-24'; known: pack-quantized"),
        ({"config_groups": {"g": {"targets": "Linear", "weights": {}}}}, "must be a list of names"),
        ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 16}}}}, "16-bit int by group"),
        ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4}}}}, "group_size must be int"),
        ({"ignore": ["re:("]}, "is not a pattern"),
    ],
)
def test_configs_that_are_not_read_are_refused_by_name(change, complaint):
    config = CompressedTensors(((("Linear",), PackQuantized(4, 32, True)),)).config() | change
    for group in config["config_groups"].values():
        group.pop("format", None)
    with pytest.raises(BadFile, match=complaint):
        CompressedTensors.from_config(config).layout_of("lm_head")
