"""Models that Hugging Face Accelerate has spread over several devices, the processor's memory and the disk.

`load(name, device_map="auto")` makes such a model. Its hooks bring weights that were offloaded when a layer runs, and
take them away again; a method that changes weights needs them to stay. `settle` brings those of one block for good: by
then the blocks before it are quantized, so that memory holds the quantized model and one block in float.
"""

from torch import nn


def settle(module: nn.Module) -> None:
    """Bring the offloaded weights of a module to the device on which it runs, to stay; others are left where they are.

    Nothing to do, and Accelerate is not needed, for a model that it did not spread.
    """
    hooked = _offloaded(module)
    if not hooked:
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    device = hooked[0]._hf_hook.execution_device
    for m in hooked:
        m._hf_hook.pre_forward(m)  # which loads them
        remove_hook_from_module(m)
    module.to(device)
    if not hasattr(module, "_hf_hook"):
        add_hook_to_module(module, AlignDevicesHook(execution_device=device))  # its inputs still have to come


def settle_each(model: nn.Module) -> None:
    """Bring all that is still offloaded, each module to its own device."""
    for module in _offloaded(model):
        settle(module)


def _offloaded(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if getattr(getattr(m, "_hf_hook", None), "offload", False)]


def is_offloaded(layer: nn.Module) -> bool:
    """Whether a layer's weights are somewhere else at the moment."""
    return layer.weight.device.type == "meta"
