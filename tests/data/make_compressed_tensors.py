"""Make `compressed_tensors.npz`: what compressed-tensors computes for NVFP4, MXFP4 and dense codes.

It is committed so that the tests need not install it. Run `python make_compressed_tensors.py` with compressed-tensors
installed. `compute()` is what the test marked `interop` runs again.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("compressed_tensors.npz")


def inputs() -> dict[str, np.ndarray]:
    """Weights with blocks of zeros, of tiny values, with ties of E2M1; and block maxima around powers of two."""
    rng = np.random.default_rng(7)
    w = rng.normal(0, 0.05, (24, 128)).astype(np.float32) * rng.lognormal(0, 1, (24, 1)).astype(np.float32)
    w[2, :64] = 0
    w[3, :32] = np.tile([6, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25], 4) * np.tile([1, -1], 16)
    w[4, :16], w[4, 16:32] = 1e-4, 1e-7
    mantissas = np.array([1, 1.2, 1.4999, 1.5, 1.74, 1.75, 1.76, 1.999], np.float32)
    peaks = np.concatenate([mantissas * np.float32(2.0**e) for e in (-20, -1, 0, 1, 7)])
    codes = {f"codes{bits}": rng.integers(0, 2**bits, (3, 37), np.uint8) for bits in (3, 5, 6)}  # 37: not whole words
    return {"w": w, "peaks": peaks} | codes


def compute(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All the arrays of the file for these inputs."""
    from importlib.metadata import version

    import torch
    from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam
    from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

    w = torch.from_numpy(given["w"])
    out = dict(given) | {"version": np.array(f"compressed-tensors {version('compressed-tensors')}")}
    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn
    )
    blocks = w.reshape(len(w), -1, 16)
    global_scale = generate_gparam(w.min(), w.max())
    scales, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=global_scale)
    out["nvfp4_global"] = global_scale.numpy()
    out["nvfp4_scales"] = scales.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    out["nvfp4_packed"] = quantize_and_pack_fp4(w, scales.float(), global_scale, None, 16).numpy()
    out["mxfp4_exponents"] = generate_mx_scales(torch.from_numpy(given["peaks"])).numpy().astype(np.uint8)
    for bits in (3, 5, 6):
        signed = given[f"codes{bits}"].astype(np.int8) - np.int8(2 ** (bits - 1))
        out[f"words{bits}"] = pack_to_int32(torch.from_numpy(signed), bits).numpy()
    return out


if __name__ == "__main__":
    np.savez_compressed(FILE, **compute(inputs()))
