"""NF4: four bits whose levels are quantiles of the normal distribution, one scale for 64 weights; what QLoRA trains on.

Trained weights are roughly normal, so the levels are the middles of equally likely parts of a normal distribution. The
scale of a block is its largest magnitude, and the levels lie in [-1, 1]::

    absmax = max |w| of the block                 64 weights, counted through the flattened matrix
    code   = nearest(w * (1 / absmax))            the sixteen levels: `codebooks.NF4`
    weight = NF4[code] * absmax

The levels would be used equally often if the maximum of every block were the same quantile. It is not: of normal
weights in blocks of 64, each end gets 1.8 % and the level below zero 9.3 %.

The scales cost 32 / 64 = 0.5 bits a weight. Double quantization (`nf4-dq`) quantizes them too, after subtracting their
mean, because they are all positive; 8 bits and a little make 0.127::

    offset        = mean of all absmax
    nested_absmax = max |absmax - offset|         of 256 blocks
    code          = nearest((absmax - offset) * (1 / nested_absmax))      256 levels: `codebooks.DYNAMIC8`

The codes of the weights are chosen before that, with the exact absmax.

QLoRA stores a model so in order to *train*: the base stays as it is, gradients pass through its decoded weights, and
small matrices beside it learn (`LoRALinear`). That is another goal than serving: nothing is calibrated, because what
the rounding breaks, the training can mend.

Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA" (arXiv 2305.14314), section 3; bitsandbytes 0.50.2,
functional.py `quantize_4bit`, backends/default/ops.py.
Against other code: equal to bitsandbytes in codes, absmax and nested absmax. Its mean of the absmax is a float32 sum,
here a float64 sum that is then rounded: the last bit of the offset may differ. Its compiled CPU library finds the 8-bit
code of a scale in a table of coarse steps: within 2^-16 of the middle between two levels it may take a neighbour (1 in
1000 of evenly spread values). Its default backend divides in a short last block where others multiply with the inverse.
Leaves out: FP4, and the repacked layout that bitsandbytes makes in memory for CPUs.
"""

from dataclasses import dataclass

import numpy as np

from refquant import ops
from refquant.codebooks import DYNAMIC8, NF4
from refquant.errors import BadInput
from refquant.grids import CodebookGrid, as_grid, check_inputs, register_grids
from refquant.methods.registry import Method, Row, own_format, register_method
from refquant.quantized import Quantized

NESTED_BLOCK = 256
_LEAST = np.float32(1e-38)  # what bitsandbytes takes for the maximum of a block of zeros when it inverts it


@dataclass(frozen=True)
class NF4Grid(CodebookGrid):
    """The grid `nf4[-b<block>][-dq]`: blocks of `group_size` weights; `nested`, their absmax quantized as well."""

    nested: bool = False

    def starts(self, k: int) -> np.ndarray:
        """First column of each block of a row; rows must hold whole blocks, since a file numbers blocks through."""
        if k % self.group_size:
            raise BadInput(
                f"{self.name}: blocks of {self.group_size} run on into the next row of a matrix with {k} inputs, and "
                "methods that work on rows cannot have that; ops.quantize can"
            )
        return super().starts(k)

    def scale(self, peak: np.ndarray) -> np.ndarray:
        """Absmax itself."""
        return peak

    def encode(self, w: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Codes, uint8 of `w`'s shape."""
        return self.codebook.encode(w * (np.float32(1) / np.maximum(scale, _LEAST)))

    def fields(self, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, g_idx=None) -> dict:
        """The numbers of a file: codes [n, k]; absmax of the blocks in order; where nested, what stands for it."""
        fields = super().fields(codes, scales, zeros, g_idx)
        absmax = fields.pop("scales").ravel()
        return fields | {"quant_map": NF4.values} | (nest(absmax) if self.nested else {"absmax": absmax})


def _grid(block: str | None, dq: str | None) -> NF4Grid:
    return NF4Grid("nf4" + (block or "") + (dq or ""), NF4, int(block[2:]) if block else 64, nested=dq is not None)


register_grids(r"nf4(-b(?:32|128|256|512|1024|2048|4096))?(-dq)?", _grid, ("nf4", "nf4-dq"))


def blockwise(x: np.ndarray, size: int, encode) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [count] and absmax float32 [blocks] of x [count], by blocks of `size`; the last may be short."""
    absmax = np.maximum.reduceat(np.abs(x), np.arange(0, len(x), size))
    return encode(x, np.repeat(absmax, size)[: len(x)]), absmax


@ops.part("search", "nf4")
def search(w: np.ndarray, name: str, importance=None) -> dict:
    """Fields of a file, from w [n, k] taken as one row of n * k weights."""
    grid = as_grid(name)
    codes, absmax = blockwise(w.ravel(), grid.group_size, lambda x, scale: grid.encode(x, scale, None))
    return grid.fields(codes.reshape(w.shape), absmax, None)


def nest(absmax: np.ndarray) -> dict:
    """Double quantization of absmax float32 [blocks]: its codes, their own absmax, and the offset."""
    offset = absmax.mean(dtype=np.float64).astype(np.float32)
    codes, nested = blockwise(
        absmax - offset, NESTED_BLOCK, lambda x, scale: DYNAMIC8.encode(x * (np.float32(1) / np.maximum(scale, _LEAST)))
    )
    return {
        "absmax": codes,
        "nested_absmax": nested,
        "nested_quant_map": DYNAMIC8.values,
        "nested_offset": np.array(offset),
    }


class LoRALinear:
    """A Linear layer as QLoRA trains it: y = x Wᵀ + (alpha / r) (x Aᵀ) Bᵀ, where W is frozen in 4 bits and A, B learn.

    W is decoded at each use, forward and backward, and has no gradient of its own; but the gradient that the layers
    before need passes through it. B starts at zero, so that training starts from the quantized model.

    Parameters
    ----------
    base : Quantized
        Weights [n, k], in any format; QLoRA's is `nf4-dq`. Never changed.
    rank, alpha : int
        r, and the factor by which the update is scaled, over r: A is [r, k], B [n, r].
    seed : int
        Of A, normal with variance 1 / k.
    """

    def __init__(self, base: Quantized, rank: int = 8, alpha: float = 16, seed: int = 0):
        n, k = base.shape
        if rank < 1:
            raise BadInput(f"rank must be at least 1, got {rank}")
        self.base, self.factor = base, np.float32(alpha / rank)
        self.A = np.random.default_rng(seed).normal(0, k**-0.5, (rank, k)).astype(np.float32)
        self.B = np.zeros((n, rank), np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Y [m, n] of x [m, k]; x is kept for `backward`."""
        self.x = check_inputs(x, self.base.shape[1])
        return self.x @ ops.dequantize(self.base).T + self.factor * (self.x @ self.A.T) @ self.B.T

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """dL/dx [m, k] of dL/dy [m, n]; keeps dL/dA and dL/dB for `step`."""
        through = self.factor * dy @ self.B  # [m, r]
        self.dA, self.dB = through.T @ self.x, self.factor * dy.T @ (self.x @ self.A.T)
        return dy @ ops.dequantize(self.base) + through @ self.A

    def step(self, rate: float) -> None:
        """One step of gradient descent on A and B."""
        self.A -= np.float32(rate) * self.dA
        self.B -= np.float32(rate) * self.dB


register_method(
    Method(
        "nf4",
        layer=own_format("nf4"),
        rows=(
            Row("NF4", "nf4", "nf4", "GPU", "Training: the base of QLoRA"),
            Row("NF4, double quantization", "nf4", "nf4-dq", "GPU", "Training: the base of QLoRA"),
        ),
    )
)
