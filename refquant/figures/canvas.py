"""What makes a figure quick to draw again: texts are drawn once and stamped, ticks are kept.

matplotlib spends most of a small figure's time on text (layout, hinting, formulas such as 10²) and on making tick
objects, and both are nearly the same from one state of a widget to the next.

    Canvas    matplotlib's Agg canvas, with a renderer that remembers the texts that it has drawn
    emptied   blanks the figure of an earlier drawing, but for its tick objects

Left out: fonts' OpenType features and languages. Two figures of one size share the pixels that `draw` fills: copy them
before the next figure is drawn.
"""

import functools
import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure

MARGIN = 3  # pixels around a text: strokes may reach beyond its box


class Canvas(FigureCanvasAgg):
    """Agg's canvas; all canvases of one size and resolution draw with one renderer, which knows their texts' sizes."""

    def get_renderer(self):
        """The renderer for the figure's size in pixels."""
        return _renderer(*self.get_width_height(physical=True), self.figure.dpi)


class Stamping(RendererAgg):
    """Agg's renderer, for which a text is an image, drawn once; it is put at whole pixels, which the hinting is for."""

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        """Put the text `s` with its origin at (x, y), pixels from the upper left corner."""
        image, left, low = _stamp(s, prop.copy(), angle, ismath, gc.get_rgb(), gc.get_antialiased(), self.dpi)
        self.draw_image(gc, round(x) + left, round(self.height - y) + low, image)  # gc's alpha is not for images


_renderer = functools.lru_cache(16)(Stamping)


@functools.lru_cache(1000)
def _stamp(s, prop, angle, ismath, colour, antialiased, dpi) -> tuple[np.ndarray, int, int]:
    """A text as RGBA, lowest row first, and where its lower left corner lies from the text's origin, in pixels."""
    width, height, below = _renderer(1, 1, dpi).get_text_width_height_descent(s, prop, ismath)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [(cos * x - sin * y, sin * x + cos * y) for x in (0, width) for y in (-below, height - below)]
    left, low = (math.floor(min(side)) - MARGIN for side in zip(*corners, strict=True))
    right, high = (math.ceil(max(side)) + MARGIN for side in zip(*corners, strict=True))
    paper = RendererAgg(right - left, high - low, dpi)
    gc = paper.new_gc()
    gc.set_foreground(colour, isRGBA=True)
    gc.set_antialiased(antialiased)
    paper.draw_text(gc, -left, high, s, prop, angle, ismath)
    return np.asarray(paper.buffer_rgba())[::-1].copy(), left, low


def emptied(figure: Figure, axes) -> None:
    """Make `figure` what it was when it had just got its `axes` (one, or an array), but keep their tick objects."""
    panels = np.ravel(axes)
    for other in set(figure.axes) - set(panels):
        figure.delaxes(other)
    for panel in panels:
        ticks = [(axis, axis.majorTicks, axis.minorTicks) for axis in (panel.xaxis, panel.yaxis)]
        panel.clear()
        for axis, major, minor in ticks:
            axis.majorTicks, axis.minorTicks = major, minor
