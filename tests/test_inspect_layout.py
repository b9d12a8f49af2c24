"""Where each layout puts a code: against the formulas of the programs that own them, and gguf-py's decoder."""

import gguf
import numpy as np
import pytest

import refquant as rq
from refquant import inspect_layout
from refquant.errors import BadInput, UnknownName

SHAPE = (16, 64)


@pytest.mark.parametrize("row", [0, 2, 7, 9, 15])
@pytest.mark.parametrize("column", [0, 5, 15, 16, 31, 32, 55, 63])
def test_every_layout_puts_a_code_where_its_program_does(row, column):
    # AutoGPTQ: qweight[i // 8, o] |= code << 4 * (i % 8)
    # AutoAWQ: order_map [0, 2, 4, 6, 1, 3, 5, 7], qweight[i, o // 8] |= code[o // 8 * 8 + order_map[s]] << 4 * s
    # compressed-tensors pack_to_int32: packed[o, i // 8] |= code << 4 * (i % 8)
    slot = [0, 2, 4, 6, 1, 3, 5, 7].index(row % 8)
    want = {
        "GPTQ": ((column // 8, row), 4 * (column % 8)),
        "GPTQ v2": ((column // 8, row), 4 * (column % 8)),
        "AWQ": ((column, row // 8), 4 * slot),
        "compressed-tensors": ((row, column // 8), 4 * (column % 8)),
        # ggml-common.h: half d, then 16 bytes; byte j = code j | code j + 16 << 4
        "GGUF Q4_0": ((row, column // 32 * 18 + 2 + column % 16), 4 * (column % 32 // 16)),
    }
    for layout, (element, low) in want.items():
        found = inspect_layout.place(layout, SHAPE, row, column)
        assert (found.element, found.bits) == (element, (low + 3, low)), layout
        assert row * SHAPE[1] + column in found.word


def test_a_word_of_awq_is_75316420():
    assert [owner // SHAPE[1] for owner in inspect_layout.place("AWQ", SHAPE, 3, 9).word] == [7, 5, 3, 1, 6, 4, 2, 0]


@pytest.mark.parametrize("layout", inspect_layout.LAYOUTS)
def test_every_weight_has_one_place(layout):
    owners = inspect_layout.code_map(layout, SHAPE)
    assert sorted(owners[owners >= 0]) == list(range(SHAPE[0] * SHAPE[1]))


def test_the_q4_0_bytes_decode_to_the_grids_weights():
    q = rq.quantize(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), "int4-g32-sym")
    blocks = inspect_layout.tensors(q, "GGUF Q4_0")["blocks"]
    back = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(back, rq.dequantize(q))


def test_the_zero_points_of_the_versions():
    q = rq.quantize(np.ones(SHAPE, np.float32), "int4-g32-sym")
    words = {name: inspect_layout.tensors(q, name).get("qzeros") for name in inspect_layout.LAYOUTS}
    assert set(words["GPTQ"].ravel()) == {0x77777777}  # stored less one
    assert {int(word) & 0xFFFFFFFF for word in words["GPTQ v2"].ravel()} == {0x88888888}
    assert words["compressed-tensors"] is words["GGUF Q4_0"] is None


def test_bad_questions_are_refused():
    with pytest.raises(UnknownName, match="AWQ"):
        inspect_layout.place("exl2", SHAPE, 0, 0)
    with pytest.raises(BadInput, match=r"\[16, 0\]"):
        inspect_layout.place("AWQ", SHAPE, 16, 0)
    with pytest.raises(BadInput, match="int4-g32-sym"):
        inspect_layout.tensors(rq.quantize(np.ones(SHAPE, np.float32), "Q4_0"), "AWQ")
