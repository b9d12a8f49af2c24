"""Weights in strips: the order of bytes that `gemv.cu`, `gemm.cu` and `gemm_sm90.cu` read; strips.cuh says why.

A matrix [n, k], padded to whole strips of 16 rows and records of 256 columns, is uint8 [n / 16, k / 256, bytes]::

    offset             bytes         of a record
         0        16 * HEADER        header of row 0, of row 1, ...: bytes of the format, as they are in the file
    16 * HEADER  512 * bits          codes, one plane after the other

Codes are 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2 bits in two planes (the upper bits are the smaller plane, but of 3 the lower
two are the plane of 2); 2, 4 and 8 bits are one plane. In a plane of b bits:

    row r of 16, column c of 256     step s = c // 16, lane = 4 (r % 8) + c % 8 // 2, half h = c % 2,
                                     register v = 2 (c % 16 // 8) + r // 8
    b = 1, 2, 4: word j = s // (4 / b) of that lane, bit 16 h + 4 v + b (s % (4 / b))
    b = 8:       word j = 2 s + v // 2,              bit 16 h + 8 (v % 2)
    which is 32-bit word             128 (j // 4) + 4 lane + j % 4 of the plane

Bytes a weight are those of the file for the GGUF formats, but TQ1_0 takes 2 bits a code. Where the padding is, scales
are 0 and so are the activations. Header of a row in a record:

    int<bits>    scales (2 or 4 bytes each), then zero-points (a byte each; none when symmetric), then 0 to 3 bytes
    fp8          scales float32, times 256 (E4M3: the kernel's numbers are 1/256 of the real ones)
    nf4, nvfp4   scales float32 of each block
    GGUF, mxfp4  the bytes of the block beside its codes, of one block of 256 or eight of 32

Leaves out (these products go by way of float32 weights, see `products`): group sizes other than 16, 32, 64, 128 and
multiples of 256; NF4 blocks that run on into the next row; codes that stand for NaN.
"""

from dataclasses import dataclass, field

import numpy as np

from refquant import ops
from refquant.codebooks import E4M3, IQ4_VALUES
from refquant.grids import as_grid
from refquant.quantized import find_format

ROWS, COLUMNS = 16, 256
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
STORED_BITS = {1: 2, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8}  # of an integer grid's codes


@dataclass(frozen=True)
class Layout:
    """How a format's strips are read: the defines of the kernels (strips.cuh)."""

    bits: int
    sub: int  # columns that share a scale
    header: int  # bytes a row
    value: str
    scale: str
    more: tuple = ()  # further defines

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return ROWS * self.header + 512 * self.bits

    @property
    def has_minimum(self) -> bool:
        """Whether sums of activations are needed beside the products."""
        return self.scale in ("S_F16_MIN", "S_Q2_K", "S_Q4_K")

    @property
    def defines(self) -> dict:
        """As `launch.load` takes them."""
        named = {"BITS": self.bits, "SUB": self.sub, "HEADER": self.header, "VALUE": self.value, "SCALE": self.scale}
        return named | dict(self.more)


def _table(values: np.ndarray) -> tuple:
    words = (values.astype(np.int16) + 128).astype(np.uint8).view("<u4")
    return tuple((f"TABLE{i}", f"{word:#x}u") for i, word in enumerate(words))


def _offset(middle: int) -> tuple:
    return (("OFFSET", middle),)


# GGUF: layout; which bytes of a block are header; what is added to the codes (int8 codes become bytes)
GGUF = {
    "Q4_0": (Layout(4, 32, 16, "V_OFFSET", "S_F16", _offset(8)), [(0, 2)], 0),
    "Q4_1": (Layout(4, 32, 32, "V_OFFSET", "S_F16_MIN", _offset(0)), [(0, 4)], 0),
    "Q5_0": (Layout(5, 32, 16, "V_OFFSET", "S_F16", _offset(16)), [(0, 2)], 0),
    "Q5_1": (Layout(5, 32, 32, "V_OFFSET", "S_F16_MIN", _offset(0)), [(0, 4)], 0),
    "Q8_0": (Layout(8, 32, 16, "V_OFFSET", "S_F16", _offset(128)), [(0, 2)], 128),
    "Q2_K": (Layout(2, 16, 20, "V_OFFSET", "S_Q2_K", _offset(0)), [(0, 16), (80, 84)], 0),
    "Q3_K": (Layout(3, 16, 14, "V_OFFSET", "S_Q3_K", _offset(4)), [(96, 110)], 0),
    "Q4_K": (Layout(4, 32, 16, "V_OFFSET", "S_Q4_K", _offset(0)), [(0, 16)], 0),
    "Q5_K": (Layout(5, 32, 16, "V_OFFSET", "S_Q4_K", _offset(0)), [(0, 16)], 0),
    "Q6_K": (Layout(6, 16, 18, "V_OFFSET", "S_Q6_K", _offset(32)), [(192, 210)], 0),
    "IQ4_NL": (Layout(4, 32, 16, "V_TABLE", "S_F16", _table(IQ4_VALUES)), [(0, 2)], 0),
    "IQ4_XS": (Layout(4, 32, 8, "V_TABLE", "S_IQ4_XS", _table(IQ4_VALUES)), [(0, 8)], 0),
    "MXFP4": (Layout(4, 32, 8, "V_E2M1", "S_E8M0"), [(0, 1)], 0),
    "TQ1_0": (Layout(2, 256, 2, "V_OFFSET", "S_D", _offset(1)), [(52, 54)], 0),
    "TQ2_0": (Layout(2, 256, 2, "V_OFFSET", "S_D", _offset(1)), [(64, 66)], 0),
}
WEIGHTS = {
    name: 32 if name.startswith(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MX")) else 256 for name in GGUF
}


@dataclass(frozen=True, eq=False)
class Strips:
    """A matrix on a GPU, packed: uint8 tensor [strips, records, bytes], its layout and shape."""

    data: object
    layout: Layout
    shape: tuple[int, int]
    order: object = None  # int64 [k]: which column of the matrix is column i here; None: i
    levels: object = field(default=None)  # int32 [16], of V_LEVELS


def layout_of(format: str, k: int, wide_scales: bool = False):  # noqa: A002
    """Return the layout of a format's strips, or None where there is none; `wide_scales`: float32 ones of a grid."""
    family = find_format(format).family
    if format in GGUF:
        return GGUF[format][0]
    if family == "int":
        grid = as_grid(format)
        sub = _sub_block(grid.group_size or COLUMNS * -(-k // COLUMNS))
        if sub is None:
            return None
        width, count = 4 if wide_scales else 2, COLUMNS // sub
        header = count * (width + (not grid.sym))
        more = _offset(2 ** (grid.bits - 1)) if grid.sym else (("ZEROS", count * width),)
        kind = "V_OFFSET" if grid.sym else "V_ZERO"
        return Layout(
            STORED_BITS[grid.bits], sub, -(-header // width) * width, kind, "S_F32" if wide_scales else "S_F16", more
        )
    if family == "fp8" and "e5m2fnuz" not in format:
        sub = 128 if format.endswith("-block") else COLUMNS
        return Layout(8, sub, 4 * (COLUMNS // sub), "V_E4M3" if "e4m3" in format else "V_E5M2", "S_F32")
    if family == "nf4":
        sub = _sub_block(as_grid(format).group_size)
        return None if k % as_grid(format).group_size else Layout(4, sub, 4 * (COLUMNS // sub), "V_LEVELS", "S_F32")
    if family == "mxfp4":
        return GGUF["MXFP4"][0]
    if family == "nvfp4":
        return Layout(4, 16, 64, "V_E2M1", "S_F32")
    return None


def _sub_block(size: int):
    return COLUMNS if size % COLUMNS == 0 else size if size in (16, 32, 64, 128) else None


def _numbers(q, layout):
    """Codes uint8 [n, k], header uint8 [n, records, HEADER] (NumPy), order of the columns or None, levels or None."""
    n, k = q.shape
    records, fields = -(-k // COLUMNS), ops.unpack(q)
    codes, order, levels = fields["codes"], None, None
    if q.format in GGUF or q.format == "mxfp4":
        _, places, added = GGUF.get(q.format, GGUF["MXFP4"])
        codes = (codes.astype(np.int16) + added).astype(np.uint8)
        if q.format == "mxfp4":
            header = fields["scales"]
        else:
            blocks = q.arrays["blocks"].reshape(n, -1, find_format(q.format).nbytes((1, WEIGHTS[q.format])))
            header = np.concatenate([blocks[..., a:b] for a, b in places], axis=-1).reshape(n, -1)
        if layout.scale == "S_E8M0" and (header == 255).any():
            return None
        header = np.pad(header, ((0, 0), (0, records * layout.header - header.shape[1])))
        return codes, header.reshape(n, records, -1), None, None
    if q.format.startswith("int"):
        grid, g_idx, scales = as_grid(q.format), fields["g_idx"], fields["scales"]
        if not np.array_equal(g_idx, grid.group_index(k)):
            order = np.argsort(g_idx, kind="stable")
            if not np.array_equal(g_idx[order], grid.group_index(k)):
                return None
            codes = codes[:, order]
        zeros = None if grid.sym else fields["zeros"]
    else:
        zeros = None
        if q.format.startswith("fp8"):
            scales, grid = fields["scales"], as_grid(q.format)
            if np.isnan(grid.codebook.values[codes]).any():
                return None
            scales = scales * np.float32({"e4m3": 256, "e4m3fnuz": 128}.get(q.format.split("-")[1], 1))
        elif q.format == "nvfp4":
            scales = E4M3.decode(fields["scales"]) / fields["global_scale"]
        else:
            scales, levels = _nf4_scales(fields, q.format).reshape(n, -1), _levels(fields["quant_map"])
    parts = [_by_record(scales, layout.sub, k, records).view(np.uint8)]
    if zeros is not None:
        parts.append(_by_record(zeros, layout.sub, k, records))
    header = np.concatenate(parts, axis=-1)
    return codes, np.pad(header, ((0, 0), (0, 0), (0, layout.header - header.shape[-1]))), order, levels


def _by_record(values: np.ndarray, sub: int, k: int, records: int) -> np.ndarray:
    """Values [n, G], one for every `k / G` columns, as [n, records, 256 / sub], 0 in the padding."""
    n, groups = values.shape
    each = COLUMNS // sub
    if sub == COLUMNS:  # a group is a number of records
        values = np.repeat(values, -(-records // groups), axis=1)[:, :records]
    padded = np.zeros((n, records * each), values.dtype)
    padded[:, : values.shape[1]] = values
    return np.ascontiguousarray(padded).reshape(n, records, each)


def _nf4_scales(fields, name):
    scale = fields["absmax"]
    if as_grid(name).nested:
        nested = np.repeat(fields["nested_absmax"], 256)[: len(scale)]
        scale = fields["nested_quant_map"][scale] * nested + fields["nested_offset"]
    return scale * np.float32(2**-10)


def _levels(levels: np.ndarray) -> np.ndarray:
    """1024 times each level as the sum of two float16: int32 [16], the larger in the low half."""
    wide = levels.astype(np.float32) * np.float32(1024)
    first = wide.astype(np.float16)
    rest = (wide - first.astype(np.float32)).astype(np.float16)
    return (first.view(np.uint16).astype(np.uint32) | rest.view(np.uint16).astype(np.uint32) << 16).view(np.int32)


# ---- the order


def pack_codes(codes, bits: int):
    """Planes uint8 [strips, records, 512 * bits] from codes, a uint8 tensor [16 strips, 256 records], on any device."""
    import torch

    planes, shift = [], 0
    for plane in PLANES[bits]:
        planes.append(_pack_plane((codes >> shift) & ((1 << plane) - 1), plane))
        shift += plane
    return torch.cat(planes, dim=-1)


def _pack_plane(codes, bits: int):
    import torch

    strips, records = codes.shape[0] // ROWS, codes.shape[1] // COLUMNS
    # row: r // 8, r % 8; column: step, which eight, lane's quarter, half
    cut = codes.view(strips, 2, 8, records, 16, 2, 4, 2).permute(0, 3, 2, 6, 4, 5, 1, 7).flatten(2, 3).flatten(4, 5)
    # [strips, records, lane, step, register, half]
    word = (32, 1, 2) if bits == 8 else (4 * bits, 4 // bits, 4)  # words, steps in one, registers in one
    cut = cut.reshape(strips, records, 32, *word, 2)
    words = torch.zeros(cut.shape[:4], dtype=torch.int64, device=codes.device)
    for e in range(cut.shape[4]):
        for v in range(cut.shape[5]):
            for h in range(2):
                words |= cut[..., e, v, h].long() << (bits * e + (8 if bits == 8 else 4) * v + 16 * h)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    return words.view(strips, records, 32, -1, 4).transpose(2, 3).contiguous().view(torch.uint8).flatten(2)


def pack(q, device):
    """Return `Strips` of a `Quantized` on a device, or None where the format has none (see above)."""
    import torch

    n, k = q.shape
    layout = layout_of(q.format, k, q.arrays.get("scales", np.empty(0)).dtype == np.float32)
    numbers = None if layout is None else _numbers(q, layout)
    if numbers is None:
        return None
    codes, header, order, levels = numbers
    strips, records = -(-n // ROWS), -(-k // COLUMNS)
    data = torch.zeros((strips, records, layout.record), dtype=torch.uint8, device=device)
    step = max(1, (1 << 24) // (ROWS * COLUMNS * records))  # 16 million weights at a time
    for first in range(0, strips, step):
        last = min(strips, first + step)
        rows = slice(first * ROWS, min(n, last * ROWS))
        some = np.zeros(((last - first) * ROWS, records * COLUMNS), np.uint8)
        some[: rows.stop - rows.start, :k] = codes[rows]
        heads = np.zeros(((last - first) * ROWS, records, layout.header), np.uint8)
        heads[: rows.stop - rows.start] = header[rows]
        heads = torch.from_numpy(heads).to(device).view(last - first, ROWS, records, -1).transpose(1, 2).flatten(2)
        planes = pack_codes(torch.from_numpy(some).to(device), layout.bits)
        data[first:last] = torch.cat([heads, planes], dim=-1)
    moved = [None if a is None else torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (order, levels)]
    return Strips(data, layout, (n, k), *moved)
