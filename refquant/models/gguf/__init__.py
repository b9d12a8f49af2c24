"""GGUF files and models of transformers: Llama, Mistral, Qwen2, Qwen3, Gemma 3.

    architectures  what both sides call the same things: hyperparameters, tensors, the order of rows
    tokenizer      the tokenizer inside the file
    convert        export(model, ...), convert(folder, ...) -> file;  load(path) -> model, tokenizer
    importance     the importance matrix, measured on text

The container itself is `refquant.formats.gguf`, the choice of types `refquant.methods.mixes`.
"""

from refquant.models.gguf.convert import Source, convert, export, gguf_to_config, gguf_to_state, load, write_model
from refquant.models.gguf.importance import importance
from refquant.models.gguf.tokenizer import gguf_tokenizer, tokenizer_metadata

__all__ = [
    "Source",
    "convert",
    "export",
    "gguf_to_config",
    "gguf_to_state",
    "gguf_tokenizer",
    "importance",
    "load",
    "tokenizer_metadata",
    "write_model",
]
