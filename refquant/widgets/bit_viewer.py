"""One block of a GGUF format, bit by bit: choose a weight to see where it lies, or a bit to see what it belongs to.

The browser draws and says what was chosen; what it means is worked out here, by `refquant.inspect_block`.
"""

from pathlib import Path

import anywidget
import numpy as np
import traitlets

from refquant import inspect_block, ops
from refquant.ggml_types import ggml_type
from refquant.quantized import Quantized


class BitViewer(anywidget.AnyWidget):
    """A block's weights and bytes. `show(block, name)` puts in another block; `chosen` is ["weight" or "bit", number].

    From the keyboard: Tab reaches the weights, then the bits; arrow keys, Home and End move and choose.
    """

    _esm = Path(__file__).with_name("bit_viewer.js")
    _css = Path(__file__).with_name("bit_viewer.css")

    block = traitlets.Dict().tag(sync=True)  # name, fields [name, first byte, bytes], bytes, values
    chosen = traitlets.List().tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)  # title, parts, steps, weights, bits

    def __init__(self, block: np.ndarray, name: str, chosen=("weight", 0)):
        super().__init__()
        self.show(block, name, chosen)

    def show(self, block: np.ndarray, name: str, chosen=None) -> None:
        """Show a block, uint8 [bytes]; the choice stays where the block has such a weight or bit."""
        kind, number = chosen or self.chosen
        data, limits = ggml_type(name), {"weight": ggml_type(name).weights, "bit": 8 * ggml_type(name).bytes}
        values = ops.dequantize(Quantized.from_bytes(np.asarray(block), name, (1, data.weights)))[0]
        self._data, self._name = np.array(block), name
        with self.hold_sync():
            self.block = {
                "name": name,
                "fields": [list(field) for field in inspect_block.layout(name)],
                "bytes": self._data.tolist(),
                "values": [float(f"{value:.6g}") for value in values],
            }
            self.chosen = [kind, min(number, limits[kind] - 1)]
            self.detail = describe(self._data, name, *self.chosen)

    @traitlets.observe("chosen")
    def _choose(self, _):
        if self.chosen:
            self.detail = describe(self._data, self._name, *self.chosen)


def describe(block: np.ndarray, name: str, kind: str, number: int) -> dict:
    """What is shown of a chosen weight or bit, as plain data."""
    if kind == "weight":
        found = inspect_block.weight(block, name, number)
        parts = [
            {
                "kind": part.field,
                "label": part.label,
                "where": places(part.bytes),
                "binary": part.binary,
                "value": f"{part.value:.6g}",
                "bits": list(part.bits),
            }
            for part in found.parts
        ]
        title = f"Weight {number} of {name} is {found.value:.6g}"
        return {"title": title, "parts": parts, "steps": list(found.steps), "weights": [number], "bits": []}
    found = inspect_block.bit(block, name, number)
    title = f"Bit {number % 8} of byte {number // 8} is {found.value}. It belongs to {', '.join(found.owners)}"
    title += f" and can change {len(found.weights)} weight{'s' if len(found.weights) > 1 else ''}."
    return {"title": title, "parts": [], "steps": [], "weights": list(found.weights), "bits": [number]}


def places(numbers: tuple[int, ...]) -> str:
    """`byte 5`, `bytes 5 and 9`."""
    return ("bytes " if len(numbers) > 1 else "byte ") + " and ".join(map(str, numbers))
