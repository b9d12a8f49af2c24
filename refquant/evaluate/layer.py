"""The error that a layer's output makes, from the second moments of its inputs."""

import numpy as np

from refquant.errors import BadInput


def layer_error(w: np.ndarray, w_hat: np.ndarray, hessian: np.ndarray) -> float:
    """Relative squared error of the output, ‖(W - Ŵ) X‖² / ‖W X‖².

    Parameters
    ----------
    w, w_hat : float [n, k]
        Weights before and after quantization.
    hessian : float [k, k]
        Any multiple of X Xᵀ; the multiple cancels.

    Returns
    -------
    float
        0 for equal weights, 1 when the output is lost altogether. Products in the arrays' own precision, float32 at
        least; sums in float64.
    """
    dtype = np.result_type(w, w_hat, hessian, np.float32)
    w, w_hat, hessian = (np.asarray(a, dtype) for a in (w, w_hat, hessian))
    if w.shape != w_hat.shape or hessian.shape != (w.shape[1],) * 2:
        raise BadInput(
            f"layer_error: shapes {w.shape}, {w_hat.shape} and Hessian {hessian.shape} do not belong together"
        )
    difference = w - w_hat
    error, signal = (np.multiply(d @ hessian, d).sum(dtype=np.float64) for d in (difference, w))
    return float(error / signal) if signal else 0.0
