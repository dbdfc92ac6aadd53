"""Trains the tokenizer that captions and names share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "<sep>"}
IMAGE_TOKEN = "<image>"


def train_caption_tokenizer(
    captions: Sequence[str], names: Sequence[str], vocab_size: int, name_weight: int = 40
) -> PreTrainedTokenizerFast:
    """
    Trains a lower-casing byte-level BPE on captions and on names, the names weighted so that they stay short.

    A name of few tokens is copied more surely, and general names (LVIS, ImageNet) share their parts with names that
    nobody has thought of yet.

    Args:
        captions (`Sequence[str]`): Normalised captions.
        names (`Sequence[str]`): General names of things.
        vocab_size (`int`): Tokens, the special ones and the 256 bytes among them.
        name_weight (`int`, *optional*, defaults to 40): How often each name counts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()

    def texts() -> Iterator[str]:
        yield from captions
        for _ in range(name_weight):
            yield from names

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS.values(), IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=[IMAGE_TOKEN], padding_side="left", **SPECIAL_TOKENS
    )
