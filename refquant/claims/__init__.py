"""The lesson's quantitative statements, each tested by code that reaches its own verdict.

    ledger     claims, findings, the rules of a verdict
    bandwidth  the ratio of bits, what bounds decode and prefill
    gptq       RTN, GPTQ, groups
    awq        salient channels and scales
    gguf       k-quants, mixes, sizes, the 70B example
    choosing   the rows of the lesson's table
    serving    stacking
    measure    statistics of a real model's layers, which some claims rest on

Importing this package registers every claim.
"""

from refquant.claims import awq, bandwidth, choosing, gguf, gptq, serving
from refquant.claims.ledger import Evidence, as_json, claims, evidence, run

__all__ = [
    "Evidence",
    "as_json",
    "awq",
    "bandwidth",
    "choosing",
    "claims",
    "evidence",
    "gguf",
    "gptq",
    "run",
    "serving",
]
