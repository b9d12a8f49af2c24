"""The files of a checkpoint folder beside its weights: config, tokenizer, generation settings, README."""

import shutil
from pathlib import Path

from refquant.models.checkpoint.schemes import Scheme
from refquant.models.checkpoint.writer import write_json

TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
COPIED = (*TOKENIZER, "generation_config.json", "preprocessor_config.json", "processor_config.json")
_KINDS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fine-grained FP8",
    "bitsandbytes": "bitsandbytes",
}


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's files lie in a folder."""
    return any((folder / name).is_file() for name in TOKENIZER)


def copy_files(source: Path, target: Path) -> None:
    """Copy the tokenizer and generation files that `source` has and `target` lacks."""
    for name in COPIED:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def write_config(folder: Path, config: dict, scheme: Scheme, dtype: str) -> None:
    """Write config.json with the scheme; a GPTQ folder also gets quantize_config.json, which older tools want."""
    config = {key: value for key, value in config.items() if key not in ("compression_config", "torch_dtype")}
    quantization = scheme.config()
    write_json(folder / "config.json", config | {"dtype": dtype, "quantization_config": quantization})
    if scheme.method == "gptq":
        write_json(folder / "quantize_config.json", {k: v for k, v in quantization.items() if k != "quant_method"})


def write_readme(folder: Path, name: str, scheme: Scheme, command: str, notes: list[str]) -> None:
    """Write README.md: what the folder holds, the command that made it, how to serve it, what to know."""
    grids = sorted({getattr(getattr(layout, "grid", layout), "name", layout.name) for layout in scheme.layouts})
    lines = [
        f"# {name}",
        "",
        f"Quantized weights ({', '.join(grids)}) in the {_KINDS[scheme.method]} format, written by refquant.",
        "",
        "Made with:",
        "",
        f"    {command}",
        "",
        "Serve it (for several GPUs: `--tensor-parallel-size`; for several machines: `--pipeline-parallel-size`):",
        "",
        f"    vllm serve {name}",
        "",
        "Check it, and look at what it holds:",
        "",
        f"    refquant inspect {name}",
        *(["", "To know:", "", *(f"- {note}" for note in notes)] if notes else []),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def notes(scheme: Scheme, zero_points_of_0: int) -> list[str]:
    """Return what a reader of the folder should know before loading it, in sentences."""
    found = []
    for layout in scheme.layouts:
        if layout.name == "gptq" and layout.version == 1 and zero_points_of_0:
            found.append(
                f"{zero_points_of_0} zero-points are 0, which GPTQ version 1 has no agreed way to store: GPTQModel "
                "reads them back, other readers may not. `gptq_v2` has no such case."
            )
        if layout.name == "pack-quantized" and not layout.sym:
            found.append(
                "transformers 5.23 loads asymmetric compressed-tensors only with "
                "`quantization_config=CompressedTensorsConfig(dequantize=True)`; vLLM loads them as they are."
            )
        if layout.name in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
            found.append("transformers loads this with `dtype=torch.bfloat16`.")
    return found
