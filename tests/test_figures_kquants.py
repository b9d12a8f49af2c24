"""Notebook 05's figures and widgets, without a browser."""

import ggml
import numpy as np
import pytest

from refquant import inspect_block
from refquant.figures import kquants
from refquant.methods import mixes
from refquant.widgets import kquants as widgets

W = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)


def test_block_bits_colours_as_many_bits_as_the_weight_is_made_of():
    block = ggml.quantize(W[:1, :256], "Q4_K")[0]
    figure, text = kquants.block_bits(block, "Q4_K", 200)
    shown = figure.axes[0].images[0].get_array()
    counts = [int((shown == number).sum()) for number in range(1, 6)]
    assert counts == [4, 16, 16, 6, 6]  # code, d, dmin, scale, min: ggml's block_q4_K
    assert int((shown == 0).sum()) == 8 * 144 - sum(counts)
    # Bit 7 of a byte to the left: the code of weight 200 is the low half of byte 120, so columns 4 to 7 of its byte.
    assert np.argwhere(shown == 1).tolist() == [[7, 8 * 8 + column] for column in range(4, 8)]
    assert f"{ggml.dequantize(block[None], 'Q4_K')[0, 200]:.6g}." in text


def test_the_search_starts_at_the_range_and_ends_as_near_as_ggml():
    blocks = W.reshape(-1, 32).T
    weight = np.sqrt(np.mean(blocks.astype(np.float64) ** 2, axis=0)) + np.abs(blocks)
    codes, scale, low, first = kquants.kept(blocks, 0)
    np.testing.assert_allclose(low, blocks.min(axis=0))
    np.testing.assert_allclose(scale, (blocks.max(axis=0) - blocks.min(axis=0)) / 15, rtol=1e-6)
    np.testing.assert_array_equal(codes, np.rint((blocks - low) / scale))
    last = kquants.kept(blocks, 21)[3]
    assert (last <= first).all()
    theirs = ggml.dequantize(ggml.quantize(W, "Q4_K"), "Q4_K").reshape(-1, 32).T
    lost = (weight * (theirs - blocks) ** 2).sum()
    assert 0.9 * lost < last.sum() < lost  # ggml's scales are rounded to 6 bits as well
    assert last.sum() < 0.9 * first.sum()


def test_mix_map_counts_what_llama_cpp_raises():
    names = {f"blk.{i}.{role}.weight": (256, 256) for i in range(32) for role in ("attn_q", "attn_v", "ffn_down")}
    plan = mixes.plan({**names, "token_embd.weight": (512, 256), "output.weight": (512, 256)}, "Q4_K_M")
    figure, text = kquants.mix_map(plan)
    grid = figure.axes[0].images[0].get_array()
    assert grid.shape == (3, 32)
    assert "32 of 96 matrices of the layers in Q6_K; token_embd Q4_K, output Q6_K" in text  # 16 attn_v, 16 ffn_down
    assert grid[0].max() == 0


def test_importance_states_the_median_gain():
    _, text = kquants.importance({"Q2_K": ([1.0, 1.0, 1.0], [0.5, 0.75, 0.9])})
    assert text == "Q2_K: 25 % less output error in the median matrix."


@pytest.mark.parametrize("name", inspect_block.BLOCK_FORMATS)
def test_the_viewer_holds_ggmls_bytes_and_answers_a_choice(name):
    view = widgets.BlockExplorer(W, "Q4_K", weight=200)
    view.format.value = name
    view.index.value = 1
    weights, size = ggml.sizes(name)
    want = ggml.quantize(W, name).reshape(-1, size)[1]
    assert view.viewer.block["bytes"] == want.tolist()
    assert view.index.max == W.size // weights - 1
    view.viewer.chosen = ["weight", 9]
    value = ggml.dequantize(want[None], name)[0, 9]
    assert view.viewer.detail["title"] == f"Weight 9 of {name} is {value:.6g}"
    view.viewer.chosen = ["bit", 8 * size - 1]
    assert f"of byte {size - 1} " in view.viewer.detail["title"]


def test_a_smaller_format_keeps_the_choice_inside_its_block():
    view = widgets.BlockExplorer(W, "Q4_K", weight=200)
    view.format.value = "Q8_0"
    assert view.viewer.chosen == ["weight", 31]
