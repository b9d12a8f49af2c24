"""The bits of a weight: each claimed bit is flipped, and ggml's own decoder says which weights it changes."""

import functools

import ggml
import numpy as np
import pytest

import refquant as rq
from refquant import inspect_block
from refquant.errors import BadInput, UnknownName

EVERY = inspect_block.BLOCK_FORMATS


def blocks_of(name, count, seed=0):
    """Random blocks that ggml decodes to finite numbers: every byte but the float16 ones is free."""
    size = ggml.sizes(name)[1]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4 * count, size), dtype=np.uint8)
    good = blocks[np.isfinite(ggml.dequantize(blocks, name)).all(axis=1)]
    assert len(good) >= count
    return good[:count]


@functools.cache
def changed_by_ggml(name):
    """bool [bits of a block, weights]: what flipping each bit changes in any of many blocks, by ggml's decoder."""
    blocks = blocks_of(name, 1200 if name == "TQ1_0" else 24)  # a bit of a trits' byte matters at a few values only
    bits = 8 * blocks.shape[1]
    before = ggml.dequantize(blocks, name)
    mask = np.packbits(np.eye(bits, dtype=np.uint8), axis=1, bitorder="little")
    found = np.zeros((bits, before.shape[1]), bool)
    for block, old in zip(blocks, before, strict=True):
        new = ggml.dequantize(block ^ mask, name)
        found |= new.view(np.uint32) != old.view(np.uint32)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_a_flipped_bit_changes_exactly_the_weights_it_is_said_to_hold(name):
    found = changed_by_ggml(name)
    block = blocks_of(name, 1)[0]
    for at, weights in enumerate(found):
        assert inspect_block.bit(block, name, at).weights == tuple(np.flatnonzero(weights)), f"bit {at}"


@pytest.mark.parametrize("name", EVERY)
def test_the_bits_of_a_weight_are_those_that_change_it(name):
    found = changed_by_ggml(name)
    block = blocks_of(name, 1)[0]
    for i in range(found.shape[1]):
        parts = inspect_block.weight(block, name, i).parts
        assert sorted(at for part in parts for at in part.bits) == list(np.flatnonzero(found[:, i])), f"weight {i}"


@pytest.mark.parametrize("name", EVERY)
def test_the_arithmetic_ends_at_ggmls_value(name):
    for block, want in zip(blocks_of(name, 3, seed=1), ggml.dequantize(blocks_of(name, 3, seed=1), name), strict=True):
        got = [inspect_block.weight(block, name, i) for i in range(len(want))]
        assert np.array_equal(np.array([w.value for w in got], np.float32).view(np.uint32), want.view(np.uint32))
        for w in got:  # the text says the same number
            assert float(w.steps[-1].rpartition(" ")[2]) == pytest.approx(float(w.value), rel=1e-5)


# Worked by hand from block_q4_K of ggml-common.h and get_scale_min_k4: weight 200 is in sub-block 6, in the low nibbles
# of the fourth 32 bytes (16 + 96 + 8), its scale in byte 4 + 10 with bits 5..4 from bits 7..6 of byte 4 + 2.
def test_q4_k_by_hand():
    block = np.zeros(144, np.uint8)
    block[:4] = [0x00, 0x3C, 0x00, 0x38]  # d = 1.0, dmin = 0.5
    block[4 + 2], block[4 + 6], block[4 + 10] = 0b10_000000, 0b01_000000, 0b0011_0101
    block[16 + 96 + 8] = 0xF7
    w = inspect_block.weight(block, "Q4_K", 200)
    parts = {part.field: part for part in w.parts}
    assert parts["codes"].bits == tuple(8 * 120 + bit for bit in (3, 2, 1, 0))
    assert parts["scales"].bits == tuple(
        8 * at + bit for at, bit in ((6, 7), (6, 6), (14, 3), (14, 2), (14, 1), (14, 0))
    )
    assert parts["mins"].bits == tuple(
        8 * at + bit for at, bit in ((10, 7), (10, 6), (14, 7), (14, 6), (14, 5), (14, 4))
    )
    assert (parts["scales"].binary, parts["scales"].value, parts["mins"].value) == ("100101", 37, 19)
    assert parts["codes"].bytes == (120,)
    assert w.value == 37 * 7 - 0.5 * 19
    assert w.steps == (
        "scale = d × sub-scale 6 = 1 × 37 = 37",
        "min = dmin × sub-min 6 = 0.5 × 19 = 9.5",
        "weight = scale × code − min = 37 × 7 − 9.5 = 249.5",
    )


def test_a_trit_is_a_digit_of_a_whole_byte():
    block = np.zeros(54, np.uint8)
    block[53] = 0x3C  # d = 1
    block[5] = 255  # digits 2 2 2 2 2
    w = inspect_block.weight(block, "TQ1_0", 5 + 32)
    assert (w.value, w.parts[0].stored, w.parts[0].bytes) == (1.0, 255, (5,))
    assert inspect_block.bit(block, "TQ1_0", 40).owners == tuple(f"code {5 + 32 * i}" for i in range(5))


@pytest.mark.parametrize("name", EVERY)
def test_layout_covers_the_block_once(name):
    places = inspect_block.layout(name)
    assert [at for _, at, _ in places] == list(np.cumsum([0, *(size for _, _, size in places[:-1])]))
    assert sum(size for _, _, size in places) == ggml.sizes(name)[1]


def test_bad_questions_are_refused():
    block = np.zeros(144, np.uint8)
    with pytest.raises(UnknownName, match="Q4_K"):
        inspect_block.weight(block, "F16", 0)
    with pytest.raises(BadInput, match="0 to 255"):
        inspect_block.weight(block, "Q4_K", 256)
    with pytest.raises(BadInput, match="144"):
        inspect_block.weight(block[:100], "Q4_K", 0)
    with pytest.raises(BadInput, match="1151"):
        inspect_block.bit(block, "Q4_K", 1152)


def test_every_block_format_of_refquant_is_here():
    streams = {name for name in rq.formats() if rq.quantized.find_format(name).stream}
    assert streams - {"F32", "F16", "BF16"} == set(EVERY)
