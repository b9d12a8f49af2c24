"""Programs that decode and encode GGUF's block formats."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from refquant.errors import Unavailable
from refquant.verify.command import Command


def xllamacpp() -> Command:
    """The shared library in xllamacpp's wheel, through ctypes in a process of its own."""
    package = importlib.util.find_spec("xllamacpp").submodule_search_locations[0]
    for path in sorted(Path(package).rglob("*.so*")):
        if b"ggml_quantize_chunk" in path.read_bytes():
            return Command.library(str(path), 60)
    raise Unavailable(f"no library in {package} has ggml_quantize_chunk")


class GGUFPy:
    """`gguf.quants`: NumPy; encodes only the older formats, and raises NotImplementedError for the rest."""

    def __init__(self):
        import gguf

        self.gguf, self.types = gguf, gguf.GGMLQuantizationType

    def dequantize(self, blocks, *, format, shape):  # noqa: A002
        """As `gguf.quants.dequantize`."""
        if format in ("E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ") or not isinstance(blocks, np.ndarray):
            raise NotImplementedError("GGUF types only")
        return self.gguf.quants.dequantize(blocks, self.types[format]).astype(np.float32)

    def quantize(self, w, *, format, importance=None):  # noqa: A002
        """As `gguf.quants.quantize`, which knows no importance."""
        if format not in self.types.__members__ or importance is not None:
            raise NotImplementedError("GGUF types, without importance")
        return self.gguf.quants.quantize(w, self.types[format])


class LibGGUF:
    """`libgguf.quantize_rows` and `dequantize_rows`: ggml's functions, compiled, with NumPy arrays."""

    def __init__(self):
        import libgguf

        self.library, self.types = libgguf, libgguf.GGMLQuantizationType

    def dequantize(self, blocks, *, format, shape):  # noqa: A002
        """As `libgguf.dequantize_rows`."""
        if format in ("E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ") or not isinstance(blocks, np.ndarray):
            raise NotImplementedError("GGUF types only")
        if format in ("F32", "F16", "BF16"):
            raise NotImplementedError("dequantize_rows is for block types")
        return np.asarray(self.library.dequantize_rows(blocks, self.types[format], shape[1])).reshape(shape)

    def quantize(self, w, *, format, importance=None):  # noqa: A002
        """As `libgguf.quantize_rows`."""
        if format not in self.types.__members__:
            raise NotImplementedError("GGUF types only")
        out = self.library.quantize_rows(w, self.types[format], imatrix=importance)
        return np.asarray(out).view(np.uint8).reshape(len(w), -1)


class TransformersGGUF:
    """transformers' `load_gguf_checkpoint` on a file of one matrix, `blk.0.ffn_down.weight`."""

    def dequantize(self, blocks, *, format, shape):  # noqa: A002
        """Write the blocks with gguf-py, load the file, take the tensor."""
        import gguf
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
        from transformers.utils import logging

        if format in ("E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ") or not isinstance(blocks, np.ndarray):
            raise NotImplementedError("GGUF types only")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        n, k = shape
        config = LlamaConfig(
            hidden_size=n, intermediate_size=k, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            writer.add_name("one")
            writer.add_block_count(1)
            data = blocks.view(np.float32) if format == "F32" else blocks
            data = blocks.view(np.float16) if format == "F16" else data
            raw = None if format in ("F32", "F16") else gguf.GGMLQuantizationType[format]
            writer.add_tensor("blk.0.ffn_down.weight", data, raw_dtype=raw)
            for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
                step()
            writer.close()
            tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
        return tensors["model.layers.0.mlp.down_proj.weight"].float().numpy()
