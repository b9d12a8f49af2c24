"""Notebook 05, k-quants: the bit viewer with its formats, the search trial by trial, mixes as a map."""

from collections.abc import Callable

import ipywidgets as w
import numpy as np

from refquant import inspect_block, ops
from refquant.figures import kquants
from refquant.ggml_types import ggml_type
from refquant.methods import mixes
from refquant.widgets.bit_viewer import BitViewer
from refquant.widgets.explorer import Explorer, explore, menu, slider


class BlockExplorer(w.VBox):
    """A matrix in every block format: choose the format and a block of the first rows, then weights and bits."""

    def __init__(self, matrix: np.ndarray, name: str = "Q4_K", weight: int = 0):
        self.matrix = np.asarray(matrix, np.float32)
        self.format = menu("format", name, inspect_block.BLOCK_FORMATS)
        self.index = slider("block", 0, 0, self._count(name) - 1)
        self.viewer = BitViewer(self.block, name, ("weight", weight))
        super().__init__([self.format, self.index, self.viewer])
        self.add_class("refquant-blocks")
        self.format.observe(self._changed, "value")
        self.index.observe(self._changed, "value")

    def _count(self, name: str) -> int:
        return self.matrix.size // ggml_type(name).weights

    @property
    def block(self) -> np.ndarray:
        """The bytes of the chosen block, uint8, counted along the rows."""
        kind = ggml_type(self.format.value)
        row, place = divmod(self.index.value, self.matrix.shape[1] // kind.weights)
        data = ops.quantize(self.matrix[row : row + 1], self.format.value).arrays["blocks"][0]
        return data.reshape(-1, kind.bytes)[place]

    def _changed(self, _):
        last = self._count(self.format.value) - 1
        self.index.value = min(self.index.value, last)
        self.index.max = last
        self.viewer.show(self.block, self.format.value)


def search(row: np.ndarray) -> Explorer:
    """Q4_K's search on the sub-blocks of a row of weights [k]."""
    blocks = np.asarray(row, np.float32).reshape(-1, 32)

    def draw(block, trials):
        return kquants.search(blocks[block], trials)

    return explore(draw, block=slider("sub-block", 0, 0, len(blocks) - 1), trials=slider("trials", 21, 0, 21))


def mix_map(plans: dict[str, Callable[[str], mixes.Plan]], mix: str = "Q4_K_M") -> Explorer:
    """The map of a mix; `plans` maps a model's name to the function that plans a mix for it."""

    def draw(model, mix):
        return kquants.mix_map(plans[model](mix), f"{model}, ")

    names = [
        name for name, (_, base) in mixes.MIXES.items() if base not in mixes.FLOATS and not name.startswith("MXFP4")
    ]
    return explore(draw, model=menu("model", next(iter(plans)), plans), mix=menu("mix", mix, names))
