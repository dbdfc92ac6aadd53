"""What a small captioner is trained on: photos, objects, text and names, what is held out, and text exercises."""

from __future__ import annotations

import io
import random
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ...caption_data.caption_words import content_words, normalize_caption
from ..fine_tuning.name_lists import read_names
from .caption_text import SceneTextSimulator, read_captions
from .caption_tokenizer import train_caption_tokenizer
from .name_exercises import NamedCaptionExercises, NameSource


NOISES = (0.1, 0.18)  # of the simulated lists: a memory that sees well, and one that sees badly
PEOPLE_AND_DOGS = "man woman boy girl child people person dog men women children boys girls dogs".split()


def open_photo(row: dict[str, Any]) -> Image.Image:
    """Reads a photo as `datasets` stores it in parquet, `{"bytes": ..., "path": ...}`, as RGB."""
    return Image.open(io.BytesIO(row["bytes"]) if row.get("bytes") else row["path"]).convert("RGB")


class TinyData:
    """
    The data of a recipe; what takes long to make is kept in the work folder.

    Args:
        recipe (`dict`): The recipe, as read from its YAML.
        data (`str` or `Path`): Folder of the files that `recipe["data"]` names.
        work (`str` or `Path`): Folder of caches.
    """

    def __init__(self, recipe: dict[str, Any], data: str | Path, work: str | Path) -> None:
        self.recipe, self.folder, self.work = recipe, Path(data), Path(work)
        self.work.mkdir(parents=True, exist_ok=True)
        for name in ("captions", "objects", "text", "names"):
            if not (self.folder / recipe["data"][name]).is_file():
                raise FileNotFoundError(f"There is no {self.folder / recipe['data'][name]} (recipe: data.{name}).")

    # Data

    @cached_property
    def photos(self) -> Any:
        """Captioned photos, a table with `image` and `captions`."""
        import pandas as pd

        return pd.read_parquet(self.folder / self.recipe["data"]["captions"])

    @cached_property
    def objects(self) -> Any:
        """Photos of objects, a table with `image` and `name`."""
        import pandas as pd

        return pd.read_parquet(self.folder / self.recipe["data"]["objects"])

    @cached_property
    def captions(self) -> list[list[str]]:
        """Normalised captions of each photo."""
        return [[normalize_caption(caption) for caption in photo] for photo in self.photos["captions"]]

    @cached_property
    def corpus(self) -> list[str]:
        """Captions without photos; those that tell what a held-out photo shows are left out."""
        held_out = {caption for photo in self.held_out_photos for caption in self.captions[photo]}
        captions = read_captions(self.folder / self.recipe["data"]["text"])
        return [caption for caption in captions if caption not in held_out]

    @cached_property
    def held_out_photos(self) -> set[int]:
        """Captioned photos that training never sees, for choosing between models."""
        return set(random.Random(5).sample(range(len(self.photos)), self.recipe["data"]["held_out_photos"]))

    @cached_property
    def held_out_names(self) -> set[str]:
        """Names never shown in training, drawn from those with at least 20 photos."""
        counts = self.objects["name"].value_counts()
        unfit = set(self.recipe["data"].get("never_held_out_sources", ()))
        if unfit:
            unfit = set(self.objects["name"][self.objects["source"].isin(unfit)])
        pool = sorted(name for name in counts.index if counts[name] >= 20 and name not in unfit)
        return set(random.Random(7).sample(pool, min(self.recipe["data"]["held_out_names"], len(pool))))

    @cached_property
    def object_ranks(self) -> np.ndarray:
        """Number of each object photo among those of its name."""
        return self.objects.groupby("name").cumcount().to_numpy()

    @cached_property
    def exemplars(self) -> list[int]:
        """Object photos that go into the memory during training."""
        limit = self.recipe["data"]["exemplars_per_name"]
        names = self.objects["name"]
        return [i for i in range(len(names)) if self.object_ranks[i] < limit and names[i] not in self.held_out_names]

    @cached_property
    def training_objects(self) -> list[int]:
        """Object photos that are trained on: no held-out name, and not the photos that test known names."""
        limit, test = self.recipe["data"]["exemplars_per_name"], self.recipe["data"]["held_out_exemplars"]
        counts = self.objects["name"].map(self.objects["name"].value_counts()).to_numpy()
        tested = (counts >= limit + test) & (self.object_ranks >= limit) & (self.object_ranks < limit + test)
        names = self.objects["name"]
        return [i for i in range(len(names)) if names[i] not in self.held_out_names and not tested[i]]

    @cached_property
    def names(self) -> list[str]:
        """General names: those of the list and of the objects, without the held-out ones."""
        listed = read_names(self.folder / self.recipe["data"]["names"])
        return sorted({*listed, *(name.lower() for name in self.objects["name"])} - self.held_out_names)

    # Text

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Tokenizer of captions and names."""
        folder = self.work / "tokenizer"
        if not folder.is_dir():
            settings = self.recipe["tokenizer"]
            train_caption_tokenizer(self.corpus, self.names, **settings).save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)

    @cached_property
    def simulator(self) -> SceneTextSimulator:
        """Guesses scene lists for captions; sees no held-out photo."""
        return SceneTextSimulator([self.captions[i] for i in self.training_photos], self.corpus)

    @cached_property
    def training_photos(self) -> list[int]:
        """Captioned photos that are trained on."""
        return [i for i in range(len(self.photos)) if i not in self.held_out_photos]

    @cached_property
    def simulated(self) -> dict[str, np.ndarray]:
        """Scene lists for the corpus, and the nearest photo of each caption with its similarity."""
        path = self.work / "simulated.npz"
        if not path.exists():
            lists, nearest, closeness = self.simulator.simulate(self.corpus, NOISES, seed=self.recipe["seed"])
            nearest = np.array(self.training_photos)[nearest]
            np.savez(path, lists=lists, nearest=nearest, closeness=closeness)
        return dict(np.load(path))

    @cached_property
    def texts(self) -> list[str]:
        """What the language model reads: the corpus, and twice the captions of the training photos."""
        return self.corpus + [caption for i in self.training_photos for caption in self.captions[i]] * 2

    @cached_property
    def corpus_words(self) -> list[str]:
        """Content words that the corpus has more than once."""
        counts = Counter(word for caption in self.corpus for word in set(content_words(caption)))
        return sorted(word for word, count in counts.items() if count >= 2)

    def name_source(self, known_share: float = 0.35) -> NameSource:
        """Names of every kind, this share of them known ones."""
        return NameSource(self.names, self.corpus_words, self.tokenizer, known_share)

    def exercises(
        self, num_items: int, seed: int, source: NameSource | None = None, **settings: Any
    ) -> NamedCaptionExercises:
        """Text exercises; `settings` are those of [`~name_exercises.NamedCaptionExercises`]."""
        nouns = {name for name in self.names if " " not in name} | set(PEOPLE_AND_DOGS)
        lists, words = self.simulated["lists"], self.simulator.words
        source = source or self.name_source()
        return NamedCaptionExercises(self.corpus, lists, words, nouns, source, num_items, seed, **settings)
