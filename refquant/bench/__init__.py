"""How fast the kernels are, against peers in the same process: `refquant bench`.

peers    ggml's compiled code through ctypes; torch
cases    what is timed on a CPU: ours and theirs
report   its tables, as text and as kernels/README.md, and its picture
cpu      the Numba kernels, measured
gpu      the CUDA kernels likewise; gpu_decode: a whole model's token; gpu_quantize; gpu_report: tables and picture
split    a model on two backends, its blocks shared out: measured beside predicted
"""
