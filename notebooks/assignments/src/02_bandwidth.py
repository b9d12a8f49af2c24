# %% [markdown]
# # Assignment 2: bandwidth arithmetic
#
# 20 points, about 75 minutes. Before it: notebook 01 (bandwidth).
#
# A language model makes one token at a time (**decode**). For each token every weight is read from memory once and used
# for two operations, a multiply and an add, so reading takes longer than computing: the bytes set the speed. You go from
# a model's `config.json` to tokens per second, find the batch from which on arithmetic is the limit, and choose a card.
#
# Write only in the cells that say `YOUR CODE HERE`. The cell after each tries your function; when your work is graded it
# runs with other data, and each case that is right counts. Units: bytes, bytes per second; a GB is $10^9$ bytes, a GiB
# $2^{30}$.

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
from refquant import classroom

# %% [markdown]
# ## 1. Weights read for a token
#
# `config` is a dictionary with the names of a `config.json`: `num_hidden_layers`, `hidden_size`, `intermediate_size`,
# `num_attention_heads`, `num_key_value_heads`, `vocab_size`, `tie_word_embeddings`, and sometimes `head_dim` (otherwise
# `hidden_size // num_attention_heads`). Count the weights that one decode step reads:
#
# - in each layer q and o: `hidden_size` times heads times `head_dim` each; k and v likewise, but with
#   `num_key_value_heads` heads (**grouped-query attention**: several query heads share one head of keys and values);
# - in each layer gate, up and down: `hidden_size` times `intermediate_size` each;
# - the output matrix, `vocab_size` times `hidden_size`. It is read whether it is **tied** to (the same as) the embedding
#   or not;
# - not the embedding: one row of it is looked up. Norms are too small to count.


# %% nbgrader={"grade": false, "grade_id": "decode_weights", "locked": false, "schema_version": 3, "solution": true, "task": false}
def decode_weights(config):
    """Number of weights (int) that one decode step reads."""
    ### BEGIN SOLUTION
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    attention = 2 * hidden * head_dim * (heads + kv)
    mlp = 3 * hidden * config["intermediate_size"]
    return config["num_hidden_layers"] * (attention + mlp) + config["vocab_size"] * hidden
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_decode_weights", "locked": true, "points": 5, "schema_version": 3, "solution": false, "task": false}
# 5 points. Here the visible cases are tried; graded are others.
classroom.check(decode_weights, "bandwidth.decode_weights")
### BEGIN HIDDEN TESTS
classroom.grade(decode_weights, "bandwidth.decode_weights")
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Bits per weight
#
# Every `group` weights share one scale of `scale_bits` and one zero-point of `zero_bits` (0 where there is none).


# %% nbgrader={"grade": false, "grade_id": "bits_per_weight", "locked": false, "schema_version": 3, "solution": true, "task": false}
def bits_per_weight(bits, group, scale_bits, zero_bits):
    """Bits that one weight takes with its share of scale and zero-point."""
    ### BEGIN SOLUTION
    return bits + (scale_bits + zero_bits) / group
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_bits_per_weight", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# 2 points. Here the visible cases are tried; graded are others.
classroom.check(bits_per_weight, "bandwidth.bits_per_weight")
### BEGIN HIDDEN TESTS
classroom.grade(bits_per_weight, "bandwidth.bits_per_weight")
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The KV cache
#
# For each token of the context, each layer keeps keys and values: `num_key_value_heads` times `head_dim` numbers each, in
# float16 (2 bytes). They are read again for every new token.


# %% nbgrader={"grade": false, "grade_id": "kv_bytes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def kv_bytes(config, tokens):
    """Bytes of the keys and values of `tokens` tokens."""
    ### BEGIN SOLUTION
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * 2 * tokens
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_kv_bytes", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(kv_bytes, "bandwidth.kv_bytes")
### BEGIN HIDDEN TESTS
classroom.grade(kv_bytes, "bandwidth.kv_bytes")
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Tokens per second
#
# One sequence, all `weights` at `bits` bits each, and `cache` bytes of keys and values: all are read once for each token,
# at `bandwidth` bytes per second. How many tokens per second at most?


# %% nbgrader={"grade": false, "grade_id": "tokens_per_second", "locked": false, "schema_version": 3, "solution": true, "task": false}
def tokens_per_second(weights, bits, cache, bandwidth):
    """The largest number of tokens per second for one sequence."""
    ### BEGIN SOLUTION
    return bandwidth / (weights * bits / 8 + cache)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_tokens_per_second", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(tokens_per_second, "bandwidth.tokens_per_second")
### BEGIN HIDDEN TESTS
classroom.grade(tokens_per_second, "bandwidth.tokens_per_second")
### END HIDDEN TESTS

# %% [markdown]
# ## 5. Where batch stops helping
#
# With a batch of b sequences a weight is read once, and used for b times two operations. Reading one weight takes
# `bits / 8 / bandwidth` seconds; computing with it `2 b / flops`. At which b are the two equal? (A number, not rounded.)


# %% nbgrader={"grade": false, "grade_id": "critical_batch", "locked": false, "schema_version": 3, "solution": true, "task": false}
def critical_batch(bits, flops, bandwidth):
    """Batch from which on arithmetic takes longer than reading the weights."""
    ### BEGIN SOLUTION
    return flops * bits / 8 / bandwidth / 2
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_critical_batch", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(critical_batch, "bandwidth.critical_batch")
### BEGIN HIDDEN TESTS
classroom.grade(critical_batch, "bandwidth.critical_batch")
### END HIDDEN TESTS

# %% [markdown]
# ## 6. Which card for which model
#
# `cards` is a list of dictionaries with `name`, `memory` in GiB and `bandwidth` in bytes per second. Return the name of
# the card that is fastest for this model: among those whose memory holds the weights and the cache. None where none does.


# %% nbgrader={"grade": false, "grade_id": "pick_card", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pick_card(cards, weight_bytes, cache):
    """Name of the best card, or None."""
    ### BEGIN SOLUTION
    fits = [card for card in cards if card["memory"] * 2**30 >= weight_bytes + cache]
    return max(fits, key=lambda card: card["bandwidth"])["name"] if fits else None
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_pick_card", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(pick_card, "bandwidth.pick_card")
### BEGIN HIDDEN TESTS
classroom.grade(pick_card, "bandwidth.pick_card")
### END HIDDEN TESTS

# %% [markdown]
# ## To think about (no points)
#
# - Which of your functions gives a bound, and which an exact count?
# - A model goes from 16 to 4.5 bits per weight. Why is it less than 16 / 4.5 times as fast with a long context?
