"""Programs that pack and unpack checkpoints, and that cast: on torch, except for ml_dtypes."""

from types import MappingProxyType

import numpy as np

NAMES = {"F16": "float16", "BF16": "bfloat16"}
RAW = {"F8_E4M3": "float8_e4m3fn", "BF16": "bfloat16"}


def _torch(arrays: dict, dtypes: dict) -> dict:
    """The tensors, with the types that NumPy lacks."""
    import torch

    found = {}
    for name, array in arrays.items():
        signed = array.view(np.int16) if array.dtype == np.uint16 else array
        tensor = torch.from_numpy(np.ascontiguousarray(signed).reshape(array.shape))
        found[name] = tensor.view(getattr(torch, RAW[dtypes[name]])) if name in dtypes else tensor
    return found


class GPTQModel:
    """gptqmodel's TorchLinear: `pack_block` and `dequantize_weight`, and its conversions between the versions."""

    formats = ("gptq", "gptq_v2")

    def _linear(self, shape, bits, group_size, sym, desc_act, buffers):
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear

        return TorchLinear(
            bits=bits, group_size=group_size, sym=sym, desc_act=desc_act, in_features=shape[1], out_features=shape[0],
            bias=False, register_buffers=buffers,
        )  # fmt: skip

    def pack(self, fields, *, format, shape, bits, group_size, sym, desc_act):  # noqa: A002
        """Pack a Linear layer; version 1 is what it makes of version 2."""
        import torch
        from gptqmodel.quantization import QuantizeConfig
        from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

        g_idx = fields.get("g_idx", np.arange(shape[1]) // (shape[1] if group_size == -1 else group_size))
        w = (fields["codes"].astype(np.float32) - fields["zeros"][:, g_idx]) * fields["scales"][:, g_idx].astype(
            np.float32
        )
        layer = torch.nn.Linear(shape[1], shape[0], bias=False)
        layer.weight.data = torch.from_numpy(w)
        packed = self._linear(shape, bits, group_size, sym, desc_act, buffers=False)
        scales, zeros = torch.from_numpy(fields["scales"]).float(), torch.from_numpy(fields["zeros"]).int()
        packed.pack_block(layer, scales, zeros, torch.from_numpy(g_idx).int())
        if format == "gptq":
            config = QuantizeConfig(bits=bits, group_size=group_size, sym=sym, desc_act=desc_act)
            convert_gptq_v2_to_v1_format_module(packed, config)
        return {name: getattr(packed, name).numpy() for name in ("qweight", "qzeros", "scales", "g_idx")}

    def dequantize(self, tensors, *, format, shape, bits, group_size, sym, desc_act):  # noqa: A002
        """Decode; version 1 is converted to version 2 first, as its loader does."""
        import torch
        from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

        layer = self._linear(shape, bits, group_size, sym, desc_act, buffers=True)
        layer.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
        if format == "gptq":
            convert_gptq_v1_to_v2_format_module(layer, bits=bits, pack_dtype=torch.int32)
        return layer.dequantize_weight().float().T.numpy()


class CompressedTensors:
    """The compressors of compressed-tensors, and its `pack_to_int32`."""

    formats = ("pack-quantized", "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "dense-words")

    def _scheme(self, format, params):  # noqa: A002
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        if format == "pack-quantized":
            group = {} if params["strategy"] == "channel" else {"group_size": params["group_size"]}
            args = {"num_bits": params["num_bits"], "symmetric": params["symmetric"], "strategy": params["strategy"]}
            args |= group
        elif format == "float-quantized":
            block = {"block_structure": [128, 128]} if params["strategy"] == "block" else {}
            args = {"num_bits": 8, "type": "float", "strategy": params["strategy"], **block}
        else:
            strategy = "tensor_group" if format.startswith("nvfp4") else "group"
            args = {"num_bits": 4, "type": "float", "strategy": strategy, "group_size": params["group_size"]}
        return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))

    def _compressor(self, format):  # noqa: A002
        from compressed_tensors.compressors import BaseCompressor

        return BaseCompressor.get_value_from_registry(format)

    def pack(self, fields, *, format, shape, **params):  # noqa: A002
        """Compress weights that the numbers stand for, with their scales."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        middle = 1 << params["bits"] - 1
        if format == "dense-words":
            signed = torch.from_numpy(fields["codes"].astype(np.int8) - np.int8(middle))
            return {"words": pack_to_int32(signed, params["bits"]).numpy()}
        size = shape[1] if params["group_size"] == -1 else params["group_size"]
        group = np.arange(shape[1]) // size
        w = (fields["codes"].astype(np.float32) - fields["zeros"][:, group]) * fields["scales"][:, group].astype(
            np.float32
        )
        zeros = torch.from_numpy(fields["zeros"].astype(np.int16) - middle).to(torch.int8)
        state = {"weight": torch.from_numpy(w), "weight_scale": torch.from_numpy(fields["scales"])}
        state["weight_zero_point"] = zeros
        packed = self._compressor(format).compress(state, self._scheme(format, params))
        return {name: tensor.numpy() for name, tensor in packed.items()}

    def unpack(self, tensors, *, format, shape, **params):  # noqa: A002
        """Unpack words to codes."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        bits, middle = params["bits"], 1 << params["bits"] - 1
        word = lambda name: torch.from_numpy(tensors[name])  # noqa: E731
        codes = lambda signed: (signed.numpy().astype(np.int16) + middle).astype(np.uint8)  # noqa: E731
        if format == "dense-words":
            return {"codes": codes(unpack_from_int32(word("words"), bits, torch.Size(shape)))}
        found = {"codes": codes(unpack_from_int32(word("weight_packed"), bits, torch.Size(shape)))}
        groups = tensors["weight_scale"].shape
        if params["symmetric"]:
            return found | {"zeros": np.full(groups, middle, np.uint8)}
        zeros = unpack_from_int32(word("weight_zero_point"), bits, torch.Size(groups), packed_dim=0)
        return found | {"zeros": codes(zeros)}

    def dequantize(self, tensors, *, format, shape, **params):  # noqa: A002
        """Decompress."""
        given = _torch(tensors, params.get("dtypes", {}))
        found = self._compressor(format).decompress(given, self._scheme(format, params))
        return found["weight"].float().numpy()


class BitsAndBytes:
    """bitsandbytes.functional on a CPU."""

    formats = ("bitsandbytes-nf4", "bitsandbytes-int8")

    def quantize(self, w, *, format, blocksize, double_quant):  # noqa: A002
        """As `quantize_4bit`."""
        import torch
        from bitsandbytes import functional

        options = {"blocksize": blocksize, "compress_statistics": double_quant, "quant_type": "nf4"}
        codes, state = functional.quantize_4bit(torch.from_numpy(w), **options)
        return {"weight": codes.numpy(), "absmax": state.absmax.numpy()}

    def dequantize(self, tensors, *, format, shape, blocksize=None, double_quant=None):  # noqa: A002
        """As `dequantize_4bit` and `int8_vectorwise_dequant`."""
        import torch
        from bitsandbytes import functional

        t = {name: torch.from_numpy(np.ascontiguousarray(a).reshape(a.shape)) for name, a in tensors.items()}
        if format == "bitsandbytes-int8":
            return functional.int8_vectorwise_dequant(t["weight"], t["SCB"]).numpy()
        absmax, nested = t["absmax"], None
        if double_quant:
            nested = functional.QuantState(
                absmax=t["nested_absmax"], code=t["nested_quant_map"], blocksize=256, dtype=torch.float32
            )
        state = functional.QuantState(
            absmax=absmax, shape=torch.Size(shape), code=t["quant_map"], blocksize=blocksize, quant_type="nf4",
            dtype=torch.float32, offset=t.get("nested_offset"), state2=nested,
        )  # fmt: skip
        return functional.dequantize_4bit(t["weight"], state).numpy()


class TorchAO:
    """torchao's quantization primitives: `choose_qparams_affine`, `quantize_affine`."""

    options = MappingProxyType({})  # of choose_qparams_affine

    def quantize(self, w, *, format, bits=None, group_size=None, sym=None):  # noqa: A002
        """Integer grids by group; scales of the weights' own type, float32, by default."""
        import torch
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

        if bits is None or not format.startswith("int"):
            raise NotImplementedError("integer grids only")
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if sym else (0, 2**bits - 1)
        kind = MappingType.SYMMETRIC if sym else MappingType.ASYMMETRIC
        target = torch.int8 if sym else torch.uint8
        block, x = (1, group_size), torch.from_numpy(w)
        scales, zeros = choose_qparams_affine(x, kind, block, target, low, high, **self.options)
        codes = quantize_affine(x, block, scales, zeros, target, low, high)
        shift = -low
        shaped = (len(w), -1)
        return {
            "codes": (codes.int() + shift).numpy().astype(np.uint8),
            "scales": scales.reshape(shaped).numpy(),
            "zeros": (zeros.reshape(shaped) + shift).numpy().astype(np.uint8),
        }


class TorchAOFloat16(TorchAO):
    """The same with scales in float16, as files hold them."""

    @property
    def options(self):
        """Only the type of the scales differs."""
        import torch

        return {"scale_dtype": torch.float16, "eps": 2.0**-24}


class Torch:
    """torch's casts on a CPU."""

    formats = ("F16", "BF16", "E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ")

    def _dtype(self, format):  # noqa: A002
        import torch

        return getattr(torch, NAMES.get(format) or f"float8_{format.lower()}")

    def cast(self, x, *, format, overflow="nan"):  # noqa: A002
        """As `tensor.to(dtype)`, which has one way to overflow for each type."""
        import torch

        if (overflow == "saturate") != (format == "E4M3FN") and format not in NAMES:
            raise NotImplementedError("torch has the other mode for this type")
        bits = torch.from_numpy(x).to(self._dtype(format))
        return (
            bits.view(torch.int16 if bits.element_size() == 2 else torch.uint8).numpy().view(f"u{bits.element_size()}")
        )

    def dequantize(self, data, *, format, shape):  # noqa: A002
        """As `tensor.float()`."""
        import torch

        if not isinstance(data, np.ndarray) or format not in self.formats:
            raise NotImplementedError(format)
        return torch.from_numpy(data).view(self._dtype(format)).float().numpy().reshape(shape)


class MLDtypes(Torch):
    """ml_dtypes' casts."""

    formats = ("BF16", "E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ")

    def _dtype(self, format):  # noqa: A002
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, NAMES.get(format) or f"float8_{format.lower()}"))

    def cast(self, x, *, format, overflow="nan"):  # noqa: A002
        """As `array.astype(dtype)`, which overflows to NaN or infinity."""
        if overflow == "saturate":
            raise NotImplementedError("ml_dtypes does not saturate")
        bits = x.astype(self._dtype(format))
        return bits.view(f"u{bits.itemsize}")

    def dequantize(self, data, *, format, shape):  # noqa: A002
        """As `array.astype(float32)`."""
        if not isinstance(data, np.ndarray) or format not in self.formats:
            raise NotImplementedError(format)
        return data.view(self._dtype(format)).astype(np.float32).reshape(shape)
