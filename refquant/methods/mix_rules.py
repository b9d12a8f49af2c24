"""The rules behind `mixes`: the role of a tensor by its name, and the type that each role gets in each mix.

One function a role. It is asked with the mix, its base type, facts about the model, and which tensor of its role this
is: number i, counted from 0, of the n that llama.cpp expects (all layers for ffn_down, all such tensors for attn_v).

Source: llama-quant.cpp of llama.cpp.
"""

import re
from dataclasses import dataclass

from refquant.ggml_types import ggml_type

# role: parts of a name that give it. Fused and decompressed values count as attn_v.
ROLES = {
    "attn_v": ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight"),
    "attn_k": ("attn_k.weight",),
    "attn_q": ("attn_q.weight",),
    "attn_output": ("attn_output.weight",),
    "ffn_up": ("ffn_up",),
    "ffn_gate": ("ffn_gate",),
    "ffn_down": ("ffn_down",),
}
# Small or sensitive matrices that keep their type: norms, routers, convolutions, recurrences, positions, codebooks.
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|time_mix_(?:first|w[012]|v[012]|a[012]|g[12]|decay_w[12]"
    r"|lerp_fused)\.weight|attn_rel_b\.weight|^position_embd\.|^token_types\.|\.position_embd|sam\.pos_embd|sam\.neck\."
    r"|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd"
)


@dataclass(frozen=True)
class Model:
    """What the rules ask about a model. `heads` and `kv_heads` are those of its first layer."""

    architecture: str = "llama"
    layers: int = 1
    heads: int = 1
    kv_heads: int = 1
    experts: int = 0

    @property
    def gqa(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """What llama.cpp takes for a 70B model: 80 layers, and for Llama also grouped-query attention."""
        known = {"llama": self.heads != self.kv_heads, "qwen2": True, "deci": True, "olmo": True}
        return (self.layers == 80 and known.get(self.architecture, False)) or (
            self.layers == 68 and self.architecture == "jais2"
        )


def more_bits(i: int, n: int) -> bool:
    """Whether layer i of n is in the first eighth, the last eighth, or every third between (integer division)."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def role_of(name: str) -> str:
    """Return `output`, `token_embd`, one of `ROLES`, or `other`."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    return next((role for role, parts in ROLES.items() if any(part in name for part in parts)), "other")


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp quantizes this tensor at all: a matrix whose name ends in `weight` and is not in `KEPT`."""
    axes = len(shape) - next((i for i, size in enumerate(shape) if size > 1), len(shape))  # leading ones do not count
    return axes >= 2 and name.endswith("weight") and not KEPT.search(name)


@dataclass(frozen=True)
class Question:
    """What a rule is asked: which tensor, of which model, in which mix."""

    mix: str
    base: str
    model: Model
    importance: bool
    i: int
    n: int
    shape: tuple[int, ...]


def keep(q: Question) -> str:
    """The base type; in MXFP4_MOE that holds for the stacked matrices of the experts only."""
    if q.mix == "MXFP4_MOE":
        return "MXFP4" if len(q.shape) > 2 and q.shape[-3] > 1 else "Q8_0"
    return q.base


def _output(q: Question) -> str:
    if q.mix == "MXFP4_MOE" or q.model.architecture == "falcon" or q.shape[-1] % ggml_type(q.base).weights:
        return "Q8_0"
    return "Q8_0" if q.base == "Q8_0" else "Q6_K"


def _token_embedding(q: Question) -> str:
    return "Q4_K" if q.mix in ("TQ1_0", "TQ2_0") else keep(q)


def _attn_v(q: Question) -> str:
    kind = keep(q)
    match q.mix:
        case "MXFP4_MOE":
            return kind
        case "Q2_K":
            kind = "Q4_K" if q.model.gqa >= 4 else "Q3_K"
        case "Q2_K_S" if q.model.gqa >= 4:
            kind = "Q4_K"
        case "Q3_K_M":
            kind = "Q5_K" if q.i < 2 else "Q4_K"
        case "Q3_K_L":
            kind = "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if q.model.gqa >= 4:
            kind = "Q5_K"
        case "Q4_K_S" if q.i < 4:
            kind = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if more_bits(q.i, q.n):
            kind = "Q6_K"
    if q.model.is_70b and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return "Q8_0" if q.model.experts == 8 else kind


def _attn_k(q: Question) -> str:
    return "Q8_0" if q.model.experts == 8 else keep(q)


def _ffn_down(q: Question) -> str:
    falcon, first_eighth = q.model.architecture == "falcon", q.i < q.n // 8
    match q.mix:
        case "Q2_K":
            return "Q3_K"
        case "Q2_K_S" if first_eighth:
            return "Q4_K"
        case "Q3_K_M":
            if q.i < q.n // 16:
                return "Q5_K"
            return "Q4_K" if not falcon or more_bits(q.i, q.n) else "Q3_K"
        case "Q3_K_L":
            return "Q4_K" if falcon else "Q5_K"
        case "Q4_K_M" if falcon and q.i >= q.n // 16:
            return "Q5_K" if more_bits(q.i, q.n) else "Q4_K"
        case "Q4_K_M" | "Q5_K_M" if more_bits(q.i, q.n):
            return "Q6_K"
        case "Q4_K_S" if first_eighth and not falcon:
            return "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if first_eighth and not q.importance:
            return "Q5_K"
        case "Q4_0" | "Q5_0" if first_eighth and q.importance:
            return q.mix[:-1] + "1"
    return keep(q)


def _attn_output(q: Question) -> str:
    if q.model.architecture == "falcon":
        return "Q4_K" if q.mix == "Q3_K_L" else keep(q)
    if q.model.experts == 8:
        raised = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
        return "Q5_K" if q.mix in raised else keep(q)
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(q.mix) or keep(q)


RULES = {
    "output": _output,
    "token_embd": _token_embedding,
    "attn_v": _attn_v,
    "attn_k": _attn_k,
    "ffn_down": _ffn_down,
    "attn_output": _attn_output,
}
