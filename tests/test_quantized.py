"""Quantized refuses what its format does not describe."""

import numpy as np
import pytest

from refquant import quantized
from refquant.errors import BadInput, UnknownName
from refquant.methods import rtn
from refquant.quantized import Format, Quantized, find_format, formats

Q = rtn.quantize(np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32), "int3-g16")


def changed(**arrays):
    return {name: array for name, array in (Q.arrays | arrays).items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(zeros=None), r"missing: \['zeros'\]"),
        (changed(bias=np.zeros(6)), r"does not have: \['bias'\]"),
        (changed(scales=Q.arrays["scales"].T), r"scales must be float16 or float32 \[6, 3\].*got float16 \[3, 6\]"),
        (changed(scales=Q.arrays["scales"].astype(np.float64)), "got float64"),
        (changed(codes=Q.arrays["codes"].view(np.int8)), "codes must be uint8"),
        (changed(codes=Q.arrays["codes"][:, :-1]), r"\[6, 15\].*got uint8 \[6, 14\]"),
        (changed(g_idx=np.zeros(40, np.int64)), "g_idx must be int32"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays, message):
    with pytest.raises(BadInput, match=message):
        Quantized("int3-g16", (6, 40), arrays)


def test_the_optional_array_is_allowed():
    assert Quantized("int3-g16", (6, 40), changed(g_idx=np.zeros(40, np.int32))).nbytes == Q.nbytes + 160


@pytest.mark.parametrize("shape", [(6,), (6, 0), (0, 40), (6, 40, 1)])
def test_only_matrices(shape):
    with pytest.raises(BadInput, match="matrix"):
        Quantized("int3-g16", shape, Q.arrays)


def test_size_and_name():
    # a row: 40 codes of 3 bits, 3 scales of 16, 3 zeros of 3 bits in 2 bytes
    assert Q.nbytes == 6 * (15 + 6 + 2)
    assert Q.bits_per_weight == 8 * 23 / 40
    assert find_format("int3-g16").nbytes((6, 40)) == Q.nbytes
    assert repr(Q) == "Quantized(int3-g16, [6, 40], 4.6000 bits per weight)"


@pytest.mark.parametrize("name", ["int3", "Q9_K", "", None, 3])
def test_an_unknown_format_lists_the_known_ones(name):
    with pytest.raises(UnknownName, match="int4-g128"):
        find_format(name)


def test_every_listed_format_can_be_found():
    for name in formats():
        assert find_format(name).name == name


def test_a_grid_is_not_one_stream():
    with pytest.raises(BadInput, match="not one stream"):
        Q.to_bytes()
    with pytest.raises(BadInput, match="not one stream"):
        Quantized.from_bytes(b"", "int3-g16", (6, 40))


@pytest.fixture
def stream(monkeypatch):
    """A format of one stream: 3 bytes for each 2 weights."""
    item = Format("test", "test", lambda n, k: {"blocks": ((n, 3 * k // 2), ("uint8",))}, stream=True)
    monkeypatch.setitem(quantized._NAMED, "test", item)


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_a_stream_is_its_bytes(wrap):
    data = bytes(range(12))
    q = Quantized.from_bytes(wrap(data), "test", (2, 4))
    assert q.arrays["blocks"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert q.to_bytes() == data
    assert q.bits_per_weight == 12


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("data", [bytes(11), bytes(13), b"", np.zeros(12, np.int8)])
def test_a_truncated_stream_is_refused(data):
    with pytest.raises(BadInput, match="expected 12 bytes"):
        Quantized.from_bytes(data, "test", (2, 4))
