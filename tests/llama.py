"""llama.cpp itself, through ctypes: loads a GGUF file, encodes text, gives logits. Nothing of refquant is used here.

The library is the one inside the `xllamacpp` wheel. Its parameter structs are made by its own `..._default_params`; the
few fields that are changed lie at offsets of llama.h, and their default values are checked first.
"""

import ctypes
import functools
import importlib.util
import struct
from pathlib import Path

import numpy as np


class Params(ctypes.Structure):
    """Room for a parameter struct; x86-64 passes one of this size by copying it, so too much room does no harm."""

    _fields_ = (("bytes", ctypes.c_ubyte * 512),)


class Batch(ctypes.Structure):
    """llama_batch: a count and six pointers."""

    _fields_ = (("n_tokens", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6))


@functools.cache
def library():
    """The library, its log silenced."""
    package = Path(importlib.util.find_spec("xllamacpp").submodule_search_locations[0])
    handle = ctypes.CDLL(str(next(package.glob("*.so"))))
    pointer, i32 = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", Params, []),
        ("llama_context_default_params", Params, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Params]),
        ("llama_init_from_model", pointer, [pointer, Params]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", i32, [pointer]),
        ("llama_tokenize", i32, [pointer, ctypes.c_char_p, i32, pointer, i32, ctypes.c_bool, ctypes.c_bool]),
        ("llama_batch_get_one", Batch, [pointer, i32]),
        ("llama_decode", i32, [pointer, Batch]),
        ("llama_get_logits_ith", pointer, [pointer, i32]),
        ("llama_set_n_threads", None, [pointer, i32, i32]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
    ):
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    handle.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
    handle.llama_log_set(handle.quiet, None)
    handle.llama_backend_init()
    return handle


def _set(params, at, code, default, value):
    assert struct.unpack_from(code, params.bytes, at) == (default,), "another layout of llama_context_params"
    struct.pack_into(code, params.bytes, at, value)


class Llama:
    """A model in llama.cpp; float32 keys and values, no flash attention, one thread."""

    def __init__(self, path, context=512):
        self.lib = library()
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        assert self.model, f"llama.cpp refuses {path}"
        params = self.lib.llama_context_default_params()
        _set(params, 0, "I", 512, context)
        _set(params, 52, "i", -1, 0)  # flash_attn_type: automatic -> off
        _set(params, 104, "i", 1, 0)  # type_k: F16 -> F32
        _set(params, 108, "i", 1, 0)  # type_v
        self.context = self.lib.llama_init_from_model(self.model, params)
        assert self.context
        self.lib.llama_set_n_threads(self.context, 1, 1)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocab)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokenize(self, text, special=True):
        """Token ids of a text; `special` adds BOS where the model wants it, and special tokens are recognised."""
        data = text.encode()
        out = np.empty(len(data) + 8, np.int32)
        count = self.lib.llama_tokenize(self.vocab, data, len(data), out.ctypes.data, len(out), special, True)
        return out[:count].tolist()

    def feed(self, ids):
        """Logits float32 [vocabulary] after these tokens, which follow those fed before."""
        ids = np.array(ids, np.int32)
        assert self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(ids.ctypes.data, len(ids))) == 0
        address = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (self.size,)).copy()

    def greedy(self, ids, count):
        """The most likely continuation, token by token, and the logits that chose each."""
        out, logits = [], [self.feed(ids)]
        for _ in range(count):
            out.append(int(logits[-1].argmax()))
            logits.append(self.feed(out[-1:]))
        return out, np.array(logits[:-1])
