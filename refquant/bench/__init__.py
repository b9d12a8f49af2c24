"""How fast the kernels are, against peers in the same process: `refquant bench`.

peers    ggml's compiled code through ctypes; torch
cases    what is timed: ours and theirs
report   the table, as text and as kernels/README.md; the picture
cpu      the Numba kernels, measured
split    a model on two backends, its blocks shared out: measured beside predicted
"""
