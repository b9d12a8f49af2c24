"""Check a file: a GGUF file, or a folder of quantized safetensors. `refquant verify FILE [--against DENSE]`.

Structure (every tensor against the config), statistics of every layer, the error of each against the dense weights
where these are given, and the likely mistake named. NumPy and safetensors are all that is needed; `refquant inspect`
compares with the model's own layers as well, for which it needs transformers.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from refquant import ops
from refquant.errors import BadFile, RefquantError
from refquant.formats import bitsandbytes, gguf
from refquant.formats.awq import AWQ
from refquant.formats.compressed_float import FineGrainedFP8
from refquant.formats.compressed_tensors import CompressedTensors
from refquant.formats.gptq import GPTQ
from refquant.verify import hypotheses
from refquant.verify.tensors_file import Dense, TensorFiles, decoded, read_json

READERS = {
    "gptq": GPTQ.from_config,
    "awq": AWQ.from_config,
    "fp8": FineGrainedFP8.from_config,
    "bitsandbytes": bitsandbytes.from_config,
}
MOST_ERROR = 0.5  # relative; plain rounding to 2 bits makes about 0.5, to 4 bits 0.1


@dataclass
class Layer:
    """One quantized layer: root mean square and largest magnitude of its weights, the error against dense ones."""

    name: str
    format: str
    shape: list[int]
    rms: float
    largest: float
    zeros: float  # share of weights that are exactly 0
    error: float | None = None


@dataclass
class FileReport:
    """What `check` found; `problems` are what a reader would stumble over."""

    path: str
    method: str
    layers: list[Layer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self):
        lines = [f"{self.path}: {self.method}, {len(self.layers)} layers"]
        lines.append(f"{'layer':<44} {'format':<16} {'shape':<13} {'rms':>9} {'largest':>9} {'zeros':>7} {'error':>7}")
        for layer in self.layers:
            error = "" if layer.error is None else f"{layer.error:7.4f}"
            shape = "x".join(map(str, layer.shape))
            lines.append(
                f"{layer.name:<44} {layer.format:<16} {shape:<13} {layer.rms:9.3g} {layer.largest:9.3g} "
                f"{layer.zeros:7.2%} {error:>7}"
            )
        lines += [f"note: {remark}" for remark in self.remarks] + [f"PROBLEM: {problem}" for problem in self.problems]
        return "\n".join([*lines, f"{len(self.problems)} problems" if self.problems else "no problem found"])

    def add(self, name: str, fmt: str, w: np.ndarray, dense: np.ndarray | None) -> None:
        """Note a layer's statistics, and what is suspicious about them."""
        finite = np.isfinite(w)
        if not finite.all():
            self.problems.append(f"{name}: {int((~finite).sum())} of {w.size} weights are NaN or infinite")
        values = np.where(finite, w, 0).astype(np.float64)
        rms = float(np.sqrt(np.square(values).mean()))
        error = None
        if dense is not None and dense.shape != w.shape:
            self.problems.append(f"{name}: {list(w.shape)}, the dense layer is {list(dense.shape)}")
        elif dense is not None:
            error = hypotheses.error(w, dense)
        largest, zeros = float(np.abs(values).max()), float((values == 0).mean())
        self.layers.append(Layer(name, fmt, list(w.shape), rms, largest, zeros, error))
        if zeros == 1:
            self.problems.append(f"{name}: every weight is 0")
        elif not 1e-6 < rms < 1e3:
            self.problems.append(
                f"{name}: the root mean square of the weights is {rms:.3g}; a scale is off or inverted"
            )
        if error is not None and error > MOST_ERROR:
            self.problems.append(f"{name}: relative error {error:.3g} against the dense weights")


def check(path, against=None) -> FileReport:
    """Check a GGUF file or a checkpoint folder.

    Parameters
    ----------
    path : file or folder
    against : file or folder, optional
        The unquantized model: safetensors or GGUF.

    Raises
    ------
    BadFile
        What cannot be read at all.
    """
    path = Path(path)
    if not path.exists():
        raise BadFile(f"{path} does not exist")
    dense = Dense(against) if against else None
    if path.is_dir():
        return _folder(path, dense)
    if path.suffix == ".safetensors":
        raise BadFile(f"{path}: give the folder, whose config.json says how the tensors are to be read")
    return _gguf(path, dense)


def _gguf(path: Path, dense: Dense | None) -> FileReport:
    file = gguf.read(path)
    found = FileReport(str(path), f"GGUF {file.metadata.get('general.architecture', '')}")
    for name, tensor in file.tensors.items():
        if len(tensor.shape) < 2:
            continue
        w = decoded(tensor)
        if w is None:
            found.remarks.append(f"{name}: {tensor.type} is not decoded here")
            continue
        module = name.removesuffix(".weight")
        reference = dense.weight(module) if dense else None
        if reference is not None and reference.shape == w.shape and module.endswith(("attn_q", "attn_k")):
            reference = _closest_order(w, reference, _heads(file.metadata, module))
        found.add(module, tensor.type, w.reshape(w.shape), reference)
    return found


def _heads(metadata, module: str) -> int:
    key = "head_count_kv" if module.endswith("attn_k") else "head_count"
    value = metadata.get(f"{metadata.get('general.architecture')}.attention.{key}", 1)
    return int(value) if isinstance(value, int | np.integer) and value > 0 else 1


def _closest_order(w, reference, heads: int) -> np.ndarray:
    """Rows of q and k as they are, or in the order of llama.cpp, which pairs the halves of each head."""
    n, k = reference.shape
    if n % (2 * heads):
        return reference
    paired = reference.reshape(heads, 2, n // heads // 2, k).swapaxes(1, 2).reshape(n, k)
    return min(reference, paired, key=lambda other: hypotheses.error(w, other))


def _scheme(path: Path):
    """Return the method and a function from a layer's name to its layout."""
    config = read_json(path / "config.json")
    found = config.get("quantization_config") or config.get("compression_config")
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if found is None and (path / name).is_file():
            found = {"quant_method": method} | read_json(path / name)
    if not isinstance(found, dict):
        raise BadFile(f"{path / 'config.json'} has no quantization_config")
    method = found.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in found else None)
    if method == "compressed-tensors":
        groups = CompressedTensors.from_config(found)
        return method, [layout for _, layout in groups.groups], groups.layout_of
    if method not in READERS:
        raise BadFile(f"quant_method {method!r}; known: {', '.join([*READERS, 'compressed-tensors'])}")
    layout = READERS[method](found)
    return method, [layout], lambda name: layout


def _folder(path: Path, dense: Dense | None) -> FileReport:
    method, layouts, layout_of = _scheme(path)
    files = TensorFiles(path)
    found = FileReport(str(path), method)
    endings = {f".{layout.marker}" for layout in layouts}
    modules = dict.fromkeys(name.removesuffix(end) for name in files for end in endings if name.endswith(end))
    if not modules:
        raise BadFile(f"{path} declares {method}, but holds no tensor of it")
    for module in modules:
        layout = layout_of(module)
        if layout is None:
            found.problems.append(f"{module}: quantized, though the config says that it is left alone")
        else:
            _layer(found, module, layout, files.layer(module), dense)
    return found


def _layer(found: FileReport, module: str, layout, tensors, dense: Dense | None) -> None:
    if problems := layout.problems(tensors):
        found.problems += [f"{module}: {problem}" for problem in problems]
        return
    reference = dense.weight(module) if dense else None
    if dense and reference is None:
        found.remarks.append(f"{module}: the dense model has no such layer")
    shape = layout.shape(tensors)
    named = [] if reference is not None and reference.shape != shape else hypotheses.likely(layout, tensors, reference)
    try:
        q = layout.read(tensors)
        found.add(module, q.format, ops.dequantize(q), reference)
    except RefquantError as problem:
        found.problems.append(f"{module}: {problem}")
    found.problems += [f"{module}: {sentence}" for sentence in named]
