"""Assignment 2, bandwidth arithmetic: from a config to tokens per second.

Right answers: the formulas of `refquant.bandwidth` with nothing but weights and KV cache counted, which the functions
here spell out. SI units; a GiB is 2^30 bytes.
"""

from refquant.classroom.exercise import Case, Exercise, Mistake, Output

GIB = 2**30


def decode_weights(config, kv=None, head_dim=None, mlp=3, output=True, embedding=False):
    """Weights that one decode step reads: the Linear layers of every block, and the output matrix."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = head_dim or config.get("head_dim") or hidden // heads
    kv = kv or config["num_key_value_heads"]
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv * head_dim
    block = attention + mlp * hidden * config["intermediate_size"]
    return config["num_hidden_layers"] * block + (output + embedding) * config["vocab_size"] * hidden


def bits_per_weight(bits, group, scale_bits, zero_bits):
    """Bits of a weight with its share of the group's scale and zero-point."""
    return bits + (scale_bits + zero_bits) / group


def kv_bytes(config, tokens, heads=None, both=2, numbers=2):
    """Bytes of keys and values of `tokens` tokens in float16."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = heads or config["num_key_value_heads"]
    return both * config["num_hidden_layers"] * heads * head_dim * numbers * tokens


def tokens_per_second(weights, bits, cache, bandwidth):
    """The most that one sequence can get: every weight and the cache are read for each token."""
    return bandwidth / (weights * bits / 8 + cache)


def critical_batch(bits, flops, bandwidth):
    """Batch at which 2 operations a weight and sequence take as long as reading the weight."""
    return flops / bandwidth * bits / 8 / 2


def pick_card(cards, weight_bytes, cache, unit=GIB, key=lambda card: card["bandwidth"], needs_cache=True):
    """Name of the fastest card whose memory holds weights and cache, or None."""
    fits = [card for card in cards if card["memory"] * unit >= weight_bytes + cache * needs_cache]
    return max(fits, key=key)["name"] if fits else None


# ---- data


def config(rng, grouped=True, own_head_dim=False):
    """A decoder of Llama's kind with the names of a config.json."""
    heads = int(rng.choice([16, 24, 32, 40]))
    head_dim = int(rng.choice([64, 96, 128]))
    made = {
        "num_hidden_layers": int(rng.integers(16, 64)),
        "hidden_size": heads * head_dim,
        "intermediate_size": 256 * int(rng.integers(20, 80)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // int(rng.choice([2, 4, 8])) if grouped else heads,
        "vocab_size": 1000 * int(rng.integers(32, 150)),
        "tie_word_embeddings": bool(rng.integers(2)),
    }
    if own_head_dim:
        made["head_dim"] = head_dim + 32
    return made


def speed(cache):
    """A maker of (weights, bits, cache, bandwidth)."""

    def make(rng):
        tokens = int(rng.integers(1000, 32000)) if cache else 0
        weights, bits = int(rng.integers(1, 70)) * 10**9, float(rng.choice([4.5, 4.156, 8.5, 16]))
        return weights, bits, tokens * int(rng.integers(50_000, 500_000)), float(rng.integers(50, 3350)) * 1e9

    return make


def batch(rng):
    """Bits, operations per second, bytes per second."""
    return (
        float(rng.choice([3, 4, 4.5, 6])),
        float(rng.integers(50, 1000)) * 1e12,
        float(rng.integers(200, 3500)) * 1e9,
    )


def cards_for(rng, fit=True):
    """Cards in no order, and a model that some of them hold (or none)."""
    memory = rng.permutation([8, 12, 16, 24, 48, 80])
    bandwidth = rng.permutation([300, 450, 600, 936, 1555, 2039])
    cards = [
        {"name": f"card {letter}", "memory": int(m), "bandwidth": float(b) * 1e9}
        for letter, m, b in zip("ABCDEF", memory, bandwidth, strict=True)
    ]
    # weights alone fit one card more than weights and cache; in units of 10^9 bytes that card would seem too small
    least = float(rng.choice([12, 16, 24]))
    total = (0.985 * least if fit else 90) * GIB
    cache = int(rng.uniform(0.4, 0.6) * total)
    return cards, int(total) - cache, cache


def choosing(fit, telling):
    """A maker of (cards, weight_bytes, cache) on which `telling` mistakes give another answer."""

    def make(rng):
        while True:
            args = cards_for(rng, fit)
            if all(mistake(*args) != pick_card(*args) for mistake in telling):
                return args

    return make


def only_weights(cards, weight_bytes, cache):
    """Forget the cache."""
    return pick_card(cards, weight_bytes, cache, needs_cache=False)


def decimal_memory(cards, weight_bytes, cache):
    """10^9 for 2^30."""
    return pick_card(cards, weight_bytes, cache, unit=10**9)


def largest_memory(cards, weight_bytes, cache):
    """The largest instead of the fastest."""
    return pick_card(cards, weight_bytes, cache, key=lambda card: card["memory"])


def first_that_fits(cards, weight_bytes, cache):
    """The first instead of the fastest."""
    return pick_card(cards, weight_bytes, cache, key=lambda card: 0)


def no_grouped_queries(config):
    """Make k and v as wide as q."""
    return decode_weights(config, kv=config["num_attention_heads"])


BYTES_HINT = "bits are not bytes: divide by 8"
HEAD_HINT = "the config has a head_dim of its own: hidden_size / heads is only the default"

EXERCISES = (
    Exercise(
        "bandwidth.decode_weights",
        (Output("weights"),),
        (
            Case("every head has its own keys and values", 2, lambda rng: (config(rng, grouped=False),)),
            Case("grouped-query attention", 2, lambda rng: (config(rng),)),
            Case("a head_dim of its own", 1, lambda rng: (config(rng, own_head_dim=True),)),
        ),
        decode_weights,
        (
            Mistake(
                "under grouped queries k and v have num_key_value_heads heads, not num_attention_heads",
                no_grouped_queries,
            ),
            Mistake(
                "the embedding is looked up: a decode step reads one row of it, not the matrix",
                lambda config: decode_weights(config, embedding=True),
            ),
            Mistake(
                "the output matrix is missing: every token is multiplied with all of it, tied to the embedding or not",
                lambda config: decode_weights(config, output=False),
            ),
            Mistake("a gated MLP has three matrices: gate, up and down", lambda config: decode_weights(config, mlp=2)),
            Mistake(
                HEAD_HINT,
                lambda config: decode_weights(config, head_dim=config["hidden_size"] // config["num_attention_heads"]),
            ),
        ),
        score=lambda args, got: (
            f"{got / 1e9:.2f} billion weights, {got * 4.5 / 8 / 1e9:.2f} GB moved a token at 4.5 bits"
        ),
    ),
    Exercise(
        "bandwidth.bits_per_weight",
        (Output("bits per weight", 1e-9),),
        (
            Case(
                "float16 scale and packed zero-point",
                1,
                lambda rng: (
                    int(rng.choice([2, 3, 4, 8])),
                    int(rng.choice([32, 64, 128, 256])),
                    16,
                    int(rng.integers(2, 9)),
                ),
            ),
            Case(
                "symmetric: no zero-point", 1, lambda rng: (int(rng.integers(2, 9)), int(rng.choice([32, 128])), 16, 0)
            ),
        ),
        bits_per_weight,
        (
            Mistake("the zero-point is stored too: add its bits", lambda b, g, s, z: b + s / g),
            Mistake(
                "one scale serves the whole group: divide its bits by the group size", lambda b, g, s, z: b + s + z
            ),
            Mistake("the scale is missing: it takes scale_bits in every group", lambda b, g, s, z: b + z / g),
            Mistake("one scale and zero-point a group: divide both by its size", lambda b, g, s, z: b + s / g + z),
        ),
        score=lambda args, got: f"{got:.5g} bits per weight",
    ),
    Exercise(
        "bandwidth.kv_bytes",
        (Output("bytes"),),
        (
            Case(
                "every head has its own keys and values",
                1,
                lambda rng: (config(rng, False), int(rng.integers(1, 9000))),
            ),
            Case("grouped-query attention", 2, lambda rng: (config(rng), int(rng.integers(1, 9000)))),
        ),
        kv_bytes,
        (
            Mistake(
                "the cache holds num_key_value_heads heads, not num_attention_heads",
                lambda config, tokens: kv_bytes(config, tokens, heads=config["num_attention_heads"]),
            ),
            Mistake(
                "a factor 2 is missing: there are keys and values, and each number takes 2 bytes in float16",
                lambda config, tokens: kv_bytes(config, tokens, numbers=1),
            ),
            Mistake(
                "every layer has a cache", lambda config, tokens: kv_bytes(config | {"num_hidden_layers": 1}, tokens)
            ),
        ),
        score=lambda args, got: f"{got / args[1] / 1e3:.1f} kB moved again for each token in the context",
    ),
    Exercise(
        "bandwidth.tokens_per_second",
        (Output("tokens per second", 1e-6),),
        (Case("no context yet", 1, speed(False)), Case("with a KV cache", 2, speed(True))),
        tokens_per_second,
        (
            Mistake("the KV cache is read for every token, too", lambda w, b, c, bw: tokens_per_second(w, b, 0, bw)),
            Mistake(BYTES_HINT, lambda w, b, c, bw: bw / (w * b + c)),
            Mistake(
                "that is the bandwidth in GiB/s: 1 GB/s is 10^9 bytes a second",
                lambda w, b, c, bw: bw / GIB * 1e9 / (w * b / 8 + c),
            ),
            Mistake("that is seconds per token: turn it around", lambda w, b, c, bw: (w * b / 8 + c) / bw),
        ),
        score=lambda args, got: f"{args[3] / got / 1e9:.2f} GB moved a token, {got:.1f} tokens per second at most",
    ),
    Exercise(
        "bandwidth.critical_batch",
        (Output("batch", 1e-6),),
        (Case("any device, any bits", 3, batch),),
        critical_batch,
        (
            Mistake(
                "each weight takes two operations for each sequence, a multiply and an add",
                lambda b, f, bw: f / bw * b / 8,
            ),
            Mistake(BYTES_HINT, lambda b, f, bw: f / bw * b / 2),
            Mistake(
                "upside down: more arithmetic moves the crossing to larger batches", lambda b, f, bw: bw / f * b / 8 / 2
            ),
            Mistake(
                "fewer bits are read sooner, so arithmetic binds at a smaller batch: multiply by the bytes",
                lambda b, f, bw: f / bw / (b / 8) / 2,
            ),
            Mistake("the bits of the weights are missing: 16 bits were assumed", lambda b, f, bw: f / bw * 16 / 8 / 2),
        ),
        score=lambda args, got: f"from {got:.0f} sequences on, more of them cost time",
    ),
    Exercise(
        "bandwidth.pick_card",
        (Output("card"),),
        (
            Case("the fastest of those that fit", 1, choosing(True, (largest_memory, first_that_fits))),
            Case("memory in GiB", 1, choosing(True, (decimal_memory,))),
            Case("the cache counts", 1, choosing(True, (only_weights,))),
            Case("none fits", 1, choosing(False, ())),
        ),
        pick_card,
        (
            Mistake("the KV cache needs memory, too", only_weights),
            Mistake("a card's memory is in GiB, 2^30 bytes, not 10^9", decimal_memory),
            Mistake("the largest memory is not the fastest: decode is bound by bandwidth", largest_memory),
            Mistake("that is the first card that fits: the fastest has the largest bandwidth", first_that_fits),
            Mistake("where none fits the answer is None", shown=lambda args, got: pick_card(*args) is None),
        ),
    ),
)
