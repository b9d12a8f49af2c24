"""Explain a wrong decoder or encoder of GGUF blocks: which field of which block it got wrong.

The weights that came are taken apart with the block's own codes and scales. Where each sub-block is a scale (and a
minimum) times the right codes, these are shown beside the block's; where the scales are right, the codes are.
"""

import json
from functools import cache

import numpy as np

from refquant.codebooks import E2M1_DOUBLED, IQ4_VALUES, e8m0_half
from refquant.verify import blocks
from refquant.verify.cases import VECTORS

CENTRE = {"Q4_0": 8, "Q5_0": 16, "Q3_K": 4, "Q6_K": 32, "TQ1_0": 1, "TQ2_0": 1}
TABLE = {"IQ4_NL": IQ4_VALUES, "IQ4_XS": IQ4_VALUES, "MXFP4": E2M1_DOUBLED}


@cache
def layouts() -> dict:
    """Where the fields of a block lie, in words: format -> bytes, value, planes."""
    return json.loads((VECTORS / "layouts.json").read_text(encoding="utf-8"))


def _list(values, most: int = 16) -> str:
    text = " ".join(f"{value:.6g}" if isinstance(value, float | np.floating) else str(value) for value in values[:most])
    return text + (" ..." if len(values) > most else "")


def _layout(fmt: str) -> list[str]:
    known = layouts().get(fmt)
    return [f"{fmt}, bytes {line}" for line in known["bytes"]] + [f"{fmt}: {known['value']}"] if known else []


def decoder(case, got: np.ndarray, want: np.ndarray, data: np.ndarray) -> str:
    """The first block that decodes wrongly."""
    weights, size = blocks.sizes(case.format)
    wrong = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    per_block = wrong.reshape(-1, weights)
    first = int(np.argmax(per_block.any(axis=1)))
    per_row = got.shape[1] // weights
    row, block = divmod(first, per_row)
    lines = []
    if weights > 1:
        bad = int(per_block.any(axis=1).sum())
        lines.append(f"{bad} of {len(per_block)} blocks differ; the first: block {block} of row {row}, "
                     f"bytes {block * size}..{(block + 1) * size - 1} of the row")  # fmt: skip
        if not per_block[:first].any() and block and bad == len(per_block) - first:
            lines.append("every block before it is right and every one after it wrong: look at the step between blocks")
        elif 0 < block and not per_block.reshape(-1, per_row, weights)[:, :block].any():
            lines.append(f"in every row the first {block} blocks are right: look at the step between blocks")
    raw = data.reshape(-1, size)[first]
    have, right = got.reshape(-1, weights)[first], want.reshape(-1, weights)[first]
    lines += _layout(case.format)
    lines.append(f"bytes of the block: {raw.tobytes().hex(' ')[:191]}{' ...' if size > 64 else ''}")
    fields = blocks.fields(raw, case.format)
    if weights > 1 and not have.any():
        lines.append("every weight of the block came back as 0: it was not decoded")
    elif fields and weights > 1:
        lines += _sides(case.format, fields, have, right)
    where = np.flatnonzero(per_block[first])[:8]
    lines.append("weight     " + " ".join(f"{i:>12}" for i in where))
    lines.append("expected   " + " ".join(f"{value:>12.6g}" for value in right[where]))
    lines.append("got        " + " ".join(f"{value:>12.6g}" for value in have[where]))
    return "\n".join(lines)


def _steps(fmt, fields):
    """Of a block: the level of each code, the step of each sub-block, its offset (or None), what multiplies each."""
    codes = fields["codes"].astype(np.float64)
    level = TABLE[fmt].astype(np.float64)[codes.astype(int)] if fmt in TABLE else codes - CENTRE.get(fmt, 0)
    d = float(e8m0_half(fields["e"])[0]) if fmt == "MXFP4" else float(fields["d"][0])
    scales = fields["scales"].astype(np.float64) if "scales" in fields else np.ones(1)
    unit = None
    offset = None
    if "mins" in fields:
        unit = float(fields["dmin"][0])
        offset = -unit * fields["mins"].astype(np.float64)
    elif "m" in fields:
        unit, offset = 1.0, np.array([float(fields["m"][0])])
    return level, d, scales, offset, unit


def _sides(fmt, fields, have, right) -> list[str]:
    """Fields of the block beside those that the weights imply."""
    level, d, scales, offset, unit = _steps(fmt, fields)
    shown = [f"{name} {_list(values)}" for name, values in fields.items() if name != "codes" and len(values) == 1]
    lines = ["the block holds: " + ", ".join(shown)] if shown else []
    if not np.isfinite(right).all() or not np.isfinite(have).all() or d == 0:
        return [*lines, f"  codes     {_list(fields['codes'])}"]
    sub = len(level) // len(scales)
    parts = [slice(j * sub, (j + 1) * sub) for j in range(len(scales))]
    slope, shift, fits = np.zeros(len(parts)), np.zeros(len(parts)), True
    for j, part in enumerate(parts):
        x, y = level[part], have[part].astype(np.float64)
        columns = np.stack([x, np.ones(sub)], 1) if offset is not None else x[:, None]
        solution = np.linalg.lstsq(columns, y, rcond=None)[0]
        slope[j], shift[j] = solution[0], solution[1] if offset is not None else 0
        fits &= bool(np.abs(columns @ solution - y).max() <= 1e-4 * (np.abs(right).max() + np.abs(have).max()))
    if fits:
        return lines + _scale_table(fmt, fields, slope / d, shift, scales, offset, unit)
    return lines + _code_table(fmt, fields, have, level, d * scales, offset, parts)


def _whole(values):
    return [round(v) if abs(v - round(v)) < 1e-3 else float(f"{v:.5g}") for v in values.tolist()]


def _scale_table(fmt, fields, implied, shift, scales, offset, unit) -> list[str]:
    name = "scales" if "scales" in fields else "d"
    bias = 32 if fmt in ("Q3_K", "IQ4_XS") else 0  # these store scales 32 above their value
    known = (
        fields["scales"].tolist()
        if "scales" in fields
        else [float(fields["d"][0])]
        if "d" in fields
        else ["2^(e - 128)"]
    )
    yours = (
        _whole(implied) if "scales" in fields else [float(f"{v:.6g}") for v in implied * float(fields.get("d", [1])[0])]
    )
    bad = [j for j in range(len(scales)) if abs(implied[j] - scales[j]) > 1e-3 * max(1, abs(scales[j]))]
    lines = ["the codes are read right; the weights imply these scales and minimums:" if offset is not None
             else "the codes are read right; the weights imply these scales:"]  # fmt: skip
    lines += [f"  {name:<9} in the block   {_list(known)}", f"  {name:<9} in the result  {_list(yours)}"]
    if bad:
        lines.append(_wrong(name, bad))
        lines += _bits(known, yours, bias) if "scales" in fields else []
    if offset is not None:
        mine = shift / (-unit if "mins" in fields else unit) if unit else shift
        label = "mins" if "mins" in fields else "m"
        held = fields["mins"].tolist() if "mins" in fields else [float(fields["m"][0])]
        lines += [f"  {label:<9} in the block   {_list(held)}", f"  {label:<9} in the result  {_list(_whole(mine))}"]
        bad = [j for j in range(len(held)) if abs(mine[j] - held[j]) > 1e-3 * max(1, abs(held[j]))]
        if bad:
            lines.append(_wrong(label, bad))
            lines += _bits(held, _whole(mine), 0) if label == "mins" else []
    return lines


def _wrong(name: str, bad: list[int]) -> str:
    plural = name in ("scales", "mins")
    where = f"wrong in sub-blocks {_list(bad)}" if plural else "wrong"
    return f"  {where}: look at how {name} {'are' if plural else 'is'} read"


def _bits(known: list, yours: list, bias: int) -> list[str]:
    """A relation between the right scales and those in the result, where one bit mask or one constant explains all."""
    if not all(isinstance(value, int) for value in yours):
        return []
    stored = [value + bias for value in known]
    for mask in (15, 31, 7, 3):
        for less in (0, bias, (mask + 1) // 2):
            if [(value & mask) - less for value in stored] == yours:
                kept = mask.bit_length()
                rule = f"each in the result is (stored & {mask}) - {less}, the format has stored - {bias}"
                return [f"  {rule}: only the low {kept} bits of each were read, and its bits above those are lost"]
    moved = {mine - value for value, mine in zip(known, yours, strict=True)}
    if len(moved) == 1:
        return [f"  every one is {moved.pop():+d} off: another bias"]
    return []


def _code_table(fmt, fields, have, level, step, offset, parts) -> list[str]:
    implied = np.full(len(level), np.nan)
    for j, part in enumerate(parts):
        if step[j]:
            implied[part] = (have[part] - (offset[j] if offset is not None else 0)) / step[j]
    if fmt in TABLE:
        table = TABLE[fmt].astype(float)
        near = np.abs(implied[:, None] - table).argmin(axis=1)
        whole = np.abs(table[near] - implied) < 1e-3 * np.abs(table).max()
        mine = np.where(whole, near, -1)
    else:
        mine = implied + CENTRE.get(fmt, 0)
        whole = np.abs(mine - np.rint(mine)) < 1e-2
        mine = np.where(whole, np.rint(np.nan_to_num(mine)), -999)
    known = np.isfinite(implied)
    if whole[known].mean() < 0.9:
        return [f"  codes     in the block   {_list(fields['codes'])}",
                "neither scales nor codes alone explain the weights: look at the order of fields"]  # fmt: skip
    codes, mine = fields["codes"].astype(int), mine.astype(int)
    lines = ["the scales are read right; the weights imply these codes:",
             f"  codes     in the block   {_list(codes)}", f"  codes     in the result  {_list(mine)}"]  # fmt: skip
    bad = np.flatnonzero(known & (codes != mine))
    if len(bad):
        lines.append(f"  {len(bad)} of {len(codes)} are wrong, the first at {_list(bad, 8)}")
    return lines + _order(fmt, codes, mine, known)


def _order(fmt, codes, mine, known) -> list[str]:
    """A rule that turns the right codes into those in the result."""
    bits, width = layouts().get(fmt, {}).get("planes", (0, 0))
    if bits:
        per = 8 // bits
        i = np.arange(len(codes))
        byte, slot = i // per, i % per
        plain = byte // width * width * per + slot * width + byte % width
        low = (1 << bits) - 1
        if np.array_equal((codes & low)[plain][known], (mine & low)[known]):
            return [f"  the low {bits} bits of each code are another's: neighbours in a byte are taken for neighbours "
                    f"in the row; the format has planes of {width}"]  # fmt: skip
    moved = set((mine - codes)[known].tolist())
    if len(moved) == 1:
        return [f"  every code is {moved.pop():+d} off: another middle value"]
    if len(moved) == 2 and all(abs(step) & (abs(step) - 1) == 0 for step in moved):
        return [f"  codes are {' or '.join(f'{step:+d}' for step in sorted(moved))} off: one bit of each is misread"]
    return []


def encoder(case, got: np.ndarray, want: np.ndarray, w: np.ndarray) -> str:
    """The block that adds most to the error: the oracle's fields and the result's."""
    weights, size = blocks.sizes(case.format)
    decoded = [blocks.decode(a, case.format, case.shape).astype(np.float64) for a in (want, got)]
    with np.errstate(all="ignore"):
        errors = [np.square(a - w).reshape(-1, weights).sum(axis=1) for a in decoded]
    more = np.where(np.isfinite(errors[1]), errors[1] - errors[0], np.inf)
    first = int(np.argmax(more))
    row, block = divmod(first, case.shape[1] // weights)
    lines = [
        f"worst block: {block} of row {row}, squared error {errors[1][first]:.4g}, the oracle's {errors[0][first]:.4g}"
    ]
    sides = [blocks.fields(a.reshape(-1, size)[first], case.format) or {} for a in (want, got)]
    for name in sides[0]:
        lines += [f"  {name:<9} oracle  {_list(sides[0][name])}", f"  {name:<9} got     {_list(sides[1][name])}"]
    lines.append(f"  weights           {_list(w.reshape(-1, weights)[first], 8)}")
    return "\n".join(lines)
