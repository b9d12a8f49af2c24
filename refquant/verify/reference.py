"""refquant as an implementation: `refquant verify --impl refquant.verify.reference:numpy` (the default), or `:numba`.

It is also the pattern to follow: plain methods, one an operation, as `implementation.PythonObject` describes. `absorb`
needs torch and transformers, `perplexity` torch.
"""

import importlib
import importlib.util
from types import SimpleNamespace

import numpy as np

from refquant import casts, codebooks, ops
from refquant.errors import BadInput
from refquant.formats import bits as streams
from refquant.formats.awq import AWQ, TinyChat
from refquant.formats.compressed_float import FP4, FloatQuantized
from refquant.formats.compressed_int import PackQuantized
from refquant.formats.file_tensor import FileTensor, of
from refquant.formats.gptq import GPTQ, VERSIONS
from refquant.grids import IntGrid
from refquant.methods import awq, gptq, mixes, rtn
from refquant.methods.mix_rules import Model
from refquant.quantized import Quantized

EIGHT_BITS = {
    "E4M3FN": codebooks.E4M3,
    "E4M3FNUZ": codebooks.E4M3_FNUZ,
    "E5M2": codebooks.E5M2,
    "E5M2FNUZ": codebooks.E5M2_FNUZ,
}


NEEDED = {"absorb": ("torch", "transformers"), "perplexity": ("torch",)}


def _missing(op: str) -> list[str]:
    return [name for name in NEEDED.get(op, ()) if importlib.util.find_spec(name) is None]


def _need(op: str) -> None:
    if missing := _missing(op):
        raise NotImplementedError(f"{missing[0]} is not installed")


def layout(format, params):  # noqa: A002
    """Return the checkpoint layout of a case."""
    size = params.get("group_size")
    size = None if size == -1 else size
    if format in VERSIONS:
        options = {"desc_act": params["desc_act"], "version": VERSIONS[format]}
        return GPTQ(params["bits"], size, params["sym"], **options, ignore_zeros=params.get("ignore_zeros", False))
    if format in ("awq", "awq-gemv_fast"):
        return (AWQ if format == "awq" else TinyChat)(4, size, False)
    if format == "pack-quantized":
        return PackQuantized(params["num_bits"], size, params["symmetric"])
    if format == "float-quantized":
        return FloatQuantized(params["strategy"])
    if format in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        return FP4.of(format.split("-")[0])
    raise BadInput(f"unknown format {format!r}")


def _tensors(data: dict, params: dict) -> dict:
    kinds = params.get("dtypes", {})
    return {name: FileTensor(kinds[name], a) if name in kinds else of(a) for name, a in data.items()}


class Reference:
    """refquant on one backend."""

    declares = ("ggml bytes",)  # encoders give ggml's very bytes, so the cases that need it are run

    def __init__(self, backend: str):
        self.backend = backend

    def prepare(self, op: str) -> None:
        """Import what is slow to import."""
        if op in NEEDED and not _missing(op):
            importlib.import_module("refquant.verify.reference_torch" if op == "absorb" else "torch")

    def _read(self, data, format, shape, params) -> Quantized:  # noqa: A002
        if isinstance(data, np.ndarray):
            return Quantized.from_bytes(data, format, shape)
        if format == "bitsandbytes-nf4":
            block = "" if params["blocksize"] == 64 else f"-b{params['blocksize']}"
            return Quantized(f"nf4{block}{'-dq' if params['double_quant'] else ''}", shape, data)
        if format == "bitsandbytes-int8":
            return Quantized("llm-int8", shape, {"CB": data["weight"], "SCB": data["SCB"]})
        return layout(format, params).read(_tensors(data, params))

    def dequantize(self, data, *, format, shape, **params):  # noqa: A002
        """Bytes or tensors to weights."""
        if format in EIGHT_BITS:
            return EIGHT_BITS[format].decode(data)
        return ops.dequantize(self._read(data, format, shape, params), backend=self.backend)

    def quantize(self, w, *, format, importance=None, **params):  # noqa: A002
        """Weights to bytes, fields or tensors."""
        name = "nf4" if format == "bitsandbytes-nf4" else format
        q = ops.quantize(w, name, importance=importance, backend=self.backend)
        return q.arrays["blocks"] if "blocks" in q.arrays else q.arrays if name == "nf4" else ops.unpack(q)

    def pack(self, fields, *, format, shape, **params):  # noqa: A002
        """Codes, scales and zero-points to tensors."""
        if format == "dense-words":
            return {"words": streams.pack_words(fields["codes"], params["bits"])}
        form = layout(format, params)
        tensors = form.write(ops.pack(fields, form.grid.name, shape))
        return {name: tensor.array for name, tensor in tensors.items()}

    def unpack(self, data, *, format, shape, **params):  # noqa: A002
        """Tensors to codes and zero-points."""
        if format == "dense-words":
            return {"codes": streams.unpack_words(data["words"], params["bits"], shape[1])}
        return ops.unpack(self._read(data, format, shape, params))

    def repack(self, tensors, *, format, to, shape, **params):  # noqa: A002
        """One checkpoint format's tensors to another's."""
        q = self._read(tensors, format, shape, params)
        return {name: t.array for name, t in layout(to, params).write(q).items()}

    def matmul(self, x, data, *, format, shape, shards=1, **params):  # noqa: A002
        """X times the weights; with `shards`, the sum of the parts that equal slices of the inputs contribute."""
        q = self._read(data, format, shape, params)
        if shards == 1:
            return ops.matmul(x, q, backend=self.backend)
        w = ops.dequantize(q, backend=self.backend)
        slices = np.split(np.arange(shape[1]), shards)
        return sum(x[:, part] @ w[:, part].T for part in slices)

    def cast(self, x, *, format, overflow="nan"):  # noqa: A002
        """float32 to the bits of a narrower float."""
        if format in EIGHT_BITS:
            return EIGHT_BITS[format].encode(x, overflow)
        return casts.to_bfloat16(x) if format == "BF16" else casts.to_float16(x).view(np.uint16)

    def gptq(self, w, hessian, *, bits, group_size, sym, block_size, damp):
        """The weights that GPTQ leaves."""
        grid = IntGrid(bits, group_size, sym)
        return ops.dequantize(gptq.quantize(w, hessian, grid, block_size, damp, backend=self.backend).quantized)

    def awq(self, w, x, *, bits, group_size, sym):
        """The weights that AWQ leaves, and its scales."""
        grid = IntGrid(bits, group_size, sym)
        s = awq.search([w], x, grid).scales
        return {"w": rtn.rounded(w * s, grid) / s, "scales": s}

    def absorb(self, tensors, scales, *, kind):
        """A scale moved from a layer to what feeds it."""
        _need("absorb")
        from refquant.verify.reference_torch import absorb

        return absorb(tensors, scales, kind)

    def plan(self, shapes, *, format, model):  # noqa: A002
        """The type of every tensor under a mix."""
        return mixes.plan(shapes, format, Model(*model)).types

    def perplexity(self, table, ids, *, format, context, bos, words):  # noqa: A002
        """Perplexity of the model whose logits at position t are table[(ids[t] + ids[0]) % V]."""
        _need("perplexity")
        import torch

        from refquant.evaluate.perplexity import score

        logits = torch.from_numpy(table)
        model = lambda ids: SimpleNamespace(logits=logits[(ids + ids[:, :1]) % len(table)])  # noqa: E731
        scores = score(model, ids, format, context, bos=bos)
        return scores.word_perplexity(words) if words else scores.perplexity


numpy, numba = Reference("numpy"), Reference("numba")
