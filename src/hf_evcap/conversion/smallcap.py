"""Converts the released SmallCap checkpoints (`this_gpt2`, `this_opt`) into this package's models."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPVisionConfig, GPT2Config, OPTConfig, PreTrainedConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging

from ..checkpoint_reader import locate_file, read_pretrained
from ..configuration_smallcap import SmallCapConfig
from ..datastore_smallcap import CaptionDatastore
from ..modeling_smallcap import SmallCapForConditionalGeneration
from ..processing_smallcap import SmallCapProcessor
from .conversion_report import ConversionReport, check_shapes


logger = logging.get_logger(__name__)

# The release's names, in order; every pattern that matches renames the key.
_RENAMINGS = [
    (r"^encoder\.", "vision_model."),
    (r"^decoder\.", "language_model."),
    (r"(\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.ln_cross_attn."),
    (r"(\.layers\.\d+)\.encoder_attn\.", r"\1.crossattention."),
]
# Not weights: positions 0, 1, 2, ... and causal masks, which the modules make themselves.
_DERIVED = re.compile(r"(\.position_ids|\.(attn|crossattention)\.(bias|masked_bias))$")
_DECODERS: dict[str, type[PreTrainedConfig]] = {"this_gpt2": GPT2Config, "this_opt": OPTConfig}
# Decoders whose tokenizer the size of the vocabulary tells.
_TOKENIZERS = {50257: "openai-community/gpt2", 50272: "facebook/opt-125m"}


def convert_state_dict(state: dict[str, torch.Tensor], report: ConversionReport) -> dict[str, torch.Tensor]:
    """Renames the release's weights to ours and tells the report of every key."""
    converted: dict[str, torch.Tensor] = {}
    for original, tensor in state.items():
        if _DERIVED.search(original) or not original.startswith(("encoder.", "decoder.")):
            report.unused.append(original)
            continue
        key = original
        for pattern, replacement in _RENAMINGS:
            key = re.sub(pattern, replacement, key)
        converted[key] = tensor
        report.used[original] = key
    return converted


def _own_fields(config_class: type[PreTrainedConfig], given: dict[str, Any]) -> dict[str, Any]:
    """What a config of an old transformers says of a model itself; generation options and the like stay behind."""
    ours = {*config_class().to_dict(), *config_class.attribute_map} - set(PreTrainedConfig().to_dict())
    ours |= {"bos_token_id", "eos_token_id", "pad_token_id"}
    return {name: value for name, value in given.items() if name in ours - {"model_type"}}


def _vision_config(encoder: dict[str, Any], state: dict[str, torch.Tensor]) -> CLIPVisionConfig:
    """Sizes from the weights where their shapes tell them, from the config otherwise (heads, activation)."""
    if encoder.get("model_type") == "clip":  # the release writes the whole CLIP's config
        given = CLIPConfig(**{side: encoder[side] for side in ("vision_config",) if encoder.get(side)}).vision_config
        given.projection_dim = encoder.get("projection_dim", given.projection_dim)
    else:
        given = CLIPVisionConfig(**_own_fields(CLIPVisionConfig, encoder))
    patches = state["vision_model.embeddings.patch_embedding.weight"].shape
    positions = len(state["vision_model.embeddings.position_embedding.weight"])
    given.hidden_size, given.patch_size = patches[0], patches[2]
    given.image_size = round((positions - 1) ** 0.5) * patches[2]
    given.num_hidden_layers = _depth(state, r"^vision_model\.encoder\.layers\.(\d+)\.")
    given.intermediate_size = len(state["vision_model.encoder.layers.0.mlp.fc1.weight"])
    return given


def _decoder_config(decoder: dict[str, Any], state: dict[str, torch.Tensor]) -> tuple[PreTrainedConfig, int]:
    """The decoder's config, and by how much its cross-attention is narrower."""
    kind = decoder.get("model_type")
    if kind not in _DECODERS:
        raise ValueError(f"The decoder must be of type {' or '.join(_DECODERS)}, it is {kind!r}.")
    config = _DECODERS[kind](**_own_fields(_DECODERS[kind], decoder))
    if kind == "this_gpt2":
        words = state["language_model.transformer.wte.weight"]
        layer = "language_model.transformer.h"
        config.n_embd, config.n_positions = words.shape[1], len(state["language_model.transformer.wpe.weight"])
        config.n_inner = state[f"{layer}.0.mlp.c_fc.weight"].shape[1]
        config.n_layer = _depth(state, rf"^{re.escape(layer)}\.(\d+)\.")
        narrow = state[f"{layer}.0.crossattention.q_attn.weight"].shape[1]
    else:
        words = state["language_model.model.decoder.embed_tokens.weight"]
        layer = "language_model.model.decoder.layers"
        config.word_embed_proj_dim = words.shape[1]
        config.hidden_size = state[f"{layer}.0.self_attn.q_proj.weight"].shape[0]
        config.ffn_dim = len(state[f"{layer}.0.fc1.weight"])
        config.num_hidden_layers = _depth(state, rf"^{re.escape(layer)}\.(\d+)\.")
        narrow = len(state[f"{layer}.0.crossattention.q_proj.weight"])
    config.vocab_size = len(words)
    # The release has both, whatever its config says; a fine-tuned pair may have come apart.
    output = state.get("language_model.lm_head.weight")
    config.tie_word_embeddings = output is None or torch.equal(output, words)
    return config, config.hidden_size // narrow


def _depth(state: dict[str, torch.Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for found in (re.match(pattern, key) for key in state) if found)


def load_config(raw: dict[str, Any], state: dict[str, torch.Tensor], has_projection: bool = False) -> SmallCapConfig:
    """
    Makes our configuration of the release's.

    Args:
        raw (`dict`): Its `config.json`.
        state (`dict[str, torch.Tensor]`): Converted weights, which tell sizes.
        has_projection (`bool`, *optional*, defaults to `False`): Whether the encoder can make queries itself.
    """
    if not isinstance(raw.get("encoder"), dict) or not isinstance(raw.get("decoder"), dict):
        raise ValueError("config.json holds no `encoder` and `decoder`: it is not of a released SmallCap.")
    try:
        vision = _vision_config(raw["encoder"], state)
        text, factor = _decoder_config(raw["decoder"], state)
    except KeyError as error:
        raise ValueError(f"The checkpoint lacks the weight {error}: it is not of a released SmallCap.") from error
    return SmallCapConfig(
        vision_config=vision,
        text_config=text,
        cross_attention_reduce_factor=factor,
        num_retrieved_captions=int(raw.get("k") or 4) if raw.get("rag", True) else 0,
        retrieval_space="clip" if has_projection else "external",
        retrieval_encoder=None if has_projection else raw.get("retrieval_encoder"),
        pad_token_id=raw.get("pad_token_id", 0),
        eos_token_id=raw.get("eos_token_id", 13),
    )


def load_tokenizer(source: str, tokenizer: Any, vocab_size: int, revision: str | None = None) -> Any:
    """
    Loads the decoder's tokenizer: the given one, the checkpoint's own, or the one that the vocabulary's size tells.

    Returns:
        The tokenizer, or `None` where nothing tells which it is.
    """
    if tokenizer is None and locate_file(source, "tokenizer_config.json", revision) is not None:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    tokenizer = _TOKENIZERS.get(vocab_size) if tokenizer is None else tokenizer
    if tokenizer is None or not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    try:
        return AutoTokenizer.from_pretrained(tokenizer)
    except OSError as error:
        raise OSError(
            f"Could not load the decoder's tokenizer {tokenizer!r}: {error}. Pass `tokenizer`, a folder or Hub id, or "
            "`False` to convert the weights only."
        ) from error


def _load_projection(
    clip: str | os.PathLike, converted: dict[str, torch.Tensor], report: ConversionReport
) -> dict[str, torch.Tensor]:
    """The projection that makes queries of the vision encoder's output, from the CLIP model that it comes from."""
    state = read_pretrained(clip, ("visual_projection.", "vision_model.post_layernorm."))
    norm = "vision_model.post_layernorm.weight"
    if "visual_projection.weight" not in state or norm not in state:
        raise ValueError(f"{os.fspath(clip)!r} has no visual projection; give the CLIP model of the vision encoder.")
    ours = converted.get(norm)
    if (
        ours is None
        or ours.shape != state[norm].shape
        or not torch.allclose(ours.float(), state[norm].float(), atol=1e-3)
    ):
        raise ValueError(f"{os.fspath(clip)!r} is not the CLIP model that the checkpoint's vision encoder comes from.")
    report.used[f"{os.fspath(clip)} (visual_projection.weight)"] = "visual_projection.weight"
    return {"visual_projection.weight": state["visual_projection.weight"]}


def convert_smallcap(
    source: str | os.PathLike,
    *,
    tokenizer: Any = None,
    clip: str | os.PathLike | None = None,
    datastore: CaptionDatastore | str | os.PathLike | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    report: ConversionReport | None = None,
) -> tuple[SmallCapForConditionalGeneration, SmallCapProcessor | None]:
    """
    Converts a checkpoint as the reference's `save_pretrained` writes it: `config.json` and `pytorch_model.bin`.

    Args:
        source (`str` or `os.PathLike`): Folder, or repo id on the Hub such as `"Yova/SmallCap7M"`.
        tokenizer (*optional*):
            The decoder's: an object, a folder or a Hub id. When absent the checkpoint's own, or that of GPT-2 or OPT
            by the size of the vocabulary. `False` for none.
        clip (`str` or `os.PathLike`, *optional*):
            The CLIP model that the vision encoder comes from. With its projection the model makes its own queries, for
            a datastore of that CLIP. When absent, captions are retrieved by an encoder of their own (RN50x64 in the
            release): give `retrieval_queries` to `generate`.
        datastore ([`CaptionDatastore`], `str` or `os.PathLike`, *optional*): Attached to the model.
        revision (`str`, *optional*): Branch, tag or commit of the repo.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): That of the checkpoint.
        report ([`ConversionReport`], *optional*): Filled with what became of every key.

    Returns:
        The model in eval mode, and its processor, `None` without a tokenizer.

    Raises:
        FileNotFoundError: There is no config or no weights.
        ValueError: It is not such a checkpoint, is incomplete or holds more than weights.
    """
    report = ConversionReport() if report is None else report
    source = os.fspath(source)
    path = locate_file(source, "config.json", revision)
    if path is None:
        raise FileNotFoundError(f"{source!r} holds no config.json.")
    raw = json.loads(path.read_text(encoding="utf-8"))
    converted = convert_state_dict(read_pretrained(source, revision=revision), report)
    config = load_config(raw, converted, has_projection=clip is not None)
    if clip is not None:
        projection = _load_projection(clip, converted, report)
        config.vision_config.projection_dim = len(projection["visual_projection.weight"])
        converted.update(projection)
    with torch.device("meta"):
        expected = SmallCapForConditionalGeneration(config).state_dict()
    check_shapes(converted, expected)
    tied = {"language_model.lm_head.weight"} if config.text_config.tie_word_embeddings else set()
    report.missing = [key for key in expected if key not in converted and key not in tied]
    if report.missing:
        raise ValueError(
            f"{len(report.missing)} weights are not in the checkpoint, the first of them "
            f"{', '.join(report.missing[:5])}."
        )
    report.unused += [key for key in converted if key not in expected]
    model = SmallCapForConditionalGeneration.from_pretrained(
        None, config=config, state_dict={key: converted[key] for key in expected if key in converted}, dtype=dtype
    ).eval()
    found = None if tokenizer is False else load_tokenizer(source, tokenizer, config.text_config.vocab_size, revision)
    processor = None
    if found is not None:
        size = config.vision_config.image_size
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
        processor = SmallCapProcessor(image_processor, found)
        model.tokenizer = processor.tokenizer
    if datastore is not None:
        store = datastore if isinstance(datastore, CaptionDatastore) else CaptionDatastore.from_pretrained(datastore)
        model.set_datastore(store)
    logger.info(str(report))
    return model, processor


__all__ = ["convert_smallcap"]
