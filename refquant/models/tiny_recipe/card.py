"""Finish the model folder: config files, notices, loss curve, measurements and the model card.

`python -m refquant.models.tiny_recipe.card FOLDER MODEL RUN [RUN ...] [--smollm2 FILE.gguf] [--abandoned RUN]`

FOLDER is what `gather` and `encode` wrote, MODEL the model's folder, which holds the tokenizer and the tokens already,
RUN what `train` wrote: several where each started from the weights of the one before it. Every number in the card is
computed here and kept in MODEL/measured.json; none is typed.
"""

import argparse
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np

PROMPTS = (
    "The default value of this parameter is",
    "To install the package, you need to",
    "Returns a list of",
    "In this section, we describe how the database",
    "A thread is",
)
PARTS = ("calibration", "evaluation")


def write_configs(config: dict, model: Path):
    """Write config.json and generation_config.json as transformers reads them."""
    from transformers import GenerationConfig, LlamaConfig

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    whole = LlamaConfig(
        **config, **ends, tie_word_embeddings=True, dtype="bfloat16", architectures=["LlamaForCausalLM"]
    )
    whole.save_pretrained(model)
    GenerationConfig(**ends, pad_token_id=0).save_pretrained(model)


def draw(stages: list[dict], abandoned: dict | None, path: Path):
    """The loss curve as a picture: the stages one after the other, each from the step the next one started at."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    rate = axes.twinx()
    offset, low = 0.0, np.inf
    if abandoned:
        held = np.array(abandoned["validation"])
        axes.plot(held[:, 1] / 1e6, held[:, 2], lw=1, color="C1", alpha=0.4, label="validation, had stage 1 gone on")
    for i, stage in enumerate(stages):
        train, held = (np.array([p for p in stage[k] if p[0] <= stage["best"][0]]) for k in ("train", "validation"))
        tokens = offset + train[:, 1] / 1e6
        labels = [None, None] if i else ["training (mean since the point before)", "validation"]
        axes.plot(tokens, train[:, 2], lw=0.8, color="C0", label=labels[0])
        axes.plot(offset + held[:, 1] / 1e6, held[:, 2], lw=1.8, color="C1", label=labels[1])
        rate.plot(tokens, train[:, 3], lw=0.8, color="grey", ls=":")
        offset, low = tokens[-1], min(low, held[:, 2].min(), train[:, 2].min())
    axes.set(xlabel="million tokens seen", ylabel="nats per token", ylim=(low - 0.1, low + 1.4), xlim=(0, None))
    rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


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


def measure(model_folder: Path, smollm2: Path | None) -> dict:
    """Everything that the card states about the stored model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from refquant.evaluate.perplexity import score

    began = time.time()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, local_files_only=True).eval()
    loading = time.time() - began
    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    with np.load(model_folder / "tokens.npz") as file:
        ids = {part: file[part] for part in PARTS}
    context = model.config.max_position_embeddings
    first = score(model, ids["evaluation"], "llama.cpp", context, windows=16)
    text = {part: tokenizer.decode(ids[part].tolist(), skip_special_tokens=True) for part in PARTS}
    measured = {
        "sha256": hashlib.sha256((model_folder / "model.safetensors").read_bytes()).hexdigest(),
        "bytes": (model_folder / "model.safetensors").stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loading_seconds": loading,
        "characters_per_token": {part: len(text[part]) / len(ids[part]) for part in PARTS},
        "evaluation": perplexities(model, tokenizer, ids["evaluation"], context),
        "first_windows": {"windows": 16, "perplexity": first.perplexity},
        "activations": activations(model, ids["calibration"], context),
        "samples": samples(model, tokenizer),
    }
    if smollm2:
        path = Path(smollm2)
        other = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        tokens = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        measured["activations_smollm2"] = activations(other, tokens(text["calibration"][:40000]).input_ids, context)
    return measured


def notice(manifest: dict) -> str:
    """Attribution for the token files: every package that text came from, with its licence."""
    lines = [
        "The token ids in tokens.npz encode passages of the documentation of some of the packages below, cut and",
        "cleaned. Each passage stays under its package's licence and copyright, which the package itself states.",
        "The weights in model.safetensors were trained on text of all of them.",
        "",
    ]
    for s in manifest["sources"]:
        name = s["source"] + " " + s["archives"][0]["version"]
        lines.append(f"{name:<60} {s['licence']}")
    return "\n".join(lines) + "\n"


def main():
    """Command line."""
    from refquant.models.tiny_recipe import card_text

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2's GGUF file, for the comparison of activations")
    parser.add_argument("--abandoned", type=Path, help="the first run continued to its end, shown in the picture")
    args = parser.parse_args()
    stages = [json.loads((run / "history.json").read_text()) for run in args.runs]
    abandoned = json.loads((args.abandoned / "history.json").read_text()) if args.abandoned else None
    manifest = json.loads((args.folder / "manifest.json").read_text())
    shutil.copyfile(args.runs[-1] / "model.safetensors", args.model / "model.safetensors")
    write_configs(stages[-1]["config"], args.model)
    draw(stages, abandoned, args.model / "loss.png")
    (args.model / "history.json").write_text(json.dumps({"stages": stages, "abandoned": abandoned}))
    for part in PARTS:
        manifest["parts"][part]["names"] = (args.folder / "text" / f"{part}.names.txt").read_text().split("\n")[:-1]
    for part, entry in manifest["parts"].items():
        entry["tokens"] = (args.folder / "tokens" / f"{part}.u16").stat().st_size // 2
    (args.model / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (args.model / "NOTICE").write_text(notice(manifest))
    measured = measure(args.model, args.smollm2)
    (args.model / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (args.model / "README.md").write_text(card_text.card(stages, abandoned, manifest, measured))


if __name__ == "__main__":
    main()
