"""Measurements of the stored model, for its card. `measure` runs those that measured.json lacks."""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np

PROMPTS = (
    "The default value of this parameter is",
    "To install the package, you need to",
    "Returns a list of",
    "In this section, we describe how the database",
    "A thread is",
)
GRIDS = ("int8-g128", "int4-g128", "int3-g128", "int2-g128")
METHODS = ("rtn", "gptq", "awq")
PARTS = ("calibration", "evaluation")


def perplexities(model, tokenizer, ids: np.ndarray, context: int) -> dict:
    """Perplexity, its standard error and bits per byte under both protocols."""
    from refquant.evaluate.perplexity import PROTOCOLS, Scores, cut_windows, first_scored, score

    windows = cut_windows(ids, context)
    all_nll = score(model, ids, "huggingface", context).nll.reshape(len(windows), -1)  # [windows, context - 1]
    out = {}
    for protocol in PROTOCOLS:
        start = first_scored(protocol, context)
        scores = Scores(protocol, context, all_nll[:, start:].reshape(-1))
        size = sum(len(tokenizer.decode(w[start + 1 :], skip_special_tokens=True).encode()) for w in windows)
        out[protocol] = {
            "perplexity": scores.perplexity,
            "standard_error": scores.perplexity_stderr,
            "bits_per_byte": scores.bits_per_byte(size),
            "tokens": len(scores.nll),
            "context": context,
        }
    return out


def activations(model, ids: np.ndarray, context: int, windows: int = 8) -> list[dict]:
    """Largest |input| of every channel of every Linear in the layers, as ratios: largest channel to median channel."""
    import torch

    seen, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:

            def hook(module, inputs, name=name):
                top = inputs[0].detach().abs().flatten(0, -2).amax(0)
                seen[name] = torch.maximum(seen[name], top) if name in seen else top

            hooks.append(module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        for window in np.asarray(ids[: windows * context]).astype(np.int64).reshape(-1, context):
            model(torch.from_numpy(window)[None])
    for h in hooks:
        h.remove()
    kinds = {
        "q_proj": "attention input",
        "o_proj": "o_proj input",
        "gate_proj": "mlp input",
        "down_proj": "down_proj input",
    }
    rows = []
    for name, top in seen.items():
        layer, kind = int(name.split(".layers.")[1].split(".")[0]), kinds.get(name.rsplit(".", 1)[1])
        if kind:
            while len(rows) <= layer:
                rows.append({})
            rows[layer][kind] = {"ratio": float(top.max() / top.median()), "largest": float(top.max())}
    return rows


def samples(model, tokenizer, length: int = 80) -> list[dict]:
    """Continuations of the prompts: greedy, and sampled with a fixed seed."""
    import torch

    out = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        options = {"max_new_tokens": length, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        greedy = model.generate(ids, do_sample=False, **options)
        torch.manual_seed(0)
        sampled = model.generate(ids, do_sample=True, temperature=0.8, top_p=0.95, top_k=0, **options)
        out.append({"prompt": prompt} | {
            how: tokenizer.decode(x[0, ids.shape[1] :], skip_special_tokens=True)
            for how, x in (("greedy", greedy), ("sampled", sampled))
        })  # fmt: skip
    return out


def first_windows(model, ids: np.ndarray, context: int, windows: int = 16) -> dict:
    """Perplexity (llama.cpp) of the first windows: short enough for a test."""
    from refquant.evaluate.perplexity import score

    return {"windows": windows, "perplexity": score(model, ids, "llama.cpp", context, windows=windows).perplexity}


def quantized(model, ids: np.ndarray, calibration: np.ndarray, context: int, windows: int = 64) -> dict:
    """Perplexity (llama.cpp) over the first windows after quantizing as the rows of `refquant compare` do.

    The standard error is that of the difference from full precision, token by token on the same text.
    """
    from refquant.evaluate.perplexity import score
    from refquant.methods.registry import defaults
    from refquant.models.quantize import quantize

    tokens = calibration[: 32 * context].astype(np.int64).reshape(-1, context)
    base = score(model, ids, "llama.cpp", context, windows=windows, keep=True)
    out = {"windows": windows, "calibration_windows": len(tokens), "perplexity": base.perplexity, "rows": []}
    for grid in GRIDS:
        for method in METHODS:
            changed = copy.deepcopy(model)
            quantize(changed, method, grid, tokens, **defaults(method)[1])
            scores = score(changed, ids, "llama.cpp", context, windows=windows, reference=base)
            change = {"difference": scores.perplexity_change, "standard_error": scores.perplexity_change_stderr}
            out["rows"].append({"grid": grid, "method": method, "perplexity": scores.perplexity} | change)
    return out


def measure(folder: Path, smollm2: Path | None) -> dict:
    """Everything that the card states about the model in `folder`; measurements of these weights are not repeated."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kept, data = folder / "measured.json", (folder / "model.safetensors").read_bytes()
    measured = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if kept.exists() and (earlier := json.loads(kept.read_text()))["sha256"] == measured["sha256"]:
        measured = earlier
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with np.load(folder / "tokens.npz") as file:
        ids = {part: file[part] for part in PARTS}
    context = model.config.max_position_embeddings
    text = {part: tokenizer.decode(ids[part].tolist(), skip_special_tokens=True) for part in PARTS}

    def of_smollm2():
        path = Path(smollm2)
        other = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        tokens = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return activations(other, tokens(text["calibration"][:40000]).input_ids, context)

    steps = {
        "parameters": lambda: sum(p.numel() for p in model.parameters()),
        "characters_per_token": lambda: {part: len(text[part]) / len(ids[part]) for part in PARTS},
        "evaluation": lambda: perplexities(model, tokenizer, ids["evaluation"], context),
        "first_windows": lambda: first_windows(model, ids["evaluation"], context),
        "activations": lambda: activations(model, ids["calibration"], context),
        "samples": lambda: samples(model, tokenizer),
        "quantized": lambda: quantized(model, ids["evaluation"], ids["calibration"], context),
    }
    if smollm2:
        steps["activations_smollm2"] = of_smollm2
    for name, run in steps.items():
        if name not in measured:
            measured[name] = run()
            kept.write_text(json.dumps(measured, indent=1) + "\n")
    return measured
