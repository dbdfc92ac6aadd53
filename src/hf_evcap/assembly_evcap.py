"""Assembles an EVCap from an encoder and a language model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from .assembly import Assembly, draw_weights
from .configuration_evcap import EVCapConfig
from .configuration_retrieval import vision_hidden_size
from .encoder_evcap import find_encoder
from .language_models import caption_generation_config, chat_prompt, reading_names
from .memory_evcap import VisualNameMemory
from .part_sources import PartSource
from .qformer_initialization import QFormerStart, find_qformer_start, qformer_config
from .qformer_names import FUSION_PREFIXES
from .store_manifest import MANIFEST_NAME
from .vision_towers import plain_vision_space, size_vision_space


NAME_TOKENIZER = "google-bert/bert-base-uncased"
# A Q-Former that starts at random is as small as the embedded model's. It is as wide as the language model, so that
# names can be read with the language model's embeddings, unless that is wider than this.
_SMALL_QFORMER = {"num_hidden_layers": 2, "cross_attention_frequency": 1}
_WIDEST_TIED = 1024


class EVCapAssembly(Assembly):
    """
    An EVCap made of pretrained parts: first its config and its processor, then, with [`load`], the model.

    Args:
        processor_class (`type`): [`EVCapProcessor`].
        encoder, language_model (`str` or `os.PathLike`): Its parts.
        options: As for [`EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained`], and arguments of
            [`EVCapProcessor`] in `processor_options`.

    Raises:
        ValueError: The parts cannot work together.
    """

    config_class = EVCapConfig

    def __init__(
        self,
        processor_class: Any,
        encoder: str | os.PathLike,
        language_model: str | os.PathLike,
        *,
        fusion_init: str | None = None,
        qformer_init: str = "random:0",
        processor: Any = None,
        name_tokenizer: Any = None,
        image_processor: Any = None,
        use_chat_template: bool = False,
        vision_space_photos: Any = None,
        gguf_file: str | None = None,
        processor_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(language_model, gguf_file, processor, vision_space_photos, options)
        tokenizer = self.tokenizer
        self.text_width: int = self.text_config.get_text_config().hidden_size
        self.encoder = find_encoder(encoder, self.fields.pop("vision_config", None) or {}, self.download)
        self.fields = {**self.encoder.fields, **self.fields}
        name_tokenizer = name_tokenizer if processor is None else processor.name_tokenizer
        own_words = name_tokenizer is None or _is_part_of(name_tokenizer, tokenizer)
        self.image_start = QFormerStart()
        if self.encoder.kind == "tower":
            self.image_start = find_qformer_start("qformer", qformer_init, self.download)
            self._size_image_qformer(own_words)
        names = self._choose_name_tokenizer(tokenizer, name_tokenizer, own_words)
        self.fusion_start = self._find_fusion(fusion_init)
        self._size_fusion_qformer(names)
        self._choose_vision_space()
        self.fields["untrained_parts"] = self._untrained()
        self.config = EVCapConfig(**{**self.fields, "text_config": self.text_config})
        if processor is None:
            image_processor = image_processor if image_processor is not None else self.encoder.image_processor
            settings = {"num_prefix_tokens": self.config.num_prefix_tokens, **(processor_options or {})}
            if use_chat_template:
                template, bos = chat_prompt(tokenizer, settings.get("prompt_template", "{image}\n{prompt}"))
                chat = {"add_bos_token": bos, "caption_end": tokenizer.eos_token}
                settings = {**chat, **settings, "prompt_template": template}
            if tokenizer.bos_token and settings.get("prompt_template", "").startswith(tokenizer.bos_token):
                settings.setdefault("add_bos_token", False)
            if image_processor is None:
                raise ValueError(
                    f"The encoder {os.fspath(encoder)!r} has no preprocessor_config.json: pass its `image_processor`."
                )
            processor = processor_class(image_processor, tokenizer, names, **settings)
        self.processor = processor
        if processor.num_prefix_tokens != self.config.num_prefix_tokens:
            raise ValueError(
                f"The processor gives a photo {processor.num_prefix_tokens} tokens, the model "
                f"{self.config.num_prefix_tokens} (num_query_tokens + num_name_query_tokens); make them equal."
            )
        self.config.image_token_id = processor.image_token_id

    # Config

    def _size_image_qformer(self, own_words: bool) -> None:
        """Sizes of the image Q-Former of a vision tower."""
        start, sizes = self.image_start, self.image_start.config
        vision_width = vision_hidden_size(self.fields["vision_config"])
        theirs = getattr(sizes, "encoder_hidden_size", None)
        if start.trained and theirs != vision_width:
            raise ValueError(
                f"The Q-Former of {start.name!r} reads vision features of {theirs} numbers, this vision "
                f"encoder gives {vision_width}. Take the Q-Former of the same encoder, or qformer_init='random:SEED'."
            )
        small: dict[str, Any] = {}
        if sizes is None:
            width = self.text_width if own_words and self.text_width <= _WIDEST_TIED else 768
            heads = next(count for count in range(max(1, width // 64), 0, -1) if width % count == 0)
            small = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": heads}
            small.update(_SMALL_QFORMER)
        given = self.fields.get("qformer_config")
        self.fields["qformer_config"] = qformer_config(sizes or small, given, encoder_hidden_size=vision_width)
        if start.num_queries is not None:
            self.fields["num_query_tokens"] = start.num_queries

    def _choose_name_tokenizer(self, tokenizer: Any, given: Any, own_words: bool) -> Any:
        """The tokenizer that names are read with: the language model's where it embeds them too, or BERT's."""
        fields, kind = self.fields, self.encoder.kind
        may_tie = own_words and fields["qformer_config"].hidden_size == self.text_width
        if kind == "tower":
            fields.setdefault("tie_name_embeddings", may_tie)
        elif kind == "evcap" and fields["tie_name_embeddings"] and not may_tie:
            # The fusion goes on reading names with the old language model's words, which become a table of its own.
            fields["tie_name_embeddings"] = False
            if isinstance(fields["fusion_qformer_config"], PreTrainedConfig):
                del fields["fusion_qformer_config"]
        if fields.get("tie_name_embeddings"):
            names = reading_names(tokenizer) if given is None else given
            if names.sep_token is None:
                raise ValueError(
                    "The language model's tokenizer has no comma, SEP or EOS token to stand between names: set one "
                    "and pass the tokenizer as `name_tokenizer`."
                )
            if names.sep_token_id >= self.text_source.config.get_text_config().vocab_size:
                raise ValueError(
                    f"The name tokenizer's SEP token {names.sep_token!r} is no word of the language model, whose "
                    "embeddings read the names. Choose one that is, or tie_name_embeddings=False."
                )
            return names
        if given is None and self.encoder.name_tokenizer is not None:
            return self.encoder.name_tokenizer
        if given is not None and not isinstance(given, (str, os.PathLike)):
            return given
        source = os.fspath(given or NAME_TOKENIZER)
        try:
            return AutoTokenizer.from_pretrained(source, **self.download)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0].rstrip(" :.")
            raise OSError(
                f"The tokenizer of the names, {source!r}, cannot be loaded ({reason}). Pass `name_tokenizer`: a "
                "tokenizer, its folder or its repo id."
            ) from error

    def _find_fusion(self, init: str | None) -> QFormerStart:
        """What the fusion Q-Former starts from: an EVCap's own, else the image Q-Former, as the paper describes."""
        encoder, image = self.encoder, self.image_start
        if init is None:
            if encoder.kind == "evcap" and encoder.source is not None:
                return find_qformer_start("fusion_qformer", encoder.source, self.download)
            init = "blip2" if encoder.kind == "blip2" or image.weights else f"random:{image.seed}"
        if init != "blip2":
            return find_qformer_start("fusion_qformer", init, self.download)
        own = image.weights or encoder.parts.get("qformer", [])
        if not own:
            raise ValueError(
                "fusion_init='blip2' starts the fusion from the image Q-Former, but this one starts at random. Leave "
                "`fusion_init` out, give 'random:SEED', or name a BERT, a BLIP-2 or an EVCap."
            )
        # Where the image Q-Former lies, and with it the words of BLIP-2's retrieval variants and of BERT.
        more = [PartSource(one.source, FUSION_PREFIXES.get(_type(one), one.prefixes)) for one in own]
        return QFormerStart(0, image.config or encoder.fields["qformer_config"], more)

    def _size_fusion_qformer(self, names: Any) -> None:
        """Sizes of the fusion Q-Former: those of what it starts from, else the image Q-Former's."""
        fields, start = self.fields, self.fusion_start
        width = fields["qformer_config"].hidden_size
        sizes: Any = start.config or fields["qformer_config"]
        if sizes.hidden_size != width:
            raise ValueError(
                f"The fusion Q-Former would start from {start.name!r}, {sizes.hidden_size} wide, but the image "
                f"Q-Former, over whose outputs it attends, is {width} wide. Give a `fusion_init` of that width, or "
                "'random:SEED'."
            )
        if start.num_queries is not None:
            fields["num_name_query_tokens"] = start.num_queries
        given = fields.get("fusion_qformer_config")
        if isinstance(given, PreTrainedConfig):
            return
        words = 1  # unused where the language model's words are
        if not fields.get("tie_name_embeddings"):
            words = len(names)
            if self.encoder.kind != "evcap" and "[DEC]" not in names.get_vocab():
                words += 1  # which BLIP-2 puts behind BERT's words
        fixed = {"hidden_size": width, "encoder_hidden_size": width, "vocab_size": words}
        fields["fusion_qformer_config"] = qformer_config(sizes, given, **fixed)

    def _choose_vision_space(self) -> None:
        """
        The space that names are retrieved in. A Q-Former that nobody trained retrieves nothing, so photos are compared
        by their pooled vision features, plain or whitened as photos teach.
        """
        fields, photos = self.fields, self.photos
        tower = self.encoder.kind == "tower"
        if tower:
            fields.setdefault("retrieval_space", "query" if self.image_start.trained else "vision")
        if fields.get("retrieval_space", "query") != "vision":
            if photos is not None:
                raise ValueError("`vision_space_photos` fit the retrieval space 'vision'; this model's is 'query'.")
            return
        if not tower and photos is None:
            return
        size_vision_space(fields, None if photos is None else len(photos))

    def _untrained(self) -> list[str]:
        """Parts that no training has fitted to their task yet."""
        untrained = set(self.fields.get("untrained_parts") or ())
        if self.encoder.kind == "tower" and not self.image_start.trained:
            untrained.add("qformer")
        if not self.fusion_start.trained:
            untrained.add("fusion_qformer")
        return sorted(untrained)

    # Weights

    @property
    def parts(self) -> dict[str, list[PartSource]]:
        """`dict[str, list[PartSource]]`: Where each part lies; a later source gives what those before it lack."""
        found = {**self.encoder.parts, "language_model": [PartSource(self.text_source)]}
        for start, part, queries in (
            (self.image_start, "qformer", "query_tokens"),
            (self.fusion_start, "fusion_qformer", "name_query_tokens"),
        ):
            found.setdefault(part, start.weights)
            found.setdefault(queries, start.queries)
        return found

    def finish(self, model: Any) -> None:
        """Gives the model its generation config and the tokenizer of the names."""
        model.generation_config = caption_generation_config(self.processor.tokenizer)
        model.name_tokenizer = self.processor.name_tokenizer

    def drawn(
        self, expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What no part brings."""
        config: Any = self.config
        drawn: dict[str, torch.Tensor] = {}
        starts = {
            ("qformer.", "query_tokens"): (self.image_start, config.qformer_config),
            ("fusion_qformer.", "name_query_tokens"): (self.fusion_start, config.fusion_qformer_config),
            ("language_projection.",): (self.fusion_start, config),
            ("vision_model.pooler.", "vision_model.head."): (self.image_start, config),  # not used, often not saved
        }
        for places, (start, sizes) in starts.items():
            empty = {name: expected[name] for name in expected if name.startswith(places) and name not in weights}
            drawn.update(draw_weights(empty, start.seed, sizes.initializer_range))
        words = "embeddings.word_embeddings.weight"
        if f"fusion_qformer.{words}" in drawn:  # a BERT lacks the rows of words that were added to its own
            table, start = drawn[f"fusion_qformer.{words}"], self.fusion_start
            for one in start.weights:
                given = one.read_qformer().get(words)
                if given is not None and given.shape[1:] == table.shape[1:]:
                    rows = min(len(given), len(table))
                    table[:rows] = given[:rows]
        drawn.update(plain_vision_space(expected, weights))  # unless photos change it
        if config.known_words_only:  # any token is a word until `model.spelling.fit` has read which are
            for name in ("is_word", "starts_inside", "ends_inside"):
                drawn[f"spelling.{name}"] = torch.full(expected[f"spelling.{name}"].shape, name == "is_word")
        return drawn

    def default_memory(self, model_class: Any) -> Any:
        """The memory that an EVCap brings along: its encoder, which built it, stays the same."""
        source = self.encoder.source
        if source is None or self.encoder.kind != "evcap":
            return None
        reference = source.config.memory_reference
        if reference:
            name, revision = reference["repo_id"], reference.get("revision")
            return VisualNameMemory.from_pretrained(name, revision=revision, **self.download)
        folder = model_class.memory_folder
        if source.path_of(f"{folder}/{MANIFEST_NAME}") is None:
            return None
        return VisualNameMemory.from_pretrained(source.name, subfolder=folder, repo_type="model", **source.options)


def _type(part: PartSource) -> str:
    return "" if part.source is None else part.source.config.model_type


def _is_part_of(name_tokenizer: Any, tokenizer: Any) -> bool:
    """Whether names are read with the language model's own tokens."""
    if isinstance(name_tokenizer, (str, os.PathLike)):
        return False
    return name_tokenizer.get_vocab().items() <= tokenizer.get_vocab().items()


__all__ = ["NAME_TOKENIZER", "EVCapAssembly"]
