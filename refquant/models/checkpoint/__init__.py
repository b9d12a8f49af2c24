"""Checkpoint folders (config.json and safetensors) whose layers are quantized, as serving engines load them.

folder     read: shards and their index, one tensor at a time; pickles never
schemes    the quantization_config: which layer has which layout of `refquant.formats`
opening    a folder -> a running model
saving     a running model -> a folder, whole or not at all
convert    a folder -> a folder in another format, the same numbers
lint       what is wrong with a folder
stream     a folder of float weights -> a quantized one, tensor by tensor; an interrupted run continues
blocks     the same block by block, for methods that look at activations
"""

from refquant.models.checkpoint.blocks import quantize_blocks
from refquant.models.checkpoint.convert import convert
from refquant.models.checkpoint.folder import Folder, is_quantized
from refquant.models.checkpoint.lint import inspect
from refquant.models.checkpoint.opening import empty_model, load, read_config, read_tokenizer
from refquant.models.checkpoint.saving import FORMATS, check_model, save
from refquant.models.checkpoint.stream import quantize_folder

__all__ = [
    "FORMATS",
    "Folder",
    "check_model",
    "convert",
    "empty_model",
    "inspect",
    "is_quantized",
    "load",
    "quantize_blocks",
    "quantize_folder",
    "read_config",
    "read_tokenizer",
    "save",
]
