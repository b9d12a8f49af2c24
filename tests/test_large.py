"""A model larger than memory may be: 4 GB in shards, quantized with 1.5 GB of address space beyond torch's own.

Not in the default test line, because it takes an hour and 10 GB of disk::

    pytest -m large -s tests/test_large.py                    # --gigabytes 0.5: the same, smaller

Each run is made twice: once through, and once killed half way and continued with `--resume`; the bytes must be equal.
The model is a Llama of width 1024 with random weights, in bfloat16; the calibration is short, to save time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refquant import models
from refquant.models.checkpoint.folder import INDEX
from refquant.models.checkpoint.journal import JOURNAL

pytestmark = pytest.mark.large

LIMIT = 1_500_000_000
SHARD_BLOCKS = 16
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816}
CONFIG |= {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000, "dtype": "bfloat16"}
CONFIG |= {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
CONFIG |= {"tie_word_embeddings": False, "hidden_act": "silu", "head_dim": 64}
BLOCK = {"self_attn.q_proj": (1024, 1024), "self_attn.k_proj": (256, 1024), "self_attn.v_proj": (256, 1024)}
BLOCK |= {"self_attn.o_proj": (1024, 1024), "mlp.gate_proj": (2816, 1024), "mlp.up_proj": (2816, 1024)}
BLOCK |= {"mlp.down_proj": (1024, 2816), "input_layernorm": (1024,), "post_attention_layernorm": (1024,)}
OUTSIDE = {"model.embed_tokens": (32000, 1024), "lm_head": (32000, 1024), "model.norm": (1024,)}
# Run by the child: the limit counts from what Python and torch take, so torch is imported first.
CHILD = """
import resource, sys, torch
def pages(): return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
base = pages()
resource.setrlimit(resource.RLIMIT_AS, (base + BYTES, base + BYTES))
from refquant.cli import main
status = main(sys.argv[1:])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmPeak")) * 1024
print(f"peak address space: +{(peak - base) / 1e9:.2f} GB", file=sys.stderr)
sys.exit(status)
""".replace("BYTES", str(LIMIT))
RUNS = {
    "gptq": ["--method", "gptq", "--grid", "int4-g128-sym", "--backend", "numba", "--calibration-windows", "2"],
    "Q4_K": ["--type", "Q4_K", "--backend", "numba"],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory, request):
    """The folder, written a shard at a time."""
    folder = tmp_path_factory.mktemp("large") / "source"
    folder.mkdir()
    weights = 1e9 * request.config.getoption("--gigabytes") / 2 - 2 * 32000 * 1024
    count = round(weights / sum(torch.Size(shape).numel() for shape in BLOCK.values()))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": count}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(models.tiny.FOLDER) / name, folder / name)
    generator, index = torch.Generator().manual_seed(0), {}

    def make(shape):
        return (torch.randn(shape, generator=generator) * 0.02 + (len(shape) == 1)).bfloat16()

    shards = [OUTSIDE]
    for start in range(0, count, SHARD_BLOCKS):
        numbers = range(start, min(start + SHARD_BLOCKS, count))
        shards.append({f"model.layers.{i}.{name}": shape for i in numbers for name, shape in BLOCK.items()})
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        save_file({f"{name}.weight": make(shape) for name, shape in shard.items()}, folder / file)
        index |= {f"{name}.weight": file for name in shard}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"\n{size / 1e9:.2f} GB in {len(shards)} shards, {count} blocks")
    yield folder
    shutil.rmtree(folder)


def start(source, out, *arguments):
    command = [sys.executable, "-c", CHILD, "quantize", str(source), str(out), "--stream", *arguments]
    return subprocess.Popen(command, cwd=out.parent, env=os.environ | {"MALLOC_ARENA_MAX": "2"})


def done(out, whole) -> float:
    """Share of the run that is behind it, from what lies beside the target."""
    partial = out.with_name(f".{out.name}.partial")
    if whole.is_file():
        return partial.stat().st_size / whole.stat().st_size if partial.is_file() else 0.0
    if not (partial / JOURNAL).is_file():
        return 0.0
    blocks = json.loads((whole / "config.json").read_text())["num_hidden_layers"]
    return json.loads((partial / JOURNAL).read_text())["blocks"] / blocks


@pytest.mark.parametrize("run", RUNS)
def test_4_gb_in_little_memory_and_again_after_a_kill(source, run):
    out = source.parent / ("out.gguf" if run == "Q4_K" else "out")
    arguments = RUNS[run]

    def timed(name, *more):
        began = time.perf_counter()
        assert start(source, out, *arguments, *more).wait() == 0
        print(f"{run} {name}: {time.perf_counter() - began:.0f} s")

    timed("uninterrupted")
    whole = out.rename(out.with_name(f"whole-{out.name}"))
    child = start(source, out, *arguments)
    while done(out, whole) < 0.5:
        assert child.poll() is None
        time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    timed("second half, resumed", "--resume")
    files = [whole] if whole.is_file() else sorted(whole.iterdir())
    print(f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB written, {len(files)} files")
    for file in files:
        other = out if whole.is_file() else out / file.name
        assert subprocess.run(["cmp", str(file), str(other)], check=False).returncode == 0, file.name
    assert whole.is_file() or len(list(out.iterdir())) == len(files)
