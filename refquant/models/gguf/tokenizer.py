"""The tokenizer inside a GGUF file: from transformers to metadata, and back.

Two kinds are known, by `tokenizer.ggml.model`:

- `gpt2`: byte-level BPE. Text is cut into words by a pre-tokenizer, which llama.cpp knows by name only
  (`tokenizer.ggml.pre`), each word's bytes become printable characters, and merges are applied by rank.
- `llama`: BPE in the manner of sentencepiece. Spaces become U+2581, merges are found from the tokens' scores, and bytes
  without a token are spelled `<0xNN>`.

transformers keeps the same facts as the JSON of its fast tokenizers, so no file is needed beside the GGUF file.
"""

import json
from collections.abc import Mapping

import numpy as np

from refquant.errors import BadFile, BadInput

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = f"{_CASED}{_UPPER}*{_LOWER}+|{_CASED}{_UPPER}+{_LOWER}*|" + r"\p{N}" + _TAIL
_GPT4O = f"{_CASED}{_UPPER}*{_LOWER}+{_ENGLISH}?|{_CASED}{_UPPER}+{_LOWER}*{_ENGLISH}?|" + r"\p{N}{1,3}" + _TAIL
# llama.cpp's name: the expression that cuts words (None: the one built into ByteLevel), whether single digits are cut
# first, and whether a word that is a token is taken whole before any merge
PRE_TOKENIZERS = {
    "gpt-2": (None, False, False),
    "smollm": (None, True, False),
    "llama-bpe": (_LLAMA3, False, True),
    "qwen2": (_QWEN2, False, False),
    "gpt-4o": (_GPT4O, False, False),
    "tekken": (_TEKKEN, False, True),
}
SAME = {
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "mellum", "modern-bert", "exaone4", "trillion"), "gpt-2"),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "grok-2"), "qwen2"),
    **dict.fromkeys(("llama4", "kanana2", "minimax-m2"), "gpt-4o"),
}


# ---- transformers -> metadata


def tokenizer_metadata(tokenizer, vocabulary: int) -> dict:
    """Return the metadata of a fast tokenizer of transformers.

    Parameters
    ----------
    tokenizer : a fast tokenizer whose model is BPE
    vocabulary : int
        Rows of the embedding; ids without a token get `[PADi]`, of the type UNUSED.

    Raises
    ------
    BadInput
        Another kind of tokenizer, or a pre-tokenizer or normalizer that llama.cpp has no name for.

    Against other code: llama.cpp's converter finds the pre-tokenizer by hashing the tokens of a test sentence, so it
    knows only vocabularies that it has met; this looks at the expression itself. Both drop NFC normalization.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput(f"{type(tokenizer).__name__} is not a fast tokenizer; only those can be written to GGUF")
    spec = json.loads(backend.to_str())
    model, ids = spec["model"], tokenizer.get_vocab()
    if model["type"] != "BPE" or max(ids.values()) >= vocabulary:
        raise BadInput(
            f"a {model['type']} tokenizer of {max(ids.values()) + 1} ids for {vocabulary} rows; expected BPE that fits"
        )
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens = [f"[PAD{i}]" for i in range(vocabulary)]
    kinds = np.full(vocabulary, UNUSED, np.int32)
    for token, i in ids.items():
        tokens[i], kinds[i] = token, NORMAL
    for added in spec["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if model.get("byte_fallback"):
        metadata = _sentencepiece(spec, tokens, kinds, pairs)
    else:
        metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre_tokenizer_name(spec)}
        metadata["tokenizer.ggml.merges"] = [" ".join(pair) for pair in pairs]
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (token := getattr(tokenizer, f"{role}_token_id")) is not None:
            metadata[f"tokenizer.ggml.{key}_token_id"] = np.uint32(token)
    around = tokenizer("a").input_ids
    metadata["tokenizer.ggml.add_bos_token"] = len(around) > 1 and around[0] == tokenizer.bos_token_id
    metadata["tokenizer.ggml.add_eos_token"] = len(around) > 1 and around[-1] == tokenizer.eos_token_id
    if isinstance(tokenizer.chat_template, str):
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def pre_tokenizer_name(spec: Mapping) -> str:
    """Return llama.cpp's name for the pre-tokenizer in a fast tokenizer's JSON."""
    pre = spec["pre_tokenizer"] or {"type": "none"}
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    pattern, digits, byte_level, other = None, False, False, []
    for step in steps:
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            byte_level = True
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            pattern = step["pattern"]["Regex"]
        elif step["type"] == "Digits" and step["individual_digits"]:
            digits = True
        else:
            other.append(step["type"])
    normalizer = (spec["normalizer"] or {"type": "NFC"})["type"]
    wanted = (pattern, digits, bool(spec["model"].get("ignore_merges")))
    for name, known in PRE_TOKENIZERS.items():
        if byte_level and not other and normalizer == "NFC" and known == wanted:
            return name
    raise BadInput(
        f"llama.cpp has no name for this pre-tokenizer: {[step['type'] for step in steps]}, expression {pattern!r}, "
        f"normalizer {normalizer}; known: {', '.join(PRE_TOKENIZERS)}"
    )


def _sentencepiece(spec: Mapping, tokens: list[str], kinds: np.ndarray, pairs: list) -> dict:
    """Scores from merge ranks: sentencepiece's own scores of BPE are minus the order in which tokens were learned."""
    scores = np.zeros(len(tokens), np.float32)
    ids = {token: i for i, token in enumerate(tokens)}
    for rank, pair in reversed(list(enumerate(pairs))):
        scores[ids["".join(pair)]] = -rank
    learned = {"".join(pair) for pair in pairs}
    for i, token in enumerate(tokens):
        if kinds[i] == NORMAL and token not in learned:
            scores[i] = -len(pairs) - i  # single characters are never the result of a merge
        if kinds[i] == NORMAL and len(token) == 6 and token.startswith("<0x"):
            kinds[i] = BYTE
    if (unknown := spec["model"].get("unk_token")) in ids:
        kinds[ids[unknown]] = UNKNOWN
    text = json.dumps([spec["normalizer"], spec["pre_tokenizer"]])
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": "Prepend" in text or '"prepend_scheme": "always"' in text or "first" in text,
    }


# ---- metadata -> transformers


def gguf_tokenizer(metadata: Mapping):
    """Build a fast tokenizer of transformers from a file's metadata; it encodes as llama.cpp does.

    Raises
    ------
    BadFile
        No tokenizer, another kind than `gpt2` and `llama`, an unknown pre-tokenizer, arrays of different lengths.

    Leaves out: Unigram and WordPiece (`t5`, `bert`), the prefix space after special tokens in `llama`.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    builders = {"gpt2": _byte_level, "llama": _from_scores}
    if kind not in builders or not tokens:
        raise BadFile(f"the file's tokenizer is {kind!r} with {len(tokens or ())} tokens; known: {', '.join(builders)}")
    kinds = metadata.get("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL, np.int32))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise BadFile(f"{len(kinds)} token types for {len(tokens)} tokens, {len(set(tokens))} of them different")
    built = builders[kind](metadata, tokens)
    added = [
        tokenizers.AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    built.add_tokens(added)
    roles = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            if int(token) >= len(tokens):
                raise BadFile(f"tokenizer.ggml.{key}_token_id is {token}, but there are {len(tokens)} tokens")
            roles[f"{role}_token"] = tokens[int(token)]
    _add_ends(built, metadata, roles, kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        clean_up_tokenization_spaces=False,
        chat_template=metadata.get("tokenizer.chat_template"),
        **roles,
    )


def _byte_level(metadata: Mapping, tokens: list[str]):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = metadata.get("tokenizer.ggml.pre", "default")
    if SAME.get(name, name) not in PRE_TOKENIZERS:
        raise BadFile(f"tokenizer.ggml.pre is {name!r}; known: {', '.join([*PRE_TOKENIZERS, *SAME])}")
    pattern, digits, whole = PRE_TOKENIZERS[SAME.get(name, name)]
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    if wrong := [pair for pair in merges if len(pair) != 2]:
        raise BadFile(f"tokenizer.ggml.merges: {wrong[0]} is not a pair")
    ids = {token: i for i, token in enumerate(tokens)}
    # llama.cpp skips a merge that gives no token
    merges = [pair for pair in merges if pair[0] in ids and pair[1] in ids and "".join(pair) in ids]
    built = Tokenizer(models.BPE(ids, merges, ignore_merges=whole))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    built.pre_tokenizer = pre_tokenizers.Sequence(steps)
    built.decoder = decoders.ByteLevel()
    return built


def _from_scores(metadata: Mapping, tokens: list[str]):
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise BadFile(f"tokenizer.ggml.scores: expected one for each of {len(tokens)} tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = [
        (-scores[i], j, token[:j], token[j:])
        for token, i in ids.items()
        for j in range(1, len(token))
        if token[:j] in ids and token[j:] in ids
    ]
    pairs.sort(key=lambda pair: pair[:2])  # the best score first: sentencepiece's order of merging
    unknown = tokens[int(metadata.get("tokenizer.ggml.unknown_token_id", 0))]
    merges = [pair[2:] for pair in pairs]
    built = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    replace = normalizers.Replace(" ", SPACE)
    built.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return built


def _add_ends(built, metadata: Mapping, roles: dict, kind: str) -> None:
    """Put BOS and EOS around a text where the file says so, or where llama.cpp does by default."""
    from tokenizers.processors import TemplateProcessing

    named = metadata.get("tokenizer.ggml.pre")
    default = kind == "llama" or SAME.get(named, named) in ("llama-bpe", "tekken")
    wanted = {"bos": default, "eos": False}
    parts, special = ["$A"], []
    for role in ("bos", "eos"):
        token = roles.get(f"{role}_token")
        if token and metadata.get(f"tokenizer.ggml.add_{role}_token", wanted[role]):
            parts = [token, *parts] if role == "bos" else [*parts, token]
            special.append((token, built.token_to_id(token)))
    if special:
        built.post_processor = TemplateProcessing(single=parts, special_tokens=special)
