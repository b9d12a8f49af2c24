"""The GGUF container: metadata with types, then tensors, in one file that can be mapped into memory.

    values    metadata value types and what stands for each in Python
    tensor    one tensor: shape, type, bytes
    reader    read(path) -> GGUFFile, lazily mapped
    writer    write(path, metadata, tensors), streaming

What the bytes of a block mean is the business of `gguf_blocks`; here they are only moved.
"""

from refquant.formats.gguf.reader import GGUFFile, read
from refquant.formats.gguf.tensor import Tensor
from refquant.formats.gguf.values import Nested
from refquant.formats.gguf.writer import write

__all__ = ["GGUFFile", "Nested", "Tensor", "read", "write"]
