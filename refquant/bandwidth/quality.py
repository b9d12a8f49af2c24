"""What a storage costs in quality: published perplexities with their sources, or what `refquant compare` measured.

A perplexity compares only with the unquantized model under the same protocol, so what is kept is the pair, and what is
compared between models is the relative increase. All of WikiText-2.

    protocol      context  source
    AWQ           2048     AWQ paper, arXiv 2306.00978, table 4 (its GPTQ rows: with reordering)
    llama.cpp     512      tools/perplexity/README.md (Llama-3-8B), quantize.cpp (LLaMA-7B)
    LLM.int8      C4       arXiv 2208.07339, table 1 (transformers of 13B and 6.7B parameters)

`models`: the nearest published model by size stands in for one that is not listed, and is named in the result. Such a
number is a hint: it depends on the model, and on the task more than perplexity shows.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from refquant.errors import BadFile

_AWQ, _CPP = "AWQ paper table 4, context 2048", "llama.cpp README, context 512"
_OLD = "llama.cpp quantize.cpp, context 512"
_INT8 = "LLM.int8 paper table 1, C4"

# model: (its parameters in 10^9, perplexity unquantized, source, {method and storage: perplexity})
PUBLISHED = (
    ("llama-2-7b", 6.74, 5.47, _AWQ, {
        "RTN int4-g128": 5.73, "GPTQ int4-g128": 5.63, "AWQ int4-g128": 5.60,
        "RTN int3-g128": 6.66, "GPTQ int3-g128": 6.42, "AWQ int3-g128": 6.24}),
    ("llama-2-13b", 13.02, 4.88, _AWQ, {
        "RTN int4-g128": 4.98, "GPTQ int4-g128": 4.99, "AWQ int4-g128": 4.97}),
    ("llama-2-70b", 68.98, 3.32, _AWQ, {
        "RTN int4-g128": 3.46, "GPTQ int4-g128": 3.43, "AWQ int4-g128": 3.41}),
    ("llama-3-8b", 8.03, 6.2332, _CPP, {
        "Q2_K": 9.7531, "Q3_K_S": 7.8653, "Q3_K_M": 6.8901, "Q3_K_L": 6.7894, "Q4_0": 6.7017, "Q4_K_S": 6.5021,
        "Q4_K_M": 6.4086, "Q5_K_S": 6.3381, "Q5_K_M": 6.2901, "Q6_K": 6.2549, "Q8_0": 6.2358}),
    ("llama-2-7b", 6.74, 5.7946, _CPP, {"Q2_K": 6.4202, "Q4_K_M": 5.8771, "Q6_K": 5.8085, "Q8_0": 5.7986}),
    ("llama-7b", 6.74, 5.91, _OLD, {
        "Q2_K": 6.7798, "Q3_K_S": 6.4605, "Q3_K_M": 6.1537, "Q3_K_L": 6.0903, "Q4_0": 6.1599, "Q4_1": 6.0946,
        "Q4_K_S": 6.0249, "Q4_K_M": 5.9635, "Q5_0": 5.9896, "Q5_1": 5.9515, "Q5_K_S": 5.9453, "Q5_K_M": 5.9242,
        "Q6_K": 5.9144, "Q8_0": 5.9104}),
    ("13b (LLM.int8)", 13.0, 12.45, _INT8, {"LLM.int8": 12.45}),
    ("6.7b (LLM.int8)", 6.7, 13.30, _INT8, {"LLM.int8": 13.24}),
)  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """Perplexity of one method on one model, beside the unquantized one under the same protocol."""

    method: str
    model: str
    base: float
    perplexity: float
    source: str
    stderr: float | None = None  # of the increase, where it was measured

    @property
    def delta(self) -> float:
        """Increase of the perplexity."""
        return self.perplexity - self.base

    @property
    def relative(self) -> float:
        """Increase as a share of the unquantized perplexity."""
        return self.delta / self.base


def published(method: str, parameters: float | None = None) -> list[Quality]:
    """Every published value of a method ("AWQ int4-g128", "Q4_K_M"); nearest in parameters first, where given."""
    rows = [
        (size, Quality(method, model, base, values[method], source))
        for model, size, base, source, values in PUBLISHED
        if method in values
    ]
    if parameters:
        rows.sort(key=lambda row: abs(math.log(row[0] * 1e9 / parameters)))
    return [quality for _, quality in rows]


def measured(results) -> dict[str, Quality]:
    """Read what `refquant compare --json` wrote: a mapping, or the path of the file; `Quality` by label of the row.

    The first line is the unquantized model. A row "GGUF Q4_K_M" is found as "Q4_K_M", as the mixes are
    called here. Raises `BadFile` where that form is not found.
    """
    if isinstance(results, str | Path):
        try:
            results = json.loads(Path(results).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise BadFile(f"{results}: not a JSON file of `refquant compare` ({problem})") from problem
    try:
        base, *lines = [
            (str(line["label"]), float(line["perplexity"]), line.get("perplexity_change_stderr"))
            for line in results["lines"]
        ]
        source = f"measured: {results['protocol']}, context {results['context']}, {results['windows']} windows"
        model = str(results["model"])
    except (KeyError, TypeError, ValueError) as problem:
        raise BadFile(
            f"expected what `refquant compare --json` writes (lines, model, protocol, ...): {problem!r}"
        ) from None
    lines = [(label.removeprefix("GGUF "), value, stderr) for label, value, stderr in lines]
    return {label: Quality(label, model, base[1], value, source, stderr) for label, value, stderr in lines}
