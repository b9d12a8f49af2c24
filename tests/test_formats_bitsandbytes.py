"""bitsandbytes' layouts against the library's own tensors."""

import json

import numpy as np
import pytest
from goldens import CASES, changed, golden, same_tensors

import refquant as rq
from refquant import ops
from refquant.errors import BadFile, BadInput
from refquant.formats.bitsandbytes import _STATE, NF4, Int8, from_config

NF4_CASES = [case for case in CASES if case.startswith("bnb-nf4")]


def state_of(tensors):
    return json.loads(tensors[_STATE].array.tobytes())


@pytest.mark.parametrize("case", NF4_CASES)
def test_bitsandbytes_nf4_tensors_decode_to_its_values_and_come_back_byte_for_byte(case):
    fields, tensors = golden(case)
    layout = NF4(double=case.endswith("dq"), dtype="float32")
    q = layout.read(tensors)
    assert q.format == case.removeprefix("bnb-")
    same_tensors(layout.write(q), tensors)
    np.testing.assert_array_equal(ops.dequantize(q), fields["decoded"])


def test_bitsandbytes_int8_tensors_decode_to_its_values_and_come_back_byte_for_byte():
    fields, tensors = golden("bnb-int8")
    q = Int8().read(tensors)
    same_tensors(Int8().write(q), tensors)
    np.testing.assert_array_equal(ops.dequantize(q), fields["decoded"])


def test_the_first_weight_of_a_byte_is_in_its_high_half():
    w = np.tile(np.array([[1.0, -1.0]], np.float32), (2, 32))  # codes 15 and 0
    tensors = NF4.of("nf4").write(rq.quantize(w, "nf4"))
    assert (tensors["weight"].array == 0xF0).all()
    assert state_of(tensors)["shape"] == [2, 64]


@pytest.mark.parametrize("layout", [Int8(), NF4(), NF4(double=True)])
def test_configs(layout):
    config = layout.config()
    assert config["quant_method"] == "bitsandbytes"
    assert from_config(config) == layout
    assert layout.zero_domain == "none"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "neither load_in_8bit nor load_in_4bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type 'fp4'; nf4 is read"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, "uint8 is read"),
    ],
)
def test_configs_that_are_not_read_are_refused_by_name(config, complaint):
    with pytest.raises(BadFile, match=complaint):
        from_config(config)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shape": [24, 129]}, r"\[24, 129\] weights take 1548 bytes"),
        ({"shape": [-24, -128]}, r"shape must be \[out, in\]"),
        ({"shape": [2**40, 2**40]}, r"shape must be \[out, in\]"),
        ({"shape": [3072]}, r"shape must be \[out, in\]"),
        ({"blocksize": 0}, "in blocks of 0"),
        ({"blocksize": 128}, r"weight.absmax must be U8 \[24\], got U8 \[48\]"),
        ({"quant_type": "fp4"}, "'fp4' in blocks"),
        ({"nested_offset": "0.1"}, "nested_offset must be a number"),
        ({"nested_offset": float("nan")}, "nested_offset must be a number"),
        ({"nested_blocksize": 128}, "nested blocks of 256"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, complaint):
    _, tensors = golden("bnb-nf4-dq")
    state = np.frombuffer(json.dumps(state_of(tensors) | change).encode(), np.uint8)
    with pytest.raises(BadFile, match=complaint):
        NF4(double=True).read(changed(tensors, **{_STATE: state}))


@pytest.mark.parametrize("state", [b"{", b"[]", b"\xff\xfe", b"[" * 4000, b" " * 5000])
def test_a_state_that_is_not_json_is_refused(state):
    _, tensors = golden("bnb-nf4")
    with pytest.raises(BadFile, match="bitsandbytes nf4: "):
        NF4().read(changed(tensors, **{_STATE: np.frombuffer(state, np.uint8)}))


@pytest.mark.parametrize(
    ("case", "layout", "change", "complaint"),
    [
        ("bnb-nf4", NF4(), {"weight.quant_map": None}, "weight.quant_map is missing"),
        ("bnb-nf4", NF4(), {_STATE: None}, "must be U8"),
        ("bnb-nf4", NF4(double=True), {}, "nested_offset"),
        ("bnb-nf4-dq", NF4(), {}, "weight.absmax must be F32"),
        ("bnb-int8", Int8(), {"SCB": np.zeros(23, np.float32)}, r"SCB must be F32 \[24\]"),
        ("bnb-int8", Int8(), {"SCB": np.full(24, np.nan, np.float32)}, "SCB holds NaN"),
        ("bnb-int8", Int8(), {"weight_format": np.array(2, np.uint8)}, "weight_format 2; 0"),
    ],
)
def test_case_06_every_tensor_has_the_type_and_shape_of_the_config(case, layout, change, complaint):
    _, tensors = golden(case)
    with pytest.raises(BadFile, match=complaint):
        layout.read(changed(tensors, **change))


def test_other_formats_are_refused():
    w = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    with pytest.raises(BadInput, match="is nf4-dq, the layer nf4"):
        NF4(double=True).write(rq.quantize(w, "nf4"))
    with pytest.raises(BadInput, match="this checkpoint is llm-int8, the layer nf4"):
        Int8().write(rq.quantize(w, "nf4"))
    with pytest.raises(BadInput, match="holds nf4 formats"):
        NF4.of("int4-g128")
