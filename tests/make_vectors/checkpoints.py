"""Checkpoint tensors as GPTQModel, AutoAWQ, compressed-tensors and bitsandbytes packed them, and the numbers in them.

The numbers went in, so the weights they stand for are plain arithmetic, exact in float32: the scales are powers of two.
"""

import numpy as np
from suite import AUTOAWQ, BNB, COMPRESSED, GPTQMODEL, Suite, goldens

GOLD, MORE = goldens("checkpoint_goldens"), goldens("verify_goldens")


def layer(source, name, prefix="file/"):
    """Numbers and tensors of a golden: fields, tensors; types that NumPy lacks are named in `dtypes`."""
    arrays = {key[len(name) + 1 :]: value for key, value in source.items() if key.startswith(f"{name}/")}
    fields = {key: value for key, value in arrays.items() if "/" not in key}
    tensors, dtypes = {}, {}
    for key, value in arrays.items():
        if key.startswith(prefix):
            tensor, _, dtype = key[len(prefix) :].partition(":")
            tensors[tensor] = value
            if dtype:
                dtypes[tensor] = dtype
    return fields, tensors, dtypes


def weights(fields, g):
    """The weights that codes, scales and zero-points stand for."""
    codes = fields["codes"].astype(np.float64)
    group = fields.get("g_idx", np.arange(codes.shape[1]) // g)
    scales, zeros = fields["scales"].astype(np.float64)[:, group], fields["zeros"].astype(np.float64)[:, group]
    exact = (codes - zeros) * scales
    assert np.array_equal(exact.astype(np.float32), exact)
    return exact.astype(np.float32)


def everything(suite, id, format, fields, tensors, params, what, program, golden, mistakes, flags, dtypes=None):
    """Decode, unpack and pack of one layer."""
    g = fields["codes"].shape[1] if params["group_size"] == -1 else params["group_size"]
    shape = fields["codes"].shape
    params = params | ({"dtypes": dtypes} if dtypes else {})
    numbers = {"codes": fields["codes"], "zeros": fields["zeros"]}
    common = {"params": params, "golden": golden}
    suite.add(id, "dequantize", format, shape, tensors, {"w": weights(fields, g)}, "bits", what, (program,), mistakes,
              flags, **common)  # fmt: skip
    suite.add(id, "unpack", format, shape, tensors, numbers, "bits", what, (program,), mistakes, flags, **common)
    given = {key: fields[key] for key in ("codes", "scales", "zeros", "g_idx") if key in fields}
    suite.add(id, "pack", format, shape, given, tensors, "bits", what, (program,), mistakes, flags, **common)


def gptq():
    """GPTQ, both versions."""
    suite = Suite("gptq-files", "GPTQ checkpoints, versions 1 and 2: GPTQModel's own bytes of given numbers.")
    for version in (1, 2):
        fmt = "gptq" if version == 1 else "gptq_v2"
        kinds = {f"{bits}bit-{kind}": (bits, 32, kind == "sym") for bits in (2, 3, 4, 8) for kind in ("sym", "asym")}
        kinds |= {"ragged": (4, 64, False), "row": (4, -1, False), "act-order": (4, 16, False)}
        for kind, (bits, g, sym) in kinds.items():
            if version == 1 and kind.endswith("asym"):
                continue  # these hold zero-points of 0, for which version 1 has no agreed place; see `zeros` below
            fields, tensors, _ = layer(GOLD, f"gptq-v{version}-{kind}")
            if version == 1 and (fields["zeros"] == 0).any():
                fields, tensors = without_zero(kind, fields, tensors)
            params = {"bits": bits, "group_size": g, "sym": sym, "desc_act": kind == "act-order",
                      "checkpoint_format": fmt}  # fmt: skip
            mistakes, flags, what = {1, 2}, {"V1V2"}, "zero-points one too small or too large"
            if bits == 3:
                mistakes, flags = mistakes | {5, 46}, flags | {"CrossWord"}
                what = "3-bit fields that straddle words, and zero-points one too small or too large"
            if sym:
                mistakes, flags = mistakes | {13}, flags | {"Symmetric"}
            if kind == "ragged":
                mistakes, flags, what = {11}, {"RaggedGroup"}, "a last group of 32 columns where the others have 64"
            if kind == "row":
                mistakes, flags, what = {10}, {"GroupMinusOne"}, "group_size -1 used as a number"
            if kind == "act-order":
                mistakes, flags, what = {12}, {"ActOrder"}, "g_idx ignored, so that columns get other groups' scales"
            everything(
                suite, kind, fmt, fields, tensors, params, what, GPTQMODEL, "checkpoint_goldens", mistakes, flags
            )
        for bits in (2, 3, 4, 8):
            fields, tensors, _ = layer(MORE, f"zeros-{bits}bit-v{version}")
            params = {"bits": bits, "group_size": 16, "sym": False, "desc_act": False, "checkpoint_format": fmt}
            flags = {"V1V2"} | ({"ZeroPoint0"} if version == 2 else set()) | ({"CrossWord"} if bits == 3 else set())
            what = "zero-points of every value" + (", 0 too: nothing may be subtracted" if version == 2 else " but 0")
            everything(suite, f"zeros-{bits}bit", fmt, fields, tensors, params, what, GPTQMODEL, "verify_goldens",
                       {2, 3, *([5, 46] if bits == 3 else [])}, flags)  # fmt: skip
    fields, tensors, _ = layer(GOLD, "gptq-v2-act-order")
    params = {"bits": 4, "group_size": 16, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"}
    out_of_range = tensors | {"g_idx": np.where(np.arange(64) == 40, 4, tensors["g_idx"]).astype(np.int32)}
    suite.add("group-4-of-4", "dequantize", "gptq_v2", (32, 64), out_of_range, {}, "reject",
              "g_idx names a group that does not exist, and memory beyond the scales is read", (GPTQMODEL,), {12},
              {"ActOrder"}, params=params, golden="checkpoint_goldens")  # fmt: skip
    fields, tensors, _ = layer(GOLD, "gptq-v2-4bit-asym")
    unpacked = tensors | {"qzeros": fields["zeros"].T.astype(np.int32)}
    suite.add("zeros-unpacked", "dequantize", "gptq_v2", (32, 64), unpacked, {}, "reject",
              "zero-points that were saved unpacked are read as packed ones", (GPTQMODEL,), {6}, {"ZerosUnpacked"},
              params=params | {"group_size": 32, "desc_act": False}, golden="checkpoint_goldens")  # fmt: skip
    return suite


def without_zero(kind, fields, tensors):
    """Words of version 1 whose zero-points are 0 replaced: a word without a 0 of the same tensor takes its place."""
    fields, tensors = dict(fields), dict(tensors)
    zeros = fields["zeros"].T.reshape(-1, 8).copy()  # [words, 8]: version 1's words do not mix
    words = tensors["qzeros"].reshape(-1).copy()
    good = np.flatnonzero((zeros > 0).all(axis=1))
    for at in np.flatnonzero((zeros == 0).any(axis=1)):
        zeros[at], words[at] = zeros[good[at % len(good)]], words[good[at % len(good)]]
    fields["zeros"] = np.ascontiguousarray(zeros.reshape(fields["zeros"].T.shape).T)
    tensors["qzeros"] = words.reshape(tensors["qzeros"].shape)
    return fields, tensors


def awq():
    """AWQ's gemm, TinyChat, and the same numbers as GPTQ."""
    suite = Suite("awq-files", "AWQ checkpoints: AutoAWQ's own bytes of given numbers, and the same numbers as GPTQ.")
    for kind in ("awq-g64", "awq-g128"):
        fields, tensors, _ = layer(GOLD, kind)
        params = {"bits": 4, "group_size": int(kind[5:]), "zero_point": True, "version": "gemm"}
        everything(suite, kind[4:], "awq", fields, tensors, params,
                   "a word packed in plain order: its slots hold outputs 0 2 4 6 1 3 5 7", AUTOAWQ,
                   "checkpoint_goldens", {21, 22}, {"Interleave"})  # fmt: skip
        fields, tensors, _ = layer(GOLD, f"tinychat-{kind[4:]}")
        params = params | {"version": "gemv_fast"}
        suite.add(kind[4:], "dequantize", "awq-gemv_fast", fields["codes"].shape, tensors,
                  {"w": weights(fields, params["group_size"])}, "bits",
                  "TinyChat's tiles read as gemm's words, or its float zero-points, -zero * scale, as integers",
                  (AUTOAWQ,), {23, 47}, {"Interleave", "FloatZeros"}, params, "checkpoint_goldens")  # fmt: skip
    fields, tensors, _ = layer(MORE, "awq-and-gptq", "awq/")
    _, gptq_tensors, _ = layer(MORE, "awq-and-gptq")
    params = {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    everything(suite, "ramp", "awq", fields, tensors, params,
               "a word packed in plain order: outputs with codes 0 to 7 are the word 0x75316420", AUTOAWQ,
               "verify_goldens", {21, 22}, {"Interleave", "Ramp", "ZeroPoint0"})  # fmt: skip
    suite.add("to-gptq", "repack", "awq", fields["codes"].shape, tensors, gptq_tensors, "bits",
              "one subtracted from zero-points on the way, so that 0 becomes 15; or their order left as it was",
              (AUTOAWQ, GPTQMODEL), {4, 22}, {"ZeroPoint0", "Interleave"},
              params | {"to": "gptq_v2", "sym": False, "desc_act": False}, "verify_goldens")  # fmt: skip
    return suite


def compressed():
    """compressed-tensors."""
    suite = Suite("compressed-tensors", "compressed-tensors checkpoints: the library's own bytes, both ways.")
    kinds = {
        "int4-sym": (4, 32, True), "int4-asym": (4, 32, False), "int8-sym": (8, 32, True), "int8-asym": (8, 32, False),
        "int3-asym": (3, 20, False), "channel": (4, -1, True), "channel-asym": (4, -1, False),
    }  # fmt: skip
    for kind, (bits, g, sym) in kinds.items():
        fields, tensors, _ = layer(GOLD, f"pack-{kind}")
        params = {"num_bits": bits, "group_size": g, "symmetric": sym,
                  "strategy": "channel" if g == -1 else "group"}  # fmt: skip
        what = "signed codes mixed up with codes plus 2^(b-1)" if sym else "zero-points left unpacked, or along k"
        flags = {"CrossWord"} if bits == 3 or g == -1 else {"SignedCodes"}
        everything(suite, kind, "pack-quantized", fields, tensors, params | {"bits": bits}, what, COMPRESSED,
                   "checkpoint_goldens", {45, 6, *([46] if bits == 3 else []), *([10] if g == -1 else [])},
                   flags)  # fmt: skip
    float_kinds = {
        "float-quantized-channel": "float-quantized", "float-quantized-tensor": "float-quantized",
        "float-quantized-block": "float-quantized", "nvfp4-pack-quantized": "nvfp4-pack-quantized",
        "mxfp4-pack-quantized": "mxfp4-pack-quantized",
    }  # fmt: skip
    nearly = {"nvfp4-pack-quantized": {"tolerance": {"relative": 2.0**-8}}}  # the library decodes to bfloat16
    for kind, fmt in float_kinds.items():
        fields, tensors, dtypes = layer(GOLD, kind)
        strategy = kind.rpartition("-")[2] if fmt == "float-quantized" else "group"
        suite.add(strategy, "dequantize", fmt, fields["decoded"].shape, tensors, {"w": fields["decoded"]}, "bits",
                  "a scale divided by instead of multiplied with, or spread over the wrong rows and columns",
                  (COMPRESSED,), {42}, {"SmallFloat"},
                  {"strategy": strategy, "dtypes": dtypes, "group_size": {"nvfp4-pack-quantized": 16}.get(fmt, 32)},
                  "checkpoint_goldens", **nearly.get(fmt, {}))  # fmt: skip
    words = goldens("compressed_tensors")
    for bits in (3, 5, 6):
        codes = words[f"codes{bits}"]
        suite.add(f"{bits}bit", "pack", "dense-words", codes.shape, {"codes": codes},
                  {"words": words[f"words{bits}"]}, "bits",
                  "codes that straddle two words, or the last ones, which do not fill a word", (COMPRESSED,), {46},
                  {"CrossWord", "RaggedRow"}, {"bits": bits}, "compressed_tensors")  # fmt: skip
        suite.add(f"{bits}bit", "unpack", "dense-words", codes.shape, {"words": words[f"words{bits}"]},
                  {"codes": codes}, "bits",
                  "codes that straddle two words, or the last ones, which do not fill a word", (COMPRESSED,), {46},
                  {"CrossWord", "RaggedRow"}, {"bits": bits}, "compressed_tensors")  # fmt: skip
    return suite


def bitsandbytes():
    """NF4 over block sizes, with and without double quantization, and LLM.int8."""
    suite = Suite("bitsandbytes", "bitsandbytes' own tensors for NF4 and LLM.int8, and what it decodes them to.")
    import json

    import torch
    from bitsandbytes import functional

    bnb = goldens("bitsandbytes")
    # bitsandbytes' CPU decoder begins a block with each row, so rows here are whole blocks of every size.
    w = torch.from_numpy(np.random.default_rng(401).normal(0, 0.05, (3, 4096)).astype(np.float32))
    w[1, :64] = 0
    for block in (64, 128, 256, 512, 1024, 2048, 4096):
        for double in (False, True):
            codes, state = functional.quantize_4bit(w, blocksize=block, compress_statistics=double, quant_type="nf4")
            tensors = {"weight": codes.numpy(), "absmax": state.absmax.numpy(), "quant_map": state.code.numpy()}
            if double:
                tensors["nested_absmax"] = state.state2.absmax.numpy()
                tensors["nested_quant_map"] = state.state2.code.numpy()
                tensors["nested_offset"] = np.array(state.offset.numpy(), np.float32)
            decoded = functional.dequantize_4bit(codes, state).numpy()
            assert json.dumps(w.shape)
            suite.add(f"b{block}{'-dq' if double else ''}", "dequantize", "bitsandbytes-nf4", w.shape, tensors,
                      {"w": decoded}, "bits",
                      "nested scales left out, the first code in the low half, a block of another size", (BNB,), {44},
                      {"HighNibbleFirst", *(["NestedScales"] if double else [])},
                      {"blocksize": block, "double_quant": double})  # fmt: skip
    suite.add("rows", "dequantize", "bitsandbytes-int8", (2, 264), {"weight": bnb["CB"][:2], "SCB": bnb["SCB"][:2]},
              {"w": bnb["int8_decoded"]}, "bits", "a row scale divided by 128, or not divided", (BNB,), {44},
              {"SignedCodes"}, golden="bitsandbytes")  # fmt: skip
    return suite


SUITES = (gptq, awq, compressed, bitsandbytes)
