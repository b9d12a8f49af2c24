"""gptq on the GPU: the loop within a block of columns is gptq.cu; the factor and the updates around it are torch's.

The factor takes one factorization, as on the CPU (`refquant_kernels.cpu.gptq` has the derivation): with J the reversal
of order and J H J = L L^T, U is J L^-1 J. It runs in float64. Everything stays on the GPU until the arrays are packed.

Within a block every operation is the reference's, rounded alike; products are summed in another order, and a group that
starts within a block is fitted to weights that were updated one column at a time. So codes differ at near-ties.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from refquant import ops
from refquant.methods import gptq
from refquant.quantized import Quantized
from refquant_kernels.cuda import launch
from refquant_kernels.cuda.quantize_grids import check_scales, fit_groups, pack
from refquant_kernels.cuda.tensors import STRICT, empty, on_host, to_gpu

COLUMNS = 128  # of a block, whatever `block_size` says: that changes float32 rounding only, but for "reference"
CONDITION = 1e14  # of H, from above; beyond it the reference's second factorization may fail, and raise the damping
WARPS = 4


def inverse_factor(H, damp: float):
    """U, float64 tensor, upper, with U^T U = (H + damp mean(diag H) I)^-1; and the damping, as the reference."""
    torch = launch.torch()
    damped = H.flip(0, 1)
    damped.diagonal().add_(damp * H.diagonal().mean())
    L, failed = torch.linalg.cholesky_ex(damped)
    if not bool(failed):
        eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
        inverse = torch.linalg.solve_triangular(L, eye, upper=False)
        if float(L.norm() * inverse.norm()) ** 2 < CONDITION:
            return inverse.flip(0, 1), damp
    U, damp = gptq.inverse_factor(H.cpu().numpy(), damp)  # the reference's own, which raises the damping
    return to_gpu(U), damp


def blocks(k: int, bounds, block_size: int):
    """Blocks of columns [i1, i2): at most 128, none across `block_size`, none with a group that starts but not ends."""
    starts, i1 = {int(a): int(b) for a, b in pairwise(bounds)}, 0
    while i1 < k:
        i2 = min(i1 + COLUMNS, k, (i1 // block_size + 1) * block_size)
        crossing = [a for a, b in starts.items() if i1 < a < i2 < b]
        i2 = crossing[0] if crossing else i2
        yield i1, i2
        i1 = i2


def quantize_tensors(W, H, grid, block_size=128, damp=0.01, act_order=False, static_groups=False, group_params="fresh"):
    """GPTQ of weights and a Hessian that are on the GPU.

    Parameters
    ----------
    W : float32 tensor [n, k]
    H : float tensor [k, k]
    others
        As for `refquant.methods.gptq.quantize`. Nothing is checked here.

    Returns
    -------
    arrays : dict of tensors, those of the format
    losses : float64 tensor [k]
    damp : float
    dead : int64 tensor, the columns no input reached
    """
    torch, (n, k) = launch.torch(), W.shape
    dead = (H.diagonal() == 0).nonzero()[:, 0]
    W, H = W.clone(), H.to(torch.float64, copy=True)
    H[dead, dead] = 1.0
    W[:, dead] = 0
    group = grid.group_index(k)
    bounds = np.append(np.flatnonzero(np.diff(group, prepend=-1)), k)
    scales, zeros = (torch.ones((len(bounds) - 1, n), dtype=torch.float32, device=W.device) for _ in range(2))
    known = np.zeros(len(bounds) - 1, bool)

    def fit(g, columns):
        fitted = fit_groups(columns.contiguous(), replace(grid, group_size=None))
        scales[g], zeros[g], known[g] = fitted[0][:, 0], fitted[1][:, 0], True

    if static_groups:
        for g, (start, end) in enumerate(pairwise(bounds)):
            fit(g, W[:, start:end])
    order = torch.arange(k, device=W.device)
    if act_order:
        order = torch.argsort(-H.diagonal(), stable=True)
        W, H = W[:, order].contiguous(), H[order][:, order]
    if static_groups:
        group = group[order.cpu().numpy()]
    U, damp = inverse_factor(H, damp)
    U, group_of = U.float().contiguous(), to_gpu(group)

    codes, losses = empty((n, k), "uint8", W), empty((k,), "float64", W)
    errors = empty((n, COLUMNS), "float32", W)
    kernel = launch.load("gptq.cu", "gptq_block", STRICT)
    half, sym = int(grid.scale_dtype == "float16"), int(grid.sym)
    size = block_size if group_params == "reference" else k  # where groups are fitted to the weights before the block
    for i1, i2 in blocks(k, bounds, size):
        fit_ends = np.zeros(k, np.int32)
        if group_params == "reference" and i1 % size == 0:
            for g, (start, end) in enumerate(pairwise(bounds)):
                if i1 <= start < i1 + size and not known[g]:
                    fit(g, W[:, start:end])
        for g, (start, end) in enumerate(pairwise(bounds)):
            if i1 <= start < i2 and not known[g]:
                if end <= i2:
                    fit_ends[start] = end
                else:
                    fit(g, W[:, start:end])
        kernel(
            (-(-n // WARPS), 1, 1), (32 * WARPS, 1, 1),
            W, U, group_of, to_gpu(fit_ends), n, k, i1, i2, grid.bits, sym, half, scales, zeros, codes, errors,
        )  # fmt: skip
        known |= np.isin(np.arange(len(known)), group[np.flatnonzero(fit_ends)])
        Err = errors[:, : i2 - i1]
        losses[i1:i2] = 0.5 * Err.double().square().sum(dim=0)
        W[:, i2:].addmm_(Err, U[i1:i2, i2:], alpha=-1)
    check_scales(scales, grid)

    back = torch.argsort(order)
    arrays = {"codes": pack(codes[:, back], grid.bits), "scales": scales.T.to(getattr(torch, grid.scale_dtype))}
    if not grid.sym:
        arrays["zeros"] = pack(zeros.T.to(torch.uint8).contiguous(), grid.bits)
    g_idx = group_of[back]
    if not np.array_equal(g_idx.cpu().numpy(), grid.group_index(k)):
        arrays["g_idx"] = g_idx
    return arrays, losses[back], damp, dead


@ops.fast_path("gptq", "int", backend="cuda")
def quantize(w, H, grid, block_size, damp, act_order, static_groups, group_params):
    """The reference's result but for near-ties."""
    options = (block_size, damp, act_order, static_groups, group_params)
    arrays, losses, damp, dead = quantize_tensors(to_gpu(w), to_gpu(H), grid, *options)
    q = Quantized(grid.name, w.shape, on_host(arrays))
    return gptq.Result(q, losses.cpu().numpy(), damp, dead.cpu().numpy())
