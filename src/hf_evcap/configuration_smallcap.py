"""SmallCap configuration: a vision encoder, a decoder with small cross-attention, a prompt of retrieved captions."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.configuration_auto import AutoConfig

from .configuration_retrieval import (
    VISION_SPACE_OPTIONS,
    RetrievalConfig,
    complete_options,
    resolve_config,
    vision_hidden_size,
)


RETRIEVAL_SPACES = ("clip", "vision", "external")
RELEASED_DECODERS = ("gpt2", "opt")
# Others that cross-attention was tried in: their layers hand photos down.
DECODERS = (
    *RELEASED_DECODERS,
    "xglm",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "smollm3",
)


class SmallCapConfig(RetrievalConfig):
    r"""
    Configuration of [`SmallCapForConditionalGeneration`] (SmallCap, CVPR 2023, arXiv 2209.15323). The defaults are the
    paper's model with 7 million trained parameters.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Vision encoder; any `AutoModel` vision tower. Defaults to CLIP's ViT-B/32.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Decoder, of one of the types in `DECODERS`: `gpt2` or `opt` as released, `xglm`, `llama` (SmolLM2, too),
            `mistral`, `qwen2`, `qwen3`, `gemma` and others. Defaults to GPT-2 base.
        cross_attention_reduce_factor (`int`, *optional*, defaults to 4):
            The heads of the cross-attention are this many times narrower than the decoder's own. With GPT-2 base 1, 2,
            4, 8 and 16 give about 28, 14, 7, 3.5 and 1.75 million trained parameters.
        cross_attention_dim (`int`, *optional*):
            Width of a head of the cross-attention, the paper's d, instead of one that the factor gives.
        num_retrieved_captions (`int`, *optional*, defaults to 4):
            k, the captions put into the prompt; 0 for a model that was trained without retrieval.
        max_captions_per_image (`int`, *optional*):
            At most so many of them describe one photo. Where keys are those of photos, all captions of the nearest one
            are as near, and others would not be heard. Any number when absent.
        duplicate_overlap (`float`, *optional*):
            Captions that share this much of their words (in common over in either, up to 1) with a nearer one are left
            out.
        prompt_template (`str`, *optional*): The prompt, with `{captions}` for the retrieved captions.
        prompt_without_captions (`str`, *optional*): The prompt where nothing is retrieved.
        caption_separator (`str`, *optional*, defaults to an empty line): What stands between retrieved captions.
        add_bos_token (`bool`, *optional*): Whether what the tokenizer puts first (BOS) comes first; by default for
            OPT only.
        retrieval_space (`str`, *optional*, defaults to `"clip"`):
            What is compared with the datastore's keys. `"clip"`: the photo's CLIP embedding, by the vision encoder
            itself and its projection; the keys are CLIP text embeddings of captions. `"vision"`: pooled, whitened
            vision features, for encoders without a text side; the keys are those of the photos that the captions
            describe. `"external"`: the caller gives `retrieval_queries`, made by `retrieval_encoder`.
        retrieval_encoder (`str`, *optional*):
            What makes the queries in the space `"external"`, such as `"RN50x64"` of the released models.
        retrieval_options (`dict`, *optional*):
            Numbers of the `vision` space; see `VISION_SPACE_OPTIONS` in `configuration_retrieval.py`. One query a
            photo is made, its global vector, so the window is 0 by default.
        memory_reference (`dict`, *optional*):
            Datastore that `from_pretrained` loads: `{"repo_id": ..., "revision": ...}` of a dataset repo on the Hub.
            `None` loads the `datastore/` folder of the model's own repo where there is one. Never a local path.
        encoder_fingerprint (`str`, *optional*):
            Identity of the frozen encoder, written by `save_pretrained`; datastores of other encoders are refused.
        pad_token_id (`int`, *optional*, defaults to 0): `"!"` of GPT-2's tokenizer.
        eos_token_id (`int`, *optional*, defaults to 13): `"."` of GPT-2's tokenizer, which ends a caption.

    Example:
    ```python
    >>> from hf_evcap import SmallCapConfig

    >>> config = SmallCapConfig(text_config={"model_type": "opt"}, cross_attention_reduce_factor=8)
    >>> config.cross_attention_head_dim
    8
    ```
    """

    model_type = "smallcap"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "image_outputs", "captions"]
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    cross_attention_reduce_factor: int = 4
    cross_attention_dim: int | None = None
    num_retrieved_captions: int = 4
    max_captions_per_image: int | None = None
    duplicate_overlap: float | None = None
    prompt_template: str = "Similar images show\n\n{captions}.\n\nThis image shows "
    prompt_without_captions: str = "This image shows "
    caption_separator: str = "\n\n"
    add_bos_token: bool | None = None
    retrieval_space: str = "clip"
    retrieval_encoder: str | None = None
    retrieval_options: Any = None
    pad_token_id: int | None = 0
    eos_token_id: int | None = 13

    def __post_init__(self, **kwargs: Any) -> None:
        if "decoder" in kwargs or "encoder" in kwargs:
            raise ValueError(
                "This is a config of the released SmallCap (`encoder`, `decoder`), not of this package. Convert the "
                "model once: `hf-evcap convert smallcap FOLDER-OR-REPO --output DIR`."
            )
        self.vision_config = resolve_config(self.vision_config, {"model_type": "clip_vision_model"}, "vision_config")
        self.text_config = resolve_config(self.text_config, {"model_type": "gpt2"}, "text_config")
        if self.text_config.model_type == "gpt2":
            self.text_config.add_cross_attention = True
        if self.add_bos_token is None:
            self.add_bos_token = self.text_config.model_type == "opt"
        space = {**VISION_SPACE_OPTIONS, "window_size": 0} if self.retrieval_space == "vision" else {}
        self.retrieval_options = complete_options(self.retrieval_options, space)
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Refuses combinations that cannot work, naming the field and what it may be."""
        decoder = self.text_config.model_type
        if decoder not in DECODERS:
            raise ValueError(f"`text_config` must be of one of the types {', '.join(DECODERS)}; got {decoder!r}.")
        factor, head_dim = self.cross_attention_reduce_factor, self._decoder_head_dim
        if self.cross_attention_dim is not None and self.cross_attention_dim < 1:
            raise ValueError(f"`cross_attention_dim` must be positive, got {self.cross_attention_dim}.")
        if self.cross_attention_dim is None and (factor < 1 or head_dim % factor):
            raise ValueError(
                f"`cross_attention_reduce_factor` must divide the decoder's head dimension ({head_dim}), got {factor}."
            )
        if self.num_retrieved_captions < 0:
            raise ValueError(f"`num_retrieved_captions` must not be negative, got {self.num_retrieved_captions}.")
        if self.max_captions_per_image is not None and self.max_captions_per_image < 1:
            raise ValueError(f"`max_captions_per_image` must be positive, got {self.max_captions_per_image}.")
        if self.duplicate_overlap is not None and not 0 < self.duplicate_overlap <= 1:
            raise ValueError(f"`duplicate_overlap` is a share, above 0 and up to 1; got {self.duplicate_overlap}.")
        if "{captions}" not in self.prompt_template:
            raise ValueError(
                f"`prompt_template` must hold {{captions}}, the retrieved captions' place; got "
                f"{self.prompt_template!r}."
            )
        if self.retrieval_space not in RETRIEVAL_SPACES:
            raise ValueError(
                f"`retrieval_space` must be one of {', '.join(RETRIEVAL_SPACES)}; got {self.retrieval_space!r}."
            )
        if self.retrieval_space == "clip" and self.vision_config.model_type != "clip_vision_model":
            raise ValueError(
                'retrieval_space="clip" needs a vision_config of type clip_vision_model, got '
                f'{self.vision_config.model_type!r}; use "vision" or "external".'
            )

    @property
    def cross_attention_head_dim(self) -> int:
        """`int`: Width of a head of the cross-attention."""
        if self.cross_attention_dim is not None:
            return self.cross_attention_dim
        return self._decoder_head_dim // self.cross_attention_reduce_factor

    @property
    def _decoder_head_dim(self) -> int:
        text = self.text_config
        return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    @property
    def encoder_hidden_size(self) -> int:
        """`int`: Width of the vision features that the decoder attends to."""
        return vision_hidden_size(self.vision_config)


__all__ = ["SmallCapConfig"]
