"""A model of transformers to a GGUF file, and a GGUF file to the parts of a model of transformers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from refquant import ops
from refquant.errors import BadFile, BadInput
from refquant.formats import gguf
from refquant.formats.gguf import GGUFFile, Tensor
from refquant.importance import ImportanceMatrix
from refquant.methods import mixes
from refquant.models.gguf import architectures, tokenizer
from refquant.models.walk import without_parameters
from refquant.quantized import Quantized

QUANTIZATION_VERSION = 2  # of ggml's block formats; written into every file
ROW_WEIGHTS = 4 << 20  # weights of a matrix that are quantized at a time


@dataclass(frozen=True)
class Source:
    """A parameter of a model before it is needed: its shape, and a function that returns float32 or a `Quantized`."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray | Quantized]


# ---- to GGUF


def export(model, tokenizer, path, mix: str = "Q4_K_M", **options) -> mixes.Plan:
    """Write a running model as a GGUF file; `options` are those of `write_model`.

    Layers that hold a `Quantized` keep its bytes where the plan gives them that format, and are quantized again where
    not; so do the dense weights of a model that `load` made, as long as they have not been changed. Returns the plan
    that was carried out.
    """
    sources = {}
    for name, parameter in model.state_dict().items():
        sources[name] = Source(tuple(parameter.shape), lambda p=parameter: p.detach().float().cpu().numpy())
    for name, module in model.named_modules():
        if isinstance(quantized := getattr(module, "quantized", None), Quantized):
            dense = sources.get(f"{name}.weight")
            sources[f"{name}.weight"] = Source(quantized.shape, lambda q=quantized, d=dense: _unless_changed(q, d))
    return write_model(model.config.to_dict(), sources, tokenizer, path, mix, **options)


def convert(folder, path, mix: str = "Q4_K_M", **options) -> mixes.Plan:
    """Write a folder of a transformers model (config.json, *.safetensors, tokenizer) as a GGUF file.

    One tensor at a time is in memory. `options` are those of `write_model`. Raises `BadFile` where the folder lacks one
    of its parts, is broken, or quantized already.
    """
    from refquant.models.checkpoint.folder import Folder
    from refquant.models.checkpoint.opening import empty_model, read_config, read_tokenizer

    with Folder(folder) as opened:
        if opened.quantization is not None:
            raise BadFile(f"{folder} is quantized already; a GGUF file is made from float weights")
        config = read_config(opened.path)
        place = {name: i for i, name in enumerate(empty_model(config).state_dict())}  # in the order of `export`
        sources = {
            name: Source(opened.tensors[name].shape, lambda n=name: opened.tensor(n).float().numpy())
            for name in sorted(opened.tensors, key=lambda name: place.get(name, len(place)))
        }
        tokens = read_tokenizer(opened.path)
        if tokens is None:
            raise BadFile(f"{folder} has no tokenizer, which a GGUF file needs")
        return write_model(config.to_dict(), sources, tokens, path, mix, **options)


def write_model(
    config: Mapping,
    sources: Mapping[str, Source],
    tokens,
    path,
    mix: str = "Q4_K_M",
    importance: ImportanceMatrix | None = None,
    pure: bool = False,
    overrides: Mapping[str, str] | None = None,
    name: str | None = None,
    progress: bool = True,
    backend: str = "numpy",
    resume: bool | None = None,
) -> mixes.Plan:
    """Quantize a model tensor by tensor while its GGUF file is written.

    Parameters
    ----------
    config : the transformers config, as a dict
    sources : parameters by their name in transformers
    tokens : fast tokenizer
    path : path of the file, which appears when it is complete
    mix : str
        A mix, or the name of a block format, which then goes to every matrix.
    importance : ImportanceMatrix, optional
        By GGUF names; a matrix without an entry is quantized without importance, as in llama.cpp.
    pure, overrides : see `refquant.methods.mixes.plan`
    name : str, optional
        `general.name`.
    progress : bool
        Show a bar over the tensors.
    backend : str
        Of `refquant.quantize`.
    resume : bool, optional
        As for `formats.gguf.write`.

    Returns
    -------
    Plan

    Raises
    ------
    BadInput
        A model, tokenizer or mix that a GGUF file cannot hold; NaN or infinity in the weights (the tensor is named).
    """
    item, config = architectures.of_config(config), architectures.with_head_width(config)
    metadata = architectures.config_to_metadata(config)
    placed = {}
    for hf, source in sources.items():
        if not (hf == "lm_head.weight" and config.get("tie_word_embeddings")) and not hf.endswith(
            "rotary_emb.inv_freq"
        ):
            placed[architectures.gguf_name(hf, item)] = source
    plan = mixes.plan(
        {key: source.shape for key, source in placed.items()},
        mix,
        mixes.describe(metadata),
        importance=importance is not None,
        pure=pure,
        overrides=overrides,
    )
    if needing := [choice.name for choice in plan.choices if choice.needs_importance and not importance]:
        raise BadInput(f"{mix} is made for use with an importance matrix ({needing[0]} would suffer); give one")
    general = {
        "general.architecture": item.name,
        "general.type": "model",
        "general.name": name or Path(path).stem,
        "general.file_type": np.uint32(plan.file_type),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
    }
    vocabulary = placed["token_embd.weight"].shape[0]
    metadata = general | metadata | tokenizer.tokenizer_metadata(tokens, vocabulary)
    metadata[f"{item.name}.vocab_size"] = np.uint32(vocabulary)
    if importance is not None:
        metadata["quantize.imatrix.entries_count"] = np.uint32(len(importance.entries))
        metadata["quantize.imatrix.chunks_count"] = np.uint32(importance.chunk_count)
        if importance.datasets:
            metadata["quantize.imatrix.dataset"] = importance.datasets[0]
    bar = tqdm(total=sum(choice.nbytes for choice in plan.choices), unit="B", unit_scale=True, disable=not progress)
    ends = dict(zip(plan.types, np.cumsum([choice.nbytes for choice in plan.choices]).tolist(), strict=True))

    def data(choice):
        bar.set_description(f"{choice.name} {choice.type}", refresh=False)
        yield from _values(choice, placed[choice.name], config, item, importance, backend)
        bar.update(ends[choice.name] - bar.n)

    tensors = [Tensor(c.name, c.shape, c.type, lambda c=c: data(c)) for c in plan.choices]
    rope = dict(config.get("rope_parameters") or {})
    if rope.get("rope_type") == "llama3":
        factors = architectures.rope_factors(rope, config["head_dim"])
        tensors.insert(0, Tensor("rope_freqs.weight", factors.shape, "F32", factors))
    with bar:
        gguf.write(path, metadata, tensors, resume=resume)
    return plan


def _values(choice, source: Source, config, item, importance, backend) -> Iterator[np.ndarray]:
    """Yield the tensor as it goes into the file; some rows of a matrix at a time, to save memory."""
    w = source.load()
    order = architectures.row_order(choice.name, choice.shape[0], config, item)
    if isinstance(w, Quantized) and w.format == choice.type:
        yield w.arrays["blocks"] if order is None else w.arrays["blocks"][order]
        return
    w = ops.dequantize(w) if isinstance(w, Quantized) else w
    if architectures.is_norm(choice.name):
        w = w + np.float32(item.norm_shift)
    if not np.isfinite(w).all():
        raise BadInput(f"{choice.name}: the weights hold NaN or infinity")
    if w.ndim != 2 or choice.type == "F32":
        yield w if order is None else w[order]
        return
    means = importance.means(choice.name, w.shape[1]) if importance is not None else None
    rows = max(1, ROW_WEIGHTS // w.shape[1])
    for start in range(0, len(w), rows):
        part = w[start : start + rows] if order is None else w[order[start : start + rows]]
        yield ops.quantize(part, choice.type, None if means is None else means[0], backend=backend).arrays["blocks"]


def _unless_changed(quantized: Quantized, dense: Source | None):
    """The bytes that a dense weight was decoded from, or the weight itself where it is no longer that."""
    if dense is None or np.array_equal(w := dense.load(), ops.dequantize(quantized)):
        return quantized
    return w


# ---- from GGUF


def gguf_to_config(file: GGUFFile) -> dict:
    """Return the transformers config, as a dict, of a file; `transformers.AutoConfig.for_model(**config)` takes it."""
    if int(file.metadata.get("split.count", 1)) > 1:
        raise BadFile(f"{file.path} is one part of {file.metadata['split.count']}; merge them first (llama-gguf-split)")
    factors = file.tensors.get("rope_freqs.weight")
    return architectures.gguf_to_config(file.metadata, file.tensors, factors and factors.array())


def gguf_to_state(file: GGUFFile) -> Iterator[tuple[str, Quantized | np.ndarray]]:
    """Yield every parameter under its name in transformers, the bytes of matrices as they are in the file.

    A matrix is a `Quantized` of its type, mapped and not copied unless its rows have to be put back in order (attn_q
    and attn_k of llama; whole rows move, so no value changes). A matrix in F32 and all with one axis are float32.

    Raises
    ------
    BadFile
        A tensor that the architecture does not have.
    UnknownName
        A type that refquant cannot decode.
    """
    item, config = architectures.of_metadata(file.metadata), gguf_to_config(file)
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            continue
        order = architectures.row_order(name, tensor.shape[0], config, item)
        back = None if order is None else np.argsort(order)
        if len(tensor.shape) == 1 or tensor.type == "F32":
            w = tensor.floats() if back is None else tensor.floats()[back]
            yield (
                architectures.hf_name(name, item),
                w - np.float32(item.norm_shift if architectures.is_norm(name) else 0),
            )
            continue
        q = tensor.quantized()
        if back is not None:
            q = Quantized(q.format, q.shape, {"blocks": q.arrays["blocks"][back]})
        yield architectures.hf_name(name, item), q


def load(path, layer: Callable | None = None):
    """Build a running transformers model and its tokenizer from a GGUF file alone.

    Parameters
    ----------
    path : path of the file
    layer : function (Quantized, bias) -> torch module, optional
        Makes the module that takes the place of each Linear layer whose weights are quantized, such as
        `refquant.models.QuantLinear`. Without it the weights are dequantized, float32.

    Returns
    -------
    model, tokenizer
        The model in float32 on the CPU, in evaluation mode. The embedding is always dequantized.

    Raises
    ------
    BadFile
        Not a GGUF file, an unknown architecture, a tensor missing or of the wrong shape.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    file = gguf.read(path)
    config = gguf_to_config(file)
    with without_parameters():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    dense, kept = {}, {}
    for name, value in gguf_to_state(file):
        if shapes.get(name) != value.shape:
            raise BadFile(
                f"{path}: {name} has the shape {value.shape}, the model expects {shapes.get(name, 'no such')}"
            )
        if layer and isinstance(value, Quantized) and isinstance(_module(model, name), torch.nn.Linear):
            kept[name] = value
        else:
            if isinstance(value, Quantized):
                _module(model, name).quantized = value  # for `export`; mapped, so it takes no memory
                value = ops.dequantize(value)
            dense[name] = torch.from_numpy(np.ascontiguousarray(value))
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    if missing := shapes.keys() - dense.keys() - kept.keys() - tied:
        raise BadFile(f"{path}: {len(missing)} tensors are missing, such as {min(missing)}")
    for name, value in kept.items():
        parent, _, attribute = name.removesuffix(".weight").rpartition(".")
        bias = dense.pop(name.removesuffix("weight") + "bias", None)
        setattr(model.get_submodule(parent), attribute, layer(value, bias))
    model.load_state_dict(dense, strict=False, assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False), tokenizer.gguf_tokenizer(file.metadata)


def _module(model, parameter: str):
    return model.get_submodule(parameter.rpartition(".")[0])
