"""Notebook 08's figures and widgets, without a browser, and the reader of kernels/README.md."""

import pytest

from refquant.bandwidth import devices
from refquant.bench import recorded
from refquant.figures import kernels
from refquant.widgets import kernels as widgets

CARD = devices.custom("card", 1000, 24, fp16=100e12)
TEXT = """# First

A note.

| operation | format | ratio | other | ratio |
|---|---|---:|---|---:|
| quantize | Q4_0 | 2.50 | x | 9 |
| dequantize | Q4_0 | 3.00 |  |  |
| matmul | Q4_0 | 0.50 |  |  |
| quantize | int4-g128 |  |  |  |

## Rungs: one idea each

| what | n, k | tokens | us | floor |
|---|---|---:|---:|---:|
| v1 | 8, 16 | 1 | 300.0 | 43.4 |
| v2 | 8, 16 | 1 | 100.0 | 43.4 |
"""


def test_tables_are_read_with_their_headings():
    first, second = recorded.tables(TEXT)
    assert (first.heading, first.note, len(first.rows)) == ("First", "A note.", 4)
    assert first.column("ratio", operation="quantize") == ["2.50", ""]
    assert second.column("us") == ["300.0", "100.0"]
    assert recorded.find("Rungs", TEXT) == second
    assert recorded.find("Third", TEXT) is None


def test_the_checkouts_own_file_is_read():
    table = recorded.find("Kernels: measured")
    lines = recorded.read().splitlines()
    header, row = (
        next(line for line in lines if line.startswith(begin)).split("|")
        for begin in ("| operation |", "| dequantize | Q4_K |")
    )
    speed = row[[cell.strip() for cell in header].index("Mweights/s")].strip()
    assert table.column("Mweights/s", operation="dequantize", format="Q4_K") == [speed]


def test_the_floor_is_bytes_over_bandwidth_or_operations_over_rate():
    shape = (1024, 2048)
    moved = 1024 * 2048 // 2 + 1024 * 16 * 2 + 1024 * 16 // 2 + 2 * 2048 + 2 * 1024  # codes, scales, zeros, x, y
    seconds, bound = kernels.least("int4-g128", shape, CARD, 1)
    assert (seconds, bound) == (pytest.approx(moved / 1000e9, rel=0.01), "bandwidth")
    seconds, bound = kernels.least("int4-g128", shape, CARD, 1024)
    assert (seconds, bound) == (pytest.approx(2 * 1024 * 1024 * 2048 / 100e12), "arithmetic")
    assert "bound by arithmetic" in kernels.floor("int4-g128", shape, CARD, 1024)[1]


def test_rungs_state_bytes_per_second():
    figure, text = kernels.rungs({"slow": 1.0, "fast": 0.01}, 10**9, 200e9)
    assert "slow 1 GB/s; fast 100 GB/s; the best reaches 0.50 of memory" in text
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1, 100]


def test_recorded_tables_are_drawn():
    first, second = recorded.tables(TEXT)
    figure, text = kernels.against_ggml(first)
    assert text.endswith("quantize 2.50, dequantize 3.00, matmul 0.50.")
    assert [panel.patches[0].get_width() for panel in figure.axes] == [2.5, 3.0, 0.5]
    figure, text = kernels.ladder(second)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [300, 100]
    assert "2 rungs; the nearest to its floor is v2" in text


def test_the_widget_draws_what_the_figure_draws():
    view = widgets.floor()
    view.controls["tokens"].value = 256
    view.controls["name"].value = "Q8_0"
    want = kernels.floor("Q8_0", (4096, 4096), devices.find_device("h100-sxm"), 256)[1]
    assert want in view.line.value
