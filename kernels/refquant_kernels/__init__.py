"""Fast paths of refquant's operations: ``cpu`` (Numba) and ``cuda`` (CUDA C++, compiled at run time).

Each module registers itself with :mod:`refquant.ops` under the operation that it computes; nothing here is called
directly. The NumPy reference in ``refquant`` stays the definition of the right answer.
"""
