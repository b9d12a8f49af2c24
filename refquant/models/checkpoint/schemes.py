"""Schemes: what a `quantization_config` says, which layer has which layout, and which scheme a set of layers takes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from refquant.errors import BadFile, BadInput, UnknownName
from refquant.formats import bitsandbytes
from refquant.formats.awq import AWQ
from refquant.formats.checkpoint_layout import Layout
from refquant.formats.compressed_float import FP4, FineGrainedFP8, FloatQuantized
from refquant.formats.compressed_int import PackQuantized
from refquant.formats.compressed_tensors import CompressedTensors
from refquant.formats.gptq import GPTQ
from refquant.grids import as_grid
from refquant.quantized import find_format

FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "fp8", "bitsandbytes")
_READERS = {
    "gptq": GPTQ.from_config,
    "awq": AWQ.from_config,
    "fp8": FineGrainedFP8.from_config,
    "bitsandbytes": bitsandbytes.from_config,
}
_SKIPPED = {"awq": "modules_to_not_convert", "fp8": "modules_to_not_convert", "bitsandbytes": "llm_int8_skip_modules"}


@dataclass(frozen=True)
class Uniform:
    """One layout for every layer but those in `skipped`, which is written where the method has a place for it."""

    layout: Layout
    method: str
    skipped: tuple[str, ...] = ()

    @property
    def layouts(self) -> list[Layout]:
        """The layouts in use."""
        return [self.layout]

    def layout_of(self, name: str) -> Layout | None:
        """Layout of a layer; None when it is left alone: its name, or a part of it between dots, is listed."""
        parts = f".{name}."
        return None if any(f".{skip.strip('.')}." in parts for skip in self.skipped) else self.layout

    def config(self) -> dict:
        """Return the `quantization_config` of config.json."""
        config = self.layout.config()
        if self.method in _SKIPPED:
            config[_SKIPPED[self.method]] = list(self.skipped) or None
        return config


@dataclass(frozen=True)
class Grouped:
    """compressed-tensors: groups of layers, each with its layout."""

    parts: CompressedTensors
    method: str = field(default="compressed-tensors", init=False)

    @property
    def layouts(self) -> list[Layout]:
        """The layouts in use."""
        return [layout for _, layout in self.parts.groups]

    def layout_of(self, name: str) -> Layout | None:
        """Layout of a layer; None when it is left alone."""
        return self.parts.layout_of(name)

    def config(self) -> dict:
        """Return the `quantization_config` of config.json."""
        return self.parts.config()


Scheme = Uniform | Grouped


def read_scheme(config: dict) -> Scheme:
    """Return the scheme that a `quantization_config` declares; `BadFile` for a method or settings that are not read."""
    method = config.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in config else None)
    if method == "compressed-tensors":
        return Grouped(CompressedTensors.from_config(config))
    if method not in _READERS:
        raise BadFile(f"quant_method {method!r}; known: {', '.join([*_READERS, 'compressed-tensors'])}")
    skipped = config.get(_SKIPPED.get(method)) or []
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise BadFile(f"{method}: {_SKIPPED[method]} must be a list of names, got {skipped!r}")
    return Uniform(_READERS[method](config), method, tuple(skipped))


def quantized_modules(scheme: Scheme, names: Iterable[str]) -> list[str]:
    """Return the layers that hold a tensor which only a quantized layer has, in the order of `names`."""
    endings = tuple(f".{layout.marker}" for layout in scheme.layouts)
    found = {}
    for name in names:
        for ending in endings:
            if name.endswith(ending):
                found[name.removesuffix(ending)] = None
    return list(found)


def choose(format: str, layers: Mapping[str, str], act_order: bool, skipped: tuple[str, ...], dtype: str) -> Scheme:  # noqa: A002
    """Return the scheme in which a checkpoint format holds these layers.

    Parameters
    ----------
    format : str
        One of `FORMATS`.
    layers : mapping
        Storage format of each quantized layer, by name.
    act_order : bool
        Whether a layer maps its columns to groups.
    skipped : tuple of str
        Linear layers that are not quantized.
    dtype : str
        Of the other tensors: "float16", "bfloat16" or "float32".

    Raises
    ------
    UnknownName, BadInput
        No such checkpoint format; one that cannot hold these layers (the message says why).
    """
    if format not in FORMATS:
        raise UnknownName("checkpoint format", format, FORMATS)
    if not layers:
        raise BadInput("no layer is quantized; quantize the model first")
    if format == "compressed-tensors":
        return Grouped(_grouped(layers, skipped, act_order))
    kinds = sorted(set(layers.values()))
    if len(kinds) > 1:
        raise BadInput(
            f"{format} checkpoints have one format for all layers, these are {', '.join(kinds)}; compressed-tensors "
            "can hold several"
        )
    name = kinds[0]
    if format == "fp8":
        return Uniform(FineGrainedFP8.of(name), "fp8", skipped)
    if format == "bitsandbytes":
        layout = bitsandbytes.Int8() if name == "llm-int8" else bitsandbytes.NF4.of(name, dtype)
        return Uniform(layout, "bitsandbytes", skipped)
    if find_format(name).family != "int":
        raise BadInput(f"{format} checkpoints hold integer codes with scales; {name} is another kind of format")
    if format == "awq":
        return Uniform(AWQ.of(as_grid(name)), "awq", skipped)
    block = next(iter(layers)).split(".0.")[0] + "."
    if inside := [skip for skip in skipped if skip.startswith(block)]:
        raise BadInput(f"a GPTQ config cannot name layers to leave alone, such as {inside[0]}; take compressed-tensors")
    return Uniform(GPTQ.of(as_grid(name), act_order, 2 if format == "gptq_v2" else 1), "gptq", skipped)


def _grouped(layers: Mapping[str, str], skipped: tuple[str, ...], act_order: bool) -> CompressedTensors:
    """One group a format: the most frequent one for the class, the others by the names of their layers."""
    if act_order:
        raise BadInput(
            "compressed-tensors: the layers map columns to groups (act-order), for which its current versions have no "
            "weight_g_idx; take gptq, or quantize with static groups"
        )
    by_format: dict[str, list[str]] = {}
    for layer, name in layers.items():
        by_format.setdefault(name, []).append(layer)
    groups = []
    for index, name in enumerate(sorted(by_format, key=lambda name: -len(by_format[name]))):
        family = find_format(name).family
        makers = {"fp8": FloatQuantized.of, "mxfp4": FP4.of, "nvfp4": FP4.of}
        if family != "int" and family not in makers:
            raise BadInput(f"compressed-tensors has no place for {name}")
        layout = PackQuantized.of(as_grid(name)) if family == "int" else makers[family](name)
        groups.append((("Linear",) if index == 0 else tuple(by_format[name]), layout))
    return CompressedTensors(tuple(groups), skipped)
