"""A small case of each kernel, to be run under NVIDIA's checker; prints how many ran.

compute-sanitizer --tool memcheck python tests/gpu/small_cases.py
compute-sanitizer --tool racecheck python tests/gpu/small_cases.py
"""

import numpy as np
import torch
from refquant_kernels.cuda import decoder, dequantize, launch, products, quantize_grids, strips

import refquant as rq

DEVICE = torch.device("cuda", 0)


def packed(name: str, n: int, k: int):
    """Random weights in strips."""
    return strips.pack(rq.quantize(np.random.default_rng(0).standard_normal((n, k)).astype(np.float32), name), DEVICE)


def main() -> None:
    """Run them."""
    for name in (*dequantize.BLOCKS, "int4-g128", "int3-g32-sym", "fp8-e4m3", "nf4", "nvfp4", "llm-int8"):
        rq.dequantize(rq.quantize(np.ones((3, 256), np.float32), name), backend="cuda")
    q = rq.quantize(np.random.default_rng(0).standard_normal((40, 512)).astype(np.float32), "int4-g128")
    x, y = torch.randn(1, 512, device=DEVICE).half(), torch.empty(1, 40, device=DEVICE)
    plain = [torch.from_numpy(q.arrays[key]).to(DEVICE) for key in ("codes", "scales", "zeros")]
    for rung in ("gemv_v1", "gemv_v2"):
        launch.load("gemv_plain.cu", rung, GROUP=128)((10, 1, 1), (128, 1, 1), *plain, x, y, 40, 512)
    w = strips.pack(q, DEVICE)
    v3 = launch.load("gemv.cu", "gemv_v3", WARPS=4, **products._types(x, y), **w.layout.defines)
    v3((3, 1, 1), (128, 1, 1), w.data, x, products._levels(w), y, 40, 512)
    for name in ("int4-g128", "Q4_K", "Q3_K", "Q2_K", "nf4", "nf4-b128", "int8-row"):
        for dtype in (torch.float16, torch.bfloat16):
            w = packed(name, 150, 768)
            for m in (1, 20):
                rows = torch.randn(m, 768, device=DEVICE).to(dtype)
                products.multiply(w, rows, torch.empty(m, 150, device=DEVICE))
                if m > 1:
                    products.gemm(w, rows, torch.empty(m, 150, device=DEVICE))
    shape = decoder.Shape(layers=1, width=256, heads=2, kv_heads=1, hidden=512, vocabulary=300, places=16)
    for linear in (
        lambda n, k: decoder.StripsLinear(packed("int4-g128", n, k)),
        lambda n, k: decoder.float16_linear(torch.randn(n, k, device=DEVICE).half()),
    ):
        model = decoder.Decoder(shape, linear, DEVICE)
        for _ in range(3):
            model.step()
    x = torch.randn(20, 256, device=DEVICE)
    x[:, ::9] = 8
    quantize_grids.multiply_int8(x, torch.ones(40, 256, dtype=torch.int8, device=DEVICE), torch.ones(40, device=DEVICE))
    data = torch.zeros(1 << 12, dtype=torch.int64, device=DEVICE)
    launch.load("read.cu", "read_all")((2, 1, 1), (64, 1, 1), data, products._nothing(DEVICE, torch.int32), 1 << 11)
    torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
