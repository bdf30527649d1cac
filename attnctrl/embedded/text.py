"""The text side of the embedded models: tokenizers made from the captions, and two small encoders."""

from __future__ import annotations

import json
import string

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from attnctrl.embedded.scenes import SUBJECT_NAMES, sample

TEXT_LENGTH = 24


def corpus(count: int = 20000, seed: int = 99) -> list[str]:
    """Seeded captions for training the tokenizers."""
    rng = np.random.default_rng(seed)
    return [sample(rng).caption for _ in range(count)]


def _split_words() -> set[str]:
    """Every second subject word: kept out of the vocabularies whole, so that it takes several tokens."""
    words = sorted({word for name in SUBJECT_NAMES for word in name.split() if len(word) > 3})
    return set(words[::2]) | {name for name in words if len(name) > 7}


def t5_tokenizer(captions: list[str], size: int = 320) -> T5Tokenizer:
    """A Unigram tokenizer of words and word halves, with all printable ASCII characters as fallback."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
        ]
    )
    special = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted(set(string.printable.strip()) | {"▁"})
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(captions, trainer)
    learnt = [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    split = _split_words()
    words = sorted({word for caption in captions for word in caption.replace(",", " ,").split()} - split)
    halves = {piece for word in split for piece in ("▁" + word[: len(word) // 2], word[len(word) // 2 :])}
    whole = {"▁" + word for word in split}
    scores = dict.fromkeys(special, 0.0)
    scores.update({"▁" + word: -5.0 for word in words})
    scores.update(dict.fromkeys(sorted(halves), -6.0))
    for piece in learnt:
        if piece not in whole and len(piece) > 1:
            scores.setdefault(piece, -8.0)
    for letter in alphabet:
        scores.setdefault(letter, -12.0)
    vocab = list(scores.items())
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TEXT_LENGTH)


def clip_tokenizer(captions: list[str], size: int = 760) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's form; the start and end tokens have the last two ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(captions, trainer)
    state = json.loads(trained.to_str())
    whole = {word + "</w>" for word in _split_words()}
    merges = [tuple(pair) for pair in state["model"]["merges"] if "".join(pair) not in whole]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A randomly set T5 encoder of width 128 for the tokenizer."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    return T5EncoderModel(config)


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A randomly set CLIP text model of width 64 for the tokenizer."""
    return CLIPTextModel(_clip_config(tokenizer))


def clip_projected(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """The same with SD3's projection of the pooled text, set to the identity."""
    encoder = CLIPTextModelWithProjection(_clip_config(tokenizer))
    torch.nn.init.eye_(encoder.text_projection.weight)
    return encoder
