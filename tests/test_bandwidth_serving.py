"""Serving: the formulas against a queue that is played step by step, and against hand-worked numbers."""

import math

import numpy as np
import pytest

from refquant.bandwidth import queue, serving, stack
from refquant.bandwidth.devices import find_device
from refquant.bandwidth.roofline import step_time
from refquant.bandwidth.weights import store
from refquant.bandwidth.work import decode_step
from refquant.errors import BadInput, UnknownName


def linear(fixed, each):
    return lambda batch: fixed + each * batch


# ---- batching


@pytest.mark.parametrize("batch", [2, 10, 16])
def test_the_gain_of_continuous_batching_for_exponential_lengths_is_the_harmonic_number(batch):
    lengths = -np.log(1 - (np.arange(200_000) + 0.5) / 200_000) * 1000  # quantiles of the exponential distribution
    harmonic = sum(1 / k for k in range(1, batch + 1))
    assert serving.continuous_gain(np.ceil(lengths).astype(int), batch) == pytest.approx(harmonic, rel=2e-3)


def test_the_longest_of_a_batch_by_hand():
    """Two draws from {1, 3}: 1 once in four, else 3."""
    assert serving.expected_longest([1, 3], 2) == 2.5
    assert serving.continuous_gain([1, 3], 2) == 1.25
    assert serving.continuous_gain([7, 7, 7], 5) == 1


@pytest.mark.parametrize("batch", [4, 16])
def test_a_played_queue_gains_what_the_formula_says(batch):
    _, lengths = queue.requests(12_000, 1.0, 100, seed=batch)
    served = {
        policy: queue.simulate(np.zeros(len(lengths)), lengths, linear(0.02, 0), batch, policy)
        for policy in queue.POLICIES
    }
    gain = served["continuous"].tokens_per_second / served["static"].tokens_per_second
    assert gain == pytest.approx(serving.continuous_gain(lengths, batch), rel=0.02)


@pytest.mark.parametrize(
    ("arrivals", "most"),
    [(2.0, 64), (4.0, 32), (6.0, 64)],
    ids=["a tenth of the places", "nearly all places", "a step that grows with the batch"],
)
def test_a_played_queue_settles_where_the_chain_says(arrivals, most):
    step = linear(0.02, 0.0003)
    times, lengths = queue.requests(30_000, arrivals, 200, seed=1)
    played = queue.simulate(times, lengths, step, most)
    load = serving.steady_state(arrivals, 200, step, most)
    assert played.running == pytest.approx(load.running, rel=0.03)
    assert played.latency == pytest.approx(load.latency, rel=0.05)
    assert played.tokens_per_second == pytest.approx(load.tokens_per_second, rel=0.03)


def test_steps_of_one_length_are_m_m_infinity_and_m_m_1():
    """Without waiting, requests in service = arrivals * service time; with one place, rho / (1 - rho)."""
    free = serving.steady_state(2.0, 100, linear(0.01, 0), 1000)
    assert free.running == pytest.approx(2.0 * 100 * 0.01)
    assert free.latency == pytest.approx(1.0)
    one = serving.steady_state(0.5, 100, linear(0.01, 0), 1)
    assert one.running == pytest.approx(0.5)
    assert one.running + one.waiting == pytest.approx(0.5 / (1 - 0.5))


def test_a_queue_by_hand():
    """Two places, steps of 1 s; lengths 2, 4, 1, all there at 0. Continuous: the third takes the first's place at 2 and
    ends at 3. Static: it waits for the second, and ends at 5."""
    played = queue.simulate([0, 0, 0], [2, 4, 1], linear(1, 0), 2)
    assert (played.seconds, played.latency, played.waiting) == (4, (2 + 4 + 3) / 3, 2 / 3)
    assert played.running == (2 + 4 + 1) / 4
    static = queue.simulate([0, 0, 0], [2, 4, 1], linear(1, 0), 2, "static")
    assert (static.seconds, static.latency, static.waiting) == (5, (2 + 4 + 5) / 3, 4 / 3)


def test_a_request_joins_between_two_steps():
    """It arrives at 2.5 in steps of 1 s, so it starts at 3."""
    played = queue.simulate([0, 2.5], [10, 2], linear(1, 0), 2)
    assert played.waiting == 0.25
    assert played.latency == (10 + 2.5) / 2


def test_a_static_batch_costs_its_size_to_the_end():
    """Two sequences of 1 and 3 tokens, 1 s for each place in a step: 3 steps of 2 s."""
    assert queue.simulate([0, 0], [1, 3], linear(0, 1), 2, "static").seconds == 6
    assert queue.simulate([0, 0], [1, 3], linear(0, 1), 2).seconds == 4


def test_queues_that_cannot_be_played_say_why():
    with pytest.raises(UnknownName, match="continuous, static"):
        queue.simulate([0], [1], linear(1, 0), 1, "greedy")
    for times, lengths in (([], []), ([0, 1], [1]), ([1, 0], [1, 1]), ([0], [0])):
        with pytest.raises(BadInput):
            queue.simulate(times, lengths, linear(1, 0), 1)
    with pytest.raises(BadInput, match="max_batch"):
        queue.simulate([0], [1], linear(1, 0), 0)
    with pytest.raises(BadInput, match="a full batch of 4 serves 2"):
        serving.steady_state(3, 100, linear(0.02, 0), 4)
    with pytest.raises(BadInput):
        serving.continuous_gain([], 4)
    with pytest.raises(BadInput):
        queue.requests(0, 1, 1)


# ---- speculation


def test_accepted_tokens_by_hand_and_by_drawing():
    """Acceptance 0.8, five drafted: (1 - 0.8^6) / 0.2 = 3.68928."""
    assert serving.accepted_tokens(0.8, 5) == pytest.approx(3.68928)
    assert serving.accepted_tokens(1, 5) == 6
    assert serving.accepted_tokens(0, 5) == serving.accepted_tokens(0.8, 0) == 1
    rng = np.random.default_rng(0)
    accepted = rng.random((200_000, 5)) < 0.8
    tokens = 1 + np.cumprod(accepted, axis=1).sum(1)  # those before the first rejection, and the target's own
    assert tokens.mean() == pytest.approx(serving.accepted_tokens(0.8, 5), rel=5e-3)


def test_speculation_gains_nothing_once_arithmetic_binds():
    assert serving.speculative_speedup(0.8, 5, 0.05) == pytest.approx(3.68928 / 1.25)
    assert serving.speculative_speedup(0.8, 5, 0.05, verify_cost=6) < 1
    for bad in ((-0.1, 5, 0.1), (1.1, 5, 0.1), (0.5, -1, 0.1), (0.5, 5, 0)):
        with pytest.raises(BadInput):
            serving.speculative_speedup(*bad)


# ---- stacking

LOAD = stack.Workload()


def test_a_bare_server_by_hand():
    """Llama-2-13B in F16 on 80 GiB: 26.03 GB of weights; 819,200 bytes a token, 4096 reserved, 3.36 GB a sequence."""
    server = stack.serve("llama-2-13b", "int4-g128", find_device("a100"), ("gqa",))
    assert server.batch == (80 * 2**30 - 2**29 - store("llama-2-13b", "F16").nbytes) // (4096 * 819_200) == 17
    context = 512 + (64**2 + 128**2 + 256**2 + 512**2 + 1024**2) / (64 + 128 + 256 + 512 + 1024) / 2
    assert LOAD.mean_context == pytest.approx(context)
    step = step_time(decode_step(store("llama-2-13b", "F16"), round(context), 17), find_device("a100"))
    assert server.step.seconds == step.seconds
    busy = 1 / serving.continuous_gain(LOAD.lengths, 17)
    assert server.tokens_per_second == pytest.approx(17 * busy / step.seconds)


@pytest.mark.parametrize(
    "techniques", [("gqa",), ("gqa", "continuous"), ("gqa", "quantization", "paged", "continuous")]
)
def test_a_full_server_played_step_by_step_makes_the_tokens_that_the_formulas_say(techniques):
    """Lengths drawn from the workload, everything there at the start, the step time of the full batch."""
    server = stack.serve("llama-2-13b", "int4-g128", find_device("a100"), techniques)
    lengths = np.random.default_rng(7).choice(LOAD.lengths, 400 * server.batch)
    policy = "continuous" if "continuous" in techniques else "static"
    played = queue.simulate(np.zeros(len(lengths)), lengths, lambda batch: server.step.seconds, server.batch, policy)
    assert played.tokens_per_second == pytest.approx(server.tokens_per_second, rel=0.02)


def test_checking_several_tokens_reads_the_weights_once():
    one = decode_step(store("llama-2-7b", "int4-g128"), 256, 4)
    five = stack.many_tokens(one, 5)
    assert (five.weight_bytes, five.cache_read, five.decoding_flops) == (
        one.weight_bytes,
        one.cache_read,
        one.decoding_flops,
    )
    assert (five.tokens, five.flops, five.cache_written) == (20, 5 * one.flops, 5 * one.cache_written)
    with pytest.raises(BadInput, match="tokens"):
        stack.many_tokens(one, 0)


@pytest.mark.parametrize(
    "change",
    [{"lengths": ()}, {"lengths": (0,)}, {"prompt": -1}, {"block": 0}, {"acceptance": 2}, {"draft": 0}, {"most": 0}],
)
def test_workloads_of_nothing_are_refused(change):
    with pytest.raises(BadInput):
        stack.Workload(**change)


@pytest.mark.parametrize("card", ["l4", "rtx-4090", "h100"])
def test_every_technique_helps_and_together_they_give_less_than_their_product(card):
    result = stack.gains("llama-3.1-8b", "int4-g128", find_device(card))
    assert all(gain > 1 for gain in result.alone.values())
    assert max(result.alone.values()) < result.actual < result.product


def test_continuous_batching_alone_multiplies():
    """It changes neither memory nor the time of a step, so its gain at a fixed batch is a factor."""
    device, names = find_device("a100"), ("gqa", "quantization")
    plain, more = (stack.serve("llama-2-13b", "int4-g128", device, {*names, *extra}) for extra in ((), ("continuous",)))
    assert more.tokens_per_second / plain.tokens_per_second == pytest.approx(
        serving.continuous_gain(LOAD.lengths, plain.batch)
    )


def test_a_server_that_cannot_be_says_why():
    with pytest.raises(BadInput, match=r"takes 159.9 GB .* h100-sxm has 85.9 GB"):
        stack.serve("llama-3.1-70b", "int4-g128", find_device("h100"), ())
    with pytest.raises(BadInput, match="quantization, gqa, paged"):
        stack.serve("llama-3.1-8b", "int4-g128", find_device("h100"), ("magic",))
    assert math.isfinite(stack.serve("llama-3.1-8b", "int4-g128", find_device("h100"), ()).tokens_per_second)
