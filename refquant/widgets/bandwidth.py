"""Notebook 01, bandwidth: the roofline."""

import functools

from refquant.bandwidth import weights
from refquant.bandwidth.devices import DEVICES
from refquant.figures import bandwidth
from refquant.widgets.explorer import Explorer, choice_slider, explore, menu

MODELS = ("llama-3.2-1b", "llama-3.1-8b", "qwen2.5-32b", "llama-3.1-70b")
STORAGES = (("16", "F16"), ("8", "int8-row"), ("4", "int4-g128"), ("3", "int3-g128"))
BATCHES = tuple(2**i for i in range(10))
CONTEXTS = tuple(2**i for i in range(7, 16))


def roofline() -> Explorer:
    """Device, model, bits, batch and context of a decode step. Devices without a published rate are left out."""
    stored = functools.cache(weights.store)

    def draw(device, model, storage, batch, context):
        return bandwidth.roofline(stored(model, storage), DEVICES[device], batch, context)

    devices = [(device.title, name) for name, device in DEVICES.items() if device.rates]
    return explore(
        draw,
        device=menu("device", "rtx-4090", devices),
        model=menu("model", "llama-3.1-8b", MODELS),
        storage=choice_slider("bits a weight", "int4-g128", STORAGES),
        batch=choice_slider("batch", 1, BATCHES),
        context=choice_slider("context, tokens", 1024, CONTEXTS),
    )
