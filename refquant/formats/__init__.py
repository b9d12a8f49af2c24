"""Bytes on disk <-> the numbers they stand for. Nothing here chooses a number; that is what `methods` does.

    bits         the only place where bit order is decided
    uniform      integer codes, scales and zero-points, as refquant keeps them in memory
    fp8          8-bit floats and their scales
    nf4          NormalFloat codes, block maxima, and these quantized in turn, as bitsandbytes
    llm_int8     8-bit integers and row maxima, as bitsandbytes
    mx           mxfp4 and nvfp4, as compressed-tensors (ggml's MXFP4 is in gguf_blocks)
    gguf_blocks  the block formats of GGUF files, ggml's names: Q4_0 ... Q6_K, IQ4_NL, TQ1_0, MXFP4
    gguf         the GGUF container: metadata and tensors
    imatrix      llama.cpp's importance files

and as the tensors of a safetensors checkpoint:

    file_tensor           a tensor with its type, those that NumPy lacks too
    checkpoint_layout     what the layouts share
    gptq                  GPTQ, versions 1 and 2
    awq                   AWQ's gemm layout; TinyChat's, read
    compressed_int        compressed-tensors: packed integers
    compressed_float      compressed-tensors: FP8, NVFP4, MXFP4; DeepSeek's fine-grained FP8
    compressed_tensors    compressed-tensors: which layer has which of them
    bitsandbytes          LLM.int8, NF4

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
