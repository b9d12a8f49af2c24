"""One look for all figures: Okabe and Ito's colours, an opaque white ground, so that dark themes change nothing.

    with style.look():
        figure, axes = style.subplots(width=7, height=3)
        ...
    style.picture(figure, "what a reader who cannot see it should know")

`look` changes matplotlib's settings inside the block only. `figure_function` does the same for a whole function.
"""

import base64
import contextlib
import contextvars
import functools
import html
import io

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from refquant.figures.canvas import Canvas, emptied

# Okabe and Ito's palette: told apart with any common colour blindness. Use markers or line styles beside colour.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
GREY = "#6F6F6F"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
MARKERS = "os^DvP*"
SEQUENTIAL = "cividis"  # for magnitudes: grows in lightness, made for colour-blind readers
DIVERGING = LinearSegmentedColormap.from_list("blue_white_vermilion", [BLUE, "#FFFFFF", VERMILION])  # for signed values
DPI = 110

SETTINGS = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": DPI,
    "axes.facecolor": "white",
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # nothing stands above an axes: to look for it takes a third of the drawing
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "font.size": 10,
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "grid.color": "0.88",
    "lines.linewidth": 1.8,
    "text.color": "black",
    "axes.labelcolor": "black",
    "image.cmap": SEQUENTIAL,
    "image.interpolation": "nearest",
}


WANTED = {**matplotlib.rcParamsDefault, **SETTINGS}
del WANTED["backend"]


def look():
    """Context in which figures are made and drawn: matplotlib's defaults with `SETTINGS`."""
    now = matplotlib.rcParams
    return matplotlib.rc_context({name: value for name, value in WANTED.items() if now[name] != value})


def figure_function(function):
    """Decorate a function that returns a `Figure`, so that it runs inside `look()`."""

    @functools.wraps(function)
    def drawn(*arguments, **options):
        with look():
            return function(*arguments, **options)

    return drawn


_kept: contextvars.ContextVar[dict | None] = contextvars.ContextVar("kept", default=None)


@contextlib.contextmanager
def reuse(kept: dict):
    """Context in which `subplots` empties and returns the figure that `kept` holds for the same arguments, if any.

    For one widget, which draws nearly the same figure again and again: to make axes and ticks takes half of the time.
    A figure is lost when the next is made.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def subplots(
    rows: int = 1,
    columns: int = 1,
    width: float = 7.0,
    height: float = 3.0,
    left: float = 0.8,
    right: float = 0.15,
    bottom: float = 0.55,
    top: float = 0.35,
    across: float = 0.85,
    down: float = 0.85,
    **options,
):
    """A `Figure` of `width` by `height` inches and its axes, as pyplot's `subplots` gives them, without pyplot.

    The margins `left`, `right`, `bottom`, `top` and the gaps between axes, `across` and `down`, are inches and fixed:
    a layout that is searched for (`layout="constrained"`) takes as long as the drawing itself.
    """
    sizes = (rows, columns, width, height, left, right, bottom, top, across, down)
    made, key = _kept.get(), repr((sizes, options))
    if made is not None and key in made:
        emptied(*made[key])
        return made[key]
    figure = Figure(figsize=(width, height))
    Canvas(figure)
    one = (width - left - right - across * (columns - 1)) / columns, (height - bottom - top - down * (rows - 1)) / rows
    room = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    spaces = {"wspace": across / one[0], "hspace": down / one[1]}
    ratios = {name: options.pop(name) for name in ("width_ratios", "height_ratios") if name in options}
    axes = figure.subplots(rows, columns, gridspec_kw={**room, **spaces, **ratios}, **options)
    if made is not None:
        made[key] = figure, axes
    return figure, axes


def plain_log(axis, subs=(1, 2, 5)) -> None:
    """Label a short logarithmic axis (`axes.xaxis`) with plain numbers: `subs` times the powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def png(figure: Figure, compression: int = 6) -> bytes:
    """The figure as a PNG file with a white ground; drawn once (`savefig` draws twice, to find its size).

    `compression` is zlib's level: 1 takes half the time of 6, and more bytes.
    """
    with look(), io.BytesIO() as file:
        figure.set_dpi(DPI)
        figure.canvas.draw()
        opaque = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
        opaque.save(file, "png", compress_level=compression)
        return file.getvalue()


def picture(figure: Figure, alt: str):
    """The figure as a notebook's output, with the text `alt` for readers who cannot see it."""
    from IPython.display import Image

    return Image(data=png(figure), format="png", alt=alt, metadata={"alt": alt})


def img(figure: Figure, alt: str) -> str:
    """The figure as an HTML element that holds its PNG: what a widget shows."""
    data = base64.b64encode(png(figure, compression=1)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" style="max-width:100%">'
