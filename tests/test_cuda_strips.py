"""Strips against a packer that follows the documented order weight by weight; what stays out; the product's traffic."""

import numpy as np
import pytest
import torch
from refquant_kernels.cuda import dequantize, launch, products, strips

import refquant as rq
from refquant import ops
from refquant.quantized import Quantized, find_format

NAMES = (*strips.GGUF, "int4-g128", "int3-g64-sym", "int2-row", "int8-g32", "int5-g16", "fp8-e4m3", "fp8-e4m3-block")
NAMES += ("fp8-e5m2", "nf4", "nf4-dq", "mxfp4", "nvfp4")


def code_at(plane: np.ndarray, bits: int, row: int, column: int) -> int:
    """What the order says, for one weight of a record; plane: its bytes."""
    s, lane, half, v = column // 16, 4 * (row % 8) + column % 8 // 2, column % 2, 2 * (column % 16 // 8) + row // 8
    if bits == 8:
        j, place = 2 * s + v // 2, 16 * half + 8 * (v % 2)
    else:
        j, place = s // (4 // bits), 16 * half + 4 * v + bits * (s % (4 // bits))
    word = int(plane.view("<u4")[128 * (j // 4) + 4 * lane + j % 4])
    return word >> place & (1 << bits) - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_lie_where_the_order_says(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (32, 512), dtype=np.uint8)
    packed = strips.pack_codes(torch.from_numpy(codes), bits).numpy()
    assert packed.shape == (2, 2, 512 * bits)
    for strip, record in np.ndindex(2, 2):
        got, start, shift = np.zeros((16, 256), int), 0, 0
        for plane in strips.PLANES[bits]:
            data = packed[strip, record, start : start + 512 * plane]
            got += np.array([[code_at(data, plane, r, c) for c in range(256)] for r in range(16)]) << shift
            start, shift = start + 512 * plane, shift + plane
        np.testing.assert_array_equal(got, codes[16 * strip : 16 * strip + 16, 256 * record : 256 * record + 256])


def random_quantized(name, n, k, rng):
    item = find_format(name)
    if item.stream:
        return Quantized.from_bytes(rng.integers(0, 256, item.nbytes((n, k)), dtype=np.uint8), name, (n, k))
    return rq.quantize(rng.standard_normal((n, k)).astype(np.float32), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_holds_the_codes_and_the_scales_of_its_weights(name):
    """Every byte is accounted for: codes as unpacked, headers as they are in the file, zeros in the padding."""
    rng = np.random.default_rng(1)
    n, k = 21, 768
    q = random_quantized(name, n, k, rng)
    if name in ("MXFP4", "mxfp4"):
        scales = q.arrays["blocks"][:, ::17] if name == "MXFP4" else q.arrays["weight_scale"]
        scales[scales == 255] = 254
    packed = strips.pack(q, "cpu")
    layout = packed.layout
    assert packed.data.shape == (2, 3, layout.record)
    data = packed.data.numpy()
    codes = ops.unpack(q)["codes"].astype(int) + (128 if name == "Q8_0" else 0)
    for row, column in zip(rng.integers(0, n, 60), rng.integers(0, k, 60), strict=True):
        record, start, shift, got = data[row // 16, column // 256], 16 * layout.header, 0, 0
        for plane in strips.PLANES[layout.bits]:
            got |= code_at(record[start : start + 512 * plane], plane, row % 16, column % 256) << shift
            start, shift = start + 512 * plane, shift + plane
        assert got == codes[row, column]
    headers = data[:, :, : 16 * layout.header].reshape(2, 3, 16, -1).transpose(0, 2, 1, 3).reshape(32, 3, -1)
    assert not headers[n:].any()
    if name in strips.GGUF:
        places, weights = strips.GGUF[name][1], strips.WEIGHTS[name]
        blocks = q.arrays["blocks"].reshape(n, k // weights, -1)
        want = np.concatenate([blocks[..., a:b] for a, b in places], axis=-1).reshape(n, 3, -1)
        np.testing.assert_array_equal(headers[:n], want)
    elif name == "int4-g128":
        fields = ops.unpack(q)
        np.testing.assert_array_equal(headers[:n, :, :4].copy().view(np.float16).reshape(n, 6), fields["scales"])
        np.testing.assert_array_equal(headers[:n, :, 4:].reshape(n, 6), fields["zeros"])


@pytest.mark.parametrize("name", strips.GGUF)
def test_a_record_takes_no_more_bytes_than_the_file(name):
    kept = find_format(name).nbytes((16, 256))
    assert strips.layout_of(name, 256).record == (kept if name != "TQ1_0" else 1056)


def test_columns_in_groups_out_of_order_are_put_in_order():
    rng = np.random.default_rng(3)
    q = rq.quantize(rng.standard_normal((16, 256)).astype(np.float32), "int4-g64")
    g_idx = rng.permutation(rq.grids.as_grid("int4-g64").group_index(256))
    packed = strips.pack(Quantized("int4-g64", q.shape, q.arrays | {"g_idx": g_idx}), "cpu")
    np.testing.assert_array_equal(g_idx[packed.order.numpy()], np.arange(256) // 64)


@pytest.mark.parametrize("name", ["int4-g24", "int8-g7", "F16", "BF16", "F32", "llm-int8", "fp8-e5m2fnuz"])
def test_formats_without_strips(name):
    assert strips.layout_of(name, 512) is None


def test_codes_that_stand_for_nan_have_no_strips():
    q = rq.quantize(np.ones((16, 256), np.float32), "fp8-e4m3")
    q.arrays["weight"][3, 5] = 0x7F
    assert strips.pack(q, "cpu") is None


def test_levels_are_the_sum_of_two_halves():
    levels = rq.ops.unpack(rq.quantize(np.ones((1, 64), np.float32), "nf4"))["quant_map"]
    words = strips._levels(levels).view(np.uint32)
    halves = (words & 0xFFFF).astype(np.uint16).view(np.float16), (words >> 16).astype(np.uint16).view(np.float16)
    total = halves[0].astype(np.float64) + halves[1].astype(np.float64)
    assert np.abs(total / 1024 - levels.astype(np.float64)).max() <= 2.0**-23


def test_every_format_has_every_operation():
    """No format is forgotten: dequantize and matmul of all of them are registered."""
    assert products.FAMILIES
    assert dequantize.BLOCKS
    for name in rq.formats():
        family = find_format(name).family
        assert "cuda" in ops.find_op("dequantize", family).fast, name
        if ops.weight_only(name):
            assert "cuda" in ops.find_op("matmul", family).fast, name


def test_shared_memory_of_every_choice_fits():
    """Of an H100 (227 KiB) and of a card with 99 KiB, whatever the format."""
    for most in (232448, 101376):
        for name in NAMES:
            layout = strips.layout_of(name, 4096)
            warps, stages, _ = products.gemv_choice(layout)
            while stages > 1 and products.gemv_shared(layout, 4096, warps, stages) > most:
                stages -= 1
            assert products.gemv_shared(layout, 4096, warps, stages) <= most, name


def test_hopper_kernels_compile_for_hopper():
    for options in launch.variants("gemm_sm90.cu"):
        assert b"gemm_sm90" in launch.compile_source("gemm_sm90.cu", "sm_90a", options)
