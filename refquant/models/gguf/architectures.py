"""What llama.cpp and transformers call the same things: architectures, hyperparameters, tensors. No torch in here.

Two of them hold the same numbers in different ways:

- **Row order of attn_q and attn_k (llama, mistral).** Rotary embedding turns pairs of rows of a head of width d.
  transformers pairs row j with row j + d/2, llama.cpp (for this architecture) row 2j with row 2j + 1. So the rows of
  each head are interleaved on the way to GGUF. Only whole rows move, and their bytes with them, unchanged.
- **Norms of Gemma.** transformers multiplies by 1 + weight; the file holds 1 + weight.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from refquant.errors import BadFile, BadInput

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# hyperparameter in GGUF: attribute of transformers' config
INTEGERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
}
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp and the models of transformers that it runs; the first is what a file becomes."""

    name: str
    model_types: tuple[str, ...]
    layer: Mapping[str, str]
    interleaved: bool = False
    norm_shift: float = 0.0
    activation: str = "silu"


ARCHITECTURES = {
    item.name: item
    for item in (
        Architecture("llama", ("llama", "mistral"), LAYER, interleaved=True),
        Architecture("qwen2", ("qwen2",), LAYER),
        Architecture("qwen3", ("qwen3",), LAYER | HEAD_NORMS),
        Architecture(
            "gemma3",
            ("gemma3_text",),
            LAYER | HEAD_NORMS | GEMMA_NORMS,
            norm_shift=1.0,
            activation="gelu_pytorch_tanh",
        ),
    )
}


def of_config(config: Mapping) -> Architecture:
    """Return the architecture of a transformers config (as a dict); raise `BadInput` for one that is not known."""
    for item in ARCHITECTURES.values():
        if config.get("model_type") in item.model_types:
            return item
    known = [kind for item in ARCHITECTURES.values() for kind in item.model_types]
    raise BadInput(f"no GGUF architecture for model_type {config.get('model_type')!r}; known: {', '.join(known)}")


def of_metadata(metadata: Mapping) -> Architecture:
    """Return the architecture that a file names; raise `BadFile` for one that is not known."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise BadFile(f"general.architecture is {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


# ---- tensor names


def gguf_name(name: str, architecture: Architecture) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`; raise `BadInput` for a name without a place."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    parts = stem.split(".", 3)  # model, layers, number, the rest
    if len(parts) == 4 and parts[1] == "layers" and parts[3] in architecture.layer:
        return f"blk.{parts[2]}.{architecture.layer[parts[3]]}.{kind}"
    raise BadInput(f"{name} has no place in a GGUF file of a {architecture.name} model")


def hf_name(name: str, architecture: Architecture) -> str:
    """`blk.3.ffn_up.weight` -> `model.layers.3.mlp.up_proj.weight`; raise `BadFile` for an unknown name."""
    stem, _, kind = name.rpartition(".")
    top = {gguf: hf for hf, gguf in TOP.items()}
    layer = {gguf: hf for hf, gguf in architecture.layer.items()}
    if stem in top:
        return f"{top[stem]}.{kind}"
    parts = stem.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in layer:
        return f"model.layers.{parts[1]}.{layer[parts[2]]}.{kind}"
    raise BadFile(f"{name} is not a tensor of a {architecture.name} model")


# ---- values


def row_order(name: str, rows: int, config: Mapping, architecture: Architecture) -> np.ndarray | None:
    """Return which row of transformers' matrix is row i of the file's, for attn_q and attn_k of llama; else None."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if not architecture.interleaved or heads is None:
        return None
    return np.arange(rows).reshape(config[heads], 2, -1).swapaxes(1, 2).reshape(-1)


def is_norm(name: str) -> bool:
    """Whether a GGUF tensor is the weight of a norm."""
    return name.endswith("norm.weight")


def rope_factors(rope: Mapping, width: int) -> np.ndarray:
    """Return what Llama 3.1 divides the rotary frequencies of a head of `width` by, float32 [width / 2].

    Frequencies whose wavelength is below original / high_freq_factor stay, those above original / low_freq_factor are
    slowed by `factor`, and between the two the change is blended. Source: transformers' `llama3` rope; llama.cpp reads
    the result from the tensor `rope_freqs.weight`.
    """
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    wavelength = 2 * math.pi * np.float32(rope["rope_theta"]) ** exponent
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = np.clip((rope["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / rope["factor"] + blend)).astype(np.float32)


# ---- hyperparameters


def config_to_metadata(config: Mapping) -> dict:
    """Return the hyperparameters of a transformers config, as a dict, under the keys that llama.cpp reads.

    Raises
    ------
    BadInput
        An architecture, activation, attention scale, window pattern or kind of rotary scaling that llama.cpp would run
        differently.
    """
    item, name = of_config(config), of_config(config).name
    config = with_head_width(config)
    activation = config.get("hidden_act", config.get("hidden_activation"))
    if activation != item.activation or config.get("use_sliding_window"):
        raise BadInput(
            f"llama.cpp runs {name} with {item.activation} and no sliding window; the model has {activation}"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    full = dict(rope.get("full_attention", rope))
    theta = full.get("rope_theta", config.get("rope_theta", 10000.0))
    metadata = {"general.architecture": name}
    metadata |= {f"{name}.{key}": np.uint32(config[attribute]) for key, attribute in INTEGERS.items()}
    metadata[f"{name}.attention.layer_norm_rms_epsilon"] = np.float32(config["rms_norm_eps"])
    metadata[f"{name}.rope.freq_base"] = np.float32(theta)
    scaling = full.get("rope_type", full.get("type", "default"))
    if scaling in ("linear", "yarn"):
        metadata[f"{name}.rope.scaling.type"] = scaling
        metadata[f"{name}.rope.scaling.factor"] = np.float32(full["factor"])
    if scaling == "yarn":
        original = full.get("original_max_position_embeddings", config["max_position_embeddings"])
        metadata[f"{name}.rope.scaling.original_context_length"] = np.uint32(original)
    elif scaling not in ("default", "linear", "llama3"):
        raise BadInput(f"rotary scaling {scaling!r} has no place in a GGUF file; known: default, linear, yarn, llama3")
    return metadata | (_gemma_metadata(config, rope) if name == "gemma3" else {})


def _gemma_metadata(config: Mapping, rope: Mapping) -> dict:
    if config["query_pre_attn_scalar"] != attention_scale(config) or config.get("use_bidirectional_attention"):
        raise BadInput(
            f"llama.cpp scales the attention of this gemma3 by {attention_scale(config)}, "
            f"the model by {config['query_pre_attn_scalar']}"
        )
    kinds = config.get("layer_types")
    period = next((p for p in range(1, len(kinds) + 2) if kinds == layer_types(len(kinds), p)), None)
    if period is None:
        raise BadInput("llama.cpp wants every n-th layer of gemma3 to be the one with full attention")
    local = rope.get("sliding_attention", {}).get("rope_theta", config.get("rope_local_base_freq", 10000.0))
    metadata = {
        "gemma3.attention.sliding_window": np.uint32(config["sliding_window"]),
        "gemma3.attention.sliding_window_pattern": np.uint32(period),
        "gemma3.rope.freq_base_swa": np.float32(local),
    }
    if config.get("final_logit_softcapping"):
        metadata["gemma3.final_logit_softcapping"] = np.float32(config["final_logit_softcapping"])
    return metadata


def layer_types(layers: int, period: int) -> list[str]:
    """Kinds of attention: every `period`-th layer sees everything, the others a window."""
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def attention_scale(config: Mapping) -> int:
    """Square of what llama.cpp divides gemma3's attention by: a head's width, but hidden / heads in the 27B model."""
    if config["num_hidden_layers"] == 62:
        return config["hidden_size"] // config["num_attention_heads"]
    return config["head_dim"]


def with_head_width(config: Mapping) -> dict:
    """Return the config with `head_dim` and `num_key_value_heads` filled in where they are implied."""
    config = dict(config)
    if config.get("head_dim") is None:
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = config["num_attention_heads"]
    return config


def gguf_to_config(metadata: Mapping, names: Collection[str], factors: np.ndarray | None = None) -> dict:
    """Return the transformers config, as a dict, of a GGUF file.

    Parameters
    ----------
    metadata : the file's metadata
    names : the names of its tensors; without `output.weight` the embedding is the output matrix as well
    factors : float32 [head width / 2], optional
        The file's `rope_freqs.weight`.

    Raises
    ------
    BadFile
        An unknown architecture, a key that is missing, or rotary factors that transformers cannot express.
    """
    item, name = of_metadata(metadata), of_metadata(metadata).name

    def get(key, default=None):
        value = metadata.get(f"{name}.{key}", default)
        if value is None:
            raise BadFile(f"the metadata lacks {name}.{key}")
        return value if isinstance(value, str) else value.item() if hasattr(value, "item") else value

    heads, hidden = get("attention.head_count"), get("embedding_length")
    implied = {"attention.head_count_kv": heads, "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ()))}
    width = get("attention.key_length", hidden // heads)
    config = {attribute: get(key, implied.get(key)) for key, attribute in INTEGERS.items() if attribute != "head_dim"}
    config |= {
        "model_type": item.model_types[0],
        "head_dim": width,
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_activation" if name == "gemma3" else "hidden_act": item.activation,
    }
    if name in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in names
    if name == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in names
    for role in ("bos", "eos", "padding"):
        if (token := metadata.get(f"tokenizer.ggml.{role}_token_id")) is not None:
            config[f"{role.replace('padding', 'pad')}_token_id"] = int(token)
    rope = {"rope_type": get("rope.scaling.type", "none"), "rope_theta": get("rope.freq_base", 10000.0)}
    if rope["rope_type"] == "none":
        rope["rope_type"] = "default"
    else:
        rope["factor"] = get("rope.scaling.factor")
    if rope["rope_type"] == "yarn":
        rope["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
    if factors is not None:
        rope = {"rope_type": "llama3", "rope_theta": rope["rope_theta"], "factor": float(factors.max()), **LLAMA3_ROPE}
        if not np.allclose(rope_factors(rope, width), factors, rtol=1e-4):
            raise BadFile("rope_freqs.weight: these rotary factors are not Llama 3.1's, and transformers has no other")
    config["rope_parameters"] = rope
    return config | (_gemma_config(config, get, rope) if name == "gemma3" else {})


def _gemma_config(config: Mapping, get, rope: Mapping) -> dict:
    local = {"rope_type": "default", "rope_theta": get("rope.freq_base_swa", 10000.0)}
    return {
        "query_pre_attn_scalar": attention_scale(config),
        "sliding_window": get("attention.sliding_window"),
        "layer_types": layer_types(config["num_hidden_layers"], get("attention.sliding_window_pattern", 6)),
        "final_logit_softcapping": get("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {"full_attention": dict(rope), "sliding_attention": local},
    }
