"""A tiny random checkpoint with its tokenizer, made here, with no network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmcli.checkpoints import safetensors
from llmcli.models.gpt2 import GPT2, GPT2Config

TEXT = """The sea was calm, and the old ship lay still. "Where shall we go?" said the boy. The captain looked at the
sea, and at the sky, and at the boy. "We shall go where the wind goes," he said, and they went there, and it was far."""

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,?"

TINY = GPT2Config(
    vocab_size=320,
    n_positions=64,
    n_embd=32,
    n_layer=2,
    n_head=4,
    initializer_range=0.2,  # wide enough that the most likely token is never a matter of rounding
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)


def write_tokenizer(directory: Path, vocab_size: int = 320) -> None:
    """Train a byte-level BPE tokenizer on TEXT and write its tokenizer.json; id 0 is <|endoftext|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_sentencepiece(directory: Path) -> None:
    """A tokenizer as T5's: unigrams of TEXT, blocks for spaces, </s> (id 1) after a text; id 0 is <pad>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False, initial_alphabet=[*ALPHABET]
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>"}))


def write_word_ends(directory: Path) -> None:
    """A tokenizer as the first GPT's: lower case, BPE of TEXT within words, </w> at the end of each; id 0 is <unk>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], show_progress=False, end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_wordpiece(directory: Path) -> None:
    """A tokenizer as BERT's: lower case, word pieces of TEXT, [CLS] and [SEP] around a text; id 0 is [PAD]."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=specials, show_progress=False, initial_alphabet=[*ALPHABET]
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    around = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]", "pad_token": "[PAD]"}))


def write_checkpoint(directory: Path, config: GPT2Config = TINY, seed: int = 0) -> GPT2:
    """Write config.json, model.safetensors and tokenizer.json of a random model; returns the model."""
    model = GPT2(config).initialize(torch.Generator().manual_seed(seed)).eval()
    document = {"model_type": "gpt2", **asdict(config), "eos_token_id": 0}
    (directory / "config.json").write_text(json.dumps(document))
    safetensors.save(directory / "model.safetensors", model.checkpoint())
    write_tokenizer(directory, config.vocab_size)
    return model
