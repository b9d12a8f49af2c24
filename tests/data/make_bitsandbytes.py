"""Make `bitsandbytes.npz`: what bitsandbytes computes for a small matrix, so that the tests need not install it.

Run `python make_bitsandbytes.py` with bitsandbytes on a CPU with AVX-512 (without it, its int8 product is a float32
sum). `compute()` is what the test marked `interop` runs again. Decoded weights are kept as SHA-256 of their bytes.
"""

import hashlib
from pathlib import Path

import numpy as np

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
FILE = Path(__file__).with_name("bitsandbytes.npz")


def inputs() -> dict[str, np.ndarray]:
    """Weights with blocks of zeros, of one value, of extreme sizes; tokens with outlier columns, two at 6.0 itself."""
    rng = np.random.default_rng(5)
    w = rng.normal(0, 0.05, (24, 264)).astype(np.float32)  # 6336 weights: every block size from 128 on ends short
    w *= rng.lognormal(0, 0.5, (24, 1)).astype(np.float32)
    w[3, :64], w[5], w[7, :128] = 0, 0.25, -1e-6
    odd = rng.normal(0, 1, (3, 65)).astype(np.float32)
    x = rng.normal(0, 1, (12, 264)).astype(np.float32)
    x[:, 17], x[4, 90], x[5, 91], x[6, 92], x[9] = 40 * x[:, 17], 6.0, -6.0, np.nextafter(np.float32(6), 0), 0
    return {"w": w, "odd": odd, "x": x, "inverse": inverse_matters()}


def inverse_matters() -> np.ndarray:
    """Blocks of 64 whose codes differ between w * (1 / absmax) and w / absmax: weights at the middles of levels."""
    from bitsandbytes.functional import get_4bit_type

    levels = get_4bit_type("nf4", device="cpu").numpy()
    middles = (levels[:-1] + levels[1:]) / np.float32(2)
    blocks = []
    for absmax in np.random.default_rng(6).uniform(0.5, 2, 100).astype(np.float32):
        near = (middles * absmax)[:, None] + np.spacing(middles * absmax)[:, None] * np.arange(-1, 2, dtype=np.float32)
        by_inverse, by_division = near * (np.float32(1) / absmax), near / absmax
        differ = near[(by_inverse > middles[:, None]) != (by_division > middles[:, None])]
        if len(differ):
            blocks.append(np.resize(np.append(absmax, differ), 64))
    return np.array(blocks[:16], np.float32)


def compute(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All the arrays of the file for these inputs."""
    import bitsandbytes
    import torch
    from bitsandbytes import functional as F

    # The kernels written in Python, beside the compiled ones that a CPU takes by default.
    python_kernels = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    w, odd, x, inverse = (torch.from_numpy(given[name]) for name in ("w", "odd", "x", "inverse"))
    out = dict(given) | {"version": np.array(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}")}
    out["nf4"], out["dynamic"] = F.get_4bit_type("nf4", device="cpu").numpy(), F.create_dynamic_map().numpy()

    def nf4(key, weights, block, dq):
        codes, state = F.quantize_4bit(weights, blocksize=block, compress_statistics=dq, quant_type="nf4")
        out[f"{key}_codes"] = codes.numpy()
        out[f"{key}_absmax"] = state.absmax.numpy()
        if dq:
            out[f"{key}_offset"] = state.offset.numpy()
            out[f"{key}_nested"] = state.state2.absmax.numpy()
            absmax = F.quantize_4bit(weights, blocksize=block, quant_type="nf4")[1].absmax
            op = torch.ops.bitsandbytes.quantize_blockwise.default
            shifted = absmax - state.offset
            out[f"{key}_absmax_python"] = op.redispatch(python_kernels, shifted, state.state2.code, 256)[0].numpy()
        decoded = F.dequantize_4bit(codes, state).numpy()
        out[f"{key}_decoded"] = np.array(hashlib.sha256(decoded.tobytes()).hexdigest())

    for block in BLOCKS:
        for dq in (False, True):
            nf4(f"b{block}{'_dq' if dq else ''}", w, block, dq)
    nf4("odd", odd, 64, False)
    nf4("inverse", inverse, 64, False)

    CB, SCB, _ = F.int8_vectorwise_quant(w.half())
    out |= {"CB": CB.numpy(), "SCB": SCB.numpy(), "int8_decoded": F.int8_vectorwise_dequant(CB, SCB).numpy()[:2]}
    for key, threshold in (("mixed", 6.0), ("plain", 0.0)):
        CA, SCA, columns = F.int8_vectorwise_quant(x.half(), threshold=threshold)
        out |= {f"{key}_CA": CA.numpy(), f"{key}_SCA": SCA.numpy()}
        if threshold:
            out["columns"] = columns.numpy()
            y = torch.ops.bitsandbytes.int8_mixed_scaled_mm(x, CA, CB, SCA, SCB, columns)[0]
        else:
            y = torch.ops.bitsandbytes.int8_scaled_mm.default(CA, CB, SCA, SCB, dtype=torch.float32)
        out[f"{key}_y"] = y.numpy()
    return out


if __name__ == "__main__":
    np.savez_compressed(FILE, **compute(inputs()))
