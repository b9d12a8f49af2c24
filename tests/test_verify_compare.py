"""Tests of the tests: every comparison of the conformance kit must pass what is right and reject planted faults."""

import numpy as np
import pytest

from refquant.verify import blocks
from refquant.verify.cases import load
from refquant.verify.compare import COMPARISONS, compare
from refquant.verify.implementation import PythonObject
from refquant.verify.reference import numpy as reference

IMPLEMENTATION = PythonObject(reference)


def case_of(id):  # noqa: A002
    return next(case for case in load() if case.id == id)


def result(case):
    return {name: array.copy() for name, array in IMPLEMENTATION.run(case).items()}


def put(array, value, at=5):
    array.reshape(-1)[at] = value
    return array


BITS = "gguf-decode/Q4_K/dequantize/random"
CAST = "casts/E4M3FN/cast/overflow-nan"
CODES = "quantize/bitsandbytes-nf4/quantize/codes"
ERROR = "gguf-encode/Q4_0/quantize/normal"
NEAREST = "quantize/int4-g32/quantize/normal"
LAYER = "methods/int4-g32/gptq/correlated-b128"
MATVEC = "matmul/Q4_0/matmul/normal"
FUNCTION = "model/block/absorb/linear"


# comparison, case, a fault planted in a right result
def last_column():
    case = case_of(MATVEC)
    w = blocks.decode(case.inputs["blocks"], case.format, case.shape)
    return case.inputs["x"][:, -1:] * w[:, -1]


def halves(r):
    return r["blocks"].reshape(-1, 18)[3]


FAULTS = {
    "one NaN": (BITS, lambda r: put(r["w"], np.nan)),
    "one last bit": (BITS, lambda r: put(r["w"].view(np.uint32), r["w"].view(np.uint32)[0, 5] ^ 1)),
    "another type": (BITS, lambda r: r.update(w=r["w"].astype(np.float64))),
    "another shape": (BITS, lambda r: r.update(w=r["w"].reshape(-1))),
    "the last column dropped": (BITS, lambda r: r.update(w=r["w"][:, :-1])),
    "a block of zeros": (BITS, lambda r: r["w"].__setitem__((slice(None), slice(256, 512)), 0)),
    "no result": (BITS, lambda r: r.clear()),
    "one code": (CAST, lambda r: put(r["bits"], r["bits"][5] ^ 1)),
    "NaN for a number": (CAST, lambda r: put(r["bits"], 0x7F)),
    "a number for NaN": (CAST, lambda r: np.minimum(r["bits"], 0xFE, out=r["bits"])),
    "nibbles swapped": (CODES, lambda r: r.update(weight=r["weight"] >> 4 | r["weight"] << 4)),
    "one code far from a tie": (CODES, lambda r: put(r["weight"], r["weight"].reshape(-1)[5] ^ 0x10)),
    "a scale 1 % off": (CODES, lambda r: put(r["absmax"], r["absmax"][5] * np.float32(1.01))),
    "a NaN scale": (CODES, lambda r: put(r["absmax"], np.nan)),
    "a float16 scale of NaN": (ERROR, lambda r: put(halves(r), 0x7E, 1)),
    "codes one off": (ERROR, lambda r: np.bitwise_xor(halves(r)[2:], 0x11, out=halves(r)[2:])),
    "one block of zero bytes": (ERROR, lambda r: halves(r).fill(0)),
    "a code one off": (NEAREST, lambda r: put(r["codes"], (r["codes"].reshape(-1)[5] + 8) % 16)),
    "scales 1 % off": (NEAREST, lambda r: r.update(scales=(r["scales"].astype(np.float32) * 1.01).astype(np.float16))),
    "every code the zero": (NEAREST, lambda r: r.update(scales=r["scales"] * 20, codes=r["zeros"].repeat(32, 1))),
    "scales of zero": (NEAREST, lambda r: put(r["scales"], 0)),
    "zeros left out": (NEAREST, lambda r: r.pop("zeros")),
    "no change at all": (LAYER, lambda r: r.update(w=case_of(LAYER).inputs["w"])),
    "a NaN weight": (LAYER, lambda r: put(r["w"], np.nan)),
    "a third more error": (LAYER, lambda r: r.update(w=case_of(LAYER).inputs["w"].round(1))),
    "a product without its last column": (MATVEC, lambda r: r.update(y=r["y"] - last_column())),
    "one product NaN": (MATVEC, lambda r: put(r["y"], np.nan)),
    "one product of float16": (MATVEC, lambda r: r.update(y=r["y"].astype(np.float16).astype(np.float32))),
    "no absorption": (FUNCTION, lambda r: r.update(case_of(FUNCTION).inputs)),
    "a bias forgotten": (FUNCTION, lambda r: r.update(up_bias=case_of(FUNCTION).inputs["up_bias"])),
    "a NaN tensor": (FUNCTION, lambda r: put(r["down"], np.nan)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_rejected(fault):
    id, plant = FAULTS[fault]  # noqa: A001
    case = case_of(id)
    right = result(case)
    assert compare(case, right) is None
    plant(right)
    assert compare(case, right) is not None


def test_every_comparison_has_faults():
    used = {case_of(name).comparison for name, _ in FAULTS.values()} | {"value", "close"}
    assert used == COMPARISONS.keys()


def test_values():
    plan = next(case for case in load() if case.op == "plan")
    assert compare(plan, dict(plan.value)) is None
    first = next(iter(plan.value))
    assert "the first, " + first in compare(plan, plan.value | {first: "Q4_K"}).message
    assert compare(plan, plan.value | {"extra": "F32"})
    assert compare(plan, None)
    number = next(case for case in load() if case.op == "perplexity")
    assert compare(number, number.value * (1 + 1e-7)) is None
    for wrong in (number.value * 1.001, float("nan"), float("inf"), "12", None):
        assert compare(number, wrong)


def test_zero_has_no_sign_as_a_weight():
    case = case_of("gguf-decode/Q4_K/dequantize/zero-bytes")
    assert compare(case, {"w": -result(case)["w"]}) is None


def test_codes_may_differ_at_ties():
    case = case_of(CODES)
    right = result(case)
    w, scale = case.inputs["w"].copy(), case.expected["absmax"]
    high = right["weight"].reshape(-1)[0] >> 4
    w.reshape(-1)[0] = (blocks.NF4[high] + blocks.NF4[high - 1]) / 2 * scale[0]  # now halfway: either code will do
    inputs = case.inputs | {"w": w}
    right["weight"].reshape(-1)[0] -= 16
    assert compare(case, right, inputs) is None
    right["weight"].reshape(-1)[0] -= 16
    assert compare(case, right, inputs)


def test_another_encoder_that_is_as_good_passes():
    case = case_of("gguf-encode/Q4_K/quantize/normal")
    assert compare(case, {"blocks": case.expected["blocks"]}) is None
    assert blocks.decode(case.expected["blocks"], "Q4_K", case.shape).shape == case.shape
