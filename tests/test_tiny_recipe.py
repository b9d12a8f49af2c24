"""The recipe of the bundled model: readers, cleaning, splits, tokenizer, training; on small texts and micro models."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the recipe trains with torch")
import torch

from refquant.models.tiny_recipe import clean, encode, extract, gather, sources, train

RST = """
Title
=====

The :func:`open` function opens a *file* and returns
a ``file object``, see `the docs <x.html>`_.

.. code-block:: python

   open("x")

.. note:: This body stays.

   So does this one.

Example::

   gone = 1

- one item
"""


def test_rst_keeps_prose_and_drops_code():
    assert extract.rst(RST) == [
        ("h", "Title"),
        ("p", "The open function opens a file and returns a file object, see the docs."),
        ("p", "This body stays."),
        ("p", "So does this one."),
        ("p", "Example:"),
        ("p", "- one item"),
    ]


MARKDOWN = """# Head
Text with `code`
and [a link](u).

```sh
ls
```
"""
POD = """=head1 NAME

Use L<open|perlfunc> or C<< $a->b >>.

  code

=cut

no
"""
HTML = "<h1>A</h1><p>x &lt; <b>y</b></p><pre>no</pre><p>see <xref linkend='z'/>.</p>"
PYTHON = '''x = """no"""
def f():
    """First line is long enough to be kept here.

    Second one of them.
    """
'''
JAVA = """/** Returns {@code x} now.
 * @param y no
 */
// One line
// and two.
code // no
"""
JSON = '{"a": {"documentation": "<p>One.</p><p>Two.</p>"}, "description": "Three `x`."}'


@pytest.mark.parametrize(
    ("reader", "text", "want"),
    [
        (extract.markdown, MARKDOWN, "Head|Text with code and a link."),
        (extract.pod, POD, "Name|Use open or $a->b."),
        (extract.tags, HTML, "A|x < y|see that section."),
        (extract.docstrings, PYTHON, "First line is long enough to be kept here.|Second one of them."),
        (extract.comments, JAVA, "Returns x now.|One line and two."),
        (extract.described, JSON, "One.|Two.|Three x."),
    ],
)
def test_a_reader_gives_paragraphs(reader, text, want):
    assert "|".join(t for _, t in reader(text)) == want


SENTENCE = "The value of the option is used when the file is read for the first time."


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        (SENTENCE, True),
        ("- " + SENTENCE, True),
        (SENTENCE[:-1], False),  # no full stop
        (SENTENCE.lower(), False),
        ("Licensed under the terms that you find in the file of this name in the root of the tree.", False),
        ("The x_y = f(a, b) + g[c] * 3 is in the h->i of the j(k) and {l} for m&n or o|p if q.", False),
        ("Große Werte sind in der Datei für das erste Mal gelesen und sie werden dann benutzt.", False),
        ("Werte sind in der Datei gespeichert und werden beim ersten Mal gelesen und benutzt.", False),
    ],
)
def test_is_prose(text, keep):
    assert clean.is_prose(text) is keep


def test_prose_cuts_a_sentence_that_introduces_dropped_code_and_drops_empty_headings():
    blocks = [("h", "Empty"), ("h", "Full"), ("p", SENTENCE + " For example:"), ("p", "x = 1"), ("h", "Last")]
    assert clean.prose(blocks) == ["Full", SENTENCE]


def test_deduplicate_keeps_the_first_occurrence_only():
    other = SENTENCE.replace("option", "argument")
    documents = [("a", ["Head", SENTENCE, other]), ("b", ["Head", SENTENCE.upper(), "More", other + " New."])]
    assert dict(clean.deduplicate(documents)) == {"a": ["Head", SENTENCE, other], "b": ["More", other + " New."]}


def test_parts_depend_on_the_name_alone_and_have_the_sizes_that_were_asked_for():
    names = [f"pypi/x/{i}.py" for i in range(20000)]
    parts = [clean.part_of(n) for n in names]
    assert parts == [clean.part_of(n) for n in names]
    for part, size in clean.HELD_OUT.items():
        assert abs(parts.count(part) - 20 * size) < 5 * (20 * size) ** 0.5


def test_shingles_ignore_case_and_punctuation_and_see_shared_runs_of_eight_words():
    a = "one two three four five six seven eight nine ten"
    assert np.array_equal(clean.shingles(a), clean.shingles(a.upper().replace(" ", ",  ")))
    assert len(clean.shingles(a)) == 3
    assert len(clean.shingles("one two three four five six seven")) == 0
    assert clean.overlap("zero one two three four five six seven eight", clean.shingles(a)) == 0.5
    assert clean.overlap("ten nine eight seven six five four three two one", clean.shingles(a)) == 0.0


def test_split_drops_a_held_out_document_that_copies_training_and_cuts_long_ones():
    rng = np.random.default_rng(0)

    def text(paragraphs=20):
        words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(40 * paragraphs)]
        return "\n\n".join(" ".join(words[i : i + 40]) for i in range(0, len(words), 40))

    names = [f"d/s/{i}" for i in range(3000)]
    by_part = {part: [n for n in names if clean.part_of(n) == part] for part in clean.PARTS}
    long, copied = text(60), text()
    documents = [(n, text(1)) for n in by_part["training"][:50]] + [(by_part["training"][50], copied)]
    documents += [
        (by_part["evaluation"][0], copied),
        (by_part["evaluation"][1], long),
        (by_part["calibration"][0], long),
    ]
    parts = gather.split(documents)
    assert len(parts["training"]) == 51
    assert [n for n, _ in parts["evaluation"]] == [by_part["evaluation"][1]]
    assert parts["calibration"] == []  # the same text as an evaluation document
    kept = parts["evaluation"][0][1]
    assert long.startswith(kept)
    assert 5000 < len(kept) <= 6000


def test_paths_of_tests_translations_and_vendored_code_are_not_read():
    source = sources.Source("debian", "x", "MIT")
    assert sources.wanted(source, "doc/howto/regex.rst")
    assert sources.wanted(source, "./usr/share/doc/x/html/index.html")
    for path in (
        "tests/a.py",
        "vendor/b/readme.md",
        "web/page.html",
        "doc/LICENSE.txt",
        "src/a.c",
        "doc/_sources/a.txt",
    ):
        assert not sources.wanted(source, path)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("google_cloud_aiplatform-2.7.0-py2.py3-none-any.whl", "2.7.0"),
        ("llvm-toolchain-15_15.0.6.orig.tar.xz", "15.0.6"),
        ("python-scipy-doc_1.10.1-2_all.deb", "1.10.1-2"),
        ("scipy_1.10.1+dfsg.orig-doc.tar.gz", "1.10.1+dfsg"),
    ],
)
def test_the_version_is_read_from_an_archives_name(name, version):
    assert sources.version_of(Path(name)) == version


def test_every_source_is_listed_once_under_a_permissive_licence():
    keys = [s.key for s in sources.SOURCES]
    assert len(set(keys)) == len(keys)
    assert not {s.name for s in sources.SOURCES if "GPL" in s.licence or "GFDL" in s.licence or "MPL" in s.licence}


def test_the_tokenizer_is_gpt2s_byte_level_bpe_and_loses_nothing(tmp_path):
    tokenizer = encode.train_tokenizer([SENTENCE] * 3, vocab_size=300)
    encode.save_tokenizer(tokenizer, tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token_id == loaded.bos_token_id == 0
    for text in (SENTENCE, " two  spaces, Grüße and 123 don't\n\n", "\x00\x7f"):
        assert loaded.decode(loaded(text)["input_ids"]) == text
    ids = encode.encode(tokenizer, [SENTENCE, "a"])
    assert ids.dtype == np.uint16
    assert (ids == 0).nonzero()[0].tolist() == [len(ids) - 3, len(ids) - 1]


MICRO = train.Config(64, 32, 48, 2, 4, 2, 16)
OPTIONS = "--cpu --batch 4 --every 1 --warmup 2 --vocab-size 64 --hidden-size 32 --intermediate-size 48 "
OPTIONS += "--num-hidden-layers 2 --num-attention-heads 4 --num-key-value-heads 2 --max-position-embeddings 16"


@pytest.fixture
def tokens(tmp_path):
    rng = np.random.default_rng(0)
    for part, size in (("training", 5000), ("validation", 600)):
        (np.cumsum(rng.integers(0, 5, size)) % 60).astype("<u2").tofile(tmp_path / f"{part}.u16")
    return tmp_path


def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(tokens):
    whole = [str(tokens), str(tokens / "whole"), "--steps", "6", *OPTIONS.split()]
    parts = [str(tokens), str(tokens / "parts"), "--steps", "6", *OPTIONS.split()]
    train.main(whole)
    train.main([*parts, "--stop-after", "1e-9"])
    assert len(json.loads((tokens / "parts" / "history.json").read_text())["train"]) == 1
    train.main([*parts, "--resume"])
    a, b = ((tokens / run / "model.safetensors").read_bytes() for run in ("whole", "parts"))
    assert a == b
    curve = json.loads((tokens / "whole" / "history.json").read_text())["train"]
    assert [p[0] for p in curve] == [1, 2, 3, 4, 5, 6]


def test_the_written_out_model_is_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ours = train.Llama(MICRO)
    theirs = LlamaForCausalLM(LlamaConfig(**vars(MICRO), tie_word_embeddings=True, attn_implementation="eager"))
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys in ([], ["lm_head.weight"])
    ids = torch.randint(64, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_batches_visit_every_window_once_an_epoch_and_differ_between_epochs():
    stream = train.batches(torch.arange(1001), 10, 9, seed=1, first=0)
    epochs = [torch.cat([next(stream)[:, 0] for _ in range(11)]) for _ in range(2)]
    for starts in epochs:
        assert len(set(starts.tolist())) == 99
        assert len({int(s) % 10 for s in starts}) == 1
    assert not torch.equal(*epochs)
    again = train.batches(torch.arange(1001), 10, 9, seed=1, first=13)
    skipped = train.batches(torch.arange(1001), 10, 9, seed=1, first=0)
    for _ in range(13):
        next(skipped)
    assert torch.equal(next(again), next(skipped))


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth():
    rates = [train.learning_rate(s, 100, 1.0, 10) for s in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[100] == pytest.approx(0.01)
