"""Notebook 07's figures and widgets, without a browser."""

from refquant.figures import on_disk
from refquant.widgets import on_disk as widgets


def test_words_colours_the_weight_in_every_layout():
    figure, text = on_disk.words((16, 64), 2, 21)
    axes = figure.axes[0]
    labels = [t.get_text() for t in axes.texts if "," in t.get_text() and "[" not in t.get_text()]
    assert labels[8:16] == ["7,21", "5,21", "3,21", "1,21", "6,21", "4,21", "2,21", "0,21"]  # AWQ, by AutoAWQ's order
    assert labels[:8] == [f"2,{column}" for column in range(23, 15, -1)]
    bold = [t.get_text() for t in axes.texts if t.get_fontweight() == "bold"]
    assert bold == ["2,21"] * 4
    assert "AWQ: qweight[21, 0] bits 7..4" in text


def test_the_first_bytes_of_a_block_are_its_scale():
    figure, _ = on_disk.words((16, 64), 0, 0)
    labels = [t.get_text() for t in figure.axes[0].texts[-8:]]
    assert labels == ["scale", "scale", "0,16", "0,0", "0,17", "0,1", "0,18", "0,2"]


def test_sizes_add_up():
    figure, text = on_disk.sizes({"a": {"codes": 100, "scales": 20}, "b": {"codes": 100, "zero-points": 5, "other": 1}})
    assert text == "a 120 bytes; b 106 bytes."
    assert sum(bar.get_width() for bar in figure.axes[0].patches) == 226


def test_the_widget_draws_what_the_figure_draws():
    view = widgets.words((16, 64))
    view.controls["column"].value = 40
    assert on_disk.words((16, 64), 2, 40)[1] in view.line.value
