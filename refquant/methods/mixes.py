"""Mixes: which block format llama.cpp gives to each tensor of a model. Q4_K is a format; Q4_K_M is a mix.

A mix has a base type, which most matrices get. A few roles are raised above it, because an error there costs more:

    output       the last matrix, or the token embedding where a model has no other: Q6_K (Q8_0 where rows do not fit)
    attn_v       small under grouped-query attention, and every token's output is made of it
    ffn_down     the widest rows; raised in some layers only
    attn_output  in the 2-bit and 3-bit mixes

Everything else keeps the base type: attn_q, attn_k, ffn_gate, ffn_up and an untied token embedding (except in models of
eight experts and in the ternary mixes). The letters S, M, L only say how much is raised. Norms, biases and routers stay
as they are. A matrix whose rows are not whole blocks falls back to a larger type with blocks of 32, which can blow a
model up: every fallback is marked in the plan. The rules themselves are in `mix_rules`.

Source: llama-quant.cpp of llama.cpp (July to November 2026), whose own planner gives the same types; the README of its
quantize tool has the bits per weight.

Against other code: llama.cpp counts layers over the tensors sorted by layer and then by name, whatever the order of
the file, and so does this. Where the width makes the output matrix Q8_0, llama.cpp counts no fallback, and stops if
even 32 does not divide the width; this marks a fallback, and takes F16 then.
Leaves out: the IQ1, IQ2, IQ3, Q1_0, Q2_0 and NVFP4 mixes, whose block formats refquant does not encode.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from refquant.errors import BadInput, UnknownName
from refquant.ggml_types import ggml_type
from refquant.methods.mix_rules import RULES, Model, Question, is_quantized, keep, role_of

# mix: (its number in general.file_type, base type)
MIXES = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "BF16": (32, "BF16"),
    "Q8_0": (7, "Q8_0"),
    "Q6_K": (18, "Q6_K"),
    "Q5_K_M": (17, "Q5_K"),
    "Q5_K_S": (16, "Q5_K"),
    "Q5_1": (9, "Q5_1"),
    "Q5_0": (8, "Q5_0"),
    "Q4_K_M": (15, "Q4_K"),
    "Q4_K_S": (14, "Q4_K"),
    "Q4_1": (3, "Q4_1"),
    "Q4_0": (2, "Q4_0"),
    "IQ4_NL": (25, "IQ4_NL"),
    "IQ4_XS": (30, "IQ4_XS"),
    "MXFP4_MOE": (38, "MXFP4"),
    "Q3_K_L": (13, "Q3_K"),
    "Q3_K_M": (12, "Q3_K"),
    "Q3_K_S": (11, "Q3_K"),
    "Q2_K": (10, "Q2_K"),
    "Q2_K_S": (21, "Q2_K"),
    "TQ2_0": (37, "TQ2_0"),
    "TQ1_0": (36, "TQ1_0"),
}
FALLBACK = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
FLOATS = ("F32", "F16", "BF16")


def describe(metadata: Mapping) -> Model:
    """Return the `Model` that a GGUF file's metadata describes."""
    name = metadata["general.architecture"]

    def number(key, default):
        value = metadata.get(f"{name}.{key}", default)
        return int(value[0] if hasattr(value, "__len__") else value)

    heads = number("attention.head_count", 1)
    return Model(
        name, number("block_count", 1), heads, number("attention.head_count_kv", heads), number("expert_count", 0)
    )


@dataclass(frozen=True)
class Choice:
    """The type of one tensor. `wanted` is the type that its rows could not hold, where a fallback was taken."""

    name: str
    shape: tuple[int, ...]
    type: str
    wanted: str | None = None
    needs_importance: bool = False

    @property
    def weights(self) -> int:
        """Weights of the tensor."""
        return self.nbytes * ggml_type(self.type).weights // ggml_type(self.type).bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return ggml_type(self.type).nbytes(self.shape)


@dataclass(frozen=True)
class Plan:
    """A type for every tensor, before any work is done. `print(plan)` shows the table.

    `file_type` is llama.cpp's number for the mix, which stands in general.file_type.
    """

    mix: str
    choices: tuple[Choice, ...]
    file_type: int = 0

    @property
    def types(self) -> dict[str, str]:
        """Type by tensor name."""
        return {choice.name: choice.type for choice in self.choices}

    @property
    def nbytes(self) -> int:
        """Bytes of all the tensors."""
        return sum(choice.nbytes for choice in self.choices)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors, those that stay in float32 included, as llama.cpp counts."""
        return 8 * self.nbytes / sum(choice.weights for choice in self.choices)

    @property
    def fallbacks(self) -> tuple[Choice, ...]:
        """The choices whose rows could not hold the type that the mix wanted."""
        return tuple(choice for choice in self.choices if choice.wanted)

    def __str__(self):
        lines = [f"{'tensor':<40} {'shape':<18} {'type':<7} {'bits':>7} {'bytes':>13}"]
        for choice in self.choices:
            note = f"  not {choice.wanted}: rows of {choice.shape[-1]}" if choice.wanted else ""
            shape, bits = "x".join(map(str, choice.shape)), ggml_type(choice.type).bits_per_weight
            lines.append(f"{choice.name:<40} {shape:<18} {choice.type:<7} {bits:7.4f} {choice.nbytes:13,}{note}")
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(self.types.values()).most_common())
        lines.append(f"{self.mix}: {self.nbytes:,} bytes, {self.bits_per_weight:.4f} bits per weight; {counts}")
        return "\n".join([*lines, f"{len(self.fallbacks)} fallbacks"] if self.fallbacks else lines)


def plan(
    tensors: Mapping,
    mix: str,
    model: Model | None = None,
    importance: bool = False,
    pure: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> Plan:
    """Choose a type for every tensor as llama.cpp does, before any work.

    Parameters
    ----------
    tensors : mapping of name to shape, or to anything with `shape` and `type`
        GGUF names, row-major shapes [out, in] or [experts, out, in]; a bare shape stands for a float32 tensor.
    mix : str
        One of `MIXES`; or the base type of one, such as Q4_K, which then goes to every matrix (`pure`).
    model : Model
        `describe(metadata)` makes it; by default a Llama with as many layers as the names show.
    importance : bool
        Whether an importance matrix will be used: it changes ffn_down in IQ4_NL, IQ4_XS, Q4_0 and Q5_0.
    pure : bool
        Give the base type to every matrix, the output and the embedding included.
    overrides : mapping of regular expression to type
        The first expression found in a tensor's name decides in place of the mix (not for F32, F16, BF16).

    Returns
    -------
    Plan
        In the order of `tensors`.

    Raises
    ------
    UnknownName, BadInput
        An unknown mix or type; a row that fits neither the type nor any fallback.
    """
    number, base = MIXES.get(mix) or next((entry for entry in MIXES.values() if entry[1] == mix), (0, None))
    if base is None:
        raise UnknownName("mix", mix, [*MIXES, *sorted({base for _, base in MIXES.values()} - MIXES.keys())])
    pure = pure or mix not in MIXES
    given = {name: (tuple(getattr(t, "shape", t)), getattr(t, "type", "F32")) for name, t in tensors.items()}
    if model is None:
        model = Model(layers=1 + max((_layer(name) for name in given), default=0))
    order = sorted(given, key=lambda name: (_layer(name), name))
    roles = {name: role_of(name) for name in order}
    values = [name for name in order if roles[name] == "attn_v"]
    chosen, seen = {}, Counter()
    for name in order:
        shape, now = given[name]
        if not is_quantized(name, shape):
            chosen[name] = Choice(name, shape, now)
            continue
        want = base
        by_hand = next((kind for text, kind in (overrides or {}).items() if re.search(text, name)), None)
        if base not in FLOATS:
            if by_hand:
                want = ggml_type(by_hand).name
            elif not pure:
                role = "output" if roles[name] == "token_embd" and "output.weight" not in given else roles[name]
                i = _layer(name) if model.experts > 1 and role == "ffn_down" else seen[role]
                n = len(values) if role == "attn_v" else model.layers
                kind = RULES.get(role, keep)(Question(mix, base, model, importance, i, n, shape))
                seen[role] += 1
                # The width decided here already, one step before the fallback.
                want = "Q6_K" if role == "output" and kind == "Q8_0" and shape[-1] % ggml_type(base).weights else kind
        fitting = _fit(name, shape, want) if base not in FLOATS else want
        needs = mix == "Q2_K_S" and fitting == "Q2_K" and roles[name] not in ("output", "token_embd")
        chosen[name] = Choice(name, shape, fitting, want if fitting != want else None, needs)
    return Plan(mix, tuple(chosen[name] for name in given), number)


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _fit(name: str, shape: tuple[int, ...], want: str) -> str:
    """Return the type itself, or what llama.cpp falls back to where a row is not whole blocks."""
    width = shape[-1]
    if width % ggml_type(want).weights == 0:
        return want
    if want not in FALLBACK:
        raise BadInput(
            f"{name}: rows of {width} are not whole blocks of {ggml_type(want).weights} ({want}), which has no fallback"
        )
    return FALLBACK[want] if width % ggml_type(FALLBACK[want]).weights == 0 else "F16"
