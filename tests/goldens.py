"""What peers packed (see data/make_checkpoint_goldens.py), and a packer that goes bit by bit."""

from pathlib import Path

import numpy as np

from refquant import ops
from refquant.formats import file_tensor
from refquant.formats.file_tensor import FileTensor

_FILE = np.load(Path(__file__).parent / "data" / "checkpoint_goldens.npz")
CASES = sorted({key.split("/")[0] for key in _FILE.files})


def golden(case):
    """The numbers that went in, and the tensors that the peer made of them."""
    arrays = {key.removeprefix(f"{case}/"): _FILE[key] for key in _FILE.files if key.startswith(f"{case}/")}
    tensors = {}
    for key in [key for key in arrays if key.startswith("file/")]:
        value, (name, _, dtype) = arrays.pop(key), key.removeprefix("file/").partition(":")
        tensors[name] = FileTensor(dtype, value) if dtype else file_tensor.of(value)
    return arrays, tensors


def quantized(grid, fields):
    """Pack the numbers as refquant keeps them."""
    return ops.pack(fields, grid.name, fields["codes"].shape)


def same_tensors(got, want):
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(got[name].array, tensor.array, err_msg=name)


def same_numbers(q, fields, g_idx=None):
    got = ops.unpack(q)
    np.testing.assert_array_equal(got["codes"], fields["codes"])
    np.testing.assert_array_equal(got["zeros"], fields["zeros"])
    np.testing.assert_array_equal(got["scales"], fields["scales"])
    if g_idx is not None:
        np.testing.assert_array_equal(got["g_idx"], g_idx)


def slow_words(codes, bits):
    """Pack the last axis into 32-bit words, one bit at a time: bit b of code j is bit bits*j + b of the stream."""
    count = codes.shape[-1]
    words = np.zeros((*codes.shape[:-1], -(-count * bits // 32)), np.uint32)
    for place in np.ndindex(codes.shape):
        for b in range(bits):
            at = bits * place[-1] + b
            words[(*place[:-1], at // 32)] |= np.uint32((int(codes[place]) >> b & 1) << at % 32)
    return words.view(np.int32)


def changed(tensors, **replaced):
    """The tensors with some replaced; None takes one away."""
    tensors = tensors | {
        name: value if isinstance(value, FileTensor | None) else file_tensor.of(np.asarray(value))
        for name, value in replaced.items()
    }
    return {name: value for name, value in tensors.items() if value is not None}
