"""Converts the reference's EVCap checkpoints (complete, or trainable-only on top of BLIP-2 and Vicuna)."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BertTokenizer, LlamaTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import logging

from ..checkpoint_reader import read_pretrained, read_state_file
from ..configuration_evcap import EVCapConfig
from ..language_models import caption_generation_config
from ..memory_evcap import VisualNameMemory
from ..modeling_evcap import EVCapForConditionalGeneration
from ..processing_evcap import EVCapProcessor
from ..qformer_initialization import SHARED_SIZES
from ..qformer_names import FUSION_PREFIXES, qformer_name, qformer_weights, query_layernorm
from .conversion_report import ConversionReport, check_shapes
from .reference_memory import load_evcap_memory


logger = logging.get_logger(__name__)

BLIP2 = "Salesforce/blip2-flan-t5-xxl"
VICUNA = "lmsys/vicuna-13b-v1.3"

# The reference's names, in order; the first pattern that matches renames the key.
_RENAMINGS = [
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^query_tokens_txt$", "name_query_tokens"),
    (r"^query_tokens$", "query_tokens"),
    (r"^llama_proj\.", "language_projection."),
    (r"^llama_model\.", "language_model."),
]
# Not weights: positions 0, 1, 2, ... and rotary frequencies, which the modules make themselves.
_DERIVED = re.compile(r"(\.position_ids|\.rotary_emb\.inv_freq)$")


def _rename(key: str) -> str | None:
    part, _, name = key.partition(".")
    own = qformer_name(name) if name.startswith("bert.") else None
    if part == "Qformer_txt":
        return None if own is None else f"fusion_qformer.{own}"
    if part == "Qformer":
        own = None if own is None else query_layernorm(own)
        return None if own is None or own.startswith("embeddings.") else f"qformer.{own}"
    for pattern, replacement in _RENAMINGS:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return None


def convert_state_dict(state: dict[str, torch.Tensor], report: ConversionReport) -> dict[str, torch.Tensor]:
    """
    Renames the reference's weights to ours and folds each block's q and v biases into one qkv bias (k has none).

    Args:
        state (`dict[str, torch.Tensor]`): The reference's state dict; `module.` in front of keys is dropped.
        report ([`ConversionReport`]): Filled with what was used and what was not.
    """
    converted: dict[str, torch.Tensor] = {}
    biases: dict[str, dict[str, torch.Tensor]] = {}
    for original, tensor in state.items():
        key = original.removeprefix("module.")
        bias = re.match(r"^visual_encoder\.blocks\.(\d+)\.attn\.([qv])_bias$", key)
        if bias:
            target = f"vision_model.encoder.layers.{bias[1]}.self_attn.qkv.bias"
            biases.setdefault(target, {})[bias[2]] = tensor
            report.used[original] = target
            continue
        renamed = None if _DERIVED.search(key) else _rename(key)
        if renamed is None:
            report.unused.append(original)
        else:
            converted[renamed] = tensor
            report.used[original] = renamed
    for target, pair in biases.items():
        if set(pair) != {"q", "v"}:
            raise ValueError(f"The checkpoint holds only one of q_bias and v_bias for {target}.")
        converted[target] = torch.cat([pair["q"], torch.zeros_like(pair["q"]), pair["v"]])
    return converted


def complete_config(config: EVCapConfig, state: dict[str, torch.Tensor]) -> EVCapConfig:
    """
    Takes every size that the weights' shapes tell from them; `config` gives what shapes cannot (heads, epsilons).

    Args:
        config ([`EVCapConfig`]): Changed in place and returned.
        state (`dict[str, torch.Tensor]`): Converted weights, complete or in part.
    """

    def depth(prefix: str) -> int:
        layers = [int(m[1]) for m in (re.match(rf"^{re.escape(prefix)}\.(\d+)\.", key) for key in state) if m]
        return max(layers, default=-1) + 1

    def shape(key: str) -> torch.Size | None:
        return state[key].shape if key in state else None

    def put(target: Any, **sizes: int | None) -> None:
        for name, size in sizes.items():
            if size is not None and hasattr(target, name) and getattr(target, name) != size:
                logger.info(
                    f"{type(target).__name__}.{name} is {size} in the checkpoint, not {getattr(target, name)}."
                )
                setattr(target, name, size)

    vision = config.vision_config
    patches, positions = (
        shape(f"vision_model.embeddings.{n}") for n in ("patch_embedding.weight", "position_embedding")
    )
    if patches is not None and positions is not None:
        side = round((positions[1] - 1) ** 0.5)
        mlp = shape("vision_model.encoder.layers.0.mlp.fc1.weight")
        put(vision, hidden_size=patches[0], patch_size=patches[2], image_size=side * patches[2])
        put(vision, num_hidden_layers=depth("vision_model.encoder.layers"), intermediate_size=mlp and mlp[0])
    for part, prefix in ((config.qformer_config, "qformer"), (config.fusion_qformer_config, "fusion_qformer")):
        layers = depth(f"{prefix}.encoder.layer")
        inner = shape(f"{prefix}.encoder.layer.0.intermediate_query.dense.weight")
        if layers and inner is not None:
            crossing = [
                n
                for n in range(layers)
                if f"{prefix}.encoder.layer.{n}.crossattention.attention.query.weight" in state
            ]
            put(part, num_hidden_layers=layers, hidden_size=inner[1], intermediate_size=inner[0])
            put(part, cross_attention_frequency=crossing[1] - crossing[0] if len(crossing) > 1 else layers)
    words = shape("fusion_qformer.embeddings.word_embeddings.weight")
    places = shape("fusion_qformer.embeddings.position_embeddings.weight")
    put(config.fusion_qformer_config, vocab_size=words and words[0], max_position_embeddings=places and places[0])
    width = config.qformer_config.hidden_size
    put(config.fusion_qformer_config, hidden_size=width, encoder_hidden_size=width)
    put(config.qformer_config, encoder_hidden_size=vision.hidden_size)
    queries, name_queries = shape("query_tokens"), shape("name_query_tokens")
    put(config, num_query_tokens=queries and queries[1], num_name_query_tokens=name_queries and name_queries[1])
    embeddings = shape("language_model.model.embed_tokens.weight")
    gate = shape("language_model.model.layers.0.mlp.gate_proj.weight")
    if embeddings is not None:
        put(config.text_config, vocab_size=embeddings[0], hidden_size=embeddings[1])
        put(
            config.text_config,
            num_hidden_layers=depth("language_model.model.layers"),
            intermediate_size=gate and gate[0],
        )
        query, key = (shape(f"language_model.model.layers.0.self_attn.{name}_proj.weight") for name in "qk")
        if query is not None and key is not None:
            head_dim = query[0] // config.text_config.num_attention_heads
            put(config.text_config, head_dim=head_dim, num_key_value_heads=key[0] // head_dim)
    return config


def load_config(
    config: EVCapConfig | dict[str, Any] | str | os.PathLike | None,
    blip2: str | os.PathLike | None = None,
    language_model: str | os.PathLike | None = None,
) -> EVCapConfig:
    """
    Makes a configuration from an object, a dictionary, a folder or a Hub id.

    Args:
        config (*optional*): `None` stands for the paper's, with the parts that other checkpoints give as these say.
        blip2, language_model (`str`, *optional*): Models whose vision encoder, Q-Former and language model are used.
    """
    if isinstance(config, EVCapConfig):
        return copy.deepcopy(config)
    if isinstance(config, dict):
        return EVCapConfig(**config)
    if config is not None:
        return EVCapConfig.from_pretrained(config)
    parts: dict[str, Any] = {}
    if blip2 is not None:
        encoder = AutoConfig.from_pretrained(blip2)
        parts = {"vision_config": encoder.vision_config, "qformer_config": encoder.qformer_config}
    if language_model is not None:
        parts["text_config"] = AutoConfig.from_pretrained(language_model)
    return EVCapConfig(**parts)


def _mirror_qformer(config: EVCapConfig, name_tokenizer: Any) -> None:
    """Gives a fusion Q-Former without weights the image Q-Former's sizes, as the release makes both alike."""
    fusion, qformer = config.fusion_qformer_config, config.qformer_config
    for size in SHARED_SIZES:
        setattr(fusion, size, getattr(qformer, size))
    fusion.vocab_size = len(name_tokenizer) + ("[DEC]" not in name_tokenizer.get_vocab())  # a word that it adds


def load_tokenizer(source: Any, *, kind: str) -> Any:
    """
    Loads a tokenizer from a folder, a file, a Hub id, or takes one as it is.

    Args:
        source: `tokenizer.model` or `vocab.txt` files work without further files beside them.
        kind (`str`): `"llm"` (a bare SentencePiece file is LLaMA's) or `"name"` (a bare word list is BERT's).
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    if path.is_dir() and not (path / "tokenizer_config.json").exists() and not (path / "tokenizer.json").exists():
        bare = [path / name for name in ("tokenizer.model", "vocab.txt", "bert_vocab.txt") if (path / name).is_file()]
        path = bare[0] if bare else path
    if path.is_file() and path.suffix == ".txt":
        return BertTokenizer(str(path), do_lower_case=True)
    if path.is_file() and path.suffix == ".model":
        with tempfile.TemporaryDirectory() as folder:  # the class looks for this name only
            shutil.copy(path, Path(folder) / "tokenizer.model")
            return LlamaTokenizer.from_pretrained(folder, legacy=True)
    if path.is_file() and path.suffix == ".json":
        return AutoTokenizer.from_pretrained(str(path.parent))
    if path.is_file():
        raise ValueError(
            f"{path.name} is not a tokenizer file known here (tokenizer.model, tokenizer.json, vocab.txt)."
        )
    options = {"use_fast": True} if kind == "name" else {}
    return AutoTokenizer.from_pretrained(str(source), **options)


def _initialize_fusion(
    init: str, missing: list[str], blip2_state: Callable[[], dict[str, torch.Tensor]]
) -> tuple[dict[str, torch.Tensor], int]:
    """Gives the fusion weights that `init` asks for, and the seed for the rest."""
    kind, _, argument = init.partition(":")
    if kind == "random" and argument.isdigit():
        return {}, int(argument)
    if init != "blip2":
        raise ValueError(f"`fusion_init` must be 'blip2' or 'random:SEED' (such as 'random:0'), got {init!r}.")
    named = qformer_weights("blip-2", blip2_state())
    own = {key: named.get(key.removeprefix("fusion_qformer.")) for key in missing}
    return {key: tensor for key, tensor in own.items() if tensor is not None}, 0


def convert_evcap(
    checkpoint: str | os.PathLike | dict[str, torch.Tensor],
    *,
    config: EVCapConfig | dict[str, Any] | str | os.PathLike | None = None,
    llm_tokenizer: Any = None,
    name_tokenizer: Any = "google-bert/bert-base-uncased",
    memory: VisualNameMemory | str | os.PathLike | None = None,
    blip2: str | os.PathLike = BLIP2,
    language_model: str | os.PathLike = VICUNA,
    fusion_init: str | None = None,
    dtype: str | torch.dtype | None = None,
    report: ConversionReport | None = None,
) -> tuple[EVCapForConditionalGeneration, EVCapProcessor]:
    """
    Converts a checkpoint of the released EVCap implementation.

    Args:
        checkpoint (`str`, `os.PathLike` or `dict`):
            File with the reference's keys. A complete one holds every weight; the one its training writes holds the
            trained parts only (image queries, object-name queries, projection), and the others are then read from
            `blip2` and `language_model`.
        config (*optional*): An [`EVCapConfig`], a dictionary of its fields, a JSON file, a folder or a Hub id. Sizes
            are taken from the weights in any case; the config tells what shapes cannot, such as attention heads.
            Defaults to the paper's, with the sizes of `blip2` and `language_model` where they are used.
        llm_tokenizer (*optional*): Tokenizer of the language model: object, folder, `tokenizer.model` file or Hub id.
            Defaults to `language_model`'s.
        name_tokenizer: Tokenizer of the names: object, folder, `vocab.txt` file or Hub id.
        memory (*optional*): [`VisualNameMemory`], a folder or Hub id of one, or the reference's `.pkl` file.
        blip2 (`str`, *optional*): BLIP-2 model whose vision encoder and Q-Former complete a trainable-only checkpoint.
        language_model (`str`, *optional*): Language model that completes it.
        fusion_init (`str`, *optional*): The release neither trained nor saved its fusion Q-Former, so that a
            trainable-only checkpoint cannot give the captions of the paper, and is refused unless this says how to
            initialise the fusion: `"blip2"`, from the Q-Former of `blip2` where shapes allow, or `"random:SEED"`.
        dtype (*optional*): Precision of the model; the checkpoint's own where absent. Q-Formers stay in fp32.
        report ([`ConversionReport`], *optional*): Filled with every key used, unused and missing.

    Returns:
        The model, with its memory, and the processor.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: Weights are missing, with their names and what to do.
    """
    report = report if report is not None else ConversionReport()
    if isinstance(checkpoint, dict):
        state = checkpoint.get("model", checkpoint)
    else:
        if not os.path.isfile(checkpoint):
            raise FileNotFoundError(f"There is no checkpoint file {os.fspath(checkpoint)!r}.")
        state = read_state_file(Path(checkpoint))
    converted = convert_state_dict(state, report)
    if not converted:
        raise ValueError("The checkpoint holds no key of an EVCap model; is it another model's?")
    has_encoder = any(key.startswith("vision_model.") for key in converted)
    has_language_model = any(key.startswith("language_model.") for key in converted)
    has_fusion = any(key.startswith("fusion_qformer.") for key in converted)
    if not has_fusion and fusion_init is None:
        raise ValueError(
            "The checkpoint has no fusion Q-Former (Qformer_txt.*). The release initialised it at random, froze it "
            "and did not save it, so these weights alone cannot reproduce the paper's captions. Pass a complete state "
            "dict, or say how to initialise the fusion and train it: fusion_init='blip2' or fusion_init='random:SEED'."
        )
    if isinstance(config, (str, os.PathLike)) and os.path.isfile(config):
        config = json.loads(Path(config).read_text(encoding="utf-8"))
    given = (config or {}) if config is None or isinstance(config, dict) else {"fusion_qformer_config": config}
    fusion_sizes = given.get("fusion_qformer_config") or {}
    unsized_fusion = isinstance(fusion_sizes, dict) and "num_hidden_layers" not in fusion_sizes
    config = load_config(config, None if has_encoder else blip2, None if has_language_model else language_model)
    if not has_encoder:
        for key, tensor in read_pretrained(blip2, ("vision_model.", "qformer.", "query_tokens")).items():
            if converted.setdefault(key, tensor) is tensor:
                report.used[f"{os.fspath(blip2)}: {key}"] = key
    if not has_language_model:
        for key, tensor in read_pretrained(language_model).items():
            if not _DERIVED.search(key):
                converted[f"language_model.{key}"] = tensor
                report.used[f"{os.fspath(language_model)}: {key}"] = f"language_model.{key}"
    config = complete_config(config, converted)

    llm_tokenizer = load_tokenizer(llm_tokenizer if llm_tokenizer is not None else language_model, kind="llm")
    name_tokenizer = load_tokenizer(name_tokenizer, kind="name")
    if not has_fusion and unsized_fusion:
        _mirror_qformer(config, name_tokenizer)
    size = getattr(config.vision_config, "image_size", 224)
    processor = EVCapProcessor(
        BlipImageProcessorPil(size={"height": size, "width": size}),
        llm_tokenizer,
        name_tokenizer,
        num_prefix_tokens=config.num_prefix_tokens,
    )
    config.image_token_id = processor.image_token_id
    with torch.device("meta"):
        expected = EVCapForConditionalGeneration(config).state_dict()
    check_shapes(converted, expected)
    missing = [key for key in expected if key not in converted]
    seed = 0
    if not has_fusion:
        fusion, seed = _initialize_fusion(
            str(fusion_init),
            [key for key in missing if key.startswith("fusion_qformer.")],
            lambda: read_pretrained(blip2, FUSION_PREFIXES["blip-2"]),
        )
        fusion = {key: tensor for key, tensor in fusion.items() if tensor.shape == expected[key].shape}
        converted.update(fusion)
        report.used.update({f"{os.fspath(blip2)} ({key})": key for key in fusion})
        report.initialized = [key for key in missing if key.startswith("fusion_qformer.") and key not in fusion]
    tied = _tied_output_embeddings(config, missing)
    report.missing = [key for key in missing if key not in converted and key not in tied]
    fatal = sorted(set(report.missing) - set(report.initialized))
    if fatal:
        raise ValueError(
            f"{len(fatal)} weights are in none of the checkpoints, the first of them {', '.join(fatal[:5])}. Pass a "
            "complete checkpoint, or a BLIP-2 and a language model that hold them."
        )
    report.unused += [key for key in converted if key not in expected]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = EVCapForConditionalGeneration.from_pretrained(
            None, config=config, state_dict={key: converted[key] for key in expected if key in converted}, dtype=dtype
        )
    model.generation_config = caption_generation_config(processor.tokenizer)
    model.name_tokenizer = name_tokenizer
    if memory is not None:
        model.set_memory(_load_memory(memory, model))
    logger.info(str(report))
    return model.eval(), processor


def _tied_output_embeddings(config: EVCapConfig, missing: list[str]) -> set[str]:
    """Output embeddings that a language model shares with its input embeddings are not in its checkpoint."""
    tied = getattr(config.text_config, "tie_word_embeddings", False)
    return {key for key in missing if tied and key.startswith("language_model.") and key.endswith("lm_head.weight")}


def _load_memory(
    memory: VisualNameMemory | str | os.PathLike, model: EVCapForConditionalGeneration
) -> VisualNameMemory:
    if isinstance(memory, VisualNameMemory):
        return memory
    if str(memory).endswith((".pkl", ".pickle")):
        return load_evcap_memory(
            memory, encoder_fingerprint=model.encoder_fingerprint, query_tokens_hash=model.query_tokens_hash
        )
    return VisualNameMemory.from_pretrained(memory)


__all__ = ["convert_evcap"]
