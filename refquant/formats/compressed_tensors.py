"""compressed-tensors checkpoints (`quant_method: compressed-tensors`): which layer has which layout.

`quantization_config` names a format, groups of layers with their settings, and layers to leave alone::

    {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
     "ignore": ["lm_head"],
     "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, ...}, ...}}}

A target, and an entry of `ignore`, is the class of a layer ("Linear"), a name, or a pattern after "re:", which has to
match from the beginning of the name. The layouts themselves are in `compressed_int` and `compressed_float`.

Source: compressed-tensors 0.20, `QuantizationConfig` and `utils.match`.
Leaves out: sparsity, transforms, quantized activations and caches (refquant runs weights only).
"""

import re
from dataclasses import dataclass

from refquant.errors import BadFile
from refquant.formats.checkpoint_layout import Layout
from refquant.formats.compressed_float import FP4, FloatQuantized
from refquant.formats.compressed_int import PackQuantized

FORMATS = {
    "pack-quantized": PackQuantized,
    "float-quantized": FloatQuantized,
    "nvfp4-pack-quantized": FP4,
    "mxfp4-pack-quantized": FP4,
}


def matches(target: str, name: str) -> bool:
    """Whether a target of the config means the layer `name`, a Linear one."""
    if target.startswith("re:"):
        try:
            return re.match(target[3:], name) is not None
        except re.error as problem:
            raise BadFile(f"compressed-tensors: {target!r} is not a pattern: {problem}") from problem
    return target in ("Linear", name)


@dataclass(frozen=True)
class CompressedTensors:
    """The layouts of one checkpoint: for each group of layers its targets and layout, and the layers to leave alone."""

    groups: tuple[tuple[tuple[str, ...], Layout], ...]
    ignore: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: dict) -> "CompressedTensors":
        """Read a `quantization_config`.

        Raises
        ------
        BadFile
            No groups, a format or settings that are not read.
        """
        groups, ignore = config.get("config_groups"), config.get("ignore") or []
        if not isinstance(groups, dict) or not groups or not isinstance(ignore, list):
            raise BadFile("compressed-tensors: config_groups must list groups of layers, and ignore names")
        found = []
        for name, group in groups.items():
            if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
                raise BadFile(f"compressed-tensors: config_groups[{name!r}] has no settings for weights")
            fmt = group.get("format") or config.get("format")
            if fmt not in FORMATS:
                raise BadFile(f"compressed-tensors: format {fmt!r}; known: {', '.join(FORMATS)}")
            targets = group.get("targets")
            if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
                raise BadFile(f"compressed-tensors: config_groups[{name!r}].targets must be a list of names")
            found.append((tuple(targets), FORMATS[fmt].from_group(group)))
        return cls(tuple(found), tuple(map(str, ignore)))

    def config(self) -> dict:
        """Return the `quantization_config` of config.json."""
        names = {layout.name for _, layout in self.groups}
        groups = {
            f"group_{index}": {"targets": list(targets), "format": layout.name, **layout.group()}
            for index, (targets, layout) in enumerate(self.groups)
        }
        return {
            "quant_method": "compressed-tensors",
            "format": names.pop() if len(names) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": list(self.ignore),
            "config_groups": groups,
        }

    def layout_of(self, name: str) -> Layout | None:
        """Layout of the layer `name`, None where it is left alone; a target by name goes before one by class."""
        if any(matches(target, name) for target in self.ignore if target != "Linear"):
            return None
        for by_class in (False, True):
            for targets, layout in self.groups:
                if any((target == "Linear") == by_class and matches(target, name) for target in targets):
                    return layout
        return None
