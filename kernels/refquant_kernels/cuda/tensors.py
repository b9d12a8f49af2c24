"""Between NumPy and the GPU: what the launching modules share."""

import numpy as np

from refquant_kernels.cuda import launch

STRICT = ("--fmad=false",)  # as ggml and NumPy: a product is rounded before it is added to
BLOCK = 256


def device():
    """The current GPU."""
    torch = launch.torch()
    return torch.device("cuda", torch.cuda.current_device())


def to_gpu(array: np.ndarray):
    """A NumPy array as a tensor on the current GPU."""
    array = np.require(array, requirements=["C", "W"])  # torch warns of arrays that it must not write to
    return launch.torch().from_numpy(array).to(device())


def on_host(arrays: dict) -> dict:
    """Tensors as NumPy arrays."""
    return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def empty(shape, dtype: str, like):
    """A tensor on the device of another; its contents are whatever was there."""
    torch = launch.torch()
    return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)


def aligned(tensor):
    """The tensor, contiguous and on a boundary of 16 bytes; a copy where it is not."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def run(file: str, name: str, threads: int, *args) -> None:
    """Launch a kernel that is compiled with `STRICT`, with at least so many threads."""
    launch.load(file, name, STRICT)((max(1, -(-threads // BLOCK)), 1, 1), (BLOCK, 1, 1), *args)
