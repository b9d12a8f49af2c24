import struct

import gguf
import numpy as np
import pytest
from libgguf.imatrix import load_imatrix

import refquant as rq
from refquant.errors import BadFile, BadInput
from refquant.formats import imatrix
from refquant.importance import Entry, ImportanceMatrix

NAME = "blk.0.attn_q.weight"


def example(rng=None, experts=3):
    rng = rng or np.random.default_rng(0)
    matrix = ImportanceMatrix(datasets=["wiki.txt"], chunk_count=2, chunk_size=16)
    for name in (NAME, "output.weight"):
        matrix.add(name, rng.normal(size=(2, 16, 8)))
    for expert in (0, 2):
        matrix.add("blk.0.ffn_up_exps.weight", rng.normal(size=(10 + expert, 4)), expert, experts)
    return matrix


def test_means_are_the_mean_squares_of_a_float64_loop():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 8)) * 10.0 ** rng.integers(-3, 3, 8)
    matrix = ImportanceMatrix()
    matrix.add(NAME, x[0])
    matrix.add(NAME, x[1].astype(np.float32))
    want = [sum(float(row[j]) ** 2 for row in x.reshape(-1, 8)) / 10 for j in range(8)]
    np.testing.assert_allclose(matrix.means(NAME, 8)[0], want, rtol=1e-6)
    assert matrix.means(NAME, 8).dtype == np.float32
    assert matrix.entries[NAME].counts.tolist() == [10]


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_another_program_reads_the_same_means(tmp_path, suffix):
    path, matrix = tmp_path / f"a.{suffix}", example()
    imatrix.write(path, matrix)
    theirs = load_imatrix(path)
    assert sorted(theirs) == sorted(matrix.entries)
    for name, entry in matrix.entries.items():
        experts, width = entry.sums.shape
        ours = imatrix.read(path).means(name, width, experts)
        np.testing.assert_array_equal(theirs[name].reshape(experts, width), ours)
        np.testing.assert_allclose(ours, matrix.means(name, width, experts), rtol=3e-7)


def test_both_forms_come_back_and_are_written_again_byte_for_byte(tmp_path):
    matrix = example()
    for suffix in ("gguf", "dat"):
        path, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        imatrix.write(path, matrix)
        got = imatrix.read(path)
        imatrix.write(again, got)
        assert again.read_bytes() == path.read_bytes()
        assert (got.datasets, got.chunk_count) == (["wiki.txt"], 2)
    assert (imatrix.read(tmp_path / "a.gguf").chunk_size, got.chunk_size) == (16, 0)
    imatrix.write(tmp_path / "c.gguf", got)  # the older form may become the newer one
    for name, entry in got.entries.items():
        new = imatrix.read(tmp_path / "c.gguf").means(name, entry.sums.size)
        assert np.array_equal(new, got.means(name, entry.sums.size))


def test_the_gguf_form_of_another_writer_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a", "b"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("x.weight.in_sum2", np.array([[2.0, 4.0], [0.0, 0.0]], np.float32))
    writer.add_tensor("x.weight.counts", np.array([[2.0], [0.0]], np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    got = imatrix.read(path)
    assert got.means("x.weight", 2, 2).tolist() == [[1.0, 2.0], [1.0, 1.0]]
    assert (got.datasets, got.chunk_count, got.chunk_size) == (["a", "b"], 3, 512)


def test_a_dat_file_by_hand(tmp_path):
    path = tmp_path / "a.dat"
    body = struct.pack("<i", 1) + struct.pack("<i1s", 1, b"w") + struct.pack("<ii2f", 4, 2, 8.0, 2.0)
    path.write_bytes(body)  # the oldest files end here
    assert imatrix.read(path).means("w", 2).tolist() == [[2.0, 0.5]]
    path.write_bytes(body + struct.pack("<ii3s", 4, 3, b"txt"))
    assert (imatrix.read(path).chunk_count, imatrix.read(path).datasets) == (4, ["txt"])


# ---- CASES 39: NaN, zero and missing rows


def test_case_39_missing_entries_mean_no_importance():
    assert example().means("blk.9.attn_q.weight", 8) is None


def test_case_39_an_expert_that_saw_no_token_and_all_zero_inputs_get_ones():
    matrix = example()
    means = matrix.means("blk.0.ffn_up_exps.weight", 4, 3)
    assert means[1].tolist() == [1, 1, 1, 1]
    assert (means[[0, 2]] != 1).all()
    matrix.add("z", np.zeros((20, 4)))
    assert matrix.means("z", 4).tolist() == [[1, 1, 1, 1]]


def test_case_39_single_zero_columns_stay_zero():
    matrix = ImportanceMatrix()
    matrix.add("w", np.array([[0.0, 2.0], [0.0, 4.0]]))
    assert matrix.means("w", 2).tolist() == [[0.0, 10.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_case_39_nan_infinite_and_negative_sums_are_refused_by_tensor_and_column(tmp_path, value, suffix):
    path, matrix = tmp_path / f"a.{suffix}", example()
    if value != -1:
        with pytest.raises(BadInput, match="activations"):
            matrix.add(NAME, np.full((1, 8), value))
    imatrix.write(path, matrix)
    data = path.read_bytes()
    sums = matrix.entries[NAME].sums.astype(np.float32)
    stored = sums if suffix == "gguf" else sums / np.float32(32) * np.float32(2)
    assert data.count(stored.tobytes()) == 1
    stored, good = stored.copy(), stored.tobytes()
    stored[0, 5] = value
    path.write_bytes(data.replace(good, stored.tobytes()))
    with pytest.raises(BadFile, match=rf"{NAME}.* column 5"):
        imatrix.read(path)
    matrix.entries[NAME].sums[0, 5] = value
    with pytest.raises(BadInput, match=rf"{NAME}.* column 5"):
        matrix.means(NAME, 8)
    with pytest.raises(BadInput, match=rf"{NAME}.* column 5"):
        imatrix.write(tmp_path / f"b.{suffix}", matrix)
    assert not (tmp_path / f"b.{suffix}").exists()


def test_case_39_a_wrong_number_of_columns_is_refused():
    with pytest.raises(BadInput, match="8 values and 1 counts do not fit 1 matrices of 16 columns"):
        example().means(NAME, 16)
    with pytest.raises(BadInput, match="do not fit 4 matrices"):
        example().means("blk.0.ffn_up_exps.weight", 3, 4)
    with pytest.raises(BadInput, match=r"had \(1, 8\)"):
        example().add(NAME, np.ones((2, 4)))


def test_one_count_serves_all_matrices_of_a_stack():
    entry = Entry(np.arange(1.0, 7)[None], np.array([2]))  # as the older file form keeps stacked experts
    got = ImportanceMatrix({"w": entry}).means("w", 3, 2)
    assert got.tolist() == [[0.5, 1.0, 1.5], [2.0, 2.5, 3.0]]


# ---- damaged files


def test_damaged_dat_files_are_refused_at_the_byte(tmp_path):
    path = tmp_path / "a.dat"
    imatrix.write(path, example())
    data = path.read_bytes()
    for at, value, why in (
        (0, 0, "byte 0: the number of entries is 0"),
        (0, 2**31 - 1, "at byte"),
        (4, -5, "byte 4: the length of a tensor name is -5"),
        (4, 2**31 - 1, "byte 8: a tensor name needs"),
    ):
        path.write_bytes(data[:at] + struct.pack("<i", value) + data[at + 4 :])
        with pytest.raises(BadFile, match=why):
            imatrix.read(path)
    for cut in range(0, len(data) - 17, 5):
        path.write_bytes(data[:cut])
        with pytest.raises(BadFile, match=r"at byte|last"):
            imatrix.read(path)


def test_gguf_files_that_are_no_importance_files_are_refused(tmp_path):
    path = tmp_path / "a.gguf"
    keys = {"imatrix.datasets": ["a"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 1}
    one = np.ones((1, 2), np.float32)
    for metadata, tensors, why in (
        ({}, {}, "lacks imatrix.datasets"),
        ({**keys, "imatrix.chunk_size": "x"}, {}, "UINT32"),
        (keys, {}, "no tensor ends in"),
        (keys, {"w.in_sum2": one}, "have counts"),
        (keys, {"w.in_sum2": one.astype(np.float16), "w.counts": one[:, :1]}, "must be F32"),
        (keys, {"w.in_sum2": one, "w.counts": np.full((1, 1), np.nan, np.float32)}, "numbers of tokens"),
        (keys, {"w.in_sum2": one, "w.counts": np.full((1, 1), -1, np.float32)}, "numbers of tokens"),
        (keys, {"w.in_sum2": one, "w.counts": np.ones((3, 1), np.float32)}, "one for each"),
    ):
        rq.gguf.write(path, metadata, tensors)
        with pytest.raises(BadFile, match=why):
            imatrix.read(path)
