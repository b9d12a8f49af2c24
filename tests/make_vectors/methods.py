"""Quantizers and what surrounds them: rounding by torch, GPTQ by its authors' code, absorption, plans, perplexity."""

import json
from pathlib import Path

import numpy as np
import torch
from suite import BNB, IST, TORCH, Suite, goldens

MORE = goldens("verify_goldens")


def rounded(w, bits, g, sym):
    """Round to nearest by torch, per group."""
    groups = torch.from_numpy(w.astype(np.float32)).reshape(-1, g or w.shape[1])
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    if sym:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=2.0**-24)
    zero = torch.full_like(scale, 2 ** (bits - 1)) if sym else (-low / scale).round().clamp(0, 2**bits - 1)
    fake = torch.fake_quantize_per_channel_affine(groups, scale, zero.int(), 0, 0, 2**bits - 1)
    return fake.numpy().reshape(w.shape)


def quantize():
    """Uniform grids and NF4."""
    suite = Suite("quantize", "Uniform grids and NF4: each code the nearest, with the scale as stored.")
    rng = np.random.default_rng(700)
    plain = (rng.standard_normal((8, 128)) * 0.05).astype(np.float32)
    odd = plain.copy()
    odd[0], odd[1, :32], odd[2, 32:64], odd[3] = 0, 0, 0.25, np.abs(odd[3])
    odd[4] *= np.float32(1e-6)  # scales that are subnormal in float16
    odd[5, :32] = -0.125
    for bits in (8, 4, 3, 2):
        for sym in (False, True):
            fmt = f"int{bits}-g32{'-sym' if sym else ''}"
            for id, w, mistakes, flags, what in (
                ("normal", plain, {40}, {"StoredScale"}, "codes chosen with a scale that is not the stored one"),
                ("zero-groups", odd, {20, 24, 40}, {"ZeroGroup", "ConstantGroup", "SubnormalScale"},
                 "groups of zeros, of one value, and of numbers whose scale float16 holds only roughly"),
            ):  # fmt: skip
                suite.add(id, "quantize", fmt, w.shape, {"w": w}, {"w": rounded(w, bits, 32, sym)}, "nearest", what,
                          (TORCH,), mistakes | ({13} if sym else set()), flags,
                          {"bits": bits, "group_size": 32, "sym": sym, "scale_dtype": "float16"},
                          tolerance={"error": 0.4 if sym else 0.1})  # fmt: skip
    bnb = goldens("bitsandbytes")
    suite.add("codes", "quantize", "bitsandbytes-nf4", bnb["w"].shape, {"w": bnb["w"]},
              {"weight": bnb["b64_codes"], "absmax": bnb["b64_absmax"]}, "codes",
              "another table of levels, the first code in the low half, blocks that start anew with each row", (BNB,),
              {44}, {"HighNibbleFirst", "ZeroGroup"}, {"blocksize": 64, "double_quant": False},
              "bitsandbytes")  # fmt: skip
    return suite


def gptq_and_awq():
    """The methods that look at activations."""
    suite = Suite("methods", "GPTQ and AWQ: the layer's output error, against the published code and plain rounding.")
    mistakes = {"correlated": {14, 15, 16}, "dead": {19}, "few": {18}}
    what = {
        "correlated": "errors that do not reach the columns after: of the block, or of the next blocks",
        "dead": "inputs that are always zero: a zero on the diagonal of H",
        "few": "fewer tokens than inputs, and inputs that are one and the same: H is singular",
    }
    for kind, numbers in mistakes.items():
        w, h = MORE[f"gptq-{kind}/w"], MORE[f"gptq-{kind}/hessian"]
        for block in (1, 32, 128) if kind == "correlated" else (128,):
            suite.add(f"{kind}-b{block}", "gptq", "int4-g32", w.shape, {"w": w, "hessian": h},
                      {"w": MORE[f"gptq-{kind}/b{block}"]}, "layer", what[kind], (IST,), numbers,
                      {"correlated": {"Blocked"}, "dead": {"DeadColumn"}, "few": {"RankDeficient"}}[kind],
                      {"bits": 4, "group_size": 32, "sym": False, "block_size": block, "damp": 0.01}, "verify_goldens",
                      tolerance={"error": 0.05}, **({"may_reject": True} if kind == "few" else {}))  # fmt: skip
    rng = np.random.default_rng(720)
    w = (rng.standard_normal((24, 128)) / 8).astype(np.float32)
    x = (rng.standard_normal((64, 128)) * np.exp(rng.standard_normal(128))).astype(np.float32)
    cases = {
        "outliers": (w, x, "scales that do not follow the activations"),
        "zero-channel": None,
        "tiny-channel": None,
    }
    zero_w, zero_x = w.copy(), x.copy()
    zero_w[:, :32], zero_x[:, [3, 40]] = 0, 0
    cases["zero-channel"] = (
        zero_w,
        zero_x,
        "a channel and a group of zeros: 0 / 0, or the root of 0",
    )
    tiny = x.copy()
    tiny[:, 7], tiny[:, 90] = np.float32(1e-7) * rng.standard_normal(64), np.float32(3e4) * rng.standard_normal(64)
    cases["tiny-channel"] = (w, tiny, "a channel of float16 subnormals beside one of 30,000: a product out of range")
    for id, (weights, inputs, text) in cases.items():
        suite.add(id, "awq", "int4-g32", weights.shape, {"w": weights, "x": inputs},
                  {"w": rounded(weights, 4, 32, False)}, "layer", text, (TORCH,), {24},
                  {"outliers": {"Outliers"}, "zero-channel": {"ZeroGroup"}, "tiny-channel": {"SubnormalScale"}}[id],
                  {"bits": 4, "group_size": 32, "sym": False}, tolerance={"error": 0.01})  # fmt: skip
    return suite


def model():
    """Absorbed scales, types of tensors, perplexity."""
    suite = Suite("model", "What surrounds a quantized layer: absorbed scales, types by tensor, perplexity protocols.")
    absorption(suite)
    plans(suite)
    perplexities(suite)
    return suite


def absorption(suite):
    rng = np.random.default_rng(740)
    n = lambda *shape: (rng.standard_normal(shape) / 4).astype(np.float32)  # noqa: E731
    kinds = {
        "rmsnorm": {"norm": 1 + n(16), "w0": n(12, 16), "w1": n(8, 16)},
        "gemma-norm": {"norm": n(16), "w0": n(12, 16), "w1": n(8, 16)},
        "layernorm": {"norm": 1 + n(16), "norm_bias": n(16), "w0": n(12, 16)},
        "linear": {"up": n(24, 16), "up_bias": n(24), "down": n(12, 24)},
        "fused-qkv": {"qkv": n(48, 16), "qkv_bias": n(48), "o": n(12, 16)},
        "grouped-query": {"v": n(8, 16), "v_bias": n(8), "o": n(12, 16)},  # two heads of v, each read by two heads
    }
    what = {
        "rmsnorm": "the norm multiplied instead of divided, or one of the layers after it forgotten",
        "gemma-norm": "a norm that multiplies by 1 + w divided as if it multiplied by w",
        "layernorm": "the bias of the norm forgotten",
        "linear": "the bias of the layer before forgotten",
        "fused-qkv": "the rows of q or k divided instead of those of v",
        "grouped-query": "columns of o paired with the wrong rows of v: two heads share one v",
    }
    for kind, tensors in kinds.items():
        size = tensors["o" if "o" in tensors else "down" if "down" in tensors else "w0"].shape[1]
        s = np.exp(n(8 if kind == "grouped-query" else size)).astype(np.float32)
        x = n(5, 16) * 4
        y = function(kind, tensors, x)
        suite.add(kind, "absorb", "block", (size,), tensors | {"scales": s, "x": x}, {"y": y}, "function", what[kind],
                  (TORCH,), {25}, {"Absorb"}, {"kind": kind}, tolerance={"relative": 1e-5})  # fmt: skip


def function(kind, tensors, x):
    """The block's output in float64, by torch."""
    t = {key: torch.from_numpy(value).double() for key, value in tensors.items()}
    x, linear = torch.from_numpy(x).double(), torch.nn.functional.linear
    if "norm" in kind:
        weight = 1 + t["norm"] if kind == "gemma-norm" else t["norm"]
        if kind == "layernorm":
            y = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, t["norm_bias"], 1e-6)
        else:
            y = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)
        out = [linear(y, t[name]) for name in ("w0", "w1") if name in t]
    elif kind == "linear":
        out = [linear(linear(x, t["up"], t["up_bias"]), t["down"])]
    elif kind == "fused-qkv":
        q, k, v = linear(x, t["qkv"], t["qkv_bias"]).chunk(3, -1)
        out = [q, k, linear(v, t["o"])]
    else:
        v = linear(x, t["v"], t["v_bias"]).reshape(len(x), 2, 4)
        out = [linear(v.repeat_interleave(2, 1).reshape(len(x), 16), t["o"])]
    return torch.cat(out, -1).numpy()


def plans(suite):
    planner = json.loads((Path(__file__).parents[1] / "data" / "llama_planner.json").read_text())
    name, entry = next((n, e) for n, e in planner["models"].items() if 896 in e["shapes"]["blk.*.attn_q.weight"])
    layers = entry["model"][1]
    shapes = {
        pattern.replace("*", str(i)): shape
        for pattern, shape in entry["shapes"].items()
        if not pattern.endswith(".bias")
        for i in (range(layers) if "*" in pattern else [0])
    }
    for mix, base in (("Q4_K_M", "Q4_K"), ("Q2_K", "Q2_K"), ("Q5_K_S", "Q5_K"), ("Q6_K", "Q6_K"), ("Q3_K_M", "Q3_K")):
        types = {}
        for tensor, shape in shapes.items():
            pattern = tensor if tensor.split(".")[0] != "blk" else "blk.*." + tensor.split(".", 2)[2]
            rule = entry["types"][mix].get(pattern, {})
            layer = int(tensor.split(".")[1]) if tensor.startswith("blk.") else 0
            want = base if len(shape) > 1 else "F32"
            if isinstance(rule, str):
                want = rule
            else:
                want = next((kind for kind, where in rule.items() if layer in _layers(where)), want)
            types[tensor] = want
        params = {"model": entry["model"], "shapes": shapes}
        suite.add(f"{name.lower()}-{mix.lower()}", "plan", mix, (896,), {}, {}, "value",
                  "a width of 896 given to a type in blocks of 256, or the wrong type in its place",
                  ("llama.cpp (@node-llama-cpp/linux-x64 3.22.1)",), {36}, {"NonMultiple256"}, params,
                  value=types)  # fmt: skip


def _layers(ranges):
    ends = [[int(end) for end in part.split("-")] for part in ranges.split(",")]
    return {i for first, *last in ends for i in range(first, (last or [first])[0] + 1)}


def perplexities(suite):
    rng = np.random.default_rng(760)
    table = rng.standard_normal((32, 32)).astype(np.float32) * 2
    ids = rng.integers(0, 32, 150).astype(np.int64)
    for protocol, context, bos, words in (
        ("llama.cpp", 32, None, None), ("llama.cpp", 64, None, None), ("llama.cpp", 32, 1, None),
        ("huggingface", 32, None, None), ("huggingface", 32, None, 70),
    ):  # fmt: skip
        losses = []
        for begin in range(0, len(ids) // context * context, context):
            window = ids[begin : begin + context]
            seen = window.copy()
            if bos is not None:
                seen[0] = bos
            logits = torch.from_numpy(table[(seen + seen[0]) % 32]).double()
            loss = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(window[1:]), reduction="none")
            losses += loss[context // 2 if protocol == "llama.cpp" else 0 :].tolist()
        value = float(np.exp(np.sum(losses) / (words or len(losses))))
        id = f"c{context}" + ("-bos" if bos is not None else "") + ("-words" if words else "")
        suite.add(id, "perplexity", protocol, (len(ids),), {"table": table, "ids": ids}, {}, "close",
                  "another protocol than the one named: other windows, other scored tokens, words for tokens, no BOS",
                  (TORCH,), {49}, {"Protocol"}, {"context": context, "bos": bos, "words": words}, value=value,
                  tolerance={"relative": 1e-5})  # fmt: skip


SUITES = (quantize, gptq_and_awq, model)
