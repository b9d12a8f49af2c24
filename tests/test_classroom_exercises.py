"""The exercises: right answers agree with other programs; typical wrong ones get the rubric's marks and a hint."""

import os

import classrooms
import gguf
import numpy as np
import pytest

from refquant import classroom, course
from refquant.classroom import WrongAnswer, exercise, rubric
from refquant.classroom.checking import hidden_seed
from refquant.classroom.exercise import Case, Exercise, Output
from refquant.classroom.exercises import ASSIGNMENTS, bandwidth, exercises, find_exercise, gptq, kernel, kquants_blocks
from refquant.errors import UnknownName
from refquant.grids import IntGrid
from refquant.methods import awq, rtn

every = pytest.mark.parametrize("name", classrooms.NAMES)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# ---- the right answers are right


def test_round_to_nearest_is_that_of_refquant_and_of_a_loop_in_float64(rng):
    w = rng.normal(size=(5, 44)).astype(np.float32)
    codes, scales, zeros = find_exercise("rtn.groups").reference(w, 4, 16)
    q = rtn.search(w, IntGrid(4, 16, scale_dtype="float32"))
    assert np.array_equal(codes, q["codes"])
    assert np.array_equal(zeros, q["zeros"])
    np.testing.assert_allclose(scales, q["scales"], rtol=1e-6)
    for i, j in np.ndindex(5, 44):
        group = w[i, j // 16 * 16 : j // 16 * 16 + 16].astype(float)
        low, high = min(*group, 0.0), max(*group, 0.0)
        step = (high - low) / 15
        assert codes[i, j] == min(max(round(float(w[i, j]) / step) + round(-low / step), 0), 15)


def test_bandwidth_numbers_that_are_published():
    llama = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    llama |= {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
    # Llama-3.1-8B has 8,030,261,248 parameters: less the embedding and 65 norms of 4096
    assert bandwidth.decode_weights(llama) == 8_030_261_248 - 128256 * 4096 - 65 * 4096
    # Llama-2-7B, 4096 tokens: llama.cpp prints "KV self size = 2048 MiB"
    assert bandwidth.kv_bytes(llama | {"num_key_value_heads": 32}, 4096) == 2048 * 2**20
    assert bandwidth.bits_per_weight(4, 128, 16, 4) == 4.15625  # GPTQ's packed files
    assert round(bandwidth.critical_batch(16, 312e12, 2.039e12)) == 153  # A100


def test_compensation_is_the_least_squares_solution(rng):
    H = gptq.hessian(gptq.inputs(rng, 60, 8))
    w = rng.normal(size=(3, 8))
    moved = gptq.compensate(w, w[:, 0] + 0.1, 0, gptq.factor(H))
    # with column 0 fixed, the best other columns solve the normal equations of the output error
    best = w[:, 1:] - 0.1 * np.linalg.solve(H[1:, 1:], H[1:, 0])
    np.testing.assert_allclose(moved[:, 1:], best, rtol=1e-9)
    args = find_exercise("gptq.quantize").cases[0].make(rng)
    prepared, H = gptq.prepare(args[0], args[1], args[5])
    ours = gptq.output_error(prepared, gptq.quantize(*args), H)
    assert ours < 0.9 * gptq.output_error(prepared, gptq.rounded(prepared, *args[2:5]), H)


def test_the_scales_of_awq_are_those_of_refquant(rng):
    mean = np.exp(rng.normal(size=30))
    mean[3] = 0
    found = find_exercise("awq.scales").reference(mean, 0.45)
    np.testing.assert_allclose(found, awq.channel_scales(0.45, mean), rtol=1e-6)
    x = rng.normal(size=(40, 30)) * mean
    assert np.array_equal(find_exercise("awq.salient").reference(x, 3), awq.salient(x, 0.1))


def test_blocks_are_decoded_as_gguf_decodes_them(rng):
    for _ in range(20):
        (block,) = kquants_blocks.block(True)(rng)
        expected = gguf.dequantize(block[None], gguf.GGMLQuantizationType.Q4_K)[0]
        np.testing.assert_allclose(kquants_blocks.decode(block), expected, rtol=1e-6, atol=1e-6)
    (w,) = kquants_blocks.weights("any")(rng)
    read = gguf.dequantize(kquants_blocks.encode(w), gguf.GGMLQuantizationType.Q4_K)
    assert np.square(read - w).mean() < 0.01 * np.square(w).mean()


def test_the_scales_of_q3_k_are_those_that_gguf_reads(rng):
    data = rng.integers(0, 256, 12).astype(np.uint8)
    ones = np.full(64, 0b01010101, np.uint8)  # every code 1 with its upper bit set: 1 + 4 - 4
    block = np.concatenate([np.full(32, 255, np.uint8), ones, data, np.array([1.0], "<f2").view(np.uint8)])
    read = gguf.dequantize(block[None], gguf.GGMLQuantizationType.Q3_K)[0]
    assert np.array_equal(read.reshape(16, 16)[:, 0], kquants_blocks.q3_scales(data))


def test_the_product_of_the_kernel_is_that_of_a_loop(rng):
    codes, scales, zeros, size, x = kernel.layer(3, 32, 8)(rng)
    for i, got in enumerate(kernel.matvec(codes, scales, zeros, size, x)):
        total = 0.0
        for j in range(32):
            code = codes[i, j // 2] >> (4 if j % 2 else 0) & 15
            total += (int(code) - int(zeros[i, j // 8])) * float(scales[i, j // 8]) * float(x[j])
        assert abs(got - total) < 1e-5


# ---- the rubric


@every
def test_the_points_of_the_cells_are_those_of_the_rubric_and_make_twenty(name):
    notebook = classrooms.source(name)
    own = exercises(ASSIGNMENTS[name])
    assert [exercise for _, exercise in classrooms.calls(notebook)] == list(own)
    points = [classrooms.about(cell)["points"] for cell in classrooms.graded(notebook)]
    assert points == [each.points for each in own.values()]
    assert sum(points) == 20


def test_the_rubric_in_the_teachers_folder_is_in_step():
    text = (course.folder() / "assignments" / "RUBRIC.md").read_text(encoding="utf-8")
    assert text == rubric.render(), "run: refquant classroom rubric > notebooks/assignments/RUBRIC.md"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@every
def test_each_known_mistake_is_caught_and_named(name):
    for own in exercises(ASSIGNMENTS[name]).values():
        for mistake in own.mistakes:
            if mistake.computes is None:
                continue
            with pytest.raises(WrongAnswer) as raised:
                classroom.check(mistake.computes, own.name)
            assert mistake.hint in str(raised.value), own.name


@every
def test_a_constant_gets_at_most_what_a_constant_deserves(name):
    for own in exercises(ASSIGNMENTS[name]).values():
        if own.reference is None:
            continue  # any of many answers is right
        args = own.cases[0].make(np.random.default_rng(0))
        right = own.reference(*args)
        assert exercise.difference(own, args, right) is None
        got = classroom.grade(lambda *args, right=right: right, own.name)
        # "a group of zeros" and "none fits" have one answer, whatever the data
        assert got <= (1 if own.name in ("rtn.scale_zero", "rtn.symmetric", "bandwidth.pick_card") else 0), own.name


# ---- typical wrong answers, as students write them: (assignment, cell, source, exercise: points lost, hint)

WRONG = [
    (
        "01_rtn", "scale_zero", """
def scale_zero(w, bits):
    low, high = min(w.min(), 0), max(w.max(), 0)
    if low == high:
        return 1.0, 0
    scale = (high - low) / (2**bits - 1)
    return scale, int(np.rint(-low / scale)) + 1
""", {"rtn.scale_zero": 4, "rtn.groups": 6}, "one too high",
    ),
    (
        "01_rtn", "encode", """
def encode(w, scale, zero, bits):
    return (np.rint(w / scale) + zero).astype(int).astype(np.uint8)
""", {"rtn.encode": 1}, "no clip",
    ),
    (
        "01_rtn", "groups", """
def groups(w, bits, size):
    parts = [groups_of_row(column, bits, size) for column in w.T]
    return tuple(np.stack(each, axis=1) for each in zip(*parts))
def groups_of_row(w, bits, size):
    scales, zeros, codes = [], [], []
    for start in range(0, len(w), size):
        s, z = scale_zero(w[start:start + size], bits)
        scales.append(s); zeros.append(z); codes.append(encode(w[start:start + size], s, z, bits))
    return np.concatenate(codes), scales, zeros
""", {"rtn.groups": 6}, "last axis",
    ),
    (
        "01_rtn", "groups", """
def groups(w, bits, size):
    s, z = scale_zero(w.ravel(), bits)
    G = -(-w.shape[1] // size)
    return encode(w, s, z, bits), np.full((len(w), G), s), np.full((len(w), G), z)
""", {"rtn.groups": 6}, "whole matrix",
    ),
    (
        "01_rtn", "groups", """
def groups(w, bits, size):
    n, k = w.shape
    G = k // size
    parts = w[:, : G * size].reshape(n * G, size)
    fit = [scale_zero(p, bits) for p in parts]
    codes = np.stack([encode(p, s, z, bits) for p, (s, z) in zip(parts, fit)]).reshape(n, G * size)
    s, z = np.array([f[0] for f in fit]).reshape(n, G), np.array([f[1] for f in fit]).reshape(n, G)
    return codes, s, z
""", {"rtn.groups": 2}, "last group is missing",
    ),
    (
        "01_rtn", "groups", """
def groups(w, bits, size):
    n, k = w.shape
    G = -(-k // size)
    codes = np.zeros((n, k), int); scales = np.zeros((n, G)); zeros = np.zeros((n, G), int)
    for i in range(n):
        s, z = scale_zero(w[i, :size], bits)
        for g in range(G):
            part = w[i, g * size : (g + 1) * size]
            codes[i, g * size : (g + 1) * size] = encode(part, s, z, bits)
            s, z = scale_zero(part, bits)
            if g + 1 < G:
                pass
            scales[i, g], zeros[i, g] = s, z
    return codes, scales, zeros
""", {"rtn.groups": 6}, "stale scale",
    ),
    (
        "01_rtn", "symmetric", """
def symmetric(w, bits):
    top = 2 ** (bits - 1) - 1
    scale = max(w) / top
    if scale == 0: scale = 1.0
    return np.clip(np.rint(w / scale), -top, top), scale
""", {"rtn.symmetric": 1}, "largest magnitude",
    ),
    (
        "01_rtn", "symmetric", """
def symmetric(w, bits):
    top = 2 ** (bits - 1) - 1
    scale = np.max(np.abs(w)) / top
    return np.rint(w / scale), scale
""", {"rtn.symmetric": 1}, "divides 0 by 0",
    ),
    (
        "01_rtn", "decode", "def decode(codes, scale, zero):\n    return (codes - np.uint8(zero)) * scale\n",
        {"rtn.decode": 2}, "wraps around",
    ),
    (
        "02_bandwidth", "decode_weights", """
def decode_weights(config):
    h = config["hidden_size"]
    per_layer = 4 * h * h + 3 * h * config["intermediate_size"]
    return config["num_hidden_layers"] * per_layer + config["vocab_size"] * h
""", {"bandwidth.decode_weights": 3}, "num_key_value_heads",
    ),
    (
        "02_bandwidth", "bits_per_weight", "def bits_per_weight(b, group, s, z):\n    return b + s / group\n",
        {"bandwidth.bits_per_weight": 1}, "zero-point is stored",
    ),
    (
        "02_bandwidth", "kv_bytes", """
def kv_bytes(config, tokens):
    d = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 4 * config["num_hidden_layers"] * config["num_attention_heads"] * d * tokens
""", {"bandwidth.kv_bytes": 2}, "num_key_value_heads",
    ),
    (
        "02_bandwidth", "tokens_per_second", """
def tokens_per_second(weights, bits, cache, bandwidth):
    return bandwidth / (weights * bits / 8)
""", {"bandwidth.tokens_per_second": 2}, "KV cache is read",
    ),
    (
        "02_bandwidth", "tokens_per_second", """
def tokens_per_second(weights, bits, cache, bandwidth):
    return bandwidth / (weights * bits + cache)
""", {"bandwidth.tokens_per_second": 3}, "divide by 8",
    ),
    (
        "02_bandwidth", "critical_batch", "def critical_batch(bits, flops, bw):\n    return flops / bw * bits / 8\n",
        {"bandwidth.critical_batch": 3}, "two operations",
    ),
    (
        "02_bandwidth", "pick_card", """
def pick_card(cards, weight_bytes, cache):
    fits = [c for c in cards if c["memory"] * 1e9 >= weight_bytes + cache]
    return max(fits, key=lambda c: c["bandwidth"])["name"] if fits else None
""", {"bandwidth.pick_card": (1, 3)}, "GiB",
    ),
    (
        "03_gptq", "hessian", "def hessian(x):\n    return 2 * x.T @ x\n", {"gptq.hessian": 2}, "mean",
    ),
    (
        "03_gptq", "prepare", """
def prepare(W, H, damp):
    return W, H + damp * np.mean(np.diag(H)) * np.eye(len(H))
""", {"gptq.prepare": 2, "gptq.quantize": 2}, "H_jj = 0",
    ),
    (
        "03_gptq", "prepare", """
def prepare(W, H, damp):
    dead = np.diag(H) == 0
    W = np.where(dead, 0, W)
    H = H + np.diag(dead.astype(float))
    return W, H + damp * np.eye(len(H))
""", {"gptq.prepare": 4, "gptq.quantize": 5}, "mean of diag(H)",
    ),
    (
        "03_gptq", "factor", "def factor(H):\n    return np.linalg.cholesky(np.linalg.inv(H))\n",
        {"gptq.factor": 2, "gptq.quantize": 5}, "transpose",
    ),
    (
        "03_gptq", "compensate", """
def compensate(W, q, j, U):
    W = W.copy()
    err = (W[:, j] - q) / U[j, j]
    W[:, j] = q
    W[:, j + 1:] += np.outer(err, U[j, j + 1:])
    return W
""", {"gptq.compensate": 3}, "sign is turned",
    ),
    (
        "03_gptq", "block", """
def block(W, first, last, U, scale, zero, bits):
    W = W.copy()
    for j in range(first, last):
        q = rounded(W[:, j], scale, zero, bits)
        err = (W[:, j] - q) / U[j, j]
        W[:, j] = q
        W[:, j + 1 : last] -= np.outer(err, U[j, j + 1 : last])
    return W
""", {"gptq.block": 4, "gptq.quantize": 5}, "after the block were never updated",
    ),
    (
        "03_gptq", "quantize", """
def quantize(W, H, scale, zero, bits, damp, size):
    return rounded(prepare(W, H, damp)[0], scale, zero, bits)
""", {"gptq.quantize": 5}, "round to nearest",
    ),
    (
        "04_awq", "salient", "def salient(x, count):\n    return np.sort(np.argsort(-x.mean(axis=0))[:count])\n",
        {"awq.salient": 3}, "cancel",
    ),
    (
        "04_awq", "salient", "def salient(x, count):\n    return np.sort(np.argsort(-np.abs(x).max(axis=0))[:count])\n",
        {"awq.salient": 3}, "maximum",
    ),
    (
        "04_awq", "scales", "def scales(mean, alpha):\n    r = mean**alpha\n    return r / np.sqrt(max(r) * min(r))\n",
        {"awq.scales": 2}, "silent channel",
    ),
    (
        "04_awq", "scales", "def scales(mean, alpha):\n    return np.maximum(mean**alpha, 1e-4)\n",
        {"awq.scales": 4}, "normalised",
    ),
    (
        "04_awq", "search", """
def search(W, x, bits, size):
    errors = []
    for a in ALPHAS:
        s = scales(np.abs(x).mean(axis=0), a)
        errors.append(((on_grid(W * s, bits, size) / s - W) ** 2).mean())
    return ALPHAS[np.argmin(errors)], np.array(errors)
""", {"awq.search": 5}, "errors of the weights",
    ),
    (
        "04_awq", "absorb", "def absorb(norm, W, s):\n    return norm / s, W * s[:, None]\n",
        {"awq.absorb": 4}, "rows of W",
    ),
    (
        "04_awq", "largest_change", """
def largest_change(norm, W, new_norm, new_W, x):
    before, after = (x * norm) @ W.T, (x * new_norm) @ new_W.T
    return np.abs(after - before).max()
""", {"awq.largest_change": 2}, "not relative",
    ),
    (
        "05_kquants", "six_bits", """
def six_bits(data):
    scales = list(data[:4] & 63) + [b & 15 for b in data[8:]]
    mins = list(data[4:8] & 63) + [b >> 4 for b in data[8:]]
    return np.array(scales), np.array(mins)
""", {"kquants.six_bits": 2, "kquants.decode": 4}, "upper two bits",
    ),
    (
        "05_kquants", "codes", """
def codes(qs):
    out = []
    for i in range(0, 128, 32):
        out += list(qs[i:i + 32] >> 4) + list(qs[i:i + 32] & 15)
    return np.array(out)
""", {"kquants.codes": 3, "kquants.decode": 4}, "nibble order",
    ),
    (
        "05_kquants", "codes", """
def codes(qs):
    out = np.empty(256, int)
    out[::2], out[1::2] = qs & 15, qs >> 4
    return out
""", {"kquants.codes": 3, "kquants.decode": 4}, "two neighbours",
    ),
    (
        "05_kquants", "decode", """
def decode(block):
    d, dmin = block[:4].view("<f2").astype(np.float32)
    s, m = six_bits(block[4:16])
    return np.repeat(d * s, 32) * codes(block[16:]) + np.repeat(dmin * m, 32)
""", {"kquants.decode": 3}, "minimum is subtracted",
    ),
    (
        "05_kquants", "encode", """
def encode(w):
    out = []
    for row in w:
        x = row.reshape(8, 32)
        low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
        want, least = (high - low) / 15, -low
        d, dm = np.float16(want.max() / 63), np.float16(least.max() / 63)
        s = np.rint(want / np.float32(d)).astype(np.uint8)
        m = np.rint(least / np.float32(dm)).astype(np.uint8) if dm else np.zeros(8, np.uint8)
        step = np.where(s > 0, np.float32(d) * s, 1)[:, None]
        q = np.clip(np.rint((x + (np.float32(dm) * m)[:, None]) / step), 0, 15).astype(np.uint8).reshape(4, 2, 32)
        packed = [s[:4] | s[4:] >> 4 << 6, m[:4] | m[4:] >> 4 << 6, s[4:] & 15 | (m[4:] & 15) << 4]
        out.append(np.concatenate([np.array([d, dm], "<f2").view(np.uint8), *packed, (q[:, 1] | q[:, 0] << 4).ravel()]))
    return np.stack(out)
""", {"kquants.encode": 5}, "nibble order",
    ),
    (
        "05_kquants", "q3_scales", """
def q3_scales(data):
    lower = np.concatenate([data[:8] & 15, data[:8] >> 4])
    upper = np.concatenate([data[8:] >> shift & 3 for shift in (0, 2, 4, 6)])
    return lower | upper << 4
""", {"kquants.q3_scales": 2}, "subtract 32",
    ),
    (
        "05_kquants", "q3_sub_block", """
def q3_sub_block(x):
    scale = np.abs(x).max() / 4
    return scale, np.clip(np.rint(x / scale), -4, 3) + 4
""", {"kquants.q3_sub_block": 2}, "never negative",
    ),
    (
        "06_kernel", "least_bytes", "def least_bytes(n, k, g):\n    return n * k + 5 * n * k // g + 4 * (n + k)\n",
        {"kernel.least_bytes": 3}, "share a byte",
    ),
    (
        "06_kernel", "matvec", """
def matvec(codes, scales, zeros, size, x):
    q = np.stack([codes >> 4, codes & 15], axis=2).reshape(len(codes), -1).astype(np.float32)
    return ((q - np.repeat(zeros, size, axis=1)) * np.repeat(scales, size, axis=1)) @ x
""", {"kernel.matvec": 6}, "nibble order",
    ),
    (
        "06_kernel", "matvec", """
def matvec(codes, scales, zeros, size, x):
    q = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)
    return ((q - np.repeat(zeros, size, axis=1)) * np.repeat(scales, size, axis=1)) @ x
""", {"kernel.matvec": 6}, "wraps around",
    ),
    (
        "06_kernel", "matvec", """
def matvec(codes, scales, zeros, size, x):
    q = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1).astype(np.float32)
    return ((q - zeros[:, :1]) * scales[:, :1]) @ x
""", {"kernel.matvec": 4}, "first group's scale",
    ),
    (
        "06_kernel", "matvec", """
def matvec(codes, scales, zeros, size, x):
    q = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1).astype(np.float32)
    return (q * np.repeat(scales, size, axis=1)) @ x
""", {"kernel.matvec": 6}, "zero-point must be subtracted",
    ),
    (
        "06_kernel", "fast", "def fast(*args):\n    return matvec(*args)\n",
        {"kernel.fast": 6}, "decoded matrix was written",
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "cell", "answer", "lost", "hint"),
    WRONG,
    ids=[f"{w[0][:2]}-{w[1]}-{w[4].replace(' ', '_')}" for w in WRONG],
)
def test_typical_wrong_answers_get_part_of_the_marks_and_a_hint(name, cell, answer, lost, hint, monkeypatch):
    monkeypatch.setattr(kernel, "SIZE", 1024)
    everything = {each.name: each.points for each in exercises(ASSIGNMENTS[name]).values()}
    slow = {"kernel.fast"} - lost.keys()  # the race of the instructor's answer is another test's
    with hidden_seed(11):
        points, printed = classrooms.marks(name, {cell: answer}, everything.keys() - slow)
    assert hint in printed
    for exercise_name, got in points.items():
        gone = lost.get(exercise_name, 0)
        least, most = gone if isinstance(gone, tuple) else (gone, gone)
        assert everything[exercise_name] - most <= got <= everything[exercise_name] - least, (exercise_name, printed)
    own = next(exercise for function, exercise in classrooms.calls(classrooms.source(name)) if function == cell)
    with pytest.raises(WrongAnswer, match=hint.split(" ")[0]):
        classroom.check(classrooms.functions(classrooms.solved(name, {cell: answer}))[cell], own)


def test_memory_that_was_free_already_does_not_hide_what_a_call_takes():
    np.ones(20 << 20, np.uint8)  # once freed, glibc takes what is smaller from the heap, and keeps it there
    held = [np.ones(2 << 20, np.uint8) for _ in range(8)]
    above = bytearray(1000)
    del held
    grown = kernel.peak_growth(os.getpid(), lambda: np.ones(4 << 20, np.uint8).sum())
    assert above is not None
    assert grown is None or 3.9e6 < grown < 8e6


def test_each_assignment_has_at_least_five_of_them():
    for name in classrooms.NAMES:
        assert sum(wrong[0] == name for wrong in WRONG) >= 5


# ---- check and the comparison themselves


def test_check_prints_the_score_and_names_the_first_wrong_weight(capsys):
    names = classrooms.functions(classrooms.solved("01_rtn"))
    classroom.check(names["groups"], "rtn.groups")
    assert "bits per weight" in capsys.readouterr().out

    def off(w, bits, size):
        codes, scales, zeros = names["groups"](w, bits, size)
        codes[1, 5] ^= 1
        return codes, scales, zeros

    with pytest.raises(WrongAnswer, match=r"codes\[1, 5\]: expected \d+, got \d+ \(1 of 384 are wrong\)"):
        classroom.check(off, "rtn.groups")
    with pytest.raises(UnknownName, match=r"rtn\.groups"):
        classroom.check(off, "rtn.group")
    with pytest.raises(UnknownName, match="kquants"):
        classroom.check(off, "nonsense")
    with pytest.raises(ZeroDivisionError):  # a student's own error comes through, with its traceback
        classroom.check(lambda *args: 1 / 0, "rtn.groups")


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (np.zeros(3), np.array([0, np.nan, 0]), "nan"),
        (np.array([np.nan]), np.array([np.nan]), "nan"),
        (np.zeros((2, 3)), np.zeros((3, 2)), "expected shape"),
        (np.zeros(2), "zeros", "expected numbers"),
        (np.zeros(2), None, "is there a return"),
        (np.zeros(2), [[0], [0, 0]], "expected numbers"),
        (np.float64(1), 1.02, "expected 1, got 1.02"),
        (None, "card A", "expected None"),
        ("card A", None, "expected 'card A'"),
        ("card A", np.str_("card B"), "got"),
    ],
)
def test_the_comparison_refuses_planted_faults(expected, got, said):
    assert said in exercise.compare((Output("y", 0.01),), expected, got)


def test_the_comparison_takes_what_is_near_and_other_types():
    assert exercise.compare((Output("y", 0.01),), np.array([100.0, -1]), [100.9, -0.991]) is None
    assert exercise.compare((Output("y", 0.01, "largest"),), np.array([100.0, -1]), [100.9, -0.5]) is None
    assert exercise.compare((Output("y"),), np.array([3, 4], np.uint8), [3.0, 4.0]) is None
    assert "2 values (a, b)" in exercise.compare((Output("a"), Output("b")), (1, 2), [1, 2, 3])


def test_a_function_cannot_change_the_arguments_it_is_judged_by():
    def clever(w):
        w[:] = 0
        return 0.0

    mean = Exercise(
        "x", (Output("mean", 1e-9),), (Case("a", 1, lambda rng: (rng.normal(size=3),)),), lambda w: w.mean()
    )
    with pytest.raises(WrongAnswer):
        exercise.attempt(mean, clever, mean.cases[0], np.random.default_rng(0))
