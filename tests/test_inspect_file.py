import json
import re

import numpy as np
import pytest

import refquant as rq
from refquant import inspect_file
from refquant.errors import BadInput, UnknownName
from refquant.formats.gguf import Tensor
from refquant.ggml_types import TYPES

METADATA = {"general.architecture": "llama", "tokenizer.ggml.tokens": [f"t{i}" for i in range(20)], "x.eps": 0.5}


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [name for name in TYPES if name in rq.formats()]
    tensors = [Tensor(n, (2, 512), n, rng.integers(0, 256, TYPES[n].nbytes((2, 512)), np.uint8)) for n in kinds]
    tensors.append(Tensor("norm", (3,), "F32", np.ones(3, np.float32)))
    tensors.append(Tensor("other", (1, 256), "IQ2_XXS", bytes(66)))
    rq.gguf.write(tmp_path / "a.gguf", METADATA, tensors)
    return rq.gguf.read(tmp_path / "a.gguf")


def test_the_report_counts_every_byte(file):
    text = inspect_file.report(file)
    assert "tokenizer.ggml.tokens" in text
    assert "20 items: ['t0', 't1'" in text
    assert re.search(r"Q4_K +Q4_K +2x512 +576 +4\.5000", text)
    total = 8 * file.nbytes / (18 * 1024 + 3 + 256)
    assert text.splitlines()[-1].split() == ["all", "20", "18,691", f"{file.nbytes:,}", f"{total:.4f}"]
    facts = inspect_file.facts(file)
    assert json.loads(json.dumps(facts)) == facts
    assert sum(row["bytes"] for row in facts["totals"]["by_type"].values()) == file.nbytes
    data = file.path.read_bytes()
    for entry in facts["tensors"]:
        assert data[entry["offset"] :][: entry["bytes"]] == file.tensors[entry["name"]].data.tobytes()


def test_every_byte_of_a_block_is_printed_once_in_order(file):
    for name in (n for n in file.tensors if n in rq.formats()):
        size, weights = TYPES[name].bytes, TYPES[name].weights
        for index in (0, 1024 // weights - 1):
            text = inspect_file.block(file, name, index)
            rows = re.findall(r"^ +\d+  \w* +((?:[0-9a-f]{2} ?)+) +([01]{8}(?: [01]{8})*)$", text, re.M)
            want = file.tensors[name].data.reshape(-1)[index * size : (index + 1) * size].tobytes()
            assert bytes.fromhex("".join(row[0] for row in rows)) == want, name
            assert bytes(int(bits, 2) for row in rows for bits in row[1].split()) == want, name
            shown = re.findall(r"\S+", text.split("weights  ")[-1])
            decoded = rq.dequantize(file.tensors[name].quantized()).reshape(-1)[index * weights :][:weights]
            np.testing.assert_allclose(np.array(shown, np.float32), decoded, rtol=1e-5)


def test_a_block_by_hand(tmp_path):
    block = bytes([0x00, 0x3C]) + bytes([0x80 + i for i in range(16)])  # d = 1.0; codes 0..15, then sixteen 8
    rq.gguf.write(tmp_path / "a.gguf", {}, [Tensor("w", (1, 64), "Q4_0", bytes(18) + block)])
    text = inspect_file.block(rq.gguf.read(tmp_path / "a.gguf"), "w", 1)
    assert "row 0, weights 32 to 63" in text
    assert re.search(r"0  d +00 3c +00000000 00111100", text)
    assert re.search(r"codes +0 +1 +2 +3 +4 +5 +6 +7 +8 +9 +10 +11 +12 +13 +14 +15\n +8 +8", text)
    assert re.search(r"weights +-8 +-7 +-6", text)


def test_what_does_not_exist_is_named(file):
    with pytest.raises(UnknownName, match="unknown tensor 'x'"):
        inspect_file.block(file, "x", 0)
    with pytest.raises(UnknownName, match="IQ2_XXS"):
        inspect_file.block(file, "other", 0)
    with pytest.raises(BadInput, match="blocks 0 to 3, not 4"):
        inspect_file.block(file, "Q4_K", 4)
