"""A SmallCap of minutes on a CPU, with retrieval and without it, and what they write for photos nobody trained on."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from ... import default_model
from ...caption_data.caption_words import content_words, normalize_caption
from ...checkpoint_reader import read_pretrained
from ...configuration_smallcap import SmallCapConfig
from ...datastore_smallcap import CaptionDatastore
from ...image_processing_efficientnet_lite import EfficientNetLiteImageProcessor
from ...modeling_smallcap import SmallCapForConditionalGeneration
from ...processing_smallcap import SmallCapProcessor
from ..feature_cache import cache_vision_features
from .caption_text import agreement_weights, read_captions
from .caption_tokenizer import train_caption_tokenizer
from .packed_captions import PackedCaptions, collate_packed
from .stage_trainer import StageSettings, run_stage
from .tiny_data import open_photo


logger = logging.get_logger(__name__)

PAD_TOKEN, END_TOKEN = "<pad>", "."


class PromptDocuments:
    """
    Texts that a decoder reads before it sees a photo: captions alone, and captions after related ones as a prompt.

    A related caption shares a content word with the one to write, or is any caption, as retrieval errs, too.

    Args:
        captions (`Sequence[str]`): Normalised captions.
        model ([`SmallCapForConditionalGeneration`]): Makes the prompts.
        plain (`float`): Share of captions alone.
        related_words (`float`): Share of related captions that have a word in common.
        copied (`float`, *optional*, defaults to 0): Share of prompts that hold the caption to write, too.
        seed (`int`, *optional*, defaults to 0): Seed of all draws.
    """

    def __init__(
        self,
        captions: Sequence[str],
        model: Any,
        plain: float,
        related_words: float,
        copied: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.captions, self.model, self.plain, self.related_words = captions, model, plain, related_words
        self.copied = copied
        self.random = random.Random(seed)
        self.with_word = defaultdict(list)
        self.words = [list(dict.fromkeys(content_words(caption))) for caption in captions]
        for number, words in enumerate(self.words):
            for word in words:
                self.with_word[word].append(number)

    def related(self, number: int) -> str:
        """A caption that retrieval might give for the photo of another one."""
        words = self.words[number]
        if words and self.random.random() < self.related_words:
            # Rare words tell more about a photo than common ones.
            rarity = [1 / len(self.with_word[word]) ** 0.5 for word in words]
            other = self.random.choice(self.with_word[self.random.choices(words, rarity)[0]])
            if other != number:
                return self.captions[other]
        return self.random.choice(self.captions)

    def __call__(self, count: int) -> list[str]:
        """Draws documents."""
        k = self.model.config.num_retrieved_captions
        numbers = self.random.choices(range(len(self.captions)), k=count)
        related = [
            [] if self.random.random() < self.plain else [self.related(number) for _ in range(k)] for number in numbers
        ]
        for number, prompt in zip(numbers, related, strict=True):
            if prompt and self.copied and self.random.random() < self.copied:
                prompt[self.random.randrange(k)] = self.captions[number]
        prompts = self.model.build_prompts(related)
        return [f"{prompt} {self.captions[n]}{END_TOKEN}" for prompt, n in zip(prompts, numbers, strict=True)]


@torch.no_grad()
def initialize_word_copying(decoder: Any, gain: float, seed: int = 0) -> None:
    """
    Initialises a GPT-2 so that attending to a token is a start at writing it, as
    [`~name_copying.initialize_word_copying`] does for Llama: a decoder that cannot copy has no use for a prompt.

    Args:
        decoder (`GPT2LMHeadModel`): Changed in place; tied embeddings.
        gain (`float`): Scale of each layer's value and output map, which begin as inverses of one another.
        seed (`int`, *optional*, defaults to 0): Seed.
    """
    generator = torch.Generator().manual_seed(seed)
    width = decoder.config.n_embd
    decoder.transformer.wte.weight.normal_(generator=generator)
    decoder.transformer.wpe.weight.normal_(std=0.3, generator=generator)
    decoder.transformer.ln_f.weight.fill_(width**-0.5)  # logits begin with a deviation of one
    for block in decoder.transformer.h:
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        block.attn.c_attn.weight[:, 2 * width :] += gain * basis
        block.attn.c_proj.weight += gain * basis.T


class PhotoPrompts(torch.utils.data.Dataset):
    """
    Photos with a caption to write and captions for the prompt, drawn by item number.

    Args:
        features (`np.ndarray` of shape `(photos, views, num_patches, hidden_size)`): Cached vision features.
        captions (`Sequence[Sequence[str]]`): Of each photo.
        retrieved (`Sequence[Sequence[Sequence[str]]]`): For each photo and view the prompt's captions.
        photos (`Sequence[int]`): Photos that are trained on.
        num_items (`int`): Items.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
    """

    def __init__(
        self,
        features: np.ndarray,
        captions: Sequence[Sequence[str]],
        retrieved: Sequence[Sequence[Sequence[str]]],
        photos: Sequence[int],
        num_items: int,
        seed: int = 0,
    ) -> None:
        self.features, self.captions, self.retrieved, self.photos = features, captions, retrieved, photos
        self.num_items, self.seed = num_items, seed
        self.weights = [agreement_weights(of_photo) for of_photo in captions]

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, item: int) -> dict[str, Any]:
        """A photo, one view of it, one of its captions."""
        draw = random.Random(f"{self.seed}-{item}")
        photo = draw.choice(self.photos)
        view = draw.randrange(self.features.shape[1])
        return {
            "vision_hidden_states": torch.from_numpy(np.array(self.features[photo, view])).float(),
            "caption": draw.choices(self.captions[photo], self.weights[photo])[0],
            "retrieved": self.retrieved[photo][view],
        }


class SmallCapTiny:
    """
    Carries out `recipes/smallcap-tiny.yaml`; what the work folder holds is not made again.

    Args:
        recipe (`dict`): The recipe, as read from its YAML.
        data (`str` or `Path`): Folder of the files that `recipe["data"]` names.
        work (`str` or `Path`): Folder of caches and checkpoints.
        encoder (`str` or `Path`, *optional*): Model with an EfficientNet-Lite and its retrieval space; the embedded
            default when absent.
    """

    def __init__(
        self, recipe: dict[str, Any], data: str | Path, work: str | Path, encoder: str | Path | None = None
    ) -> None:
        import pandas as pd

        self.recipe, self.data, self.work = recipe, Path(data), Path(work)
        self.encoder = Path(encoder or default_model())
        self.work.mkdir(parents=True, exist_ok=True)
        files = {name: self.data / recipe["data"][name] for name in ("captions", "validation", "text")}
        for name, path in files.items():
            if not path.is_file():
                raise FileNotFoundError(f"There is no {path} (recipe: data.{name}).")
        self.photos, self.validation = (pd.read_parquet(files[name]) for name in ("captions", "validation"))
        self.corpus = read_captions(files["text"])
        self.captions = [[normalize_caption(caption) for caption in photo] for photo in self.photos["captions"]]
        held_out = recipe["data"]["held_out_photos"]
        self.held_out = sorted(random.Random(5).sample(range(len(self.photos)), held_out))
        self.training = sorted(set(range(len(self.photos))) - set(self.held_out))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Tokenizer of the captions."""
        folder = self.work / "tokenizer"
        if not folder.is_dir():
            train_caption_tokenizer(self.corpus, [], **self.recipe["tokenizer"]).save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)

    @cached_property
    def processor(self) -> SmallCapProcessor:
        """Squashes a photo to the encoder's square, so that nothing of a scene is cut off."""
        side = self.recipe["vision"]["config"]["image_size"]
        images = EfficientNetLiteImageProcessor(size={"height": side, "width": side}, do_center_crop=False)
        return SmallCapProcessor(images, self.tokenizer, pad_token=PAD_TOKEN, end_token=END_TOKEN)

    def new_model(self, **fields: Any) -> SmallCapForConditionalGeneration:
        """A model with the frozen encoder in place; `fields` change the recipe's config."""
        tokenizer = self.processor.tokenizer
        tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        ours = {**self.recipe["model"], **fields}
        config = SmallCapConfig(
            **{**ours, "text_config": {**ours["text_config"], **tokens, "vocab_size": len(tokenizer)}},
            vision_config=self.recipe["vision"]["config"],
            retrieval_space="vision",
            retrieval_options={"key_size": self.recipe["vision"]["key_size"]},
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(self.recipe["seed"])
        model = SmallCapForConditionalGeneration(config)
        model.load_state_dict(read_pretrained(self.encoder, ("vision_model.", "vision_space.")), strict=False)
        model.tokenizer = tokenizer
        return model.eval()

    def stage(self, name: str) -> tuple[StageSettings, dict[str, Any]]:
        """Numbers of a stage for the trainer, and those that only the stage knows."""
        known = {field.name for field in dataclasses.fields(StageSettings)}
        numbers = {"seed": self.recipe["seed"], **self.recipe[name]}
        own = {key: value for key, value in numbers.items() if key not in known}
        return StageSettings(**{key: value for key, value in numbers.items() if key in known}), own

    def decoder(self) -> dict[str, torch.Tensor]:
        """Stage 1: the decoder's weights, trained on text alone."""
        path = self.work / "decoder.pt"
        if not path.exists():
            settings, own = self.stage("language")
            model = self.new_model()
            texts = self.corpus + [caption for photo in self.training for caption in self.captions[photo]]
            draw = PromptDocuments(texts, model, own["plain"], own["related_words"], own["copied"], settings.seed)
            wanted = settings.steps * settings.batch_size * own["block_length"]
            rows: list[list[int]] = []
            while sum(len(row) for row in rows) <= wanted:
                rows += self.tokenizer(draw(4096), add_special_tokens=False, split_special_tokens=True)["input_ids"]
            blocks = PackedCaptions(rows, own["block_length"], settings.steps * settings.batch_size, settings.seed)
            if own["copy_gain"]:
                initialize_word_copying(model.language_model, own["copy_gain"], settings.seed)
            run_stage(model.language_model, blocks, collate_packed, settings, self.work / "decoder-checkpoints")
            torch.save(model.language_model.state_dict(), path)
        return torch.load(path, weights_only=True)

    # Retrieval

    @cached_property
    def features(self) -> np.ndarray:
        """Cached vision features of the training photos, `(photos, views, num_patches, hidden_size)`."""
        model = self.new_model().vision_model.to(torch.bfloat16, memory_format=torch.channels_last)
        vision = self.recipe["vision"]
        return cache_vision_features(
            model,
            self.processor.image_processor,
            self.photos["image"].tolist(),
            open_photo,
            self.work / "captions.npy",
            vision["views"],
            vision["config"]["image_size"],
        )

    @torch.no_grad()
    def queries(self, model: SmallCapForConditionalGeneration, view: int) -> torch.Tensor:
        """Retrieval queries of one view of each training photo."""
        starts = range(0, len(self.features), 128)
        parts = [torch.from_numpy(np.array(self.features[start : start + 128, view])).float() for start in starts]
        return torch.cat([model.vision_space(part)[:, 0] for part in parts])

    def datastore(self, model: SmallCapForConditionalGeneration) -> CaptionDatastore:
        """The caption on which people agree most of each training photo, under the photo's key."""
        best = [
            self.captions[photo][int(np.argmax(agreement_weights(self.captions[photo])))] for photo in self.training
        ]
        return CaptionDatastore.from_rows(
            best,
            self.queries(model, 0)[self.training],
            image_id=[str(self.photos["image_id"][photo]) for photo in self.training],
            encoder_fingerprint=model.encoder_fingerprint,
            source=self.photos["source"].iloc[self.training].tolist(),
        )

    def retrieved(self, model: SmallCapForConditionalGeneration) -> list[list[list[str]]]:
        """Captions for each view of each training photo, which never retrieves its own."""
        own = torch.from_numpy(self.datastore(model).rows_of_images(self.photos["image_id"]))
        by_view = [
            model.retrieve_captions(self.queries(model, view), own).captions for view in range(self.features.shape[1])
        ]
        return [list(views) for views in zip(*by_view, strict=True)]

    # Stage 2

    def trained(self, with_retrieval: bool) -> SmallCapForConditionalGeneration:
        """Stage 2: only the cross-attention learns, as in the paper."""
        model = self.new_model(**({} if with_retrieval else {"num_retrieved_captions": 0}))
        model.language_model.load_state_dict(self.decoder())
        model.set_datastore(self.datastore(model) if with_retrieval else None)
        name = "with-retrieval" if with_retrieval else "without-retrieval"
        path = self.work / f"{name}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model
        settings, _ = self.stage("cross_attention")
        retrieved = self.retrieved(model) if with_retrieval else [[[]] * self.features.shape[1]] * len(self.photos)
        items = settings.steps * settings.batch_size
        examples = PhotoPrompts(self.features, self.captions, retrieved, self.training, items, settings.seed)
        trained = model.freeze_for_training("paper")
        logger.info(f"{name}: {trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained")

        def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
            labels = self.processor(suffix=[example["caption"] for example in batch], return_tensors="pt")["labels"]
            ids, mask, labels_after = model.tokenize_prompts([one["retrieved"] for one in batch], labels=labels)
            kept = labels.shape[1] + 1
            hidden = torch.stack([example["vision_hidden_states"] for example in batch])
            return {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": labels_after[:, -kept:],
                "logits_to_keep": kept,
                "vision_hidden_states": hidden,
            }

        run_stage(model, examples, collate, settings, self.work / f"{name}-checkpoints")
        torch.save(model.state_dict(), path)
        return model.eval()

    # Measuring

    @torch.no_grad()
    def write(
        self, model: SmallCapForConditionalGeneration, images: Sequence[Any], unrelated: bool = False
    ) -> tuple[list[str], list[list[str]]]:
        """Captions for photos, and what their prompts held; `unrelated` puts other photos' captions there."""
        written, prompts = [], []
        found: list[Any] = []
        for start in range(0, len(images), 16):
            photos = [open_photo(image) for image in images[start : start + 16]]
            found.append(model.encode_images(**self.processor(images=photos, return_tensors="pt")))
        lists = [photo for encoded in found for photo in encoded.captions.captions]
        if unrelated:
            lists = lists[len(lists) // 2 :] + lists[: len(lists) // 2]
        for number, encoded in enumerate(found):
            part = lists[number * 16 : number * 16 + 16]
            ids = model.generate(vision_hidden_states=encoded.vision_hidden_states, captions=part)
            written += self.processor.post_process_image_text_to_text(ids)
            prompts += part
        return written, prompts

    def measure(self, output: Path | None = None, held_out: bool = False) -> dict[str, Any]:
        """
        Caption metrics of both models, and of the retrieval model with other photos' captions in its prompt.

        Args:
            output (`Path`, *optional*): Folder for the retrieval model and `results.json`.
            held_out (`bool`, *optional*, defaults to `False`): On the held-out training photos, for choosing.
        """
        import evaluate

        from ...metrics import metric_path

        table = self.photos.iloc[self.held_out] if held_out else self.validation
        images, references = table["image"].tolist(), [list(captions) for captions in table["captions"]]
        with_it, without = self.trained(True), self.trained(False)
        written = {
            "with_retrieval": self.write(with_it, images),
            "without_retrieval": self.write(without, images),
            "with_unrelated_captions": self.write(with_it, images, unrelated=True),
        }
        nearest = [prompt[0] for prompt in written["with_retrieval"][1]]
        written["nearest_caption_alone"] = (nearest, [[] for _ in nearest])
        results: dict[str, Any] = {"photos": len(images), "held_out": held_out, "seed": self.recipe["seed"]}
        for label, (captions, prompts) in written.items():
            scores = {}
            for metric, key in (("cider", "cider"), ("bleu", "bleu_4"), ("rouge_l", "rouge_l")):
                computed = evaluate.load(metric_path(metric)).compute(predictions=captions, references=references)
                scores[metric] = computed[key]
            results[label] = {**scores, "captions": list(zip(captions, prompts, strict=True))}
        if output is not None:
            with_it.save_pretrained(output)
            self.processor.save_pretrained(output)
            text = json.dumps(results, indent=1, ensure_ascii=False)
            (Path(output) / "results.json").write_text(text, encoding="utf-8")
        return results


__all__ = ["PhotoPrompts", "PromptDocuments", "SmallCapTiny"]
