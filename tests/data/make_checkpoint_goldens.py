"""Make checkpoint_goldens.npz: layers packed by GPTQModel, AutoAWQ, compressed-tensors and bitsandbytes.

Each case holds the numbers that went in (codes, scales, zeros, g_idx) and, under "file/", the tensors that the peer
made of them. Run it where the peers are installed (they are not needed for the tests)::

    pip install --no-deps gptqmodel==7.6.0 compressed-tensors==0.20.0 bitsandbytes==0.50.2
    pip download --no-deps --no-binary :all: autoawq==0.2.9       # unpack it; give its folder as the argument
    python tests/data/make_checkpoint_goldens.py autoawq-0.2.9

AutoAWQ is no longer maintained and does not import beside current transformers, so its two modules are loaded alone.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).with_name("checkpoint_goldens.npz")
cases = {}


def numbers(seed, n, k, g, bits, sym):
    """Codes, scales and zero-points [n, ...], and the weights they stand for, exact in float32."""
    rng = np.random.default_rng(seed)
    groups = -(-k // g)
    codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    scales = (2.0 ** rng.integers(-9, -3, (n, groups))).astype(np.float16)  # powers of two: no rounding anywhere
    zeros = np.full((n, groups), 1 << bits - 1, np.uint8)
    if not sym:
        zeros = rng.integers(0, 1 << bits, (n, groups)).astype(np.uint8)
    return codes, scales, zeros


def linear(codes, scales, zeros, g_idx):
    """A torch Linear with the weights that the numbers stand for."""
    w = (codes.astype(np.float32) - zeros[:, g_idx]) * scales.astype(np.float32)[:, g_idx]
    layer = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(w)
    return layer


RAW = {torch.bfloat16: ("BF16", torch.int16, np.uint16), torch.float8_e4m3fn: ("F8_E4M3", torch.uint8, np.uint8)}


def keep(name, fields, tensors):
    """Types that NumPy lacks are kept as bits, with safetensors' name after a colon."""
    for key, value in fields.items():
        cases[f"{name}/{key}"] = np.ascontiguousarray(value)
    for key, value in tensors.items():
        value = value.detach()
        if value.dtype in RAW:
            tag, view, dtype = RAW[value.dtype]
            cases[f"{name}/file/{key}:{tag}"] = value.contiguous().view(view).numpy().view(dtype)
        else:
            cases[f"{name}/file/{key}"] = np.asarray(value.numpy(), order="C")


def gptq():
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    # name: bits, k, group size, symmetric, act-order
    kinds = {
        f"{bits}bit-{'sym' if sym else 'asym'}": (bits, 64, 32, sym, False)
        for bits in (2, 3, 4, 8)
        for sym in (True, False)
    }
    kinds |= {
        "ragged": (4, 96, 64, False, False),
        "row": (4, 64, 64, False, False),
        "act-order": (4, 64, 16, False, True),
    }
    for seed, (name, (bits, k, g, sym, act)) in enumerate(kinds.items()):
        codes, scales, zeros = numbers(seed, 32, k, g, bits, sym)
        g_idx = np.arange(k) // g
        if act:
            g_idx = np.random.default_rng(9).permutation(g_idx)
        layer = linear(codes, scales, zeros, g_idx)
        for version in (2, 1):
            packed = TorchLinear(
                bits=bits,
                group_size=g,
                sym=sym,
                desc_act=act,
                in_features=k,
                out_features=32,
                bias=False,
                register_buffers=False,
            )
            packed.pack_block(
                layer, torch.from_numpy(scales).float(), torch.from_numpy(zeros).int(), torch.from_numpy(g_idx).int()
            )
            if version == 1:
                config = QuantizeConfig(bits=bits, group_size=g, sym=sym, desc_act=act)
                convert_gptq_v2_to_v1_format_module(packed, config)
            tensors = {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
            fields = {"codes": codes, "scales": scales, "zeros": zeros, "g_idx": g_idx.astype(np.int32)}
            keep(f"gptq-v{version}-{name}", fields, tensors)


def awq(folder):
    awq_module = types.ModuleType("awq.utils.module")
    awq_module.try_import = lambda name: (None, "")
    utils = types.ModuleType("awq.utils.utils")
    utils.get_best_device = lambda: "cpu"
    packing = types.ModuleType("awq.utils.packing_utils")
    packing.dequantize_gemm = None
    sys.modules |= {"awq.utils.module": awq_module, "awq.utils.utils": utils, "awq.utils.packing_utils": packing}
    loaded = {}
    for name in ("gemm", "gemv_fast"):
        spec = importlib.util.spec_from_file_location(name, Path(folder) / f"awq/modules/linear/{name}.py")
        loaded[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    for seed, g in enumerate((64, 128)):
        codes, scales, zeros = numbers(20 + seed, 32, 128, g, 4, sym=False)
        layer = linear(codes, scales, zeros, np.arange(128) // g)
        fields = {"codes": codes, "scales": scales, "zeros": zeros}
        s, z = torch.from_numpy(scales).float(), torch.from_numpy(zeros).int()
        packed = loaded["gemm"].WQLinear_GEMM.from_linear(layer, 4, g, scales=s.T.contiguous(), zeros=z.T.contiguous())
        keep(f"awq-g{g}", fields, {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales")})
        packed = loaded["gemv_fast"].WQLinear_GEMVFast.from_linear(layer, 4, g, scales=s, zeros=z)
        keep(f"tinychat-g{g}", fields, {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales")})


def compressed_int():
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    for seed, (name, bits, k, g, sym) in enumerate(
        [
            ("int4-sym", 4, 64, 32, True),
            ("int4-asym", 4, 64, 32, False),
            ("int8-sym", 8, 64, 32, True),
            ("int8-asym", 8, 64, 32, False),
            ("int3-asym", 3, 60, 20, False),
            ("channel", 4, 52, 52, True),
            ("channel-asym", 4, 52, 52, False),
        ]
    ):
        codes, scales, zeros = numbers(40 + seed, 20, k, g, bits, sym)
        layer = linear(codes, scales, zeros, np.arange(k) // g)
        strategy = {"strategy": "channel"} if "channel" in name else {"strategy": "group", "group_size": g}
        scheme = QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(num_bits=bits, symmetric=sym, **strategy)
        )
        signed = torch.from_numpy(zeros.astype(np.int16) - (1 << bits - 1)).to(torch.int8)
        state = {"weight": layer.weight.data, "weight_scale": torch.from_numpy(scales), "weight_zero_point": signed}
        tensors = PackedQuantizationCompressor.compress(state, scheme)
        keep(f"pack-{name}", {"codes": codes, "scales": scales, "zeros": zeros}, tensors)


def compressed_float():
    """Weights quantized by the library itself; "decoded" is what it makes of its file again."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    kinds = {
        "float-quantized-channel": {"num_bits": 8, "strategy": "channel"},
        "float-quantized-tensor": {"num_bits": 8, "strategy": "tensor"},
        "float-quantized-block": {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]},
        "nvfp4-pack-quantized": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16},
        "mxfp4-pack-quantized": {"num_bits": 4, "strategy": "group", "group_size": 32},
    }
    for seed, (name, settings) in enumerate(kinds.items()):
        n, k = (150, 136) if "block" in name else (12, 96)
        w = torch.from_numpy(np.random.default_rng(60 + seed).normal(size=(n, k)).astype(np.float32))
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(type="float", **settings))
        state = {"weight": w}
        if name.startswith("float"):
            blocks = {"channel": (1, k), "tensor": (n, k), "block": (128, 128)}[settings["strategy"]]
            scale = torch.stack(
                [
                    torch.stack([part.abs().max() / 448 for part in rows.split(blocks[1], 1)])
                    for rows in w.split(blocks[0])
                ]
            )
            state["weight_scale"] = scale[0] if settings["strategy"] == "tensor" else scale
        else:
            g = settings["group_size"]
            low, high = (f(w.reshape(n, k // g, g), dim=-1) for f in (torch.amin, torch.amax))
            if g == 16:
                state["weight_global_scale"] = generate_gparam(w.min(), w.max())
            scale, _ = calculate_qparams(low, high, scheme.weights, state.get("weight_global_scale"))
            state["weight_scale"] = scale.float()
        kind = name if "pack" in name else "float-quantized"
        compressor = BaseCompressor.get_value_from_registry(kind)
        tensors = compressor.compress(state, scheme)
        decoded = compressor.decompress(tensors, scheme)["weight"]
        keep(name, {"decoded": decoded.float().numpy()}, tensors)


def bitsandbytes():
    """Weights quantized by the library itself; "decoded" is what it makes of its tensors again.

    Rows are whole blocks: where they are not, bitsandbytes' CPU decoder does not return what its encoder was given.
    """
    import bitsandbytes.functional as bnb

    w = torch.from_numpy(np.random.default_rng(80).normal(size=(24, 128)).astype(np.float32))
    for name, block, double in (("nf4", 64, False), ("nf4-dq", 64, True), ("nf4-b128", 128, False)):
        codes, state = bnb.quantize_4bit(w, blocksize=block, quant_type="nf4", compress_statistics=double)
        tensors = {"weight": codes} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        keep(f"bnb-{name}", {"decoded": bnb.dequantize_4bit(codes, state).numpy()}, tensors)
    codes, scb, _ = bnb.int8_vectorwise_quant(w.half())
    tensors = {"weight": codes, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    keep("bnb-int8", {"decoded": bnb.int8_vectorwise_dequant(codes, scb).numpy()}, tensors)


if __name__ == "__main__":
    gptq()
    awq(sys.argv[1])
    compressed_int()
    compressed_float()
    bitsandbytes()
    np.savez_compressed(OUT, **cases)
    print(OUT, OUT.stat().st_size, sorted({key.split("/")[0] for key in cases}))
