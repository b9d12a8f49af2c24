"""Notebook 07, on disk: one code in the files of five programs; bytes by format."""

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from refquant import inspect_layout
from refquant.figures import style


@style.figure_function
def words(shape: tuple[int, int], row: int, column: int):
    """The half bytes around the code of weight [row, column] in each layout. Returns (Figure, text).

    Each box is four bits and names the weight whose code they hold; the chosen one is coloured.
    """
    layouts = [name for name in inspect_layout.LAYOUTS if name != "GPTQ v2"]  # codes as in version 1
    figure, axes = style.subplots(width=8.6, height=3.0, left=0.1, right=0.1, bottom=0.1, top=0.35)
    found, boxes = [], []
    for line, layout in enumerate(layouts):
        place = inspect_layout.place(layout, shape, row, column)
        found.append(str(place))
        y = len(layouts) - line - 1
        axes.text(
            0, y + 0.35, f"{layout}\n{place.tensor}[{', '.join(map(str, place.element))}]", va="center", fontsize=9
        )
        for slot, owner in enumerate(place.word):
            chosen = owner == row * shape[1] + column
            colour = style.ORANGE if chosen else "0.94" if owner >= 0 else "0.8"
            x = 2.6 + slot + 0.12 * (slot // 2 if layout.startswith("GGUF") else 0)
            boxes.append(Rectangle((x, y), 0.96, 0.7, facecolor=colour, edgecolor="0.3"))
            label = f"{owner // shape[1]},{owner % shape[1]}" if owner >= 0 else "scale"
            weight = "bold" if chosen else "normal"
            axes.text(x + 0.48, y + 0.35, label, ha="center", va="center", fontsize=9, fontweight=weight)
    axes.add_collection(PatchCollection(boxes, match_original=True))
    axes.set(xlim=(0, 11.1), ylim=(-0.1, len(layouts)))
    axes.set_title(f"The code of weight [{row}, {column}]: eight half bytes, the word's highest bits to the left")
    axes.set_axis_off()
    return figure, "; ".join(found) + "."


@style.figure_function
def sizes(parts: dict[str, dict[str, int]]):
    """Bytes of a layer by what they hold, {layout: {"codes": bytes, ...}}. Returns (Figure, text)."""
    figure, axes = style.subplots(width=8.0, height=0.95 + 0.36 * len(parts), left=1.6, right=1.6)
    names = [*parts]
    kinds = {"codes": style.BLUE, "scales": style.ORANGE, "zero-points": style.GREEN, "other": style.GREY}
    start = np.zeros(len(names))
    for kind, colour in kinds.items():
        values = np.array([parts[name].get(kind, 0) for name in names], float)
        axes.barh(names, values, left=start, color=colour, label=kind, height=0.65)
        start += values
    for place, total in enumerate(start):
        axes.text(total * 1.01, place, f"{int(total):,} bytes", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="bytes of the layer", xlim=(0, start.max() * 1.02))
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    return figure, "; ".join(f"{name} {int(total):,} bytes" for name, total in zip(names, start, strict=True)) + "."
