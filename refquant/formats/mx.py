"""MXFP4 and NVFP4 as compressed-tensors' files hold them. (ggml's own `MXFP4` is in `gguf_blocks`.)

A matrix [n, k]; k must be a multiple of the block, 32 or 16::

    array                 dtype     shape         meaning                                  mxfp4    nvfp4
    weight_packed         uint8     [n, k / 2]    two E2M1 codes a byte, first in the low half
    weight_scale          uint8     [n, k / 32]   E8M0                                     yes
    weight_scale          uint8     [n, k / 16]   E4M3, sign 0                                      yes
    weight_global_scale   float32   [1]           divides                                           yes

    byte i   bit 7  6  5  4 | 3  2  1  0          E2M1   s [ e ] f
                 code 2i+1  |  code 2i

    mxfp4   weight = E2M1[code] * 2^(weight_scale - 127)
    nvfp4   weight = E2M1[code] * (E4M3[weight_scale] / weight_global_scale)

Bits per weight: 4 + 8 / 32 = 4.25 and 4 + 8 / 16 = 4.5 (and four bytes for the matrix). Random bytes are legal: the
scale 255 (E8M0) or 0x7F (E4M3) makes a block of NaN.

Against other code: ModelOpt's NVFP4 files hold the inverse of the global scale, which then multiplies, and call it
`weight_scale_2`.
Leaves out: the interleaved order in which GPUs want the scales.
"""

import numpy as np

from refquant import ops
from refquant.codebooks import E2M1, E4M3, e8m0
from refquant.errors import BadInput
from refquant.formats.bits import pack_bits, unpack_bits
from refquant.quantized import Format, register_format


def _layout(name: str, block: int):
    def layout(n, k):
        if k % block:
            raise BadInput(f"{name} has blocks of {block}; a row of {k} weights does not divide into them")
        return {"weight_packed": ((n, k // 2), ("uint8",)), "weight_scale": ((n, k // block), ("uint8",))}

    return layout


def _with_global(n, k):
    return _layout("nvfp4", 16)(n, k) | {"weight_global_scale": ((1,), ("float32",))}


register_format(Format("mxfp4", "mxfp4", _layout("mxfp4", 32)))
register_format(Format("nvfp4", "nvfp4", _with_global))


@ops.part("pack", "mxfp4", "nvfp4")
def pack(fields: dict, name: str) -> dict:
    """Pack codes [n, k] and scales uint8 [n, G]; nvfp4 has a global_scale [1] too."""
    arrays = {"weight_packed": pack_bits(fields["codes"], 4), "weight_scale": fields["scales"]}
    return arrays if name == "mxfp4" else arrays | {"weight_global_scale": fields["global_scale"]}


@ops.part("unpack", "mxfp4", "nvfp4")
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return codes uint8 [n, k], scales uint8 [n, G], and of nvfp4 the global_scale [1]."""
    fields = {"codes": unpack_bits(arrays["weight_packed"], 4, shape[1]), "scales": arrays["weight_scale"]}
    return fields if name == "mxfp4" else fields | {"global_scale": arrays["weight_global_scale"]}


@ops.part("decode", "mxfp4", "nvfp4")
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]."""
    codes, scales = fields["codes"], fields["scales"]
    scale = e8m0(scales) if name == "mxfp4" else E4M3.decode(scales) / fields["global_scale"]
    return E2M1.decode(codes) * np.repeat(scale, codes.shape[1] // scales.shape[1], axis=1)
