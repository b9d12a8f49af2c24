"""How fast the kernels are, against peers in the same process: `refquant bench`.

peers    ggml's compiled code through ctypes; torch
cpu      the Numba kernels: measure, table, JSON, kernels/README.md
gpu      the CUDA kernels likewise, and decode of a whole model; gpu_report: its tables and its picture
split    a model on two backends, its blocks shared out: measured beside predicted
"""
