"""Repack a checkpoint folder into another format: the same codes, scales and zero-points, or a refusal."""

from pathlib import Path

from tqdm import tqdm

from refquant import ops
from refquant.errors import BadFile
from refquant.formats.bitsandbytes import NF4, Int8
from refquant.formats.checkpoint_layout import GridLayout
from refquant.models.checkpoint import extras
from refquant.models.checkpoint.folder import Folder
from refquant.models.checkpoint.opening import read_quantized
from refquant.models.checkpoint.saving import pack
from refquant.models.checkpoint.schemes import Scheme, choose, quantized_modules, read_scheme
from refquant.models.checkpoint.writer import SHARD_BYTES, ShardWriter, as_torch, replacing_folder
from refquant.quantized import Quantized, find_format

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def convert(
    source,
    target,
    format: str,  # noqa: A002
    command: str | None = None,
    progress: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the quantized model of one folder in another format, layer by layer, without a change to any number.

    Parameters
    ----------
    source, target : path
        A folder of quantized weights, and the one to be made (or replaced).
    format : str
        One of `FORMATS`.
    command : str, optional
        What the README says the folder was made with.
    progress : bool
        Show a bar over the layers.
    shard_bytes : int
        Largest size of one file; also the memory that converting takes.

    Raises
    ------
    BadFile
        The source is broken.
    BadInput
        The target format cannot hold the numbers; the message names the layer and what it cannot hold. Nothing is
        left behind.
    UnknownName
        No such format.

    Notes
    -----
    An asymmetric model whose every zero-point is the middle code is written as the symmetric one that it is (AWQ files
    do not make that distinction). Tensors that are not quantized are copied bit for bit.
    """
    source = Path(source)
    with Folder(source) as folder:
        if folder.quantization is None:
            raise BadFile(f"{source} is not quantized; quantize it first")
        scheme = read_scheme(folder.quantization)
        modules = quantized_modules(scheme, folder.tensors)
        if not modules:
            raise BadFile(f"{source} declares {scheme.method}, but holds no tensor of it")
        facts = _survey(folder, scheme, modules, progress)
        dtype = _dtype(folder)
        others = _other_linears(folder, modules)
        goal = choose(format, facts.formats, facts.act_order, others, dtype)
        taken = {name for module in modules for name in folder.layer(module).values()}
        with replacing_folder(target) as partial:
            shards = ShardWriter(partial, shard_bytes)
            for module in tqdm(modules, desc=f"to {format}", unit="layer", disable=not progress, leave=False):
                q = _regrid(read_quantized(folder, scheme, module), facts.formats[module])
                for inner, tensor in pack(goal, module, q).items():
                    shards.add(f"{module}.{inner}", as_torch(tensor))
            for name in folder.tensors:
                if name not in taken:
                    shards.add(name, folder.tensor(name))
            shards.finish()
            extras.write_config(partial, folder.config, goal, dtype)
            extras.copy_files(source, partial)
            command = command or f"refquant convert {source.name} {Path(target).name} --format {format}"
            notes = extras.notes(goal, facts.zero_points_of_0)
            extras.write_readme(partial, Path(target).name, goal, command, notes)


class _Facts:
    """What must be known of all the layers before the first is written."""

    def __init__(self):
        self.formats: dict[str, str] = {}
        self.act_order = False
        self.zero_points_of_0 = 0


def _survey(folder: Folder, scheme: Scheme, modules: list[str], progress: bool) -> _Facts:
    """Read every layer once: formats, maps of columns, and whether asymmetric layers are symmetric in fact."""
    facts, middle = _Facts(), True
    for module in tqdm(modules, desc="reading", unit="layer", disable=not progress, leave=False):
        layout = scheme.layout_of(module)
        if isinstance(layout, Int8):
            facts.formats[module] = layout.format
            continue
        if not isinstance(layout, GridLayout | NF4):
            facts.formats[module] = getattr(layout, "format", layout.name if layout else "")
            continue
        q = read_quantized(folder, scheme, module)
        facts.formats[module] = q.format
        facts.act_order |= "g_idx" in q.arrays
        if "zeros" in q.arrays:
            zeros = ops.unpack(q)["zeros"]
            facts.zero_points_of_0 += int((zeros == 0).sum())
            middle &= bool((zeros == 1 << layout.bits - 1).all())
    if middle:
        facts.formats = {name: _symmetric(fmt) for name, fmt in facts.formats.items()}
    return facts


def _symmetric(name: str) -> str:
    return name if find_format(name).family != "int" or name.endswith("-sym") else f"{name}-sym"


def _regrid(q: Quantized, name: str) -> Quantized:
    """Return the same numbers under the name of another grid, which must differ in being symmetric only."""
    return q if q.format == name else ops.pack(ops.unpack(q), name, q.shape)


def _dtype(folder: Folder) -> str:
    """Type of the tensors that are not quantized: what the config says, else what most of them have."""
    stated = folder.config.get("dtype") or folder.config.get("torch_dtype")
    if stated in _DTYPES.values():
        return stated
    kinds = [header.dtype for header in folder.tensors.values() if header.dtype in _DTYPES]
    return _DTYPES[max(_DTYPES, key=kinds.count)]


def _other_linears(folder: Folder, modules: list[str]) -> tuple[str, ...]:
    """Layers with a float matrix for a weight, which the target's config must leave alone; the output layer always."""
    known = set(modules)
    names = [
        name.removesuffix(".weight")
        for name, header in folder.tensors.items()
        if name.endswith(".weight") and len(header.shape) == 2 and name.removesuffix(".weight") not in known
    ]
    names = [name for name in names if "embed" not in name.rsplit(".", 1)[-1] and name.rsplit(".", 1)[-1] != "wte"]
    return tuple(dict.fromkeys([*names, "lm_head"]))
