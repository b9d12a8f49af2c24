"""Weights in storage: what every tensor of a model takes in a mix (Q4_K_M) or a format (int4-g128). Bytes.

Two ways to store a model::

    a mix       llama.cpp's choice of a block format for every matrix, embedding and output included (`methods.mixes`)
    a format    every Linear layer inside the blocks in that format; embedding, output matrix, norms and biases in
                16 bits, as GPTQ, AWQ and bitsandbytes checkpoints have them

Where a name is both (F16, Q8_0, Q6_K, ...), it is the mix.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from refquant.bandwidth.shapes import Shape, find_shape
from refquant.errors import BadInput, UnknownName
from refquant.ggml_types import ggml_type
from refquant.methods import mixes
from refquant.quantized import find_format, formats

KEPT = "F16"  # what a checkpoint of quantized Linear layers keeps everything else in


@dataclass(frozen=True)
class Stored:
    """One tensor: `format` is a name for `find_format`, `layer` its block's number or None outside the blocks."""

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    layer: int | None

    @property
    def is_matrix(self) -> bool:
        """Whether this is a matrix that activations are multiplied with, or looked up in."""
        return len(self.shape) == 2

    @property
    def is_embedding(self) -> bool:
        """Whether this is the matrix in which tokens are looked up."""
        return self.name == "token_embd.weight"


@dataclass(frozen=True)
class Weights:
    """A model's tensors as `storage` holds them. Every size in bytes."""

    shape: Shape
    storage: str
    tensors: tuple[Stored, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.nbytes / (self.shape.parameters + self.shape.rope_factors)

    @property
    def is_mix(self) -> bool:
        """Whether llama.cpp's mix decided, so that the tensors make a GGUF file."""
        return self.storage in mixes.MIXES

    @property
    def file_bytes(self) -> int:
        """Bytes of the file: for a GGUF file tensors padded to 32 bytes, and its metadata where that was measured."""
        if not self.is_mix:
            return self.nbytes
        return sum(-(-tensor.nbytes // 32) * 32 for tensor in self.tensors) + (self.shape.gguf_metadata or 0)

    def layer_bytes(self, layer: int) -> int:
        """Bytes of one block."""
        if not 0 <= layer < self.shape.layers:
            raise BadInput(f"{self.shape.name} has the layers 0 to {self.shape.layers - 1}, got {layer}")
        return self._layer_bytes[layer]

    @cached_property
    def _layer_bytes(self) -> dict[int, int]:
        sizes = dict.fromkeys(range(self.shape.layers), 0)
        for tensor in self.tensors:
            if tensor.layer is not None:
                sizes[tensor.layer] += tensor.nbytes
        return sizes

    @property
    def embedding_bytes(self) -> int:
        """Bytes of the matrix in which tokens are looked up."""
        return _total(tensor for tensor in self.tensors if tensor.is_embedding)

    @property
    def output_bytes(self) -> int:
        """Bytes of the output matrix and the last norm; a tied embedding counts, it is read as the output."""
        outside = _total(tensor for tensor in self.tensors if tensor.layer is None and not tensor.is_embedding)
        return outside + (self.embedding_bytes if self.shape.tied else 0)

    def multiplies(self, tensor: Stored) -> bool:
        """Whether a step reads this whole tensor: all but an embedding that is only looked up in."""
        return self.shape.tied or not tensor.is_embedding

    @property
    def read_bytes(self) -> int:
        """Bytes that a decode step must read whatever the batch: all but an embedding that is only looked up in."""
        return self.nbytes - (0 if self.shape.tied else self.embedding_bytes)


def _total(tensors: Iterable[Stored]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _layer(name: str) -> int | None:
    return int(name.split(".")[1]) if name.startswith("blk.") else None


def store(shape: str | Shape, storage: str) -> Weights:
    """Lay a model out in a mix or a format, without making a tensor.

    Parameters
    ----------
    shape : a preset's name, a path to a config.json, or a `Shape`
    storage : str
        A mix ("Q4_K_M") or a storage format ("int4-g128").

    Raises
    ------
    UnknownName
        No such model, or no such mix or format; the message lists those that exist.
    BadInput
        A format that cannot hold one of the model's widths.
    """
    return _lay_out(find_shape(shape), storage)


@lru_cache(256)  # a planner asks for the same again and again; what is returned cannot be changed
def _lay_out(shape: Shape, storage: str) -> Weights:
    tensors = shape.tensors()
    if storage in mixes.MIXES:
        plan = mixes.plan(tensors, storage, shape.mix_model)
        stored = [Stored(c.name, c.shape, c.type, c.nbytes, _layer(c.name)) for c in plan.choices]
        return Weights(shape, storage, tuple(stored))
    if storage not in formats():
        try:
            find_format(storage)  # a member of a family, such as int4-g96
        except UnknownName:
            raise UnknownName("mix or format", storage, dict.fromkeys([*mixes.MIXES, *formats()])) from None
    stored = []
    for name, size in tensors.items():
        quantized = len(size) == 2 and _layer(name) is not None
        kind = storage if quantized else KEPT
        try:
            nbytes = find_format(kind).nbytes(size) if quantized else ggml_type(kind).nbytes(size)
        except BadInput as problem:
            raise BadInput(f"{shape.name} {name}: {problem}") from problem
        stored.append(Stored(name, size, kind, nbytes, _layer(name)))
    return Weights(shape, storage, tuple(stored))
