"""Before training: an untrained fusion Q-Former learns to hand names on as the language model reads words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from transformers.utils import logging

from .name_copying import align_names_with_words, initialize_name_copying
from .name_lists import join_names


logger = logging.get_logger(__name__)

BATCH_SIZE, LEARNING_RATE = 40, 1.5e-3
LISTS = 4000


def align_names(model: Any, steps: int, names: Sequence[str] = (), seed: int = 0) -> float:
    """
    Starts the fusion Q-Former, the object-name queries and the projection over: object-name feature i becomes the
    embedding of name token i, so that a language model that was trained on text alone can read the names, and write
    any of them, before anything else is learned. Needs neither photos nor captions.

    Args:
        model ([`EVCapForConditionalGeneration`]): With `tie_name_embeddings` and a name tokenizer; changed in place.
        steps (`int`): Of the alignment; see [`~name_copying.align_names_with_words`].
        names (`Sequence[str]`, *optional*): Names to align with, beside random tokens.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `float`: Squared error of the last step, relative to the embeddings' variance.

    Raises:
        ValueError: The language model does not embed the names, or the heads are too narrow.
    """
    config, tokenizer = model.config, model.name_tokenizer
    if config.max_name_length > config.num_name_query_tokens:
        logger.warning(
            f"Of {config.max_name_length} name tokens (`max_name_length`), {config.num_name_query_tokens} have a "
            "query of their own (`num_name_query_tokens`); the others start unread."
        )
    initialize_name_copying(model, seed)
    rng = random.Random(seed)
    size = min(len(model.get_input_embeddings().weight), len(tokenizer))
    plain = sorted(set(range(size)) - set(tokenizer.all_special_ids))
    length = min(config.max_name_length, config.num_name_query_tokens)
    encoded = tokenizer(list(names), add_special_tokens=False)["input_ids"] if names else []
    lists = []
    for number in range(LISTS):
        count = rng.randint(1, max(1, config.num_retrieved_names))
        if encoded and number % 2:
            drawn = [rng.choice(encoded) for _ in range(count)]
        else:
            drawn = [[rng.choice(plain) for _ in range(rng.choice((1, 1, 2, 3, 4)))] for _ in range(count)]
        lists.append(join_names(drawn, tokenizer.sep_token_id, length))
    return align_names_with_words(model, lists, steps, BATCH_SIZE, LEARNING_RATE, seed=seed)


__all__ = ["align_names"]
