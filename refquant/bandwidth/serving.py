"""Many requests at once: what continuous batching and speculative decoding gain, and what load does to a server.

Formulas, each checked against `queue`, which plays the requests one step at a time. Tokens, seconds; ratios have no
unit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refquant.bandwidth.units import positive, whole
from refquant.errors import BadInput


def expected_longest(lengths: Sequence[int], batch: int) -> float:
    """Mean of the longest of `batch` lengths drawn from `lengths` (with replacement).

    Exact for any list: the longest of b draws is at most the k-th smallest of n with probability (k/n)^b.
    """
    if not len(lengths):
        raise BadInput("lengths: expected at least one number of tokens")
    whole("batch", batch)
    ordered = sorted(whole("length", int(length)) for length in lengths)
    n = len(ordered)
    return math.fsum(size * ((k / n) ** batch - ((k - 1) / n) ** batch) for k, size in enumerate(ordered, 1))


def continuous_gain(lengths: Sequence[int], batch: int) -> float:
    """Tokens per second of continuous over static batching, when work is always waiting and a step costs the same.

    A static batch runs until its longest sequence ends, and the places of the others stay empty; a continuous one fills
    a place as soon as it is free (Orca, OSDI 2022). So the gain is E[longest of the batch] / E[length]; for
    exponential lengths that is the harmonic number H_b, 2.93 at a batch of 10; for equal lengths it is 1.
    """
    return expected_longest(lengths, batch) / (sum(lengths) / len(lengths))


def accepted_tokens(acceptance: float, draft: int) -> float:
    """Tokens that one verification of `draft` drafted tokens yields on average: (1 - a^(draft+1)) / (1 - a).

    `acceptance` is the chance that one drafted token is accepted, taken as independent.
    Source: Leviathan, Kalman, Matias, arXiv 2211.17192, equation 1.
    """
    whole("draft", draft, 0)
    if not 0 <= acceptance <= 1:
        raise BadInput(f"acceptance must lie in 0..1, got {acceptance!r}")
    return draft + 1.0 if acceptance == 1 else (1 - acceptance ** (draft + 1)) / (1 - acceptance)


def speculative_speedup(acceptance: float, draft: int, draft_cost: float, verify_cost: float = 1.0) -> float:
    """Speed of speculative over plain decoding.

    `draft_cost` is the time of one step of the draft model, `verify_cost` that of a step of the target model on
    draft + 1 tokens, both over the time of the target's plain step. `verify_cost` is 1 while decode is bound by
    bandwidth, and rises toward draft + 1 once arithmetic binds: then there is nothing left to gain.
    Source: arXiv 2211.17192, theorem 3.8 (there with verify_cost 1).
    """
    positive("draft_cost", draft_cost)
    positive("verify_cost", verify_cost)
    return accepted_tokens(acceptance, draft) / (draft * draft_cost + verify_cost)


@dataclass(frozen=True)
class Load:
    """A server under steady load: `running` and `waiting` requests on average, seconds from arrival to last token."""

    running: float
    waiting: float
    latency: float
    tokens_per_second: float


def steady_state(
    arrivals: float, mean_tokens: float, step_seconds: Callable[[int], float], max_batch: int, most: int = 5000
) -> Load:
    """Return the steady state of continuous batching under random arrivals, as a birth-death chain.

    With n requests in the system b = min(n, max_batch) run, and each step of step_seconds(b) ends a share
    1 / mean_tokens of them, so requests leave at the rate b / (mean_tokens * step_seconds(b)). The latency follows from
    Little's law. Exact for Poisson arrivals and geometric lengths in the limit of steps short beside a request.

    Parameters
    ----------
    arrivals : float
        Requests per second.
    mean_tokens : float
        Tokens that a request makes, on average.
    step_seconds : function of the batch
    max_batch : int
    most : int
        Requests in the system at which the chain is cut.

    Raises
    ------
    BadInput
        More arrives than a full batch can serve.
    """
    positive("arrivals per second", arrivals)
    positive("mean_tokens", mean_tokens)
    whole("max_batch", max_batch)
    capacity = max_batch / (mean_tokens * step_seconds(max_batch))
    if arrivals >= capacity:
        raise BadInput(f"{arrivals:.4g} requests per second arrive, a full batch of {max_batch} serves {capacity:.4g}")
    log, logs = 0.0, [0.0]
    for n in range(1, most + 1):
        batch = min(n, max_batch)
        log += math.log(arrivals * mean_tokens * step_seconds(batch) / batch)
        logs.append(log)
    top = max(logs)
    chances = [math.exp(value - top) for value in logs]
    total = math.fsum(chances)
    running = math.fsum(p * min(n, max_batch) for n, p in enumerate(chances)) / total
    inside = math.fsum(p * n for n, p in enumerate(chances)) / total
    return Load(running, inside - running, inside / arrivals, arrivals * mean_tokens)
