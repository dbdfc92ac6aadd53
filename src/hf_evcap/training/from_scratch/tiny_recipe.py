"""Trains a small captioner from photos and text alone: the recipe of the embedded default, stage by stage."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from ...configuration_evcap import EVCapConfig
from ...image_processing_efficientnet_lite import EfficientNetLiteImageProcessor
from ...memory_evcap import VisualNameMemory
from ...modeling_efficientnet_lite import convert_efficientnet_lite_state_dict
from ...modeling_evcap import EVCapForConditionalGeneration
from ...retrieval_evcap import normalize_name
from ..feature_cache import cache_vision_features
from ..fine_tuning.name_copying import align_names_with_words, initialize_name_copying, initialize_word_copying
from ..fine_tuning.name_lists import join_names
from .caption_mixture import CachedFeatures, CaptionedPhotos, CaptionMixture, NamedPhotos
from .caption_text import agreement_weights
from .caption_tokenizer import IMAGE_TOKEN
from .data_collator import CaptionCollator, NamesAsTextCollator
from .name_exercises import CopyingExercises
from .packed_captions import PackedCaptions, collate_packed
from .stage_trainer import StageSettings, run_stage
from .tiny_data import TinyData, open_photo


logger = logging.get_logger(__name__)


class TinyRecipe(TinyData):
    """
    Carries out a recipe such as `recipes/evcap-tiny.yaml`; every stage's result is kept in the work folder, and what
    is there is not made again.

    Args:
        recipe (`dict`): The recipe, as read from its YAML.
        data (`str` or `Path`): Folder of the files that `recipe["data"]` names.
        work (`str` or `Path`): Folder of the cache, the checkpoints and the stages' results.
        vision_weights (`str` or `Path`): Published weights of the vision encoder (`.pth`).
    """

    def __init__(self, recipe: dict[str, Any], data: str | Path, work: str | Path, vision_weights: str | Path) -> None:
        super().__init__(recipe, data, work)
        self.vision_weights = Path(vision_weights)

    def stage_settings(self, stage: str) -> tuple[StageSettings, dict[str, Any]]:
        """Numbers of a stage for the trainer, and those that only the stage knows."""
        return self._split_numbers(self.recipe["stages"][stage])

    def _split_numbers(self, numbers: dict[str, Any]) -> tuple[StageSettings, dict[str, Any]]:
        known = {field.name for field in dataclasses.fields(StageSettings)}
        numbers = {"seed": self.recipe["seed"], **numbers}
        own = {name: value for name, value in numbers.items() if name not in known}
        return StageSettings(**{name: value for name, value in numbers.items() if name in known}), own

    def language(self) -> Path:
        """Stage 1: a language model of captions."""
        result = self.work / "language"
        if (result / "config.json").exists():
            return result
        settings, own = self.stage_settings("language")
        tokenizer = self.tokenizer
        ids = tokenizer(self.texts, add_special_tokens=False)["input_ids"]
        rows = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in ids]
        blocks = PackedCaptions(rows, own["block_length"], settings.steps * settings.batch_size, settings.seed)
        torch.manual_seed(settings.seed)
        config = self.model_config().text_config
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        initialize_word_copying(model, own["copy_gain"], settings.seed)
        run_stage(model, blocks, collate_packed, settings, self.work / "language-checkpoints")
        model.save_pretrained(result)
        return result

    def names_as_text(self) -> Path:
        """Stage 2: the language model writes from lists of names; in rounds, each with its share of mere copying."""
        base = self.language()
        for number, numbers in enumerate(self.recipe["stages"]["names"], start=1):
            result = self.work / f"names-{number}"
            if not (result / "config.json").exists():
                settings, own = self._split_numbers(numbers)
                model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
                total = settings.steps * settings.batch_size
                others = self.exercises(total, settings.seed, weights=own["kinds"])
                exercises = CopyingExercises(others, own["copied"], settings.seed)
                photo = [self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)] * own["photo_tokens"]
                collator = NamesAsTextCollator(self.tokenizer, self.recipe["model"]["max_name_length"], 24, photo)
                run_stage(model, exercises, collator, settings, self.work / f"names-{number}-checkpoints")
                model.save_pretrained(result)
            base = result
        return base

    def model_config(self) -> EVCapConfig:
        """Configuration of the captioner."""
        tokenizer = self.tokenizer
        text = {
            **self.recipe["model"]["text_config"],
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        fields = {**self.recipe["model"], "text_config": text, "vision_config": self.recipe["vision"]["config"]}
        config = EVCapConfig(**fields, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        config._attn_implementation = "eager"  # the fastest at these sizes on a CPU
        return config

    def vision_model(self) -> Any:
        """The frozen vision encoder with its published weights."""
        from transformers import AutoModel

        fields = dict(self.recipe["vision"]["config"])
        model = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
        published = torch.load(self.vision_weights, map_location="cpu", weights_only=True)
        model.load_state_dict(convert_efficientnet_lite_state_dict(published))
        return model.eval()

    def image_processor(self) -> EfficientNetLiteImageProcessor:
        """Squashes a photo to the encoder's square, so that nothing of a scene is cut off."""
        side = self.recipe["vision"]["config"]["image_size"]
        return EfficientNetLiteImageProcessor(size={"height": side, "width": side}, do_center_crop=False)

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Cached vision features of the captioned photos and of the objects."""
        side = self.recipe["vision"]["config"]["image_size"]
        vision, tables = self.recipe["vision"], {"captions": self.photos, "objects": self.objects}
        views = {"captions": vision["caption_views"], "objects": vision["object_views"]}
        model: Any = None
        caches = []
        for name, table in tables.items():
            path = self.work / f"{name}.npy"
            if model is None:
                model = self.vision_model().to(torch.bfloat16, memory_format=torch.channels_last)
            caches.append(
                cache_vision_features(
                    model, self.image_processor(), table["image"].tolist(), open_photo, path, views[name], side
                )
            )
        return caches[0], caches[1]

    def start_model(self) -> EVCapForConditionalGeneration:
        """A captioner with the vision encoder, the retrieval space and the language model in place."""
        torch.manual_seed(self.recipe["seed"])
        model = EVCapForConditionalGeneration(self.model_config())
        model.vision_model.load_state_dict(self.vision_model().state_dict())
        model.language_model.load_state_dict(AutoModelForCausalLM.from_pretrained(self.names_as_text()).state_dict())
        model.name_tokenizer = self.tokenizer
        photos, objects = self.features
        shown = [i for i in range(len(self.objects)) if self.objects["name"][i] not in self.held_out_names]
        pooled = [
            model.vision_space.pool(torch.from_numpy(cache[chosen[i : i + 128], 0]).float())[:, 0]
            for cache, chosen in ((objects, shown), (photos, self.training_photos))
            for i in range(0, len(chosen), 128)
        ]
        model.vision_space.fit(torch.cat(pooled))
        if model.config.known_words_only:
            model.spelling.fit(self.tokenizer, self.texts)
        return model

    def aligned(self) -> EVCapForConditionalGeneration:
        """Stage 3: the fusion Q-Former reads names as the language model does."""
        model = self.start_model()
        result = self.work / "aligned.pt"
        if result.exists():
            model.load_state_dict(torch.load(result, weights_only=True))
            return model
        numbers = self.recipe["stages"]["alignment"]
        initialize_name_copying(model, self.recipe["seed"])
        rng, exercises, lists = random.Random(3), self.exercises(10**6, seed=3), []
        source = exercises.source
        limit = self.recipe["model"]["max_name_length"]
        for item in range(4000):
            drawn = exercises[item]["names"] if item % 2 else [source(rng) for _ in range(rng.randint(1, 12))]
            lists.append(join_names(drawn, self.tokenizer.sep_token_id, limit))
        error = align_names_with_words(model, lists, **numbers, seed=self.recipe["seed"])
        logger.info("alignment: relative error %.4f", error)
        torch.save(model.state_dict(), result)
        return model

    @torch.no_grad()
    def retrieval_queries(self, model: EVCapForConditionalGeneration, features: np.ndarray) -> torch.Tensor:
        """Retrieval queries of cached features `(photos, num_patches, hidden_size)`."""
        parts = [torch.from_numpy(np.array(features[i : i + 128])).float() for i in range(0, len(features), 128)]
        return torch.cat([model.vision_space(part) for part in parts])

    def retrieved(self, model: EVCapForConditionalGeneration) -> tuple[list[list[list[str]]], list[list[list[str]]]]:
        """Names that the training memory gives for each view of each photo, which never retrieves itself."""
        photos, objects = self.features
        scenes = [
            (i, word) for i, row in zip(self.training_photos, self.simulator.scene_words, strict=True) for word in row
        ]
        keys = {
            "object": self.retrieval_queries(model, objects[:, 0])[:, 0],
            "scene": self.retrieval_queries(model, photos[:, 0])[:, 0],
        }
        names = [self.objects["name"][i] for i in self.exemplars] + [word for _, word in scenes]
        owners = [f"object-{i}" for i in self.exemplars] + [f"scene-{i}" for i, _ in scenes]
        memory = VisualNameMemory.from_rows(
            names,
            torch.cat([keys["object"][self.exemplars], keys["scene"][[i for i, _ in scenes]]]),
            kind=["object"] * len(self.exemplars) + ["scene"] * len(scenes),
            photo=owners,
        )
        model.set_memory(memory)
        rows = defaultdict(list)
        for row, owner in enumerate(owners):
            rows[owner].append(row)
        results = []
        for kind, cache in (("scene", photos), ("object", objects)):
            by_view = []
            for view in range(cache.shape[1]):
                queries, lists = self.retrieval_queries(model, cache[:, view]), []
                for start in range(0, len(queries), 128):
                    own = [rows[f"{kind}-{i}"] for i in range(start, min(start + 128, len(queries)))]
                    width = max(1, *map(len, own))
                    excluded = torch.tensor([row + [-1] * (width - len(row)) for row in own])
                    lists += model.retrieve_names(queries[start : start + 128], excluded).names
                by_view.append(lists)
            results.append([list(views) for views in zip(*by_view, strict=True)])
        model.set_memory(None)
        return results[0], results[1]

    def joint(self) -> EVCapForConditionalGeneration:
        """
        Stage 4: photos, borrowed captions, objects and text together, in rounds; branches draw their own examples.

        A thousand photos are soon learned by heart, by each branch in its own way, so the model is the mean of the
        branches' weights (model soups, Wortsman et al. 2022, arXiv 2203.05482).
        """
        model = self.aligned()
        stages = self.recipe["stages"]
        branches = [
            [self.work / f"joint-{branch}-{number}.pt" for number in range(1, len(stages["joint"]) + 1)]
            for branch in range(1, stages["branches"] + 1)
        ]
        if not all(results[-1].exists() for results in branches):
            self._train_branches(model, branches)
        averaged = [results[number - 1] for results in branches for number in stages["averaged_rounds"]]
        states = [torch.load(path, weights_only=True) for path in averaged]
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(torch.stack([state[name] for state in states]).mean(dim=0))
        return model

    def _train_branches(self, model: EVCapForConditionalGeneration, branches: list[list[Path]]) -> None:
        """Carries out the rounds that are not there yet; `branches` says where each branch's rounds are kept."""
        scenes, named = self._joint_photos(model)
        start = {name: weight.clone() for name, weight in model.state_dict().items()}
        for branch, results in enumerate(branches):
            done = max((number for number, path in enumerate(results, start=1) if path.exists()), default=0)
            model.load_state_dict(torch.load(results[done - 1], weights_only=True) if done else start)
            for numbers, result in list(zip(self.recipe["stages"]["joint"], results, strict=True))[done:]:
                numbers = {**numbers, "seed": numbers["seed"] + 1000 * branch}
                self._joint_round(model, scenes, named, numbers, f"{result.stem}-checkpoints")
                torch.save(model.state_dict(), result)

    def _joint_photos(self, model: EVCapForConditionalGeneration) -> tuple[CaptionedPhotos, NamedPhotos]:
        """Captioned photos and objects with the names that the training memory gives them."""
        scene_names, object_names = self.retrieved(model)
        photos, objects = self.features
        labels = [normalize_name(name) for name in self.objects["name"]]
        known, slots = set(labels), self.recipe["model"]["retrieval_options"]["object_slots"]

        def leading_objects(names: list[str]) -> int:
            return next((i for i, name in enumerate(names[:slots]) if name not in known), min(slots, len(names)))

        weights = [agreement_weights(captions) for captions in self.captions]
        counts = [[leading_objects(names) for names in views] for views in object_names]
        scenes = CaptionedPhotos(photos, self.captions, scene_names, self.training_photos, weights)
        return scenes, NamedPhotos(objects, labels, object_names, counts, self.training_objects)

    def _joint_round(
        self,
        model: EVCapForConditionalGeneration,
        scenes: CaptionedPhotos,
        named: NamedPhotos,
        numbers: dict[str, Any],
        checkpoints: str,
    ) -> None:
        settings, own = self._split_numbers(numbers)
        close = self.simulated["closeness"] > own["borrowed_similarity"]
        borrowed = [(int(self.simulated["nearest"][i]), self.corpus[i]) for i in np.flatnonzero(close)]
        source = self.name_source(own["known_share"])
        exercises = self.exercises(10**7, settings.seed + 1, source, weights=own["kinds"])
        mixture = CaptionMixture(
            scenes,
            borrowed,
            named,
            CopyingExercises(exercises, own["copied"], settings.seed),
            source,
            settings.steps * settings.batch_size,
            settings.seed,
            weights=own["mixture"],
            replaced=own["replaced"],
        )
        config = model.config
        collator = CaptionCollator(
            self.tokenizer,
            config.image_token_id,
            config.num_prefix_tokens,
            config.max_name_length,
            24,
            CachedFeatures(scenes.features.shape[2], scenes.features.shape[3], own["cell_dropout"]),
            [self.tokenizer.bos_token_id],
        )
        run_stage(model, mixture, collator, settings, self.work / checkpoints)
