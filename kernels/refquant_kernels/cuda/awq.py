"""AWQ's search on the GPU: the output errors of all exponents, with weights and tokens there all the time.

4096 x 4096 weights, 512 tokens, 20 exponents. Must do: 21 products of 17.2 GFLOP in float32, 7 ms at 50 T/s; the
rounding of 20 scaled copies moves 20 x 7 x 67 MB, 3.3 ms at 2835 GB/s. The products are torch's and not in TF32, whose
10 bits would drown the differences that the search is about. Rounding is `round_groups` of quantize_int.cu.
"""

import numpy as np

from refquant import ops
from refquant.errors import BackendUnavailable, BadInput
from refquant_kernels.cuda import launch
from refquant_kernels.cuda.quantize_grids import round_groups
from refquant_kernels.cuda.tensors import to_gpu


def output_errors(ws, x, grid, candidates):
    """Mean squared change of the outputs x w^T for each candidate scale: float64 [candidates].

    ws : list of float32 tensors [n_i, k]; x : float32 tensor [m, k]; candidates : list of float32 tensors [k].
    """
    torch = launch.torch()
    w = torch.cat(list(ws))
    before = x @ w.T
    errors = torch.full((len(candidates),), np.inf, dtype=torch.float64)
    for i, s in enumerate(candidates):
        try:
            rounded = round_groups(w * s, grid)
        except BadInput:  # a group's scale beyond float16
            continue
        errors[i] = (x @ (rounded / s).T - before).double().square().mean()
    return errors.numpy()


@ops.fast_path("awq", "int", backend="cuda")
def search(ws, x, grid, candidates, forward=None):
    """`methods.awq.search`'s errors; products are summed in another order."""
    if forward:
        raise BackendUnavailable("awq.search on 'cuda' compares the layers' own outputs and takes no `forward`")
    return output_errors([to_gpu(w) for w in ws], to_gpu(x), grid, [to_gpu(s) for s in candidates])
