"""The tables of `refquant bench gpu` about quantizing: encoders, GPTQ, AWQ's search, LLM.int8's product.

Weights, 4096 x 4096 float32, are on the GPU already; three matrices take turns, 200 MB, more than the L2 cache holds.
Encoders and single kernels are replays of a CUDA graph. GPTQ and AWQ wait for the GPU within, so they, and LLM.int8,
are timed by the clock from call to last result: the median of `runs`, after one that is not counted.

    encoders      every format, and with an importance; the rungs of Q4_K, IQ4_XS and int4-g128
    methods       GPTQ (Hessian given) and its parts, AWQ's search, LLM.int8's product against cuBLAS float16
"""

import statistics
import time
from dataclasses import replace

from refquant import ops
from refquant.grids import as_grid

SOURCES = ("quantize_k.cu", "quantize_k_plain.cu", "quantize_legacy.cu", "quantize_iq.cu", "quantize_rounded.cu")
SOURCES += ("quantize_int.cu", "quantize_codebook.cu", "gptq.cu", "int8.cu")
N = K = 4096
BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
BLOCKS += ("TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16")
GRIDS = ("int4-g128", "int8-g32", "int2-g64", "int3-g128", "int8-row")


def _row(table, name, us, n=N, k=K, m=1, nbytes=0):
    return {"table": table, "name": name, "n": n, "k": k, "tokens": m, "us": us, "bytes": nbytes}


def encoders(b):
    """Encode 16.8 million weights in every format."""
    from refquant_kernels.cuda import encoders as e
    from refquant_kernels.cuda import quantize_grids as g
    from refquant_kernels.cuda.tensors import STRICT

    torch = b.torch
    some = [torch.randn(N, K, device=b.device) * 0.02 for _ in range(3)]
    importance = torch.rand(K, device=b.device) + 0.1

    def row(name, make, title=None):
        least = ops.traffic("quantize", (N, K), name).bytes
        return _row("encoders", title or name, b.microseconds([lambda w=w: make(w) for w in some]), nbytes=least)

    out = torch.empty(N, K // 256 * 144, dtype=torch.uint8, device=b.device)
    for rung, blocks in (("v1", 128), ("v2", 16)):  # of the format, to a thread block
        kernel, grid = b.launch.load("quantize_k_plain.cu", f"q4_k_{rung}", STRICT), N * K // 256 // blocks
        yield row("Q4_K", lambda w, f=kernel, c=grid: f((c, 1, 1), (128, 1, 1), w, N * K // 256, out), f"{rung} Q4_K")
    plain = replace(e.ENCODERS["IQ4_XS"], defines={"SUB_BLOCKS": 8, "LOOKUP": 0})
    yield row("IQ4_XS", lambda w: e.launch_encoder(plain, w, out), "v1 IQ4_XS")
    for name in BLOCKS:
        yield row(name, lambda w, f=name: e.encode(w, f))
        if e.ENCODERS[name].importance:
            yield row(name, lambda w, f=name: e.encode(w, f, importance), f"{name}, importance")
    yield row("int4-g128", lambda w: g.encode_in_steps(w, as_grid("int4-g128")), "v1 int4-g128")
    for name in GRIDS:
        yield row(name, lambda w, f=name: g.encode_unchecked(w, as_grid(f)))
    yield row("nf4", lambda w: g.encode_nf4(w, as_grid("nf4")))
    scales = torch.rand(N, 1, device=b.device) + 0.01
    yield row("fp8-e4m3", lambda w: g.cast_fp8(w, scales, as_grid("fp8-e4m3")), "cast fp8-e4m3")


def methods(b):
    """What is timed by the clock."""
    from refquant_kernels.cuda import awq, gptq
    from refquant_kernels.cuda import quantize_grids as g

    torch, grid = b.torch, as_grid("int4-g128")

    def clock(call) -> float:
        spent = []
        for _ in range(b.runs + 1):
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            spent.append(1e6 * (time.perf_counter() - began))
        return statistics.median(spent[1:])

    for k in (4096, 8192):
        x = torch.randn(2 * k, k, device=b.device) * torch.exp(torch.randn(k, device=b.device))
        w, H = torch.randn(k, k, device=b.device) * 0.02, 2 / len(x) * x.T @ x
        del x
        least = ops.traffic("gptq", (k, k), grid.name).bytes
        yield _row("methods", "gptq int4-g128", clock(lambda: gptq.quantize_tensors(w, H, grid)), k, k, nbytes=least)  # noqa: B023
        wide = H.double()
        factor = clock(lambda: gptq.inverse_factor(wide, 0.01))  # noqa: B023
        yield _row("methods", "gptq, of that the factor", factor, k, k, nbytes=12 * k * k)
        del wide
    tokens, w = torch.randn(512, K, device=b.device), torch.randn(N, K, device=b.device) * 0.02
    candidates = [torch.rand(K, device=b.device) + 0.5 for _ in range(20)]
    us, least = clock(lambda: awq.output_errors([w], tokens, grid, candidates)), 4 * N * K + 4 * 512 * K
    yield _row("methods", "awq, 20 exponents", us, m=512, nbytes=least)
    codes, largest = g.int8_rows(w.half())
    for m in (1, 512, 4096):
        x = torch.randn(m, K, device=b.device)
        x[0, ::500] = 8
        half, wide = x.half(), w.half()
        peer = clock(lambda: half @ wide.T)  # noqa: B023
        us = clock(lambda: g.multiply_int8(x, codes, largest))  # noqa: B023
        yield _row("methods", "llm-int8 product", us, m=m, nbytes=N * K + 4 * m * (N + K))
        yield _row("methods", "float16 product, cuBLAS", peer, m=m, nbytes=2 * N * K + 2 * m * (N + K))


TABLES = {"encoders": encoders, "methods": methods}
