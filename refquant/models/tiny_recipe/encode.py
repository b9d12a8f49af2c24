"""Train the tokenizer and turn the text into token ids. `python -m refquant.models.tiny_recipe.encode FOLDER MODEL`

FOLDER is what `gather` wrote; it receives tokens/<part>.u16, plain little-endian uint16 ids, every document followed
by <|endoftext|>. MODEL receives tokenizer.json and tokenizer_config.json (an ordinary fast tokenizer) and tokens.npz:
calibration and evaluation ids, each cut to TOKENS_SHIPPED, which ship with the package.

The tokenizer is byte-level BPE with GPT-2's pre-tokenization, which is also what `tokenizer.ggml.pre = "gpt-2"` means
in a GGUF file. <|endoftext|> is id 0 and serves as beginning and end; encoding adds neither.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from refquant.models.tiny_recipe import clean

END = "<|endoftext|>"
TOKENS_SHIPPED = 131072


def train_tokenizer(texts, vocab_size: int = 4096) -> Tokenizer:
    """Byte-level BPE from an iterable of texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int = 512):
    """Write it as Hugging Face's fast tokenizer files."""
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows too
    path.write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: Tokenizer, documents: list[str], at_once: int = 2000) -> np.ndarray:
    """Ids uint16 of all documents, each followed by <|endoftext|>."""
    end, parts = np.array([tokenizer.token_to_id(END)], np.uint16), []
    for i in range(0, len(documents), at_once):
        for e in tokenizer.encode_batch_fast(documents[i : i + at_once], add_special_tokens=False):
            parts += [np.array(e.ids, np.uint16), end]
    return np.concatenate(parts)


def documents_of(folder: Path, part: str) -> list[str]:
    """The documents of a part, in the order that `gather` gave them."""
    return (folder / "text" / f"{part}.txt").read_text().split("\0")[:-1]


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    args = parser.parse_args()
    training = documents_of(args.folder, "training")
    tokenizer = train_tokenizer(training[:: max(1, sum(map(len, training)) // 40_000_000)])
    save_tokenizer(tokenizer, args.model)
    (args.folder / "tokens").mkdir(exist_ok=True)
    shipped = {}
    for part in clean.PARTS:
        documents = training if part == "training" else documents_of(args.folder, part)
        ids = encode(tokenizer, documents)
        ids.astype("<u2").tofile(args.folder / "tokens" / f"{part}.u16")
        print(f"{part}: {len(ids)} tokens, {sum(map(len, documents)) / len(ids):.3f} characters a token")
        if part in ("calibration", "evaluation"):
            shipped[part] = ids[:TOKENS_SHIPPED]
    np.savez_compressed(args.model / "tokens.npz", **shipped)


if __name__ == "__main__":
    main()
