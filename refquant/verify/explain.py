"""Explain a failure in the format's own terms: the first difference, with the fields around it, expected and got.

Only for people: whatever goes wrong in here is said in the report, and never changes a verdict.
"""

import numpy as np

from refquant.errors import RefquantError
from refquant.verify import blocks, explain_blocks
from refquant.verify.reference import EIGHT_BITS, layout

SLOTS = {"awq": [0, 2, 4, 6, 1, 3, 5, 7]}


def explain(case, got, difference) -> str:
    """Return some lines about a `Difference`; none where there is nothing to add."""
    if difference.array is None and case.comparison != "error":
        return ""
    try:
        with np.errstate(all="ignore"):
            return _explain(case, got, difference)
    except (RefquantError, ValueError, IndexError, KeyError, TypeError, ArithmeticError) as problem:
        return f"(no explanation: {type(problem).__name__}: {problem})"


def _explain(case, got, difference) -> str:
    inputs, expected = case.inputs, case.expected
    stream = blocks.is_stream(case.format)
    if case.op == "dequantize" and stream and difference.index:
        return explain_blocks.decoder(case, got["w"], expected["w"], inputs["blocks"])
    if case.op == "quantize" and stream and got["blocks"].shape == expected["blocks"].shape:
        return explain_blocks.encoder(case, got["blocks"], expected["blocks"], inputs["w"])
    if not difference.index:
        return ""
    if case.op == "cast":
        return _cast(case, got, inputs, expected, difference.index)
    if case.op == "dequantize" and case.format in EIGHT_BITS:
        return f"code 0x{inputs['blocks'][difference.index]:02X}"
    if case.op == "pack" or case.op == "repack":
        return _words(case, got[difference.array], expected[difference.array], difference)
    if case.op == "dequantize" and "bits" in case.params:
        return _weight(case, got["w"], expected["w"], difference.index)
    if case.op == "unpack":
        return _pattern(got[difference.array].astype(int), expected[difference.array].astype(int), difference.array)
    return ""


def _cast(case, got, inputs, expected, index) -> str:
    x, want, have = inputs["x"][index], expected["bits"][index], got["bits"][index]
    digits = want.dtype.itemsize * 2
    text = f"x = {float(x)!r} (0x{x.view(np.uint32):08X}): expected 0x{want:0{digits}X}, got 0x{have:0{digits}X}"
    if case.format in EIGHT_BITS:
        values = EIGHT_BITS[case.format].values
        text += f", the numbers {values[want]} and {values[have]}"
    return text


def _words(case, got, want, difference) -> str:
    """A packed word as its fields."""
    index, bits = difference.index, case.params["bits"]
    if want.dtype != np.int32:
        return ""
    words = [int(a[index]) & 0xFFFFFFFF for a in (want, got)]
    lines = [f"{difference.array}[{', '.join(map(str, index))}]: expected 0x{words[0]:08X}, got 0x{words[1]:08X}"]
    if 32 % bits:
        return lines[0] + f" ({bits}-bit fields are one stream of bits, lowest first, and cross words)"
    sides = [[word >> at & (1 << bits) - 1 for at in range(0, 32, bits)] for word in words]
    lines += [f"  fields from the low end, expected  {' '.join(map(str, sides[0]))}",
              f"  fields from the low end, got       {' '.join(map(str, sides[1]))}"]  # fmt: skip
    order = SLOTS["awq"]
    if bits == 4 and sides[1] == [sides[0][order.index(i)] for i in range(8)]:
        lines.append("  that is plain order: slot i of an AWQ word holds output [0, 2, 4, 6, 1, 3, 5, 7][i]")
    moved = {(b - a) % (1 << bits) for a, b in zip(*sides, strict=True)}
    if len(moved) == 1:
        step = moved.pop()
        lines.append(f"  every field is {step if step < 1 << bits - 1 else step - (1 << bits):+d} off")
    return "\n".join(lines)


def _weight(case, got, want, index) -> str:
    """A weight of a checkpoint: its code, scale and zero-point, and what the result implies."""
    form, params = layout(case.format, case.params), case.params
    from refquant import ops
    from refquant.verify.reference import _tensors

    fields = ops.unpack(form.read(_tensors(case.inputs, params)))
    group = np.asarray(fields["g_idx"])
    codes, scales = fields["codes"].astype(float), fields["scales"].astype(float)[:, group]
    zeros = fields["zeros"].astype(float)[:, group]
    n, k = index
    lines = [f"weight [{n}, {k}]: group {group[k]}, code {int(codes[n, k])}, scale {scales[n, k]:.6g}, "
             f"zero-point {int(zeros[n, k])}: weight {want[n, k]:.6g}, got {got[n, k]:.6g}"]  # fmt: skip
    mine = codes - got / scales
    if np.abs(mine - np.rint(mine)).max() < 1e-3:
        lines.append("if codes and scales are right, the zero-points are not: " + _pattern(
            np.rint(mine).astype(int), zeros.astype(int), "zero-points"))  # fmt: skip
        mine = got / scales + zeros
        lines.append("if zero-points and scales are right, the codes are not: " + _pattern(
            np.rint(mine).astype(int), codes.astype(int), "codes"))  # fmt: skip
    else:
        lines.append("the weights are no multiples of the scales: look at which group each column takes its scale from")
    return "\n".join(lines)


def _pattern(got, want, name) -> str:
    """How often which difference occurs."""
    if got.shape != want.shape:
        return ""
    steps, counts = np.unique(got - want, return_counts=True)
    order = np.argsort(-counts)[:4]
    text = ", ".join(f"{steps[i]:+d} {counts[i]} times" for i in order)
    if len(steps) == 1:
        return f"{name} are {steps[0]:+d} off everywhere"
    return f"{name} differ by {text}" + (" ..." if len(steps) > 4 else "")
