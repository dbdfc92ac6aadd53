"""Finding object names in captions: plural and possessive forms, compounds, several words, synonyms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_QUALIFIER = re.compile(r"\([^()]*\)")
_POSSESSIVE = re.compile(r"['’]s?$")

# Plurals that no rule gives; also taken as the end of a longer word ("grandchildren", "bookshelves").
_IRREGULAR = {
    "calves": "calf",
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "halves": "half",
    "hooves": "hoof",
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "scarves": "scarf",
    "shelves": "shelf",
    "teeth": "tooth",
    "thieves": "thief",
    "wharves": "wharf",
    "wives": "wife",
    "wolves": "wolf",
}
_IRREGULAR_WORDS = {
    "axes": "axe",
    "cacti": "cactus",
    "dice": "die",
    "dormice": "dormouse",
    "dwarves": "dwarf",
    "elves": "elf",
    "fungi": "fungus",
    "hippopotami": "hippopotamus",
    "lice": "louse",
    "lives": "life",
    "mice": "mouse",
    "octopi": "octopus",
    "oxen": "ox",
    "people": "person",
    "quizzes": "quiz",
}
# Words in -men that are singular; all others are taken for plurals of -man.
_SINGULAR_MEN = frozenset(("abdomen acumen amen cyclamen dolmen lumen omen ramen regimen specimen stamen").split())
# Words in -s that are no plurals, beyond those with the endings below.
_SINGULAR_S = frozenset(
    (
        "always as atlas axis bias cannabis canvas chassis christmas clematis debris does gas has his ibis iris is"
        " lens mantis marquis mathematics news pancreas paris pelvis perhaps pyjamas series species tennis texas this"
        " trellis was yes"
    ).split()
)
_SINGULAR_ENDINGS = ("ss", "us", "sis", "itis", "llis", "polis")
_PLURAL_LENS = {"lenses": "lens", "gases": "gas", "canvases": "canvas", "atlases": "atlas", "biases": "bias"}
# Singulars that only take -s although their plural looks as if it took -es.
_KEEPS_E = frozenset(
    (
        "abuse accuse ache amuse avalanche axe backache brioche cache canoe confuse creche earache excuse floe foe"
        " fuse headache heartache hoe mistletoe moustache muse mustache niche oboe peruse pickaxe psyche quiche refuse"
        " ruse stomachache throe tiptoe toe toothache use"
    ).split()
)
# Singulars in -ie; other plurals in -ies come from -y.
_IN_IE = frozenset(
    (
        "aussie beanie birdie bogie boogie bookie bowtie brownie budgie calorie collie cookie cowrie cutie doggie"
        " foodie genie goalie hippie hoagie hoodie kiddie laddie lassie lie magpie menagerie movie necktie newbie"
        " nightie ollie pie pinkie pixie prairie rookie selfie smoothie sortie talkie tie veggie walkie weenie yuppie"
        " zombie"
    ).split()
)


def lemma(word: str) -> str:
    """
    Singular form of an English noun.

    Args:
        word (`str`):
            A lower-case word.

    Returns:
        `str`: The singular; the word itself where no plural is recognised.
    """
    word = _POSSESSIVE.sub("", word)
    if word in _IRREGULAR_WORDS:
        return _IRREGULAR_WORDS[word]
    for plural, singular in _IRREGULAR.items():
        if word.endswith(plural):
            return word[: -len(plural)] + singular
    if word.endswith("men") and word not in _SINGULAR_MEN:
        return word[:-2] + "an"
    if not word.endswith("s") or len(word) < 3 or word in _SINGULAR_S or word.endswith(_SINGULAR_ENDINGS):
        return word
    if word in _PLURAL_LENS:
        return _PLURAL_LENS[word]
    without_s = word[:-1]
    if without_s.endswith("ie"):
        return without_s if len(word) <= 4 or without_s in _IN_IE else word[:-3] + "y"
    if without_s in _KEEPS_E or without_s.endswith(("shoe", "ouse", "ause")):
        return without_s
    if without_s.endswith(("che", "she", "sse", "xe", "oe", "zze", "use", "irise", "trellise")):
        return word[:-2]
    return without_s


def lemmas(text: str) -> list[str]:
    """
    Words of a text in lower case and singular; hyphens and underscores separate words.

    Args:
        text (`str`):
            A caption or a name.

    Returns:
        `list[str]`: The words' lemmas.
    """
    return [lemma(word) for word in _WORD.findall(text.lower())]


def name_lemmas(name: str) -> tuple[str, ...]:
    """
    Lemmas of a name, a qualifier in round brackets left out: `"bow_(weapon)"` is `("bow",)`.

    Args:
        name (`str`):
            A name as a memory, LVIS or a person writes it.

    Raises:
        ValueError: If the name holds no word.
    """
    words = tuple(lemmas(_QUALIFIER.sub(" ", name))) or tuple(lemmas(name))
    if not words:
        raise ValueError(f"The name {name!r} holds no word.")
    return words


@dataclass(frozen=True)
class Mention:
    """A place of a text that names an object.

    Attributes:
        start (`int`): Index of the first word.
        end (`int`): Index behind the last word.
        objects (`frozenset[str]`): The objects with a name that reads so.
    """

    start: int
    end: int
    objects: frozenset[str]


class NameMatcher:
    """
    Finds the names of a set of objects in texts.

    Two spellings of a name agree when they differ in number, case, hyphens, underscores, or in being written as one
    word or several ("hot dogs", "hot-dog", "hotdog"). Where names overlap the longest counts: "hot dog" mentions no
    dog if both are known.

    Args:
        names (`Iterable[str]`):
            Names of the objects.
        synonyms (`Mapping[str, Sequence[str]]`, *optional*):
            Other names by name. Names of `synonyms` that are not in `names` are ignored, but their spelling needs not
            be the same: "fire_hydrant" gives the synonyms of "fire hydrant".

    Raises:
        ValueError: If a name holds no word.
        TypeError: If `synonyms` does not map names to lists.
    """

    def __init__(self, names: Iterable[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        if synonyms is not None and not isinstance(synonyms, Mapping):
            raise TypeError(f"`synonyms` must map names to lists of names, got {type(synonyms).__name__}.")
        other_names: dict[str, list[str]] = {}
        for name, others in (synonyms or {}).items():
            if isinstance(others, str):
                raise TypeError(f"The synonyms of {name!r} must be a list of names, got a string.")
            other_names.setdefault(_joined(name_lemmas(name)), []).extend(others)
        self._objects: dict[str, set[str]] = {}
        self._lengths: dict[str, set[int]] = {}
        self._longest = 1
        for name in dict.fromkeys(names):
            for spelling in (name, *other_names.get(_joined(name_lemmas(name)), [])):
                words = name_lemmas(spelling)
                self._objects.setdefault(_joined(words), set()).add(name)
                self._lengths.setdefault(_joined(words), set()).add(len(words))
                self._longest = max(self._longest, len(words) + 1)

    def objects(self, name: str) -> frozenset[str]:
        """Objects that a single name, plural or synonym stands for; empty if there is none."""
        return frozenset(self._objects.get(_joined(name_lemmas(name)), ()))

    def find(self, text: str) -> list[Mention]:
        """
        Find the objects a text mentions, from left to right and without overlaps.

        Args:
            text (`str`):
                A caption.

        Returns:
            `list[Mention]`: The mentions.
        """
        words = lemmas(text)
        mentions = []
        start = 0
        while start < len(words):
            for length in range(min(self._longest, len(words) - start), 0, -1):
                span = words[start : start + length]
                key = _joined(span)
                if key in self._objects and (length in self._lengths[key] or _may_be_joined(span)):
                    mentions.append(Mention(start, start + length, frozenset(self._objects[key])))
                    start += length
                    break
            else:
                start += 1
        return mentions

    def mentioned(self, text: str) -> frozenset[str]:
        """All objects that a text mentions."""
        return frozenset().union(*(mention.objects for mention in self.find(text)))


def _joined(words: Sequence[str]) -> str:
    return "".join(words)


def _may_be_joined(words: Sequence[str]) -> bool:
    """Whether words may be a compound written apart: not if one is as short as in "is land"."""
    return len(words) == 1 or min(map(len, words)) >= 3
