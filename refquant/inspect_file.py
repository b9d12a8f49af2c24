"""Look into a GGUF file: what it says about itself, its tensors, and one block of one tensor down to the bits.

facts(file)          everything as plain Python values, for JSON
report(file)         the same as text
block(file, t, i)    block i of the tensor t, field by field, in the order of its bytes
"""

from collections import Counter

import numpy as np

from refquant import ops
from refquant.errors import BadInput, UnknownName
from refquant.formats.gguf import GGUFFile, Tensor
from refquant.formats.gguf_blocks import floats, iq, k, legacy, mx, ternary
from refquant.quantized import Quantized

LONGEST = 60  # characters of a value, items of an array


def record_of(name: str) -> np.dtype:
    """Return the record of a block format, a NumPy structured dtype; raise `UnknownName`."""
    known = {
        **floats.RECORDS,
        **legacy.BLOCKS,
        **k.BLOCKS,
        "Q2_K": k.Q2_K,
        "Q3_K": k.Q3_K,
        "Q6_K": k.Q6_K,
        "IQ4_NL": iq.IQ4_NL,
        "IQ4_XS": iq.IQ4_XS,
        "TQ1_0": ternary.TQ1_0,
        "TQ2_0": ternary.TQ2_0,
        "MXFP4": mx.MXFP4,
    }
    if name not in known:
        raise UnknownName("block format", name, known)
    return known[name]


def facts(file: GGUFFile) -> dict:
    """Metadata, tensors and totals of a file as plain values; long arrays are cut to their length and first items."""
    return {
        "path": str(file.path),
        "version": file.version,
        "alignment": file.alignment,
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type,
                "shape": list(tensor.shape),
                "bytes": tensor.nbytes,
                "bits_per_weight": tensor.bits_per_weight,
                "offset": file.data_offset + tensor.offset,
            }
            for tensor in file.tensors.values()
        ],
        "totals": totals(file),
    }


def totals(file: GGUFFile) -> dict:
    """Tensors, weights and bytes by type, and bits per weight over the whole file."""
    count, weights, size = Counter(), Counter(), Counter()
    for tensor in file.tensors.values():
        count[tensor.type] += 1
        weights[tensor.type] += tensor.size
        size[tensor.type] += tensor.nbytes
    by_type = {
        kind: {"tensors": count[kind], "weights": weights[kind], "bytes": size[kind]} for kind, _ in size.most_common()
    }
    every = sum(weights.values())
    return {
        "by_type": by_type,
        "weights": every,
        "bytes": file.nbytes,
        "bits_per_weight": 8 * file.nbytes / max(every, 1),
    }


def _plain(value):
    if isinstance(value, list | np.ndarray):
        items = [_plain(item) for item in value[:8]]
        return items if len(value) <= 8 else {"length": len(value), "first": items}
    return value.item() if isinstance(value, np.generic) else value


def report(file: GGUFFile) -> str:
    """Return the facts as text: metadata, a line for each tensor, totals by type."""
    found = facts(file)
    lines = [f"{file.path}: GGUF version {file.version}, alignment {file.alignment}, {len(file.tensors)} tensors", ""]
    for key, value in found["metadata"].items():
        text = f"{value['length']} items: {value['first']}" if isinstance(value, dict) else repr(value)
        lines.append(f"{key:<44} {text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'}")
    lines += ["", f"{'tensor':<40} {'type':<8} {'shape':<18} {'bytes':>13} {'bits':>8} {'at byte':>13}"]
    for tensor in found["tensors"]:
        shape = "x".join(map(str, tensor["shape"]))
        lines.append(
            f"{tensor['name']:<40} {tensor['type']:<8} {shape:<18} {tensor['bytes']:13,} "
            f"{tensor['bits_per_weight']:8.4f} {tensor['offset']:13,}"
        )
    lines += ["", f"{'type':<8} {'tensors':>8} {'weights':>15} {'bytes':>15} {'bits':>8}"]
    for kind, row in found["totals"]["by_type"].items():
        bits = 8 * row["bytes"] / max(row["weights"], 1)
        lines.append(f"{kind:<8} {row['tensors']:8} {row['weights']:15,} {row['bytes']:15,} {bits:8.4f}")
    every = found["totals"]
    bits = every["bits_per_weight"]
    return "\n".join(
        [*lines, f"{'all':<8} {len(file.tensors):8} {every['weights']:15,} {every['bytes']:15,} {bits:8.4f}"]
    )


def block(file: GGUFFile, name: str, index: int) -> str:
    """Return block `index` of a tensor as text: each field's bytes and bits, the numbers in them, and the weights.

    Blocks are counted along the rows, row after row. Bits are written the most significant first, so that a byte reads
    as in the diagrams of `refquant.formats.gguf_blocks`.

    Raises
    ------
    UnknownName
        No such tensor, or a type that refquant cannot decode.
    BadInput
        A block past the end.
    """
    if name not in file.tensors:
        raise UnknownName("tensor", name, file.tensors)
    tensor: Tensor = file.tensors[name]
    record, size = record_of(tensor.type), tensor.kind.bytes
    blocks = tensor.data.reshape(-1, size)
    if not 0 <= index < len(blocks):
        raise BadInput(f"{name} has blocks 0 to {len(blocks) - 1}, not {index}")
    data, per_row = blocks[index], tensor.data.shape[-1] // size if tensor.data.ndim else 1
    start = file.data_offset + tensor.offset + index * size
    first = index % per_row * tensor.kind.weights
    lines = [
        f"{name}, {tensor.type} {list(tensor.shape)}: block {index} of {len(blocks)}",
        f"bytes {start} to {start + size - 1} of the file",
        f"row {index // per_row}, weights {first} to {first + tensor.kind.weights - 1}",
        "",
        f"{'byte':>5}  {'field':<9} {'hex':<24} bits",
    ]
    for field, (dtype, at) in ((field, record.fields[field][:2]) for field in record.names):
        for row in range(at, at + dtype.itemsize, 8):
            part = data[row : min(row + 8, at + dtype.itemsize)]
            label = field if row == at else ""
            lines.append(f"{row:5}  {label:<9} {part.tobytes().hex(' '):<24} {' '.join(f'{b:08b}' for b in part)}")
    q = Quantized.from_bytes(data.copy(), tensor.type, (1, tensor.kind.weights))
    lines.append("")
    for field, values in ops.unpack(q).items():
        lines += _numbers(field, values.reshape(-1))
    return "\n".join([*lines, *_numbers("weights", ops.dequantize(q)[0])])


def _numbers(label: str, values: np.ndarray) -> list[str]:
    """Sixteen numbers a line, eight where they are fractions."""
    fractions = values.dtype.kind == "f"
    step, form = (8, "{:13.6g}") if fractions else (16, "{:5d}")
    rows = [values[i : i + step] for i in range(0, len(values), step)]
    return [f"{label if not i else '':<9}" + "".join(form.format(v) for v in row) for i, row in enumerate(rows)]
