"""Bytes on disk <-> the numbers they stand for. Nothing here chooses a number; that is what `methods` does.

    bits         the only place where bit order is decided
    uniform      integer codes, scales and zero-points, as refquant keeps them in memory
    gguf_blocks  the block formats of GGUF files, ggml's names: Q4_0 ... Q6_K, IQ4_NL, TQ1_0, MXFP4
    gguf         the GGUF container: metadata and tensors
    imatrix      llama.cpp's importance files

`refquant.formats()` lists every storage format by name, so this package can also be called.
"""

import sys
import types

from refquant.quantized import formats as _names


class _Callable(types.ModuleType):
    def __call__(self) -> list[str]:
        """Every storage format by name."""
        return _names()


sys.modules[__name__].__class__ = _Callable  # `formats` is a folder and a public function: both names stay true
