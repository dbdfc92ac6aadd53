"""Language models that a captioner is assembled with: their weights, tokenizer, prompt and ends of captions."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .model_source import ModelSource, reads_photos, widest_dtype


def find_language_model(
    language_model: str | os.PathLike, gguf_file: str | None, download: Mapping[str, Any]
) -> ModelSource:
    """
    Finds a language model.

    Args:
        language_model (`str` or `os.PathLike`): Folder, repo id or `.gguf` file.
        gguf_file (`str`, *optional*): GGUF file in it.
        download (`Mapping[str, Any]`): Options of downloads.

    Raises:
        ValueError: It is not one that goes on with a text, or has few bits already.
    """
    path = Path(language_model)
    if gguf_file is None and path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no GGUF file {os.fspath(path)!r}. Of one in a repo give the repo's id, and the file's name "
                "there as `gguf_file`."
            )
        language_model, gguf_file = path.parent, path.name
    source = ModelSource(language_model, gguf_file=gguf_file, **download)
    config = source.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{source.given!r} is a sequence-to-sequence model ({config.model_type}): captions are written by a "
            "decoder that goes on with its prompt. Give a causal language model, such as Vicuna, Llama, Qwen, OPT or "
            "GPT-2."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        swapped = " It reads photos: were the encoder and the language model swapped?" if reads_photos(config) else ""
        raise ValueError(
            f"{source.given!r} is a {config.model_type!r} model, which `AutoModelForCausalLM` does not know. Give a "
            f"causal language model.{swapped}"
        )
    if getattr(config, "quantization_config", None) is not None and gguf_file is None:
        raise ValueError(
            f"The weights of {source.given!r} are quantized already. Give the model in full precision; "
            "`quantization_config` quantizes it while it is loaded."
        )
    return source


def language_model_dtype(source: ModelSource, dtype: str | torch.dtype | None) -> torch.dtype:
    """The precision that was asked for; by default that of the language model's file, float32 of a GGUF's."""
    if dtype in (None, "auto"):
        return torch.float32 if source.gguf_file is not None else widest_dtype(source.read())
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"`dtype` must be a floating torch.dtype or its name, such as 'bfloat16'; got {dtype!r}. Fewer bits are a "
            "`quantization_config`'s."
        )
    return found


def full_precision_modules(model: Any) -> list[str]:
    """
    Names of a captioner's modules that stay as they are when its language model is quantized: everything but that, and
    in it the head and what the paper trains (SmallCap's cross-attention).

    Args:
        model ([`RetrievalPreTrainedModel`]): May be on the meta device.
    """
    kept = [name for name, _ in model.named_children() if name != "language_model"]
    head = model.language_model.get_output_embeddings()
    trained = [f".{part}." for part in getattr(model, "trainable_parts", {}).get("paper", ())]
    for name, module in model.named_modules():
        inside = name.startswith("language_model.")
        if inside and (module is head or any(f".{name}.".endswith(part) for part in trained)):
            kept.append(name)
    return kept


def quantizing_language_model(quantization_config: Any, model: Any) -> Any:
    """A quantization config that leaves all but the language model as it is, unless it says itself what to leave."""
    own = copy.deepcopy(quantization_config)
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if getattr(own, field, ()) is None:
            setattr(own, field, full_precision_modules(model))
    return own


def load_text_tokenizer(source: ModelSource) -> Any:
    """
    The language model's tokenizer.

    Raises:
        ValueError: There is none, or it has no token to fill up rows with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **source.options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(" :.")
        raise ValueError(
            f"{source.given!r} has no tokenizer that can be loaded ({reason}). Put its tokenizer's files (such as "
            "tokenizer.json) beside the weights, or pass a `processor` that holds it."
        ) from error
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {source.given!r} has neither a PAD nor an EOS token: rows of unequal length cannot be "
            "filled up. Set one (`tokenizer.pad_token = ...`), save the tokenizer beside the weights, or pass a "
            "`processor` that holds it."
        )
    return tokenizer


def marks_spaces(tokenizer: Any) -> bool:
    """Whether a word has other tokens at the beginning of a text than after a space, as in byte-level BPE."""
    alone, inside = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("cat", "a cat"))
    return alone != inside[-len(alone) :]


def reading_names(tokenizer: Any) -> Any:
    """
    A language model's tokenizer as one of names: a name has the tokens that it has inside a caption, after a space, so
    that it can be written as it was read. A comma stands between names, as in a text, else the EOS token.
    """
    names = copy.deepcopy(tokenizer)
    backend = getattr(names, "backend_tokenizer", None)
    if backend is not None and marks_spaces(names):
        steps = [normalizers.Prepend(" ")] + ([] if backend.normalizer is None else [backend.normalizer])
        backend.normalizer = normalizers.Sequence(steps)
    if names.sep_token is None:
        comma = tokenizer("a,", add_special_tokens=False)["input_ids"][-1:]
        names.sep_token = tokenizer.convert_ids_to_tokens(comma[0]) if comma else names.eos_token
        if names.sep_token != ",":
            names.sep_token = names.eos_token
    return names


def stop_token_ids(tokenizer: Any) -> list[int]:
    """
    Tokens that end a caption, as the released EVCap decodes: the tokenizer's end, a newline, and a full stop with and
    without a space before it. They are looked up in the tokenizer; a text whose last token is not one is left out.
    """
    ends = {tokenizer.eos_token_id}
    for text, end in (("a\n", "\n"), ("a.", "."), ("a .", ".")):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.decode(ids[-1:]).strip(" ") == end:
            ends.add(ids[-1])
    return sorted(end for end in ends if end is not None)


def caption_generation_config(tokenizer: Any) -> GenerationConfig:
    """Beam 5, at most 32 new tokens, and [`stop_token_ids`], as the released EVCap decodes."""
    return GenerationConfig(
        num_beams=5,
        max_new_tokens=32,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_token_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def chat_prompt(tokenizer: Any, prompt: str) -> tuple[str, bool]:
    """
    The prompt template that a chat model was trained with, with the photo in front of the request.

    Args:
        tokenizer: With a chat template.
        prompt (`str`): What stands around the request; `{prompt}` and `{image}` are left for the processor.

    Returns:
        `tuple[str, bool]`: The template, and whether the BOS token has to be put in front of it.

    Raises:
        ValueError: The tokenizer has no chat template, or one that rewrites what a user says.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "The language model's tokenizer has no chat template: it is no chat model. Leave `chat_template` out and "
            "give a `prompt_template` of your own, or take the model's chat version."
        )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    if text.count("{image}") != 1 or text.count("{prompt}") != 1:
        raise ValueError(f"The chat template does not keep {prompt!r} as it is; give a `prompt_template` of your own.")
    # A template writes the BOS token where the model wants one.
    return text, False


__all__ = [
    "caption_generation_config",
    "chat_prompt",
    "find_language_model",
    "full_precision_modules",
    "language_model_dtype",
    "load_text_tokenizer",
    "marks_spaces",
    "quantizing_language_model",
    "reading_names",
    "stop_token_ids",
]
