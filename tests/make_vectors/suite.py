"""A suite in the making: cases and tensors, written as manifest.json and tensors.safetensors."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save

VECTORS = Path(__file__).parents[2] / "refquant" / "verify" / "vectors"
COMMAND = "python tests/make_vectors"
MISTAKES = {int(number): entry for number, entry in json.loads((VECTORS / "mistakes.json").read_text()).items()}


def program(name, package=None):
    """A program and its version."""
    return f"{name} ({package} {version(package)})" if package else f"{name} {version(name)}"


GGML, GGUF_PY = program("ggml", "xllamacpp"), program("gguf")
TORCH, ML_DTYPES = program("torch"), program("ml_dtypes")
GPTQMODEL, AUTOAWQ = "gptqmodel 7.6.0", "autoawq 0.2.9"
COMPRESSED, BNB = "compressed-tensors 0.20.0", "bitsandbytes 0.50.2"
IST = "IST-DASLab/gptq 2d65066"
GOLDENS = {
    "checkpoint_goldens": "python tests/data/make_checkpoint_goldens.py autoawq-0.2.9",
    "verify_goldens": "python tests/data/make_verify_goldens.py autoawq-0.2.9 gptqmodel-7.6.0 gptq",
    "compressed_tensors": "python tests/data/make_compressed_tensors.py",
    "bitsandbytes": "python tests/data/make_bitsandbytes.py",
}


def goldens(file):
    """The arrays of a file in tests/data."""
    return dict(np.load(Path(__file__).parents[1] / "data" / f"{file}.npz"))


class Suite:
    """Cases of one suite."""

    def __init__(self, name, about):
        self.name, self.about = name, about
        self.cases, self.tensors, self.known = [], {}, {}

    def _store(self, arrays, prefix):
        """Add tensors; equal ones are stored once."""
        keys = {}
        for name, array in arrays.items():
            array = np.asarray(array, order="C")
            key = self.known.setdefault((array.dtype, array.shape, array.tobytes()), f"{prefix}/{name}")
            keys[name] = key
            self.tensors[key] = array
        return keys

    def add(self, id, op, format, shape, inputs, expected, comparison, catches, programs, mistakes=(), flags=(),
            params=None, golden=None, **others):  # fmt: skip
        """Add a case; `golden` names the file of tests/data that the expected result was taken from."""
        full = f"{self.name}/{format}/{op}/{id}"
        assert full not in [case["id"] for case in self.cases], full
        command = COMMAND + (f"; {GOLDENS[golden]}" if golden else "")
        issues = sorted({issue for number in mistakes for issue in MISTAKES[number]["issues"]})
        case = {
            "id": full, "op": op, "format": format, "shape": [int(size) for size in shape], "params": params or {},
            "inputs": self._store(inputs, f"{full}/in"), "expected": self._store(expected, f"{full}/out"),
            "comparison": comparison, **others, "flags": sorted(flags), "catches": catches,
            "mistakes": sorted(mistakes), "issues": issues,
            "provenance": {"programs": list(programs), "command": command},
        }  # fmt: skip
        self.cases.append(case)

    def files(self):
        """The suite's two files: name -> bytes."""
        manifest = {"suite": self.name, "about": self.about, "cases": self.cases}
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        return {"manifest.json": text.encode(), "tensors.safetensors": save(self.tensors)}
