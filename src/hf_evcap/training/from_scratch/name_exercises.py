"""Text-only exercises in which a caption is written from a list of names, some of them never seen before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ...caption_data.caption_words import content_words


OBJECT_TEMPLATES = (
    "a photo of {}",
    "a close up of {}",
    "a picture of {}",
    "a close up photo of {}",
    "{}",
    "a photo of {}",
)


class NameSource:
    """
    Draws names as token ids: known names, words of the corpus, two words, and random tokens that spell nothing.

    Random tokens keep every row of the embedding alive as something to copy: a softmax suppresses tokens that it
    never had to write.

    Args:
        names (`Sequence[str]`): Known names.
        words (`Sequence[str]`): Words of the corpus, rare and frequent alike.
        tokenizer: Byte-level BPE tokenizer; tokens that begin a word start with its space mark.
        known_share (`float`, *optional*, defaults to 0.35): Share of known names; the rest keep their proportions.
    """

    def __init__(self, names: Sequence[str], words: Sequence[str], tokenizer: Any, known_share: float = 0.35) -> None:
        self.names, self.words, self.tokenizer = list(names), list(words), tokenizer
        self.known_share = known_share if self.names else 0.0
        special = set(tokenizer.all_special_ids)
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        plain = [(t, i) for t, i in vocabulary if i not in special and not t.startswith("<")]
        self.first = [
            i for t, i in plain if t.startswith("Ġ") and len(t) > 1 and t[1:].isalpha() and t.isascii() is False
        ]
        self.inner = [i for t, i in plain if t.isascii() and t.isalpha()]

    def __call__(self, rng: random.Random) -> list[int]:
        if rng.random() < self.known_share:
            return self.encode(rng.choice(self.names))
        kind = rng.random()
        if kind < 0.23:
            return self.encode(rng.choice(self.words))
        if kind < 0.415:
            return self.encode(f"{rng.choice(self.words)} {rng.choice(self.names or self.words)}")
        ids = [rng.choice(self.first)]
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 5))):
            ids.append(rng.choice(self.first if rng.random() < 0.15 else self.inner))
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands within a caption, with the space before it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def with_article(self, name: list[int], rng: random.Random) -> list[int]:
        """Token ids of the name after "a" or "an", now and then after nothing."""
        if rng.random() < 0.1:
            return name
        initial = self.tokenizer.decode(name).strip()[:1].lower()
        return self.encode("an" if initial in set("aeiou") else "a") + name


def replace_word(caption: str, word: str, name: list[int], source: NameSource) -> list[int] | None:
    """
    Token ids of a caption with a word replaced by a name, its article agreeing; `None` if the word is not in it.

    Args:
        caption (`str`): A normalised caption.
        word (`str`): The word to replace where it first stands.
        name (`list[int]`): Token ids of the name.
        source ([`NameSource`]): Encodes the rest.
    """
    words = caption.split()
    if word not in words:
        return None
    place = words.index(word)
    before, after = words[:place], words[place + 1 :]
    if before and before[-1] in ("a", "an"):
        initial = source.tokenizer.decode(name).strip()[:1].lower()
        before[-1] = "an" if initial in set("aeiou") else "a"
    ids = source.encode(" ".join(before)) if before else []
    return ids + name + (source.encode(" ".join(after)) if after else [])


class NamedCaptionExercises:
    """
    Pairs of a list of names and a caption, made from plain captions.

    Five kinds, drawn for each item from its own seed, so that the same item is the same in every run: no names;
    the list that a scene memory would give ([`~caption_text.SceneTextSimulator`]); words of the caption among others;
    the same with one noun replaced by any name, in list and caption; a template around any name.

    Args:
        captions (`Sequence[str]`): Normalised captions.
        lists: Simulated word indices `(captions, variants, words)`.
        list_words (`Sequence[str]`): The words that the indices stand for.
        nouns (`set[str]`): Words that may be replaced.
        source ([`NameSource`]): Names to replace them with.
        num_items (`int`): Length of the exercise.
        seed (`int`, *optional*, defaults to 0): Seed.
        weights (`Sequence[float]`, *optional*): Shares of the five kinds.
    """

    def __init__(
        self,
        captions: Sequence[str],
        lists: Any,
        list_words: Sequence[str],
        nouns: set[str],
        source: NameSource,
        num_items: int,
        seed: int = 0,
        weights: Sequence[float] = (0.18, 0.34, 0.14, 0.18, 0.16),
    ) -> None:
        self.captions, self.lists, self.list_words = captions, lists, list_words
        self.nouns, self.source, self.num_items, self.seed, self.weights = nouns, source, num_items, seed, weights

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Returns `names` (`list[list[int]]`, token ids of each name) and `caption` (`list[int]`)."""
        rng = random.Random(self.seed * 1_000_003 + item)
        number = rng.randrange(len(self.captions))
        caption = self.captions[number]
        kind = rng.choices(range(5), self.weights)[0]
        names: list[list[int]] = []
        ids: list[int] | None = None
        if kind in (1, 3, 4):
            scene = self.scene_list(number if kind != 4 else rng.randrange(len(self.captions)), rng)
        if kind == 1:
            names = [self.source.encode(word) for word in scene]
        elif kind == 2:
            own = list(dict.fromkeys(content_words(caption)))
            words = [word for word in own if rng.random() < 0.7]
            words += (
                rng.sample(self.scene_list(number, rng), k=2)
                + self.scene_list(rng.randrange(len(self.captions)), rng)[: rng.randrange(4)]
            )
            words = list(dict.fromkeys(words))
            rng.shuffle(words)
            names = [self.source.encode(word) for word in words[:9]]
        elif kind == 3:
            nouns = [word for word in dict.fromkeys(content_words(caption)) if word in self.nouns]
            if nouns:
                word, name = rng.choice(nouns), self.source(rng)
                ids = replace_word(caption, word, name, self.source)
                names = [name] + [self.source.encode(w) for w in scene if w != word]
            else:
                names = [self.source.encode(w) for w in scene]
        elif kind == 4:
            name = self.source(rng)
            others = [self.source(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
            names = [name] + others + [self.source.encode(word) for word in scene]
            if rng.random() < 0.15:
                names = [name]
            before, after = rng.choice(OBJECT_TEMPLATES).split("{}")
            ids = (self.source.encode(before.strip()) if before.strip() else []) + self.source.with_article(name, rng)
            ids += self.source.encode(after.strip()) if after.strip() else []
        return {"names": names, "caption": self.source.encode(caption) if ids is None else ids}

    def scene_list(self, number: int, rng: random.Random) -> list[str]:
        """Words that a scene memory might give for a caption: 4 to 9 of them, some lost."""
        variants = self.lists[number]
        words = [self.list_words[index] for index in variants[rng.randrange(len(variants))]]
        words = [word for word in words if rng.random() > 0.07]
        return words[: rng.randint(5, 9)]


class CopyingExercises:
    """
    Mostly lists of names to be written out again, so that copying is learned before it is needed.

    A language model finds the way to copy in one step change, and captions alone give little reason for it.

    Args:
        others ([`NamedCaptionExercises`]): What the rest of the items are.
        share (`float`): Share of items that are copied: all names joined by "and", or the first one in a template.
        seed (`int`, *optional*, defaults to 0): Seed.
    """

    def __init__(self, others: NamedCaptionExercises, share: float, seed: int = 0) -> None:
        self.others, self.source, self.share, self.seed = others, others.source, share, seed

    def __len__(self) -> int:
        return len(self.others)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Returns `names` and `caption` as token ids."""
        rng = random.Random(self.seed * 1_000_003 + item)
        if rng.random() > self.share:
            return self.others[item]
        names = [self.source(rng) for _ in range(rng.choice((1, 1, 2, 3, 4, 5)))]
        if rng.random() < 0.5:
            caption = list(names[0])
            for name in names[1:]:
                caption += self.source.encode("and") + name
        else:
            before, after = rng.choice(OBJECT_TEMPLATES).split("{}")
            caption = self.source.encode(before.strip()) if before.strip() else []
            caption += self.source.with_article(names[0], rng)
            caption += self.source.encode(after.strip()) if after.strip() else []
        return {"names": names, "caption": caption}
