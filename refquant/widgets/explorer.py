"""Controls beside a figure: the one pattern that the course's widgets share.

    explore(draw, bits=slider("bits", 4, 2, 8), sym=check("symmetric", False))

`draw(bits=4, sym=False)` returns a figure and a line of text that says what the figure shows, in numbers. The line
stands under the figure, where a reader can select it, and is the figure's text for those who cannot see it.
"""

import contextlib
import gc
import html
from collections.abc import Callable, Iterable

import ipywidgets as w

from refquant.figures import style

_LABEL = {"description_width": "11em"}
_WIDE = "min(100%, 34em)"


def slider(label: str, value: int, low: int, high: int, step: int = 1) -> w.IntSlider:
    """A slider over whole numbers."""
    return w.IntSlider(
        value=value, min=low, max=high, step=step, description=label, style=_LABEL, layout=w.Layout(width=_WIDE)
    )


def real_slider(label: str, value: float, low: float, high: float, step: float, digits: int = 2) -> w.FloatSlider:
    """A slider over real numbers, shown with `digits` decimals."""
    return w.FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        description=label,
        readout_format=f".{digits}f",
        style=_LABEL,
        layout=w.Layout(width=_WIDE),
    )


def choice_slider(label: str, value, options: Iterable) -> w.SelectionSlider:
    """A slider over a few values, or (text, value) pairs."""
    return w.SelectionSlider(
        value=value, options=list(options), description=label, style=_LABEL, layout=w.Layout(width=_WIDE)
    )


def menu(label: str, value, options: Iterable) -> w.Dropdown:
    """A menu of values, or (text, value) pairs."""
    return w.Dropdown(value=value, options=list(options), description=label, style=_LABEL, layout=w.Layout(width=_WIDE))


def check(label: str, value: bool) -> w.Checkbox:
    """A box to tick."""
    return w.Checkbox(value=value, description=label, indent=True, style=_LABEL, layout=w.Layout(width=_WIDE))


def player(label: str, steps: int, interval: int = 250) -> tuple[w.IntSlider, w.HBox]:
    """A slider over 0..steps and a row that holds it beside a play button; give the slider to `explore`.

    `interval` is the milliseconds that play waits between steps.
    """
    value = slider(label, 0, 0, steps)
    play = w.Play(value=0, min=0, max=steps, step=1, interval=interval, show_repeat=False)
    w.jslink((play, "value"), (value, "value"))
    value.layout.flex = "1 1 auto"
    return value, w.HBox([play, value], layout=w.Layout(flex_flow="row wrap", width="min(100%, 46em)"))


@contextlib.contextmanager
def _no_garbage():
    """Context that ends without the garbage which a drawing leaves behind.

    Left alone, it piles up until Python looks through all that the notebook holds: half a second, in mid-slide.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)  # what was made since: a few milliseconds, after the picture has been sent
        if was_on:
            gc.enable()


class Explorer(w.VBox):
    """The controls, the figure and its line; see `explore`."""

    def __init__(self, draw: Callable, controls: dict[str, w.Widget], rows: dict[str, w.Widget]):
        self.draw, self.controls, self._figures = draw, controls, {}
        self.picture, self.line = w.HTML(), w.HTML()
        super().__init__([*(rows.get(name, control) for name, control in controls.items()), self.picture, self.line])
        self.add_class("refquant-explorer")  # how tests find them
        self.line.add_class("refquant-line")
        for control in controls.values():
            control.observe(self._changed, "value")
        self.redraw()

    def _changed(self, _):
        self.redraw()

    def redraw(self):
        """Draw again from the controls' values."""
        with style.reuse(self._figures), _no_garbage():
            figure, text = self.draw(**{name: control.value for name, control in self.controls.items()})
            self.picture.value = style.img(figure, text)
            self.line.value = f'<p role="status">{html.escape(text)}</p>'


def explore(draw: Callable, rows: dict[str, w.Widget] | None = None, **controls: w.Widget) -> Explorer:
    """Show `draw(**values)`, which returns (Figure, text), and draw again whenever a control changes.

    `rows` names the controls that are shown as part of something larger, such as the row that `player` returns.
    """
    return Explorer(draw, controls, rows or {})
