"""Captions as text: normalised, and the words of them that say what a photo shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


# Words that say nothing about what a photo shows; everything else in a caption may become a name of a scene.
STOP_WORDS = frozenset(
    "a about after against all along also am among an and another any are around as at away back be because been "
    "before behind being below beside between both but by can could did do does down during each either few for from "
    "get gets getting go goes going had has have having he her him his how i if in into is it its just like many may "
    "me might more most my near next no nor not of off on one onto or other our out over own past several she should "
    "so some something such than that the their them then there these they this those three through to too toward "
    "towards two under up upon us very was we were what when where which while who whose will with would you your "
    "four five six".split()
)

_WORD = re.compile(r"[a-z]+")


def normalize_caption(caption: str) -> str:
    """Lower-cases a caption, keeps letters, digits, commas, hyphens and apostrophes, and drops the final full stop."""
    text = re.sub(r"[^a-z0-9' ,-]+", " ", caption.lower())
    text = re.sub(r"\s+(['-]s?\b)", r"\1", re.sub(r"\s*,[\s,]*", ", ", text))
    return re.sub(r"\s+", " ", text).strip(" ,-'")


def content_words(caption: str) -> list[str]:
    """Words of a normalised caption that say what is seen, in their order, with repetitions."""
    return [word for word in _WORD.findall(caption) if len(word) > 2 and word not in STOP_WORDS]


def shared_words(captions: Sequence[str], min_captions: int = 2) -> list[str]:
    """
    Content words on which the captions of one photo agree, most agreed first: the names of a scene.

    Args:
        captions (`Sequence[str]`): Captions of one photo, normalised.
        min_captions (`int`, *optional*, defaults to 2): In how many of them a word must stand, at most all.
    """
    counts = Counter(word for caption in captions for word in dict.fromkeys(content_words(caption)))
    return [word for word, count in counts.most_common() if count >= min(min_captions, len(captions))]


__all__ = ["STOP_WORDS", "content_words", "normalize_caption", "shared_words"]
