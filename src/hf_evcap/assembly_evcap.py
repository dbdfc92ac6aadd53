"""Assembles an EVCap from an encoder and a language model."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from .assembly import (
    LanguageModel,
    caption_generation_config,
    chat_prompt,
    draw_weights,
    load_efficientnet_lite,
    load_image_processor,
    load_language_model,
    load_text_tokenizer,
    load_vision_tower,
    open_language_model,
    own_config,
    split_options,
    with_prefix,
)
from .configuration_evcap import EVCapConfig
from .configuration_retrieval import VISION_SPACE_OPTIONS, vision_hidden_size
from .memory_evcap import VisualNameMemory
from .model_source import ModelSource
from .processing_evcap import EVCapProcessor
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


@dataclass
class Encoder:
    """
    What an encoder brings to an EVCap.

    Args:
        kind (`str`): `"blip2"`, `"evcap"` or `"tower"`.
        fields (`dict`): Of the [`EVCapConfig`].
        weights (`dict[str, torch.Tensor]`): By the names of the [`EVCapForConditionalGeneration`].
        source ([`ModelSource`], *optional*): Where it comes from; `None` for a bare weight file.
        image_processor: Its image processor, or `None`.
    """

    kind: str
    fields: dict[str, Any]
    weights: dict[str, torch.Tensor] = field(repr=False)
    source: ModelSource | None = None
    image_processor: Any = None


def load_encoder(
    encoder: str | os.PathLike, vision_config: Mapping[str, Any], download: Mapping[str, Any]
) -> Encoder:
    """
    Reads a vision encoder, with the Q-Former and the queries where it has them.

    Args:
        encoder (`str` or `os.PathLike`): A BLIP-2, an EVCap, a vision tower, or a `.pth` file of an EfficientNet-Lite.
        vision_config (`Mapping[str, Any]`): Fields of the vision encoder's config to change.
        download (`Mapping[str, Any]`): Options of downloads.

    Raises:
        ValueError: It has no vision tower, or its weights are not whole.
    """
    if Path(encoder).is_file():
        tower, source = load_efficientnet_lite(encoder, vision_config), None
    else:
        source = ModelSource(encoder, **download)
        if source.config.model_type == "evcap":
            return _evcap_encoder(source)
        if source.config.model_type == "blip-2":
            return _blip2_encoder(source, vision_config)
        tower = load_vision_tower(source, vision_config)
    weights = with_prefix("vision_model.", tower.weights)
    return Encoder("tower", {"vision_config": tower.config}, weights, source, tower.image_processor)


def _blip2_encoder(source: ModelSource, vision_config: Mapping[str, Any]) -> Encoder:
    config: Any = source.config
    fields = {
        "vision_config": own_config(config.vision_config, **vision_config),
        "qformer_config": own_config(config.qformer_config),
        "num_query_tokens": config.num_query_tokens,
    }
    image_processor = load_image_processor(source)
    if image_processor is None:
        side = config.vision_config.image_size
        image_processor = BlipImageProcessorPil(size={"height": side, "width": side})
    weights = source.read("vision_model.", "qformer.", "query_tokens")
    return Encoder("blip2", fields, weights, source, image_processor)


def _evcap_encoder(source: ModelSource) -> Encoder:
    config: Any = source.config
    others = {"text_config", "image_token_id", "memory_reference", "known_words_only"}
    own = set(EVCapConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) - others
    fields = {name: copy.deepcopy(getattr(config, name)) for name in own}
    for name in ("vision_config", "qformer_config", "fusion_qformer_config"):
        fields[name] = own_config(fields[name])
    weights = source.read("vision_model.", "vision_space.", "qformer.", "query_tokens")
    processor = EVCapProcessor.from_pretrained(source.name, **source.options)
    return Encoder("evcap", fields, weights, source, processor.image_processor)


def assemble_evcap(
    model_class: Any,
    encoder: str | os.PathLike,
    language_model: str | os.PathLike,
    *,
    memory: Any = None,
    fusion_init: str | None = None,
    qformer_init: str = "random:0",
    processor: EVCapProcessor | None = None,
    name_tokenizer: Any = None,
    image_processor: Any = None,
    chat_template: bool = False,
    vision_space_photos: Any = None,
    gguf_file: str | None = None,
    processor_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, EVCapProcessor]:
    """
    Assembles a model and its processor.

    The arguments are those of [`EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained`], and
    `processor_options` for the [`EVCapProcessor`] that is made where none is given.
    """
    fields, loading, download = split_options(EVCapConfig, options)
    dtype = loading.pop("dtype", None)
    text_source = open_language_model(language_model, gguf_file, download)
    text_width = text_source.config.get_text_config().hidden_size
    parts = load_encoder(encoder, fields.pop("vision_config", None) or {}, download)
    fields = {**parts.fields, **fields}
    tokenizer = load_text_tokenizer(text_source) if processor is None else processor.tokenizer
    if processor is not None:
        name_tokenizer = processor.name_tokenizer
    image_start = QFormerStart()
    if parts.kind == "tower":
        image_start = start_image_qformer(qformer_init, download)
        _choose_image_qformer(fields, image_start, text_width, name_tokenizer)
    names = _choose_name_tokenizer(fields, parts, tokenizer, text_width, name_tokenizer, download)
    fusion_start = _find_fusion(parts, image_start, fusion_init, download)
    _choose_fusion_qformer(fields, parts, fusion_start, names)
    photos = None if vision_space_photos is None else list(vision_space_photos)
    _choose_vision_space(fields, parts, None if photos is None else len(photos))
    fields["untrained_parts"] = _untrained(fields, parts, image_start, fusion_start)

    language = load_language_model(text_source, dtype)
    config = EVCapConfig(**{**fields, "text_config": language.config})
    if processor is None:
        processor = make_processor(
            parts, tokenizer, names, config.num_prefix_tokens, image_processor, chat_template, processor_options or {}
        )
    if processor.num_prefix_tokens != config.num_prefix_tokens:
        raise ValueError(
            f"The processor gives a photo {processor.num_prefix_tokens} tokens, the model {config.num_prefix_tokens} "
            "(num_query_tokens + num_name_query_tokens); make them equal."
        )
    config.image_token_id = processor.image_token_id
    with torch.device("meta"):
        expected = model_class(config).state_dict()
    weights = _collect_weights(config, expected, parts, language, image_start, fusion_start)
    loading["dtype"] = language.dtype if dtype in (None, "auto") else dtype
    model = model_class.from_pretrained(None, config=config, state_dict=weights, **loading)
    model.generation_config = caption_generation_config(processor.tokenizer)
    model.name_tokenizer = processor.name_tokenizer
    if photos is not None:
        fit_vision_space(model, processor, photos)
    if memory is None and parts.kind == "evcap":
        memory = _memory_of(model_class, parts.source)
    if isinstance(memory, (str, os.PathLike)):
        memory = VisualNameMemory.from_pretrained(memory, **download)
    if memory:
        model.set_memory(memory)
    return model.eval(), processor


def _choose_image_qformer(fields: dict[str, Any], start: QFormerStart, text_width: int, name_tokenizer: Any) -> None:
    """Sizes of the image Q-Former of a vision tower."""
    sizes: Any = start.config
    if sizes is None:
        width = text_width if name_tokenizer is None and text_width <= _WIDEST_TIED else 768
        heads = next(count for count in range(max(1, width // 64), 0, -1) if width % count == 0)
        sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": heads, **_SMALL_QFORMER}
    vision_width = vision_hidden_size(fields["vision_config"])
    theirs = getattr(start.config, "encoder_hidden_size", None)
    if start.trained and theirs != vision_width:
        raise ValueError(
            f"The Q-Former of {start.source.given!r} reads vision features of {theirs} numbers, this vision encoder "  # type: ignore[union-attr]
            f"gives {vision_width}: take the Q-Former of the same encoder, or qformer_init='random:SEED'."
        )
    fields["qformer_config"] = qformer_config(sizes, fields.get("qformer_config"), encoder_hidden_size=vision_width)
    if start.queries is not None:
        fields["num_query_tokens"] = start.queries.shape[1]


def _choose_name_tokenizer(
    fields: dict[str, Any],
    parts: Encoder,
    tokenizer: Any,
    text_width: int,
    name_tokenizer: Any,
    download: Mapping[str, Any],
) -> Any:
    """The tokenizer that names are read with: the language model's where it embeds them too, BERT's otherwise."""
    width = fields["qformer_config"].hidden_size
    may_tie = width == text_width and name_tokenizer is None
    if parts.kind == "tower":
        fields.setdefault("tie_name_embeddings", may_tie)
    elif parts.kind == "evcap" and fields["tie_name_embeddings"] and not may_tie:
        # The fusion goes on reading names with the old language model's words, which become a table of its own.
        fields["tie_name_embeddings"] = False
        if isinstance(fields["fusion_qformer_config"], PreTrainedConfig):
            del fields["fusion_qformer_config"]
    if fields.get("tie_name_embeddings"):
        names = copy.deepcopy(tokenizer) if name_tokenizer is None else name_tokenizer
        if names.sep_token is None:  # an end between names is what a language model has read, and is in its vocabulary
            if names.eos_token is None:
                raise ValueError(
                    "The language model's tokenizer has neither a SEP nor an EOS token to stand between names: set "
                    "one and pass it as `name_tokenizer`."
                )
            names.sep_token = names.eos_token
        return names
    if name_tokenizer is None and parts.kind == "evcap" and parts.source is not None:
        return EVCapProcessor.from_pretrained(parts.source.name, **parts.source.options).name_tokenizer
    if name_tokenizer is None or isinstance(name_tokenizer, (str, os.PathLike)):
        source = os.fspath(name_tokenizer or NAME_TOKENIZER)
        try:
            return AutoTokenizer.from_pretrained(source, **download)
        except (OSError, ValueError) as error:
            raise OSError(
                f"The tokenizer of the names, {source!r}, cannot be loaded ({error}). Pass `name_tokenizer`: a "
                "tokenizer, its folder or its repo id."
            ) from error
    return name_tokenizer


def _find_fusion(
    parts: Encoder, image_start: QFormerStart, fusion_init: str | None, download: Mapping[str, Any]
) -> QFormerStart:
    """What the fusion Q-Former starts from: an EVCap's own, else the image Q-Former, as the paper describes."""
    if fusion_init is None:
        if parts.kind == "evcap" and parts.source is not None:
            return start_fusion_qformer(parts.source.given, download)
        fusion_init = "blip2" if parts.kind == "blip2" or image_start.weights else f"random:{image_start.seed + 1}"
    if fusion_init != "blip2":
        return start_fusion_qformer(fusion_init, download)
    if parts.kind == "tower" and not image_start.weights:
        raise ValueError(
            "fusion_init='blip2' starts the fusion from the image Q-Former, but this one starts at random. Leave "
            "`fusion_init` out, give 'random:SEED', or name a BERT, a BLIP-2 or an EVCap."
        )
    if image_start.weights:
        return QFormerStart(0, image_start.config, image_start.weights)
    embeddings = {}
    if parts.kind == "blip2" and parts.source is not None and parts.source.config.qformer_config.use_qformer_text_input:
        embeddings = parts.source.read("embeddings.")
    own = {name: tensor for name, tensor in parts.weights.items() if name.startswith("qformer.")}
    return QFormerStart(0, parts.fields["qformer_config"], fusion_from_blip2({**own, **embeddings}))


def _choose_fusion_qformer(fields: dict[str, Any], parts: Encoder, start: QFormerStart, names: Any) -> None:
    """Sizes of the fusion Q-Former: those of what it starts from, else the image Q-Former's."""
    width = fields["qformer_config"].hidden_size
    sizes: Any = start.config or fields["qformer_config"]
    if sizes.hidden_size != width:
        origin = start.source.given if start.source is not None else "fusion_init"
        raise ValueError(
            f"The fusion Q-Former would start from {origin!r}, {sizes.hidden_size} wide, but the image Q-Former, over "
            f"whose outputs it attends, is {width} wide. Give a `fusion_init` of that width, or 'random:SEED'."
        )
    if parts.kind == "evcap" and isinstance(fields.get("fusion_qformer_config"), PreTrainedConfig):
        return
    tied = fields.get("tie_name_embeddings", False)
    vocabulary = 1 if tied else len(names) + ("[DEC]" not in names.get_vocab())  # BLIP-2 puts [DEC] behind BERT's words
    fixed = {"hidden_size": width, "encoder_hidden_size": width, "vocab_size": vocabulary}
    fields["fusion_qformer_config"] = qformer_config(sizes, fields.get("fusion_qformer_config"), **fixed)
    if start.queries is not None:
        fields["num_name_query_tokens"] = start.queries.shape[1]


def _choose_vision_space(fields: dict[str, Any], parts: Encoder, photos: int | None) -> None:
    """
    The space that names are retrieved in: a Q-Former that nobody trained retrieves nothing, so photos are compared by
    their pooled vision features, plain or whitened as photos teach.
    """
    if parts.kind == "tower":
        fields.setdefault("retrieval_space", "vision")
    if fields.get("retrieval_space", "query") != "vision":
        if photos is not None:
            raise ValueError("`vision_space_photos` fit the retrieval space 'vision'; this model's is 'query'.")
        return
    if parts.kind != "tower" and photos is None:
        return
    width = vision_hidden_size(fields["vision_config"])
    options = dict(fields.get("retrieval_options") or {})
    if photos is None:
        if options.setdefault("key_size", width) != width:
            raise ValueError(
                f"Keys of {options['key_size']} numbers out of {width} are learnt from photos: give "
                "`vision_space_photos`, or leave `key_size` out to retrieve with plain pooled features."
            )
    else:
        options.setdefault("key_size", min(VISION_SPACE_OPTIONS["key_size"], width, photos - 1))
    fields["retrieval_options"] = options


def _untrained(
    fields: dict[str, Any], parts: Encoder, image_start: QFormerStart, fusion_start: QFormerStart
) -> list[str]:
    """Parts that no training has fitted to their task yet."""
    untrained = set(fields.get("untrained_parts") or ())
    if parts.kind == "tower" and not image_start.trained:
        untrained.add("qformer")
    if not fusion_start.trained:
        untrained.add("fusion_qformer")
    return sorted(untrained)


def make_processor(
    parts: Encoder,
    tokenizer: Any,
    name_tokenizer: Any,
    num_prefix_tokens: int,
    image_processor: Any,
    chat_template: bool,
    options: Mapping[str, Any],
) -> EVCapProcessor:
    """
    Makes the processor of an assembled model.

    Args:
        parts ([`Encoder`]): Whose image processor it takes where none is given.
        tokenizer, name_tokenizer: The language model's and the fusion Q-Former's.
        num_prefix_tokens (`int`): Image tokens of a photo.
        image_processor (*optional*): Instead of the encoder's.
        chat_template (`bool`): Whether the prompt is written as the language model's own chat template says.
        options (`Mapping[str, Any]`): Arguments of [`EVCapProcessor`], such as `prompt` and `prompt_template`.
    """
    image_processor = image_processor if image_processor is not None else parts.image_processor
    if image_processor is None:
        raise ValueError(
            f"The encoder {parts.source.given if parts.source else ''!r} has no preprocessor_config.json: pass its "
            "`image_processor`."
        )
    settings = dict(options)
    if chat_template:
        template, bos = chat_prompt(tokenizer, settings.pop("prompt_template", "{image}\n{prompt}"))
        settings = {"prompt_template": template, "add_bos_token": bos, "caption_end": tokenizer.eos_token, **settings}
    return EVCapProcessor(image_processor, tokenizer, name_tokenizer, num_prefix_tokens=num_prefix_tokens, **settings)


def _collect_weights(
    config: EVCapConfig,
    expected: Mapping[str, torch.Tensor],
    parts: Encoder,
    language: LanguageModel,
    image_start: QFormerStart,
    fusion_start: QFormerStart,
) -> dict[str, torch.Tensor]:
    """Every weight of the model: the parts' own, and what they lack from where it starts."""
    weights = {**parts.weights, **with_prefix("language_model.", language.weights)}
    starts = (
        ("qformer.", "query_tokens", config.qformer_config, image_start),
        ("fusion_qformer.", "name_query_tokens", config.fusion_qformer_config, fusion_start),
    )
    for prefix, queries, sizes, start in starts:
        places = {name for name in expected if name.startswith((prefix, queries))} - set(weights)
        given = {queries: start.queries, **with_prefix(prefix, start.weights)}
        fitting = {name for name in places if given.get(name) is not None and given[name].shape == expected[name].shape}
        drawn = draw_weights({name: expected[name] for name in places - fitting}, start.seed, sizes.initializer_range)
        for name in drawn:
            if "embeddings." in name and name in given and given[name].shape[1:] == drawn[name].shape[1:]:
                rows = min(len(given[name]), len(drawn[name]))  # a BERT lacks the rows of words added later
                drawn[name][:rows] = given[name][:rows]
        weights.update({name: given[name] for name in fitting}, **drawn)
    if "vision_space.whitening" in expected and "vision_space.whitening" not in weights:
        shape = expected["vision_space.whitening"].shape  # plain pooled features, unless photos change them
        weights.update({"vision_space.mean": torch.zeros(shape[0]), "vision_space.whitening": torch.eye(*shape)})
    if config.known_words_only:  # every token is a word until `model.spelling.fit` has read what are
        for name in ("is_word", "starts_inside", "ends_inside"):
            weights[f"spelling.{name}"] = torch.full(expected[f"spelling.{name}"].shape, name == "is_word")
    projection = {name: expected[name] for name in expected if name.startswith("language_projection.")}
    weights.update(draw_weights(projection, fusion_start.seed, config.initializer_range))
    weights = {name: tensor for name, tensor in weights.items() if name in expected}
    missing = sorted(name for name in expected if name not in weights and not _is_tied(name, config))
    wrong = [name for name, tensor in weights.items() if tensor.shape != expected[name].shape]
    if missing or wrong:
        name = (missing or wrong)[0]
        found = "is in none of the parts" if missing else f"has shape {tuple(weights[name].shape)} there"
        raise ValueError(
            f"The weight {name} of shape {tuple(expected[name].shape)} {found} ({len(missing)} are missing, "
            f"{len(wrong)} have other shapes): the encoder's checkpoint does not fit its config."
        )
    return weights


def _is_tied(name: str, config: EVCapConfig) -> bool:
    return name.startswith("language_model.") and getattr(config.text_config, "tie_word_embeddings", False)


def _memory_of(model_class: Any, source: ModelSource | None) -> Any:
    """The memory that an EVCap brings along: its encoder, which built it, stays the same."""
    if source is None:
        return None
    reference = source.config.memory_reference
    if reference:
        return VisualNameMemory.from_pretrained(
            reference["repo_id"], revision=reference.get("revision"), **source.download
        )
    folder = model_class.memory_folder
    if not source.has(f"{folder}/{MANIFEST_NAME}"):
        return None
    return VisualNameMemory.from_pretrained(source.name, subfolder=folder, repo_type="model", **source.options)


__all__ = ["Encoder", "assemble_evcap", "load_encoder", "make_processor"]
