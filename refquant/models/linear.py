"""QuantLinear: a Linear layer whose weights are quantized arrays."""

import torch
from torch import nn

from refquant import ops
from refquant.quantized import Quantized


class QuantLinear(nn.Module):
    """y = x Ŵᵀ + b, computed from a `Quantized` matrix.

    Parameters
    ----------
    quantized : Quantized
        Weights [out, in].
    bias : torch.Tensor [out], optional
    backend : str
        A backend of `refquant.matmul`: "numpy", "numba", "cuda". Or "dense": dequantize once, keep the float weights
        and multiply with torch: the same numbers for evaluation, at the memory of the unquantized layer. A format with
        a product of its own (LLM.int8 rounds x as well) has no such short cut: "dense" is then "numpy".
        With "cuda" and activations on a GPU nothing leaves it: the weights are packed there at the first call,
        activations other than float16 and bfloat16 are rounded to float16, and later calls can be captured in a CUDA
        graph. No gradient flows through it.
    dense : torch.Tensor [out, in], optional
        The decoded weights, where they are known already.
    """

    def __init__(
        self,
        quantized: Quantized,
        bias: torch.Tensor | None = None,
        backend: str = "dense",
        dense: torch.Tensor | None = None,
    ):
        super().__init__()
        self.quantized = quantized
        self.out_features, self.in_features = quantized.shape
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_buffer("_dense", dense if backend == "dense" else None, persistent=False)
        self._multiply = {}  # by backend, which may change; made when first used
        self.backend = "numpy" if backend == "dense" and not ops.weight_only(quantized.format) else backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [..., in] to [..., out], in x's dtype."""
        if self.backend == "dense":
            return nn.functional.linear(x, self.dense(x), self.bias)
        if self.backend == "cuda" and x.is_cuda and ops.weight_only(self.quantized.format):
            y = self._on_gpu(x.detach())
        else:
            if self.backend not in self._multiply:
                self._multiply = {self.backend: ops.multiplier(self.quantized, self.backend)}
            y = torch.from_numpy(self._multiply[self.backend](x.detach().float().cpu().numpy())).to(x)
        return y if self.bias is None else y + self.bias

    def __getstate__(self):
        """What a copy, or a file, has of it."""
        return self.__dict__ | {"_multiply": {}}

    def _on_gpu(self, x: torch.Tensor) -> torch.Tensor:
        ops.load_backend("cuda")
        from refquant_kernels.cuda import products

        half = x if x.dtype in (torch.float16, torch.bfloat16) else x.half()
        return products.prepare(self.quantized, x.device)(half, wide=half is not x).to(x.dtype)

    def dense(self, like: torch.Tensor) -> torch.Tensor:
        """Dequantized weights [out, in] in the dtype and on the device of `like`, computed once."""
        if self._dense is None or self._dense.dtype != like.dtype or self._dense.device != like.device:
            self._dense = torch.from_numpy(ops.dequantize(self.quantized)).to(like)
        return self._dense

    def forget_dense(self) -> None:
        """Free what `dense` keeps; it is computed again when needed."""
        self._dense = None

    def extra_repr(self) -> str:
        """Shown in the model's printout."""
        return f"{self.quantized!r}, bias={self.bias is not None}, backend={self.backend}"
