"""Bytes on disk <-> the numbers they stand for. Nothing here chooses a number; that is what `methods` does.

    bits       the only place where bit order is decided
    uniform    integer codes, scales and zero-points, as refquant keeps them in memory
    fp8        8-bit floats and their scales
    nf4        NormalFloat codes, block maxima, and these quantized in turn, as bitsandbytes
    llm_int8   8-bit integers and row maxima, as bitsandbytes
    mx         MXFP4 and NVFP4, as compressed-tensors

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
