"""Small tokenizers of the kinds that model files contain, trained on a few lines, as transformers loads them.

Each has the special tokens `<unk>`, `<s>`, `</s>` and `<|im_end|>`, with the ids 0 to 3, and the added token `<tool>`,
which is not special and has the last id.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="tokenizers of models (extra `local`)")

from tokenizers import (  # noqa: E402
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
END = 2
CORPUS = [
    "walk walking walked talk talking talked, ing ed",
    "the quick brown fox jumps over the lazy dog",
    "THE QUICK BROWN FOX! yes no yes no no way (say) 0123456789",
    'say "no" \\ / {"name": "x", "age": 15, "tags": []} true false null a.b-c_d',
    "<|im_start|>user\nhello\tworld<|im_end|> <tool> <filename> naïve 日本語 ~@#$%^&*+=|;:'?`",
]
KINDS = (
    "bytes",
    "ignoring merges",
    "first",
    "always",
    "never",
    "normalizer",
    "unigram",
    "unigram plain",
    "words",
)


@cache
def tokenizer(kind: str, size: int = 420) -> Any:
    """The tokenizer of that kind, at most `size` tokens large."""
    made = _wordpiece(size) if kind == "words" else _unigram(kind, size) if "unigram" in kind else _bpe(kind, size)
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|im_end|>"]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def _bpe(kind: str, size: int) -> Any:
    if kind in ("bytes", "ignoring merges"):  # GPT 2, Llama 3, Qwen: an alphabet of bytes
        made = Tokenizer(models.BPE(ignore_merges="ignoring" in kind))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
        )
        return made
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "normalizer":  # Llama 2 as converted at first: the prefix space by a normalizer
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    strip = [] if kind == "never" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    words = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.pre_tokenizer = words
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    return _with_model_of(made, learnt)


def _with_model_of(made: Any, learnt: Any) -> Any:
    """`made` with the vocabulary and merges that `learnt` has learnt."""
    import json

    described, other = json.loads(made.to_str()), json.loads(learnt.to_str())
    described["model"]["vocab"], described["model"]["merges"] = other["model"]["vocab"], other["model"]["merges"]
    described["added_tokens"] = [token for token in other["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(described))


def _unigram(kind: str, size: int) -> Any:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    if kind == "unigram":  # T5, Gemma: also squeezes spaces
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return made


def _wordpiece(size: int) -> Any:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL))
    return made
