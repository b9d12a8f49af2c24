"""The other side of `refquant verify --library FILE`: answers from a shared library with ggml's row functions::

    void   dequantize_row_q4_K(const void * blocks, float * out, int64_t count);
    size_t quantize_q4_K(const float * w, void * blocks, int64_t rows, int64_t columns, const float * importance);

and, for float16 and bfloat16, ggml_fp16_to_fp32_row and ggml_bf16_to_fp32_row; a library need not have them all. Where
it has ggml_quantize_chunk, that encodes. The functions take no lengths, so malformed inputs are not given to them. The
library is the caller's own: loading it runs its code, in this process, which it may crash.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from refquant.errors import RefquantError
from refquant.ggml_types import TYPES, ggml_type

POINTER = ctypes.c_void_p


def symbol(fmt: str) -> str:
    """Name of a type in the functions of ggml."""
    return fmt.lower()[:-1] + "K" if fmt.endswith("_K") else fmt.lower()


class Library:
    """The functions of a library."""

    def __init__(self, path: str):
        self.handle = ctypes.CDLL(path)
        if hasattr(self.handle, "ggml_cpu_init"):
            self.handle.ggml_cpu_init()  # fills its table of float16
        self.decoders = {fmt: name for fmt in TYPES for name in self._decoder_names(fmt) if hasattr(self.handle, name)}
        self.encoders = [fmt for fmt in TYPES if hasattr(self.handle, f"quantize_{symbol(fmt)}")]
        self.chunk = getattr(self.handle, "ggml_quantize_chunk", None)
        if self.chunk:
            self.encoders = list(self.decoders)

    @staticmethod
    def _decoder_names(fmt: str) -> list[str]:
        special = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
        return [special[fmt]] if fmt in special else [f"dequantize_row_{symbol(fmt)}"]

    def dequantize(self, blocks: np.ndarray, fmt: str, shape) -> np.ndarray:
        """Weights of whole blocks."""
        out = np.empty(shape, np.float32)
        getattr(self.handle, self.decoders[fmt])(
            POINTER(blocks.ctypes.data), POINTER(out.ctypes.data), ctypes.c_int64(out.size)
        )
        return out

    def quantize(self, w: np.ndarray, fmt: str, importance) -> np.ndarray:
        """Blocks of rows."""
        rows, columns = w.shape
        out = np.empty((rows, ggml_type(fmt).row_bytes(columns)), np.uint8)
        weight = POINTER(None if importance is None else importance.ctypes.data)
        sizes = (ctypes.c_int64(rows), ctypes.c_int64(columns))
        if self.chunk:
            first = (ctypes.c_int(ggml_type(fmt).id), POINTER(w.ctypes.data), POINTER(out.ctypes.data))
            self.chunk.restype = ctypes.c_size_t
            self.chunk(*first, ctypes.c_int64(0), *sizes, weight)
        else:
            function = getattr(self.handle, f"quantize_{symbol(fmt)}")
            function.restype = ctypes.c_size_t
            function(POINTER(w.ctypes.data), POINTER(out.ctypes.data), *sizes, weight)
        return out

    def answer(self, message: dict) -> dict:
        """Reply to a case."""
        fmt, shape, op = message["format"], message["shape"], message["op"]
        offered = self.decoders if op == "dequantize" else self.encoders
        if fmt not in offered:
            return {"type": "skip", "reason": f"the library has no function to {op} {fmt}"}
        arrays = {name: np.fromfile(item["path"], item["dtype"]).reshape(item["shape"])
                  for name, item in message["inputs"].items()}  # fmt: skip
        if op == "dequantize":
            if arrays["blocks"].nbytes != ggml_type(fmt).nbytes(tuple(shape)):
                return {"type": "skip", "reason": "row functions take no length, so they cannot refuse these bytes"}
            name, result = "w", self.dequantize(arrays["blocks"], fmt, shape)
        else:
            importance = arrays.get("importance")
            if shape[1] % ggml_type(fmt).weights or (importance is not None and np.isnan(importance).any()):
                return {"type": "skip", "reason": "row functions cannot refuse this input"}
            name, result = "blocks", self.quantize(arrays["w"], fmt, importance)
        path = Path(message["output"] + "0")
        result.tofile(path)
        return {"type": "ok", "outputs": {name: {"path": str(path), "dtype": result.dtype.name, "shape": result.shape}}}


def main() -> int:
    """Answer standard input until it ends."""
    replies = sys.stdout
    sys.stdout = sys.stderr
    try:
        library = Library(sys.argv[1])
    except OSError as problem:
        print(problem, file=sys.stderr)
        return 1
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "bye":
            break
        if message["type"] == "hello":
            ops = [op for op, has in (("dequantize", library.decoders), ("quantize", library.encoders)) if has]
            reply = {"type": "hello", "protocol": 1, "name": Path(sys.argv[1]).name, "ops": ops}
        else:
            try:
                reply = library.answer(message)
            except (RefquantError, OSError, ValueError, KeyError) as problem:
                reply = {"type": "error", "message": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(reply), file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
