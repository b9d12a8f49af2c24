"""Notebook 08, kernels: the least time of a product."""

from refquant.bandwidth import devices
from refquant.figures import kernels
from refquant.widgets.explorer import Explorer, choice_slider, explore, menu

FORMATS = ("int4-g128", "int8-row", "fp8-e4m3", "nf4", "Q4_K", "Q6_K", "Q8_0", "Q2_K")
SHAPES = {"4096 x 4096": (4096, 4096), "4096 x 14336": (4096, 14336), "28672 x 8192": (28672, 8192)}
DEVICES = tuple((d.title, name) for name, d in devices.DEVICES.items() if "fp16" in d.rates)


def floor() -> Explorer:
    """Format, shape, device and tokens."""

    def draw(name, shape, device, tokens):
        return kernels.floor(name, SHAPES[shape], devices.find_device(device), tokens)

    return explore(
        draw,
        name=menu("weights", "int4-g128", FORMATS),
        shape=menu("matrix", "4096 x 4096", SHAPES),
        device=menu("device", "h100-sxm", DEVICES),
        tokens=choice_slider("tokens", 1, [2**i for i in range(11)]),
    )
