"""Notebook 07, on disk: a weight's code in every layout."""

from refquant.figures import on_disk
from refquant.widgets.explorer import Explorer, explore, slider


def words(shape: tuple[int, int]) -> Explorer:
    """Row and column of the weight."""

    def draw(row, column):
        return on_disk.words(shape, row, column)

    return explore(
        draw, row=slider("row (output)", 2, 0, shape[0] - 1), column=slider("column (input)", 21, 0, shape[1] - 1)
    )
