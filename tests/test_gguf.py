import os
import re
import struct
import time
import tracemalloc

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import BadFile, BadInput
from refquant.formats.gguf import Nested, Tensor
from refquant.ggml_types import BY_ID, REMOVED, TYPES

SCALARS = {
    "a.uint8": np.uint8(255),
    "a.int8": np.int8(-128),
    "a.uint16": np.uint16(65535),
    "a.int16": np.int16(-32768),
    "a.uint32": np.uint32(2**32 - 1),
    "a.int32": np.int32(-(2**31)),
    "a.float32": np.float32(0.1),
    "a.bool": True,
    "a.string": "naïve Ġ €",
    "a.uint64": np.uint64(2**64 - 1),
    "a.int64": np.int64(-(2**63)),
    "a.float64": np.float64(0.1),
}
ARRAYS = {
    "b.strings": ["", "Ġa", "日本"],
    "b.int32": np.array([1, -2, 3], np.int32),
    "b.float32": np.array([0.5, np.inf, -0.0], np.float32),
    "b.bool": np.array([True, False]),
    "b.uint8": np.zeros(0, np.uint8),
    "b.empty": [],
}


def same(a, b) -> bool:
    """Equal in value and in type, arrays in arrays included."""
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def random_tensors(rng, kinds=TYPES):
    for name in kinds:
        kind = TYPES[name]
        shape = (3, 2 * kind.weights)
        yield Tensor(f"t.{name}", shape, name, rng.integers(0, 256, kind.nbytes(shape), np.uint8))


def one_tensor(path, metadata=None, shape=(2, 32), kind="Q8_0", name="t"):
    rq.gguf.write(path, metadata or {}, [Tensor(name, shape, kind, np.zeros(TYPES[kind].nbytes(shape), np.uint8))])
    return bytearray(path.read_bytes())


# ---- what is written is read, by us and by gguf-py


def test_every_value_type_and_every_tensor_type_come_back(tmp_path):
    path, again = tmp_path / "a.gguf", tmp_path / "b.gguf"
    metadata = {**SCALARS, **ARRAYS, "c.nested": Nested([["x"], np.array([1.5], np.float32), Nested()])}
    tensors = {tensor.name: tensor for tensor in random_tensors(np.random.default_rng(0))}
    rq.gguf.write(path, metadata, tensors)
    file = rq.gguf.read(path)
    assert list(file.metadata) == list(metadata)
    assert all(same(file.metadata[key], metadata[key]) for key in metadata)
    assert list(file.tensors) == list(tensors)
    for name, tensor in file.tensors.items():
        assert (tensor.type, tensor.shape) == (tensors[name].type, tensors[name].shape)
        assert np.array_equal(tensor.data.reshape(-1), tensors[name].data)
        assert tensor.data.shape == (3, 2 * tensor.kind.bytes)
    rq.gguf.write(again, file.metadata, file.tensors)
    assert again.read_bytes() == path.read_bytes()


def test_gguf_py_reads_every_byte_that_is_written(tmp_path):
    path = tmp_path / "a.gguf"
    known = [name for name in TYPES if name in gguf.GGMLQuantizationType.__members__ and name != "Q8_1"]
    tensors = list(random_tensors(np.random.default_rng(1), known))
    rq.gguf.write(path, {**SCALARS, **ARRAYS}, tensors)
    theirs = gguf.GGUFReader(path)
    for key, value in {**SCALARS, **ARRAYS}.items():
        field, empty = theirs.get_field(key), not isinstance(value, str) and np.size(value) == 0
        if not empty:
            assert np.array_equal(field.contents(), value), key
        assert field.types[0] == (gguf.GGUFValueType.ARRAY if key in ARRAYS else gguf.GGUFValueType[key[2:].upper()])
    for ours, got in zip(tensors, theirs.tensors, strict=True):
        assert (got.name, got.tensor_type.name, tuple(got.shape)) == (ours.name, ours.type, ours.shape[::-1])
        assert got.data.tobytes() == ours.data.tobytes()


def test_every_byte_of_gguf_pys_writer_is_read(tmp_path):
    path, again = tmp_path / "a.gguf", tmp_path / "b.gguf"
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in SCALARS.items():
        writer.add_key_value(key, value, gguf.GGUFValueType[key[2:].upper()])
    writer.add_array("b.strings", ARRAYS["b.strings"])
    writer.add_array("b.int32", [1, -2, 3])
    writer.add_array("b.float32", [0.5, 2.0])
    writer.add_array("b.nested", [[1, 2], [3]])
    arrays = {"f32": rng.normal(size=(3, 5)).astype(np.float32), "f16": rng.normal(size=(2, 3, 4)).astype(np.float16)}
    arrays["i64"] = rng.integers(-9, 9, 7)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    blocks = rng.integers(0, 256, (4, 3 * 34), np.uint8)
    writer.add_tensor("q8", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    file = rq.gguf.read(path)
    assert all(same(file.metadata[key], value) for key, value in SCALARS.items())
    assert file.metadata["b.strings"] == ARRAYS["b.strings"]
    assert [list(inner) for inner in file.metadata["b.nested"]] == [[1, 2], [3]]
    for name, array in arrays.items():
        assert np.array_equal(file.tensors[name].array(), array)
        assert file.tensors[name].array().dtype == array.dtype
    assert (file.tensors["q8"].shape, file.tensors["q8"].type) == ((4, 96), "Q8_0")
    assert np.array_equal(file.tensors["q8"].data, blocks)
    rq.gguf.write(again, file.metadata, file.tensors)
    assert again.read_bytes() == path.read_bytes()


numbers = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64])
integers = numbers.flatmap(lambda t: st.integers(int(np.iinfo(t).min), int(np.iinfo(t).max)).map(t))
floats = st.one_of(st.floats(width=32).map(np.float32), st.floats().map(np.float64))
text = st.text(max_size=20)
flat = st.one_of(
    st.lists(text, max_size=4),
    st.lists(st.booleans(), max_size=4).map(lambda v: np.array(v, bool)),
    st.tuples(numbers, st.lists(st.integers(0, 127), max_size=5)).map(lambda p: np.array(p[1], p[0])),
    st.lists(st.floats(width=32), max_size=5).map(lambda v: np.array(v, np.float32)),
)
values = st.one_of(integers, floats, text, st.booleans(), flat, st.lists(flat, max_size=3).map(Nested))
shapes = st.tuples(
    st.sampled_from(sorted(TYPES)), st.lists(st.integers(1, 3), min_size=0, max_size=3), st.integers(1, 3)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(st.text(min_size=1, max_size=30), values, max_size=6),
    tensors=st.dictionaries(st.text("abc.é", min_size=1, max_size=20), shapes, max_size=4),
    alignment=st.sampled_from([None, 1, 8, 32, 4096]),
    version=st.sampled_from([2, 3]),
    seed=st.integers(0, 9),
)
def test_any_metadata_and_any_shapes_survive(tmp_path, metadata, tensors, alignment, version, seed):
    path, again, rng = tmp_path / "a.gguf", tmp_path / "b.gguf", np.random.default_rng(seed)
    metadata.pop("general.alignment", None)
    if alignment:
        metadata["general.alignment"] = np.uint32(alignment)
    made = []
    for name, (kind, lead, blocks) in tensors.items():
        shape = (*lead, blocks * TYPES[kind].weights)
        made.append(Tensor(name, shape, kind, rng.integers(0, 256, TYPES[kind].nbytes(shape), np.uint8)))
    rq.gguf.write(path, metadata, made, version=version)
    file = rq.gguf.read(path)
    assert (file.version, file.alignment) == (version, alignment or 32)
    assert all(same(file.metadata[key], value) for key, value in metadata.items())
    for tensor in made:
        assert file.tensors[tensor.name] == Tensor(
            tensor.name, tensor.shape, tensor.type, None, file.tensors[tensor.name].offset
        )
        assert np.array_equal(file.tensors[tensor.name].data.reshape(-1), tensor.data)
    rq.gguf.write(again, file.metadata, file.tensors, version=version)
    assert again.read_bytes() == path.read_bytes()


# ---- writing: types of plain values, streaming, refusals


def test_plain_python_values_get_the_types_that_llama_cpp_reads(tmp_path):
    path = tmp_path / "a.gguf"
    plain = {"u": 7, "i": -7, "big": 2**40, "neg": -(2**40), "f": 0.5, "ints": [1, 2], "floats": [1, 0.5], "t": (True,)}
    rq.gguf.write(path, plain, {})
    got = rq.gguf.read(path).metadata
    assert {key: np.asarray(value).dtype.name for key, value in got.items()} == {
        "u": "uint32",
        "i": "int32",
        "big": "uint64",
        "neg": "int64",
        "f": "float32",
        "ints": "int32",
        "floats": "float32",
        "t": "bool",
    }


def test_tensors_are_asked_for_one_at_a_time(tmp_path):
    path, events = tmp_path / "a.gguf", []

    def make(name):
        def data():
            events.append((name, [part.stat().st_size for part in tmp_path.glob(".a.gguf.*")]))
            return (np.full(1 << 18, ord(name), np.uint8) for _ in range(4))

        return Tensor(name, (4, 1 << 18), "I8", data)

    tracemalloc.start()
    rq.gguf.write(path, {}, [make(name) for name in "abcdefgh"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20, "8 MiB of tensors in quarter-MiB pieces must not be held at once"
    assert [name for name, _ in events] == list("abcdefgh")
    assert [tensor.data.reshape(-1)[-1] for tensor in rq.gguf.read(path).tensors.values()] == list(b"abcdefgh")


def test_arrays_and_quantized_matrices_are_taken_as_they_are(tmp_path):
    path = tmp_path / "a.gguf"
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    rq.gguf.write(path, {}, {"f": w.T, "h": w.astype(np.float16), "b": w.astype(ml_dtypes.bfloat16)})
    file = rq.gguf.read(path)
    assert np.array_equal(file.tensors["f"].array(), w.T)
    assert file.tensors["f"].array().dtype == np.float32
    assert (file.tensors["h"].type, file.tensors["b"].type) == ("F16", "BF16")
    assert file.tensors["b"].data.tobytes() == w.astype(ml_dtypes.bfloat16).tobytes()
    with pytest.raises(BadInput, match="blocks"):
        file.tensors["b"].array()


@pytest.mark.parametrize(
    ("metadata", "tensors", "why"),
    [
        ({"k": object()}, {}, "k: a metadata value"),
        ({"k": [1, "a"]}, {}, "one type"),
        ({"k": 2**64}, {}, "k: a metadata value"),
        ({"k": np.zeros((2, 2), np.int32)}, {}, "flat array"),
        ({"k": "\ud800"}, {}, "surrogates"),
        ({"": 1}, {}, "not empty"),
        ({"general.alignment": 24}, {}, "power of two"),
        ({}, [Tensor("a" * 64, (1,), "I8", b"x")], "1 to 63 bytes"),
        ({}, [Tensor("a", (1,), "I8", b"x")] * 2, "two tensors"),
        ({}, [Tensor("a", (1, 33), "Q8_0", b"")], "multiple of 32"),
        ({}, [Tensor("a", (1, 32), "Q9_9", b"")], "Q9_9"),
        ({}, [Tensor("a", (2,), "I8", b"x")], "takes 2 bytes, got 1"),
        ({}, [Tensor("a", (2,), "I8", b"xyz")], "more bytes"),
        ({}, [Tensor("a", (2,), "F32", np.zeros(2, np.float64))], "of that type"),
        ({}, [Tensor("a", (1,) * 5, "I8", b"x")], "at most 4 axes"),
        ({}, {"a": np.zeros(2, np.complex64)}, "no ggml type"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, metadata, tensors, why):
    with pytest.raises(rq.RefquantError, match=re.escape(why)):
        rq.gguf.write(tmp_path / "a.gguf", metadata, tensors)
    assert not list(tmp_path.iterdir())


def test_a_failing_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")

    def broken():
        yield b"x"
        raise RuntimeError("the encoder failed")

    with pytest.raises(RuntimeError, match="encoder"):
        rq.gguf.write(path, {}, [Tensor("a", (2,), "I8", broken)])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.gguf"]


# ---- reading: every refusal names the byte


def patched(data: bytearray, at: int, code: str, value) -> bytes:
    struct.pack_into("<" + code, data, at, value)
    return bytes(data)


def refuse(path, data: bytes, why: str):
    path.write_bytes(data)
    with pytest.raises(BadFile, match=why) as caught:
        rq.gguf.read(path)
    assert re.search(r"at byte \d+", str(caught.value))


def test_the_header_is_checked_field_by_field(tmp_path):
    path = tmp_path / "a.gguf"
    data = one_tensor(path)  # 24 header bytes, then: length 8, "t", axes 4, 2 sizes of 8, type 4, offset 8
    refuse(path, b"", "header takes at least 24")
    refuse(path, b"GGUF", "header takes at least 24")
    refuse(path, patched(data.copy(), 0, "I", 0x46554746), "byte 0: not a GGUF")
    refuse(path, patched(data.copy(), 4, "I", 1), "byte 4: GGUF version 1")
    refuse(path, patched(data.copy(), 4, "I", 4), "byte 4: GGUF version 4")
    refuse(path, data[:4] + struct.pack(">I", 3) + data[8:], "byte 4: a big-endian GGUF file")
    refuse(path, patched(data.copy(), 8, "Q", 2**60), "byte 8: .* tensors cannot fit")
    refuse(path, patched(data.copy(), 16, "Q", 2**63), "byte 16: .* metadata pairs cannot fit")
    refuse(path, patched(data.copy(), 24, "Q", 2**62), "byte 32: a tensor name needs")
    refuse(path, patched(data.copy(), 24, "Q", 0), "byte 24: a tensor name is empty")
    refuse(path, patched(data.copy(), 32, "B", 0xFF), "byte 32: a tensor name is not UTF-8")
    refuse(path, patched(data.copy(), 33, "I", 5), "byte 33: t has 5 axes")
    refuse(path, patched(data.copy(), 37, "Q", 31), "byte 37: t: a row of 31")
    refuse(path, patched(data.copy(), 45, "Q", 2**62), r"byte 37: t has .* 2\^63")
    refuse(path, patched(data.copy(), 45, "Q", 2**50), "byte 24: t needs bytes 0 to")
    refuse(path, patched(data.copy(), 57, "Q", 31), "byte 57: the offset 31")
    refuse(path, patched(data.copy(), 57, "Q", 64), "byte 24: t needs bytes 64 to")
    refuse(path, bytes(data[:-30]), "byte 24: t needs bytes")
    for number in {*range(64), 2**31, 2**32 - 1} - set(BY_ID):
        name = REMOVED.get(number, "")
        refuse(path, patched(data.copy(), 53, "I", number), f"byte 53: t has the unknown tensor type {number}.*{name}")


@pytest.mark.parametrize("length", range(24, 65))
def test_a_file_cut_anywhere_in_its_header_is_refused(tmp_path, length):
    data = bytes(one_tensor(tmp_path / "a.gguf"))
    refuse(tmp_path / "a.gguf", data[:length], "header|needs|cannot fit")


def test_metadata_is_checked(tmp_path):
    path = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)

    def pair(key: bytes, code: int, value: bytes) -> bytes:
        return struct.pack("<Q", len(key)) + key + struct.pack("<I", code) + value

    def array(code: int, count: int, items: bytes = b"") -> bytes:
        return struct.pack("<IQ", code, count) + items

    refuse(path, head + pair(b"", 0, b"xxxxxxxx"), "byte 24: a metadata key is empty")
    refuse(path, head + pair(b"k", 13, b"xxxxxxxx"), "byte 33: k has the unknown value type 13")
    refuse(path, head + pair(b"k", 7, b"\2"), "byte 37: k is a BOOL")
    refuse(path, head + pair(b"k", 9, array(7, 3, b"\0\1\5")), "byte 51: k is a BOOL")
    refuse(path, head + pair(b"k", 8, struct.pack("<Q", 2) + b"\xc3\x28"), "byte 45: k is not UTF-8")
    refuse(path, head + pair(b"k", 9, array(4, 2**62)), "byte 41: .* items of k cannot fit")
    refuse(path, head + pair(b"k", 9, array(8, 2**40)), "byte 41: .* items of k cannot fit")
    refuse(path, head + pair(b"k", 9, array(9, 2**40)), "byte 41: .* items of k cannot fit")
    refuse(path, head + pair(b"k", 9, array(99, 0)), "byte 37: k is an array of the unknown value type 99")
    refuse(path, head + pair(b"k", 9, array(9, 1) * 50 + array(0, 0)), "nests arrays more than 8")
    refuse(path, head + pair(b"general.alignment", 4, struct.pack("<I", 24)), "byte 53: general.alignment")
    refuse(path, head + pair(b"general.alignment", 4, struct.pack("<I", 0)), "byte 53: general.alignment")
    refuse(path, head + pair(b"general.alignment", 10, struct.pack("<Q", 32)), "byte 53: general.alignment")
    twice = pair(b"k", 0, b"x")
    refuse(path, head[:16] + struct.pack("<Q", 2) + twice * 2, "byte 38: the metadata key 'k' appears twice")


def test_tensors_may_not_share_a_name_or_bytes(tmp_path):
    path = tmp_path / "a.gguf"
    rq.gguf.write(path, {}, {"a": np.zeros(16, np.float32), "b": np.zeros(16, np.float32)})
    data = bytearray(path.read_bytes())  # each description: 8 + 1 + 4 + 8 + 4 + 8 = 33 bytes
    refuse(path, patched(data.copy(), 24 + 33 + 8, "B", ord("a")), "byte 57: the tensor 'a' appears twice")
    refuse(path, patched(data.copy(), 24 + 33 + 25, "Q", 32), "byte 57: b overlaps a")


def test_thousands_of_damaged_files_raise_only_named_errors_and_allocate_little(tmp_path):
    path, rng = tmp_path / "a.gguf", np.random.default_rng(3)
    metadata = {**SCALARS, **ARRAYS, "c.nested": Nested([["x"], Nested([np.arange(3)])]), "general.alignment": 32}
    rq.gguf.write(path, metadata, list(random_tensors(rng, ["F32", "Q4_K", "Q8_0", "I8"])))
    good = path.read_bytes()
    header = rq.gguf.read(path).data_offset
    nasty = np.array([0, 1, 2, 7, 8, 9, 12, 13, 127, 128, 255], np.uint8)
    refused, started = [], time.monotonic()
    tracemalloc.start()
    for _ in range(3000):
        data = np.frombuffer(good, np.uint8).copy()
        for at in rng.integers(0, header, rng.integers(1, 5)):
            data[at] = rng.choice(nasty) if rng.random() < 0.5 else rng.integers(256)
        if rng.random() < 0.3:  # a whole field made huge or odd
            at, width = rng.integers(0, header - 8), int(rng.choice([4, 8]))
            data[at : at + width] = np.frombuffer(rng.integers(0, 2**63, 1).tobytes(), np.uint8)[:width]
        if rng.random() < 0.2:
            data = data[: rng.integers(0, len(data))]
        path.write_bytes(data.tobytes())
        try:
            file = rq.gguf.read(path)
        except BadFile as problem:
            refused.append(str(problem))
        else:
            assert sum(tensor.data.nbytes for tensor in file.tensors.values()) <= len(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(refused) > 1500
    assert all("at byte" in message for message in refused)
    assert peak < 4 << 20
    assert time.monotonic() - started < 60
