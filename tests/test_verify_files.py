"""Files checked: right ones pass without a word, and the likely mistake of a wrong one is named."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refquant as rq
from refquant.cli import main
from refquant.errors import BadFile
from refquant.formats import gguf
from refquant.formats.awq import AWQ
from refquant.formats.bits import pack_words
from refquant.formats.compressed_int import PackQuantized
from refquant.formats.compressed_tensors import CompressedTensors
from refquant.formats.gptq import GPTQ
from refquant.grids import as_grid
from refquant.verify.files import check

DENSE = str(Path(rq.__file__).parent / "models" / "tiny" / "model.safetensors")
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")


@pytest.fixture(scope="module")
def dense():
    from refquant.verify.tensors_file import Dense

    source = Dense(DENSE)
    return {name: source.weight(name) for name in LAYERS}


def write(folder, dense, layout, config=None, change=lambda tensors: tensors):
    """A folder of these layers; `change` plants a mistake in the tensors of each."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, w in dense.items():
        q = rq.quantize(w, layout.grid.name)
        for key, tensor in change({key: t.array for key, t in layout.write(q).items()}).items():
            tensors[f"{name}.{key}"] = np.ascontiguousarray(tensor)
    save_file(tensors, folder / "model.safetensors")
    config = config or layout.config()
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


SYM, ASYM = as_grid("int4-g32-sym"), as_grid("int4-g32")
RIGHT = {
    "gptq v1 sym": GPTQ.of(SYM),
    "gptq v1": GPTQ.of(ASYM),
    "gptq v2": GPTQ.of(ASYM, version=2),
    "gptq 3 bits": GPTQ.of(as_grid("int3-g32")),
    "awq": AWQ.of(ASYM),
}


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("against", [None, DENSE])
def test_right_checkpoints_raise_no_alarm(tmp_path, dense, kind, against):
    found = check(write(tmp_path / "m", dense, RIGHT[kind]), against)
    assert found.problems == []
    assert [layer.name for layer in found.layers] == sorted(LAYERS)
    if against:
        assert all(0.01 < layer.error < 0.4 for layer in found.layers)
    assert "no problem found" in str(found)
    assert json.loads(found.as_json())["method"] in ("gptq", "awq")


def compressed(dense, tmp_path, change=lambda tensors: tensors):
    layout = PackQuantized.of(ASYM)
    config = CompressedTensors(((("Linear",), layout),)).config()
    return write(tmp_path / "ct", dense, layout, config, change)


def test_compressed_tensors(tmp_path, dense):
    assert check(compressed(dense, tmp_path), DENSE).problems == []
    flip = lambda t: t | {"weight_packed": t["weight_packed"] ^ np.int32(-0x77777778)}  # noqa: E731
    found = check(compressed(dense, tmp_path, flip), DENSE)
    assert "codes look like two's complement, without 2^(bits - 1) added" in "\n".join(found.problems)


def plain(codes):
    """Codes [rows, n] as words in plain order."""
    return pack_words(codes.reshape(len(codes), -1, 8), 4)[..., 0]


def awq_linear(*names):
    from refquant.formats.awq import unpack_outputs

    return lambda t: t | {name: plain(unpack_outputs(t[name])) for name in names}


MISTAKES = {
    "v2 zeros, says v1": (
        GPTQ.of(ASYM, version=2), GPTQ.of(ASYM).config(), None,
        "zero-points look like v2 in a file that says v1", (None, DENSE),
    ),
    "v1 zeros, says v2": (
        GPTQ.of(ASYM), GPTQ.of(ASYM, version=2).config(), None,
        "zero-points look like v1 in a file that says v2", (None, DENSE),
    ),
    "symmetric v2, says v1": (
        GPTQ.of(SYM, version=2), GPTQ.of(SYM).config(), None, "they fit 'gptq_v2': correct the config", (None, DENSE),
    ),
    "awq linear": (
        AWQ.of(ASYM), None, awq_linear("qweight", "qzeros"), "nibbles look linear in a file that says awq gemm",
        (DENSE,),
    ),
    "awq zeros linear": (
        AWQ.of(ASYM), None, awq_linear("qzeros"), "the nibbles of qzeros look linear", (DENSE,),
    ),
    "awq codes linear": (
        AWQ.of(ASYM), None, awq_linear("qweight"), "the nibbles of qweight look linear", (DENSE,),
    ),
    "zeros unpacked": (
        GPTQ.of(ASYM), None, lambda t: t | {"qzeros": np.zeros(t["scales"].shape, np.int32)}, "qzeros must be", (None,),
    ),
    "scales missing": (
        GPTQ.of(ASYM), None, lambda t: {k: v for k, v in t.items() if k != "scales"}, "scales is missing", (None,),
    ),
    "a NaN scale": (
        GPTQ.of(ASYM), None, lambda t: t | {"scales": t["scales"] * np.float16("nan")}, "NaN or infinity", (None,),
    ),
    "scales of another layer": (
        GPTQ.of(ASYM), None, lambda t: t | {"scales": t["scales"] * np.float16(3)}, "relative error", (DENSE,),
    ),
    "scales of zero": (
        GPTQ.of(ASYM), None, lambda t: t | {"scales": t["scales"] * np.float16(0)}, "every weight is 0", (None,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_the_likely_mistake_is_named(tmp_path, dense, kind):
    layout, config, change, sentence, againsts = MISTAKES[kind]
    folder = write(tmp_path / "m", dense, layout, config, change or (lambda t: t))
    for against in againsts:
        found = check(folder, against)
        for name in LAYERS:
            assert any(name in problem and sentence in problem for problem in found.problems), (against, found.problems)


def test_inverted_fp8_scales(tmp_path, dense):
    name = LAYERS[0]
    q = rq.quantize(dense[name], "fp8-e4m3-block")
    weight, scale = q.arrays["weight"], 1 / q.arrays["weight_scale_inv"]
    header = {
        f"{name}.weight": {"dtype": "F8_E4M3", "shape": list(weight.shape), "data_offsets": [0, weight.nbytes]},
        f"{name}.weight_scale_inv": {
            "dtype": "F32", "shape": list(scale.shape), "data_offsets": [weight.nbytes, weight.nbytes + scale.nbytes],
        },
    }  # fmt: skip
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + weight.tobytes() + scale.astype("<f4").tobytes()
    (tmp_path / "model.safetensors").write_bytes(data)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    found = check(tmp_path, DENSE)
    assert "scales look inverted" in "\n".join(found.problems)
    assert "a scale is off or inverted" in "\n".join(check(tmp_path).problems)


def test_gguf(tmp_path, dense):
    names = {"blk.0.attn_q.weight": LAYERS[0], "blk.0.ffn_down.weight": LAYERS[1]}
    tensors = {name: rq.quantize(dense[hub], "Q8_0") for name, hub in names.items()}
    meta = {"general.architecture": "llama"}
    gguf.write(tmp_path / "m.gguf", meta, tensors)
    found = check(tmp_path / "m.gguf", DENSE)
    assert found.problems == []
    assert [layer.name for layer in found.layers] == ["blk.0.attn_q", "blk.0.ffn_down"]
    assert max(layer.error for layer in found.layers) < 0.02
    blocks = tensors["blk.0.ffn_down.weight"].arrays["blocks"].copy()
    blocks[3, :2] = 0, 0x7E  # a scale that is NaN
    tensors["blk.0.ffn_down.weight"] = rq.Quantized("Q8_0", dense[LAYERS[1]].shape, {"blocks": blocks})
    gguf.write(tmp_path / "m.gguf", meta, tensors)
    assert "32 of" in check(tmp_path / "m.gguf").problems[0]


def test_files_that_cannot_be_read(tmp_path, dense, capsys):
    folder = write(tmp_path / "m", dense, RIGHT["awq"])
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(BadFile, match="not a whole safetensors file"):
        check(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(BadFile):
        check(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(BadFile):
        check(folder)
    with pytest.raises(BadFile, match="does not exist"):
        check(tmp_path / "absent")
    with pytest.raises(BadFile, match="give the folder"):
        check(DENSE)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert main(["verify", str(tmp_path / "x.gguf")]) == 2
    assert main(["verify", "--against", DENSE]) == 2
    capsys.readouterr()


def test_command_line(tmp_path, dense, capsys):
    folder = write(tmp_path / "m", dense, GPTQ.of(ASYM, version=2), GPTQ.of(ASYM).config())
    assert main(["verify", str(folder), "--against", DENSE]) == 1
    assert "PROBLEM: model.layers.0.mlp.down_proj: zero-points look like v2" in capsys.readouterr().out
    assert main(["verify", str(write(tmp_path / "good", dense, RIGHT["awq"])), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    assert len(load_file(folder / "model.safetensors")) == 8
