"""Assembles an EVCap from an encoder and a language model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from .assembly import (
    caption_generation_config,
    chat_prompt,
    draw_weights,
    load_language_model,
    load_text_tokenizer,
    open_language_model,
    own_config,
    reading_names,
    split_options,
    with_prefix,
)
from .configuration_evcap import EVCapConfig
from .configuration_retrieval import VISION_SPACE_OPTIONS, vision_hidden_size
from .encoder_evcap import load_encoder
from .memory_evcap import VisualNameMemory
from .qformer_initialization import (
    QFormerStart,
    fusion_from_blip2,
    qformer_config,
    start_fusion_qformer,
    start_image_qformer,
)
from .store_files import MANIFEST_NAME
from .vision_space_evcap import fit_vision_space


NAME_TOKENIZER = "google-bert/bert-base-uncased"
# A Q-Former that starts at random is as small as the embedded model's. It is as wide as the language model, so that
# names can be read with the language model's embeddings, unless that is wider than this.
_SMALL_QFORMER = {"num_hidden_layers": 2, "cross_attention_frequency": 1}
_WIDEST_TIED = 1024


class EVCapAssembly:
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
        chat_template: bool = False,
        vision_space_photos: Any = None,
        gguf_file: str | None = None,
        processor_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.fields, self.loading, self.download = split_options(EVCapConfig, options)
        self.photos = None if vision_space_photos is None else list(vision_space_photos)
        self.text_source = open_language_model(language_model, gguf_file, self.download)
        text_config = own_config(self.text_source.config)
        self.text_width: int = text_config.get_text_config().hidden_size
        self.encoder = load_encoder(encoder, self.fields.pop("vision_config", None) or {}, self.download)
        self.fields = {**self.encoder.fields, **self.fields}
        tokenizer = load_text_tokenizer(self.text_source) if processor is None else processor.tokenizer
        name_tokenizer = name_tokenizer if processor is None else processor.name_tokenizer
        own_words = name_tokenizer is None or _is_part_of(name_tokenizer, tokenizer)
        self.image_start = QFormerStart()
        if self.encoder.kind == "tower":
            self.image_start = start_image_qformer(qformer_init, self.download)
            self._size_image_qformer(own_words)
        names = self._choose_name_tokenizer(tokenizer, name_tokenizer, own_words)
        self.fusion_start = self._find_fusion(fusion_init)
        self._size_fusion_qformer(names)
        self._choose_vision_space()
        self.fields["untrained_parts"] = self._untrained()
        self.config = EVCapConfig(**{**self.fields, "text_config": text_config})
        if processor is None:
            image_processor = image_processor if image_processor is not None else self.encoder.image_processor
            settings = {"num_prefix_tokens": self.config.num_prefix_tokens, **(processor_options or {})}
            if chat_template:
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
        if start.source is not None and start.trained and theirs != vision_width:
            raise ValueError(
                f"The Q-Former of {start.source.given!r} reads vision features of {theirs} numbers, this vision "
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
        if start.queries is not None:
            self.fields["num_query_tokens"] = start.queries.shape[1]

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
            raise OSError(
                f"The tokenizer of the names, {source!r}, cannot be loaded ({error}). Pass `name_tokenizer`: a "
                "tokenizer, its folder or its repo id."
            ) from error

    def _find_fusion(self, init: str | None) -> QFormerStart:
        """What the fusion Q-Former starts from: an EVCap's own, else the image Q-Former, as the paper describes."""
        encoder, image = self.encoder, self.image_start
        if init is None:
            if encoder.kind == "evcap" and encoder.source is not None:
                return start_fusion_qformer(encoder.source, self.download)
            init = "blip2" if encoder.kind == "blip2" or image.weights else f"random:{image.seed}"
        if init != "blip2":
            return start_fusion_qformer(init, self.download)
        if image.weights:  # a tower's, from a BERT or another model
            return QFormerStart(0, image.config, image.weights)
        if encoder.kind == "tower":
            raise ValueError(
                "fusion_init='blip2' starts the fusion from the image Q-Former, but this one starts at random. Leave "
                "`fusion_init` out, give 'random:SEED', or name a BERT, a BLIP-2 or an EVCap."
            )
        own = {
            name: tensor for name, tensor in encoder.weights.items() if name.startswith(("qformer.", "embeddings."))
        }
        return QFormerStart(0, encoder.fields["qformer_config"], fusion_from_blip2(own))

    def _size_fusion_qformer(self, names: Any) -> None:
        """Sizes of the fusion Q-Former: those of what it starts from, else the image Q-Former's."""
        fields, start = self.fields, self.fusion_start
        width = fields["qformer_config"].hidden_size
        sizes: Any = start.config or fields["qformer_config"]
        if sizes.hidden_size != width:
            origin = start.source.given if start.source is not None else "fusion_init"
            raise ValueError(
                f"The fusion Q-Former would start from {origin!r}, {sizes.hidden_size} wide, but the image Q-Former, "
                f"over whose outputs it attends, is {width} wide. Give a `fusion_init` of that width, or "
                "'random:SEED'."
            )
        if start.queries is not None:
            fields["num_name_query_tokens"] = start.queries.shape[1]
        given = fields.get("fusion_qformer_config")
        if isinstance(given, PreTrainedConfig):
            return
        words = 1  # unused where the language model's words are
        if not fields.get("tie_name_embeddings"):
            words = len(names) + ("[DEC]" not in names.get_vocab())  # which BLIP-2 puts behind BERT's words
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
        width = vision_hidden_size(fields["vision_config"])
        options = dict(fields.get("retrieval_options") or {})
        if photos is not None:
            options.setdefault("key_size", max(1, min(VISION_SPACE_OPTIONS["key_size"], width, len(photos) - 1)))
        elif options.setdefault("key_size", width) != width:
            raise ValueError(
                f"Keys of {options['key_size']} numbers out of {width} are learnt from photos: give "
                "`vision_space_photos`, or leave `key_size` out to retrieve with plain pooled features."
            )
        fields["retrieval_options"] = options

    def _untrained(self) -> list[str]:
        """Parts that no training has fitted to their task yet."""
        untrained = set(self.fields.get("untrained_parts") or ())
        if self.encoder.kind == "tower" and not self.image_start.trained:
            untrained.add("qformer")
        if not self.fusion_start.trained:
            untrained.add("fusion_qformer")
        return sorted(untrained)

    # Weights

    def load(self, model_class: Any, memory: Any = None) -> Any:
        """
        Makes the model.

        Args:
            model_class (`type`): [`EVCapForConditionalGeneration`].
            memory (*optional*): [`VisualNameMemory`], its folder or repo id; `False` leaves out that of an EVCap.
        """
        dtype = self.loading.pop("dtype", None)
        language = load_language_model(self.text_source, dtype)
        with torch.device("meta"):
            expected = model_class(self.config).state_dict()
        weights = self._weights(expected, with_prefix("language_model.", language.weights))
        dtype = language.dtype if dtype in (None, "auto") else dtype
        model = model_class.from_pretrained(
            None, config=self.config, state_dict=weights, dtype=dtype, **self.loading
        ).eval()
        model.generation_config = caption_generation_config(self.processor.tokenizer)
        model.name_tokenizer = self.processor.name_tokenizer
        if self.photos is not None:
            fit_vision_space(model, self.processor, self.photos)
        elif memory is None and self.encoder.kind == "evcap":
            memory = self._memory_of_encoder(model_class.memory_folder)
        if isinstance(memory, (str, os.PathLike)):
            memory = VisualNameMemory.from_pretrained(memory, **self.download)
        if memory is not None and memory is not False:
            model.set_memory(memory)
        return model

    def _weights(
        self, expected: Mapping[str, torch.Tensor], language_model: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Every weight of the model: the parts' own, and what they lack from where it starts."""
        config = self.config
        weights = {**self.encoder.weights, **language_model}
        starts = (
            ("qformer.", "query_tokens", config.qformer_config, self.image_start),
            ("fusion_qformer.", "name_query_tokens", config.fusion_qformer_config, self.fusion_start),
        )
        for prefix, queries, sizes, start in starts:
            places = {name for name in expected if name.startswith((prefix, queries))} - set(weights)
            given = with_prefix(prefix, start.weights)
            if start.queries is not None:
                given[queries] = start.queries
            fitting = {name for name in places if name in given and given[name].shape == expected[name].shape}
            others = {name: expected[name] for name in places - fitting}
            drawn = draw_weights(others, start.seed, sizes.initializer_range)
            for name in drawn:
                if "embeddings." in name and name in given and given[name].shape[1:] == drawn[name].shape[1:]:
                    rows = min(len(given[name]), len(drawn[name]))  # a BERT lacks words that were added to its own
                    drawn[name][:rows] = given[name][:rows]
            weights.update({name: given[name] for name in fitting}, **drawn)
        if "vision_space.whitening" in expected and "vision_space.whitening" not in weights:
            shape = expected["vision_space.whitening"].shape  # plain pooled features, unless photos change them
            weights.update({"vision_space.mean": torch.zeros(shape[0]), "vision_space.whitening": torch.eye(*shape)})
        if config.known_words_only:  # any token is a word until `model.spelling.fit` has read which are
            for name in ("is_word", "starts_inside", "ends_inside"):
                weights[f"spelling.{name}"] = torch.full(expected[f"spelling.{name}"].shape, name == "is_word")
        projection = {name: expected[name] for name in expected if name.startswith("language_projection.")}
        weights.update(draw_weights(projection, self.fusion_start.seed, config.initializer_range))
        weights = {name: tensor for name, tensor in weights.items() if name in expected}
        tied = getattr(config.text_config, "tie_word_embeddings", False)
        for name, place in expected.items():
            shape = weights[name].shape if name in weights else None
            if shape != place.shape and not (shape is None and tied and name.startswith("language_model.")):
                found = "in none of the parts" if shape is None else f"of shape {tuple(shape)} in its checkpoint"
                raise ValueError(
                    f"The weight {name} of shape {tuple(place.shape)} is {found}: the encoder's checkpoint does not "
                    "fit its config. Give a whole model, or another revision of it."
                )
        return weights

    def _memory_of_encoder(self, folder: str) -> Any:
        """The memory that an EVCap brings along: its encoder, which built it, stays the same."""
        source = self.encoder.source
        if source is None:
            return None
        reference = source.config.memory_reference
        if reference:
            name, revision = reference["repo_id"], reference.get("revision")
            return VisualNameMemory.from_pretrained(name, revision=revision, **self.download)
        if not source.has(f"{folder}/{MANIFEST_NAME}"):
            return None
        return VisualNameMemory.from_pretrained(source.name, subfolder=folder, repo_type="model", **source.options)


def _is_part_of(name_tokenizer: Any, tokenizer: Any) -> bool:
    """Whether names are read with the language model's own tokens."""
    if isinstance(name_tokenizer, (str, os.PathLike)):
        return False
    return name_tokenizer.get_vocab().items() <= tokenizer.get_vocab().items()


__all__ = ["NAME_TOKENIZER", "EVCapAssembly"]
