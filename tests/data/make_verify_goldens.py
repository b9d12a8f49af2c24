"""Make verify_goldens.npz: bytes and weights of three programs that the tests do not install, for the conformance kit.

What it adds to `checkpoint_goldens.npz`: GPTQ layers whose zero-points take every value (for version 1, every value but
0); the same numbers packed by AutoAWQ and by GPTQModel; what the code published with the GPTQ paper makes of layers
with correlated inputs, dead inputs and few tokens. Run it where the peers are::

    pip download --no-deps --no-binary :all: autoawq==0.2.9 gptqmodel==7.6.0        # unpack both
    git clone https://github.com/IST-DASLab/gptq && git -C gptq checkout 2d65066
    python tests/data/make_verify_goldens.py autoawq-0.2.9 gptqmodel-7.6.0 gptq
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).with_name("verify_goldens.npz")
autoawq, gptqmodel, published = sys.argv[1:4]
cases = {}


def numbers(seed, n, k, g, bits, low=0):
    """Codes with every value in a row, scales that are powers of two, zero-points from `low` up through all values."""
    rng = np.random.default_rng(seed)
    groups = -(-k // g)
    codes = rng.permuted(np.resize(np.arange(1 << bits), (n, k)), axis=1).astype(np.uint8)
    scales = (2.0 ** rng.integers(-9, -3, (n, groups))).astype(np.float16)
    zeros = rng.permutation(np.resize(np.arange(low, 1 << bits), n * groups)).reshape(n, groups).astype(np.uint8)
    return codes, scales, zeros


def linear(codes, scales, zeros, g):
    group = np.arange(codes.shape[1]) // g
    w = (codes.astype(np.float32) - zeros[:, group]) * scales.astype(np.float32)[:, group]
    layer = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(w)
    return layer


def keep(name, **arrays):
    for key, value in arrays.items():
        cases[f"{name}/{key}"] = np.asarray(value, order="C")


def pack_gptq(layer, codes, scales, zeros, g, bits, version):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    n, k = codes.shape
    packed = TorchLinear(
        bits=bits, group_size=g, sym=False, desc_act=False, in_features=k, out_features=n, bias=False,
        register_buffers=False,
    )  # fmt: skip
    g_idx = torch.arange(k, dtype=torch.int32) // g
    packed.pack_block(layer, torch.from_numpy(scales).float(), torch.from_numpy(zeros).int(), g_idx)
    if version == 1:
        convert_gptq_v2_to_v1_format_module(packed, QuantizeConfig(bits=bits, group_size=g, sym=False, desc_act=False))
    return {f"file/{key}": getattr(packed, key).numpy() for key in ("qweight", "qzeros", "scales", "g_idx")}


def gptq_files():
    sys.path.insert(0, gptqmodel)
    for bits in (2, 3, 4, 8):
        for version, low in ((2, 0), (1, 1)):
            codes, scales, zeros = numbers(100 + bits, 32, 128, 16, bits, low)
            layer = linear(codes, scales, zeros, 16)
            files = pack_gptq(layer, codes, scales, zeros, 16, bits, version)
            keep(f"zeros-{bits}bit-v{version}", codes=codes, scales=scales, zeros=zeros, **files)


def awq_and_gptq():
    utils = {
        "awq.utils.module": {"try_import": lambda name: (None, "")},
        "awq.utils.utils": {"get_best_device": lambda: "cpu"},
        "awq.utils.packing_utils": {"dequantize_gemm": None},
    }
    for name, content in utils.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("gemm", Path(autoawq) / "awq/modules/linear/gemm.py")
    gemm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gemm)
    codes, scales, zeros = numbers(120, 32, 128, 32, 4)
    codes[:, 0] = np.resize(np.arange(8), 32)  # outputs 0..7 with codes 0..7: the word 0x75316420
    layer = linear(codes, scales, zeros, 32)
    s, z = torch.from_numpy(scales).float(), torch.from_numpy(zeros).int()
    packed = gemm.WQLinear_GEMM.from_linear(layer, 4, 32, scales=s.T.contiguous(), zeros=z.T.contiguous())
    files = {f"awq/{key}": getattr(packed, key).numpy() for key in ("qweight", "qzeros", "scales")}
    gptq = pack_gptq(layer, codes, scales, zeros, 32, 4, 2)
    keep("awq-and-gptq", codes=codes, scales=scales, zeros=zeros, **files, **gptq)


def layer_for_gptq(kind):
    """Weights [24, 128] and the inputs of a layer: correlated; two of them dead; fewer tokens than inputs, doubled."""
    rng = np.random.default_rng(140)
    k, tokens = 128, 40 if kind == "few" else 512
    mix = rng.normal(size=(k, k)) / np.sqrt(k) + np.eye(k)
    x = rng.normal(size=(tokens, k)) @ mix * np.exp(rng.normal(size=k) / 2)
    w = (rng.normal(size=(24, k)) / 8).astype(np.float32)
    if kind == "dead":
        x[:, [5, 77]] = 0
    if kind == "few":
        x[:, 64:70] = x[:, :6]  # features that are one and the same
    return w, x.astype(np.float32)


def gptq_method():
    sys.path.insert(0, published)
    import gptq
    import quant

    torch.cuda.synchronize = lambda: None  # it times itself on a GPU
    for kind, blocks in (("correlated", (1, 32, 128)), ("dead", (128,)), ("few", (128,))):
        w, x = layer_for_gptq(kind)
        h = (2 / len(x) * x.astype(np.float64).T @ x).astype(np.float32)
        keep(f"gptq-{kind}", w=w, hessian=h)
        for block in blocks:
            layer = torch.nn.Linear(*w.shape[::-1], bias=False)
            layer.weight.data = torch.from_numpy(w.copy())
            job = gptq.GPTQ(layer)
            job.H = torch.from_numpy(h.copy())
            job.quantizer = quant.Quantizer()
            job.quantizer.configure(4, perchannel=True, sym=False, mse=False)
            job.fasterquant(blocksize=block, percdamp=0.01, groupsize=32)
            keep(f"gptq-{kind}", **{f"b{block}": layer.weight.data.numpy()})


if __name__ == "__main__":
    gptq_method()
    gptq_files()
    awq_and_gptq()
    np.savez_compressed(OUT, **cases)
