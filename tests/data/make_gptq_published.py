"""Run the code published with the GPTQ paper on a small layer; store its codes in gptq_published.npz beside this file.

    git clone https://github.com/IST-DASLab/gptq && git -C gptq checkout 2d65066
    python tests/data/make_gptq_published.py gptq

Needs torch and transformers; the published code is imported, not copied. Stored for each case: the codes [n, k] of the
layer's columns, and the scale of each group, in the order of the loop. Made with torch 2.13.0 on a CPU; sha256 of the
imported gptq.py bb47468cc2c78857 and quant.py 211528568b962b86 (first 16 digits).
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [sys.argv[1], str(HERE.parent)]
import gptq  # noqa: E402 (the published module)
import quant  # noqa: E402
from test_gptq import PUBLISHED, published_layer  # noqa: E402

for module in (gptq, quant):
    print(module.__name__, hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16])
torch.cuda.synchronize = lambda: None  # it times itself on a GPU

seen = []


def recording(x, scale, zero, maxq):
    codes = torch.clamp(torch.round(x / scale) + zero, 0, maxq)
    seen.append((codes.flatten().numpy().copy(), scale.flatten().numpy().copy()))
    return scale * (codes - zero)


gptq.quantize = recording
w, H = published_layer()
assert len(set(np.diag(H))) == len(H), "equal diagonal entries: torch.argsort would choose the order"
out = {}
for case, (bits, sym, group, block, act_order, static) in PUBLISHED.items():
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(w.copy())
    job = gptq.GPTQ(layer)
    job.H = torch.from_numpy(H.copy())
    job.quantizer = quant.Quantizer()
    job.quantizer.configure(bits, perchannel=True, sym=sym, mse=False)
    seen.clear()
    job.fasterquant(blocksize=block, percdamp=0.01, groupsize=group, actorder=act_order, static_groups=static)
    codes, scales = (np.stack([step[i] for step in seen], axis=1) for i in range(2))
    diag = np.where(np.diag(H) == 0, 1, np.diag(H))
    order = np.argsort(-diag) if act_order else np.arange(len(H))
    codes, by_column = codes[:, np.argsort(order)], scales[:, np.argsort(order)]
    starts = np.arange(0, len(H), group if group != -1 else len(H))
    out[f"{case}/codes"] = codes.astype(np.uint8)
    out[f"{case}/scales"] = by_column[:, starts] if static else scales[:, starts]
np.savez_compressed(HERE / "gptq_published.npz", **out)
