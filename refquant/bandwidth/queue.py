"""A serving queue played step by step: requests arrive, a batch decodes, each finished request leaves.

The independent check of the formulas in `serving`: it knows nothing of them, only the rules. Time in seconds, lengths
in tokens made.

    continuous   before each step the free places are given to those who wait, first come first served
    static       a batch is made of those who wait when the last one has ended wholly, and nobody joins it

Leaves out: prompts (their prefill takes no time here), preemption when memory runs out, fairness.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refquant.bandwidth.units import positive, whole
from refquant.errors import BadInput, UnknownName

POLICIES = ("continuous", "static")


@dataclass(frozen=True)
class Served:
    """What happened. `seconds` from the first arrival to the last token; means over requests, `running` over time."""

    tokens: int
    seconds: float
    running: float
    latency: float
    waiting: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second over the whole run."""
        return self.tokens / self.seconds


def requests(count: int, arrivals: float, mean_tokens: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Arrival times (Poisson, `arrivals` a second) and lengths (geometric, mean `mean_tokens`) of `count` requests."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / positive("arrivals per second", arrivals), whole("count", count)))
    return times, rng.geometric(1 / positive("mean_tokens", mean_tokens), count)


def simulate(
    times: Sequence[float],
    lengths: Sequence[int],
    step_seconds: Callable[[int], float],
    max_batch: int,
    policy: str = "continuous",
) -> Served:
    """Serve requests that arrive at `times` (ascending, seconds) and make `lengths` tokens each.

    Between two events (an arrival, an end) nothing changes, so steps are taken together up to the next one. A static
    batch keeps its size: sequences that have ended keep their places, as padding does.
    """
    if policy not in POLICIES:
        raise UnknownName("policy", policy, POLICIES)
    whole("max_batch", max_batch)
    times, lengths = np.asarray(times, float), np.asarray(lengths)
    if len(times) != len(lengths) or not len(times) or (np.diff(times) < 0).any() or lengths.min() < 1:
        raise BadInput("expected as many ascending times as lengths of at least 1, and at least one")
    now, step, done = float(times[0]), 0, 0
    coming, queue = deque(zip(times.tolist(), lengths.tolist(), strict=True)), deque()
    active: list[tuple[int, float]] = []  # (step at which it ends, its arrival)
    size, area, latency, waiting = 0, 0.0, 0.0, 0.0
    while done < len(times):
        while coming and coming[0][0] <= now:
            queue.append(coming.popleft())
        if policy == "continuous" or not active:
            while queue and len(active) < max_batch:
                arrived, length = queue.popleft()
                waiting += now - arrived
                heapq.heappush(active, (step + length, arrived))
            size = len(active)
        if not active:
            now = coming[0][0]
            continue
        seconds = step_seconds(size)
        ends = active[0][0] - step
        joins = policy == "continuous" and len(active) < max_batch and coming
        steps = min(ends, max(int(-(-(coming[0][0] - now) // seconds)), 1)) if joins else ends
        now += steps * seconds
        area += steps * seconds * len(active)
        step += steps
        while active and active[0][0] == step:
            latency += now - heapq.heappop(active)[1]
            done += 1
    seconds, n = now - float(times[0]), len(times)
    return Served(int(lengths.sum()), seconds, area / seconds, latency / n, waiting / n)
