"""Shapes of models: layers, widths, heads, vocabulary. From them every byte and every operation follows.

A shape knows its tensors by their names in a GGUF file, so that llama.cpp's mixes can be planned for a model that is
nowhere on this machine. The presets are facts from the published config.json files.

Leaves out: mixtures of experts, encoder-decoders, and decoders with other blocks than Llama's (Gemma, Falcon, Phi).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refquant.bandwidth.units import whole
from refquant.errors import BadFile, BadInput, UnknownName
from refquant.formats import gguf
from refquant.methods.mix_rules import Model

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # config: architecture in GGUF


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind: RMS norms, attention with grouped queries, a gated feed-forward layer.

    Widths and counts, no bytes. `gguf_metadata`: bytes of a GGUF file that are not tensors (mostly the tokenizer),
    where a real file was measured. `rope_factors`: float32 numbers that Llama 3.1's files carry as a tensor.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_factors: int = 0
    architecture: str = "llama"
    gguf_metadata: int | None = None

    def __post_init__(self):
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab", "head_dim"):
            whole(f"{self.name}: {name}", getattr(self, name))
        if self.heads % self.kv_heads:
            raise BadInput(f"{self.name}: {self.heads} heads are not a multiple of {self.kv_heads} heads of keys")

    @property
    def gqa(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def kv_width(self) -> int:
        """Numbers in one token's keys in one layer (as many again in its values)."""
        return self.kv_heads * self.head_dim

    @property
    def mix_model(self) -> Model:
        """The facts that llama.cpp's mixes ask for."""
        return Model(self.architecture, self.layers, self.heads, self.kv_heads)

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """The Linear layers of one block, [out, in] by GGUF name without its number."""
        q = self.heads * self.head_dim
        return {
            "attn_q": (q, self.hidden),
            "attn_k": (self.kv_width, self.hidden),
            "attn_v": (self.kv_width, self.hidden),
            "attn_output": (self.hidden, q),
            "ffn_gate": (self.intermediate, self.hidden),
            "ffn_up": (self.intermediate, self.hidden),
            "ffn_down": (self.hidden, self.intermediate),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor, shape by GGUF name."""
        block = {f"{name}.weight": size for name, size in self.layer_matrices().items()}
        block |= {"attn_norm.weight": (self.hidden,), "ffn_norm.weight": (self.hidden,)}
        if self.qkv_bias:
            block |= {"attn_q.bias": (self.heads * self.head_dim,)}
            block |= {"attn_k.bias": (self.kv_width,), "attn_v.bias": (self.kv_width,)}
        if self.qk_norm:
            block |= {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        every = {"token_embd.weight": (self.vocab, self.hidden)}
        every |= {f"blk.{i}.{name}": size for i in range(self.layers) for name, size in block.items()}
        every |= {"output_norm.weight": (self.hidden,)}
        if not self.tied:
            every |= {"output.weight": (self.vocab, self.hidden)}
        if self.rope_factors:
            every |= {"rope_freqs.weight": (self.rope_factors,)}
        return every

    @property
    def parameters(self) -> int:
        """Trained parameters; a tied embedding counts once."""
        vectors = 2 * self.hidden + 2 * self.head_dim * self.qk_norm
        vectors += (self.heads * self.head_dim + 2 * self.kv_width) * self.qkv_bias
        matrices = sum(n * k for n, k in self.layer_matrices().values())
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (matrices + vectors) + embeddings + self.hidden


def from_config(config, name: str | None = None) -> Shape:
    """Read a shape from a Hugging Face config: a mapping, a transformers config, a config.json, or its folder.

    Raises
    ------
    BadFile
        No config there, or not JSON.
    BadInput
        A kind of model that is left out (mixtures of experts among them), or a field that is missing.
    """
    if isinstance(config, str | Path):
        path = Path(config) / "config.json" if Path(config).is_dir() else Path(config)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as problem:
            raise BadFile(f"{path}: no config can be read there ({problem.strerror})") from problem
        except ValueError as problem:
            raise BadFile(f"{path}: not a JSON file ({problem})") from problem
        name = name or path.resolve().parent.name
    else:
        values = config if isinstance(config, Mapping) else config.to_dict()
    if not isinstance(values, Mapping):
        raise BadFile(f"{name}: a config must be a JSON object, got {type(values).__name__}")
    kind = values.get("model_type")
    name = name or values.get("_name_or_path") or kind
    if kind not in FAMILIES or values.get("num_local_experts") or values.get("num_experts"):
        raise BadInput(f"{name}: model_type {kind!r} cannot be planned; known, without experts: {', '.join(FAMILIES)}")
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if missing := [key for key in needed if values.get(key) is None]:
        raise BadInput(f"{name}: the config lacks {', '.join(missing)}")
    layers, hidden, intermediate, heads, vocab = (values[key] for key in needed)
    head_dim = values.get("head_dim") or hidden // whole(f"{name}: num_attention_heads", heads)
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    return Shape(
        str(name),
        layers,
        hidden,
        intermediate,
        heads,
        values.get("num_key_value_heads") or heads,
        vocab,
        head_dim,
        tied=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2" or bool(values.get("attention_bias")),
        qk_norm=kind == "qwen3",
        rope_factors=head_dim // 2 if (rope.get("rope_type") or rope.get("type")) == "llama3" else 0,
        architecture=FAMILIES[kind],
    )


def from_gguf(path) -> Shape:
    """Read a shape from a GGUF file: its metadata, and its tensors' names, which must be those of such a decoder."""
    file = gguf.read(path)
    values, tensors = file.metadata, file.tensors
    kind = values.get("general.architecture")
    name = str(values.get("general.name") or Path(path).stem)
    if kind not in FAMILIES.values() or "token_embd.weight" not in tensors:
        raise BadInput(f"{path}: architecture {kind!r} cannot be planned; known: {', '.join(set(FAMILIES.values()))}")
    heads, hidden = int(values[f"{kind}.attention.head_count"]), int(values[f"{kind}.embedding_length"])
    rope = tensors.get("rope_freqs.weight")
    shape = Shape(
        name,
        int(values[f"{kind}.block_count"]),
        hidden,
        int(values[f"{kind}.feed_forward_length"]),
        heads,
        int(values.get(f"{kind}.attention.head_count_kv", heads)),
        tensors["token_embd.weight"].shape[0],
        int(values.get(f"{kind}.attention.key_length", hidden // heads)),
        tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        rope_factors=rope.shape[0] if rope else 0,
        architecture=kind,
        gguf_metadata=file.data_offset,
    )
    real = {key: tensor.shape for key, tensor in tensors.items()}
    if other := {key for key in real | shape.tensors() if real.get(key) != shape.tensors().get(key)}:
        raise BadInput(f"{path}: not a plain decoder of Llama's kind; it differs in {', '.join(sorted(other)[:5])}")
    return shape


# name: layers hidden intermediate heads kv_heads vocab head_dim, then what differs. From each config.json; the
# metadata of llama-2, llama-3.1 and SmolLM2 is the size of a real Q4_K_M (Q4_1) file less that of its tensors.
_LLAMA_3 = {"rope_factors": 64, "gguf_metadata": 7_840_928}
_LLAMA_2 = {"gguf_metadata": 741_056}
_QWEN = {"qkv_bias": True, "architecture": "qwen2"}
_TABLE = {
    "smollm2-135m": (30, 576, 1536, 9, 3, 49152, 64, {"tied": True, "gguf_metadata": 1_785_664}),
    "smollm2-360m": (32, 960, 2560, 15, 5, 49152, 64, {"tied": True}),
    "smollm2-1.7b": (24, 2048, 8192, 32, 32, 49152, 64, {"tied": True}),
    "tinyllama-1.1b": (22, 2048, 5632, 32, 4, 32000, 64, {}),
    "llama-2-7b": (32, 4096, 11008, 32, 32, 32000, 128, _LLAMA_2),
    "llama-2-13b": (40, 5120, 13824, 40, 40, 32000, 128, _LLAMA_2),
    "llama-2-70b": (80, 8192, 28672, 64, 8, 32000, 128, _LLAMA_2),
    "llama-3-8b": (32, 4096, 14336, 32, 8, 128256, 128, {}),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8, 128256, 128, _LLAMA_3),
    "llama-3.1-70b": (80, 8192, 28672, 64, 8, 128256, 128, _LLAMA_3),
    "llama-3.1-405b": (126, 16384, 53248, 128, 8, 128256, 128, _LLAMA_3),
    "llama-3.2-1b": (16, 2048, 8192, 32, 8, 128256, 64, {"tied": True, "rope_factors": 32}),
    "llama-3.2-3b": (28, 3072, 8192, 24, 8, 128256, 128, {"tied": True, "rope_factors": 64}),
    "mistral-7b": (32, 4096, 14336, 32, 8, 32768, 128, {}),
    "qwen2.5-0.5b": (24, 896, 4864, 14, 2, 151936, 64, _QWEN | {"tied": True}),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 152064, 128, _QWEN),
    "qwen2.5-32b": (64, 5120, 27648, 40, 8, 152064, 128, _QWEN),
    "qwen2.5-72b": (80, 8192, 29568, 64, 8, 152064, 128, _QWEN),
}
SHAPES = {name: Shape(name, *numbers, **more) for name, (*numbers, more) in _TABLE.items()}
ALIASES = {"smollm2": "smollm2-135m", "tinyllama": "tinyllama-1.1b"}


def find_shape(name: str | Shape) -> Shape:
    """Return a preset, or read a config.json or .gguf file; raise `UnknownName`, which lists the presets."""
    if isinstance(name, Shape):
        return name
    key = ALIASES.get(str(name).lower(), str(name).lower())
    if key in SHAPES:
        return SHAPES[key]
    path = Path(name)
    if path.is_file() and path.suffix == ".gguf":
        return from_gguf(path)
    if path.exists():
        return from_config(path)
    raise UnknownName("model shape", name, [*SHAPES, *ALIASES, "a config.json, its folder", "a .gguf file"])
