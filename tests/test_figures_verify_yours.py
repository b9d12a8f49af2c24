"""Notebook 10's figures and widgets, without a browser."""

import html

import numpy as np
import pytest

from refquant import verify
from refquant.figures import verify_yours
from refquant.widgets import verify_yours as widgets


class Q8:
    """By hand: d, 32 signed bytes."""

    formats = ("Q8_0",)

    def dequantize(self, data, *, shape):
        block = data.reshape(-1, 34)
        codes = block[:, 2:].copy().view(np.int8).astype(np.float32)
        return (codes * block[:, :2].copy().view("<f2").astype(np.float32)).reshape(shape)


class Wrong(Q8):
    def dequantize(self, data, *, shape):
        return -super().dequantize(data, shape=shape)


def test_results_show_what_was_tried():
    good, bad = verify.check(Q8, only="q8_0 and gguf-decode"), verify.check(Wrong, only="q8_0 and gguf-decode")
    figure, text = verify_yours.results(good)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Q8_0"]
    assert text == f"Q8: {good.count('pass')} cases passed, 0 failed."
    figure, text = verify_yours.results(bad)
    assert figure.axes[0].texts[0].get_text().startswith("FAIL")
    assert "0 failed" not in text


@pytest.mark.parametrize("number", range(len(verify_yours.decoders())))
def test_every_bug_is_seen_and_named_only_when_told(number):
    figure, text = verify_yours.bug(number)
    wrong = verify_yours.decoders()[number].wrong
    assert wrong not in text
    assert verify_yours.bug(number, told=True)[1] == f"{text} What it does: {wrong}."
    assert np.abs(figure.axes[1].lines[0].get_ydata()).max() > 0


def test_the_widget_draws_what_the_figure_draws():
    view = widgets.bugs()
    view.controls["number"].value = 3
    assert verify_yours.bug(3)[1] in html.unescape(view.line.value)
