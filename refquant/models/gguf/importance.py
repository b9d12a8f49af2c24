"""The importance matrix of a model, measured on text: the squares of every Linear layer's inputs, summed by column."""

import numpy as np
import torch
from tqdm import tqdm

from refquant.errors import BadInput
from refquant.importance import ImportanceMatrix
from refquant.models.gguf import architectures


def importance(model, ids: np.ndarray, dataset: str = "", output: bool = False, progress: bool = True):
    """Run text through a model and collect the importance of every matrix, under its GGUF name.

    Parameters
    ----------
    model : causal LM of transformers, of an architecture that GGUF knows
    ids : int [chunks, context]
        Token ids; every chunk is run by itself.
    dataset : str
        Name of the text, kept in the file.
    output : bool
        Also collect for the output matrix. llama.cpp leaves it out by default, and so does this.
    progress : bool
        Show a bar over the chunks.

    Returns
    -------
    ImportanceMatrix
        For `write_model(..., importance=...)` and `refquant.formats.imatrix.write`.

    Against other code: llama.cpp's tool runs the model with whatever weights the file has, and adds in float32; here
    the sums are float64.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.size:
        raise BadInput(f"importance: expected token ids [chunks, context], got the shape {ids.shape}")
    item = architectures.of_config(model.config.to_dict())
    matrix = ImportanceMatrix(datasets=[dataset] if dataset else [], chunk_count=len(ids), chunk_size=ids.shape[1])

    def watch(name):
        return lambda module, args: matrix.add(name, args[0].detach().float().cpu().numpy())

    handles = []
    for name, module in model.named_modules():
        if hasattr(module, "in_features") and (output or name != "lm_head"):
            handles.append(module.register_forward_pre_hook(watch(architectures.gguf_name(f"{name}.weight", item))))
    try:
        with torch.no_grad():
            for chunk in tqdm(ids, desc="importance", unit="chunk", disable=not progress, leave=False):
                model(torch.from_numpy(chunk[None].astype(np.int64)).to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return matrix
