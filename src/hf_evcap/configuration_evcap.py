"""EVCap configuration: the four boxes of the paper's figure and the numbers of its retrieval."""

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


# Numbers of the `vote` rule; see `vote_rule` in retrieval_evcap.py.
VOTE_OPTIONS = {
    "vote_rows": 1000,  # nearest rows that give evidence
    "exemplar_weights": [1.0, 0.3, 0.3],  # of an object name's best, second best, ... row
    "object_threshold": 0.5,  # weighted sum of similarities that an object name must reach
    "scene_evidence": 0.0,  # share of the nearest scene photos' weighted sum that is taken off it before
    "object_slots": 3,  # object names given at most
    "vote_temperature": 0.15,  # softness of the scene rows' votes
    "df_offset": 0.02,  # added to a scene name's document frequency ...
    "df_exponent": 0.35,  # ... before its votes are divided by this power of it
    "ridge_penalty": None,  # a number: a ridge regression on the keys ranks the nearest scene rows' names, not votes
    "scene_slots": 8,  # scene names given at most
}

RETRIEVAL_RULES = ("release", "paper", "vote")
RETRIEVAL_SPACES = ("query", "vision")


# Vicuna-13B v1.3 (the paper's language model), as Llama names its sizes.
VICUNA_13B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


class EVCapConfig(RetrievalConfig):
    r"""
    Configuration of [`EVCapForConditionalGeneration`] (EVCap, CVPR 2024, arXiv 2311.15879). The defaults are the
    paper's full-size model.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Vision encoder; any `AutoModel` vision tower. Defaults to BLIP-2's EVA-CLIP ViT-g/14 (39 blocks).
        qformer_config (`dict` or `Blip2QFormerConfig`, *optional*):
            Image Q-Former; its `encoder_hidden_size` is set from the vision encoder.
        fusion_qformer_config (`dict` or `Blip2QFormerConfig`, *optional*):
            Fusion Q-Former; `vocab_size` is the name tokenizer's (BERT uncased plus `[DEC]`), `hidden_size` must be
            the image Q-Former's.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Language model; anything `AutoModelForCausalLM` knows. Defaults to Vicuna-13B (Llama).
        num_query_tokens (`int`, *optional*, defaults to 32): Image queries.
        num_name_query_tokens (`int`, *optional*, defaults to 8): Object-name queries (T_obj in the paper).
        image_token_id (`int`, *optional*): Placeholder token that the processor repeats once per prefix vector.
        vision_layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the vision encoder's final LayerNorm where the tower is BLIP-2's (its blocks use their own).
            `None` keeps the tower's.
        tie_name_embeddings (`bool`, *optional*, defaults to `False`):
            Names are embedded with the language model's input embeddings instead of a table of the fusion Q-Former.
            The name tokenizer is then the language model's, and `fusion_qformer_config.hidden_size` is its width.
        known_words_only (`bool`, *optional*, defaults to `False`):
            Captions hold only words that the language model was trained to write as one token, and words of the
            retrieved names, so that a small model garbles no name; see [`~spelling_evcap.EVCapSpelling`]. Needs
            `tie_name_embeddings`.
        max_name_length (`int`, *optional*, defaults to 128): Names given to the fusion are cut at this many tokens.
        num_retrieved_names (`int`, *optional*, defaults to 10): K, the names kept for a photo.
        retrieval_space (`str`, *optional*, defaults to `"query"`):
            What is compared with the memory's keys. `"query"`: the Q-Former's outputs, a key is their mean (paper).
            `"vision"`: the vision features, pooled over the photo and over overlapping windows of the grid,
            power-normalised and whitened; a key is the photo's global vector.
        retrieval_rule (`str`, *optional*, defaults to `"release"`):
            `"release"`: `num_neighbors_per_query` nearest rows for each query, all sorted by similarity, the best
            `max_candidates` kept, names deduplicated, the first K kept (the released implementation).
            `"paper"`: the nearest row of each query, deduplicated, the first K.
            `"vote"`: names ranked by pooled evidence of many rows; see [`~retrieval_evcap.vote_rule`].
        num_neighbors_per_query (`int`, *optional*, defaults to 5): Rule `release`.
        max_candidates (`int`, *optional*, defaults to 32): Rule `release`.
        retrieval_options (`dict`, *optional*):
            Numbers of the `vision` space and the `vote` rule; `VISION_SPACE_OPTIONS` and `VOTE_OPTIONS` in
            `configuration_evcap.py` give their names, meaning and defaults.
        memory_reference (`dict`, *optional*):
            Memory that `from_pretrained` loads: `{"repo_id": ..., "revision": ...}` of a dataset repo on the Hub.
            `None` loads the `memory/` folder of the model's own repo where there is one. Never a local path.
        encoder_fingerprint (`str`, *optional*):
            Identity of the frozen encoder, written by `save_pretrained`; memories of other encoders are refused.

    Example:
    ```python
    >>> from hf_evcap import EVCapConfig, EVCapForConditionalGeneration

    >>> config = EVCapConfig(text_config={"model_type": "gpt2"}, num_retrieved_names=5)
    >>> config.num_prefix_tokens
    40
    ```
    """

    model_type = "evcap"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "image_outputs", "names"]
    sub_configs = {
        "vision_config": AutoConfig,
        "qformer_config": AutoConfig,
        "fusion_qformer_config": AutoConfig,
        "text_config": AutoConfig,
    }

    vision_config: Any = None
    qformer_config: Any = None
    fusion_qformer_config: Any = None
    text_config: Any = None
    num_query_tokens: int = 32
    num_name_query_tokens: int = 8
    image_token_id: int | None = None
    vision_layer_norm_eps: float | None = 1e-5
    tie_name_embeddings: bool = False
    known_words_only: bool = False
    max_name_length: int = 128
    num_retrieved_names: int = 10
    retrieval_space: str = "query"
    retrieval_rule: str = "release"
    num_neighbors_per_query: int = 5
    max_candidates: int = 32
    retrieval_options: Any = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = resolve_config(self.vision_config, {"model_type": "blip_2_vision_model"}, "vision_config")
        vision_width = vision_hidden_size(self.vision_config)
        qformer_defaults = {"model_type": "blip_2_qformer", "encoder_hidden_size": vision_width}
        self.qformer_config = resolve_config(self.qformer_config, qformer_defaults, "qformer_config")
        self.qformer_config.encoder_hidden_size = vision_width
        width = self.qformer_config.hidden_size
        fusion_defaults = {"model_type": "blip_2_qformer", "vocab_size": 30523, "hidden_size": width}
        self.fusion_qformer_config = resolve_config(
            self.fusion_qformer_config, fusion_defaults, "fusion_qformer_config"
        )
        self.fusion_qformer_config.encoder_hidden_size = width
        self.fusion_qformer_config.use_qformer_text_input = True
        self.text_config = resolve_config(self.text_config, VICUNA_13B, "text_config")
        space = VISION_SPACE_OPTIONS if self.retrieval_space == "vision" else {}
        options = {**space, **(VOTE_OPTIONS if self.retrieval_rule == "vote" else {})}
        self.retrieval_options = complete_options(self.retrieval_options, options)
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Refuses combinations that cannot work, naming the field and what it may be."""
        width = self.fusion_qformer_config.hidden_size
        if width != self.qformer_config.hidden_size:
            raise ValueError(
                f"fusion_qformer_config.hidden_size ({width}) must equal qformer_config.hidden_size "
                f"({self.qformer_config.hidden_size}): the fusion Q-Former attends over the query outputs."
            )
        text_width = self.text_config.get_text_config().hidden_size
        if self.tie_name_embeddings and width != text_width:
            raise ValueError(
                f"tie_name_embeddings=True needs fusion_qformer_config.hidden_size ({width}) to equal the language "
                f"model's hidden_size ({text_width})."
            )
        if self.known_words_only and not self.tie_name_embeddings:
            raise ValueError(
                "known_words_only=True needs tie_name_embeddings=True: names are spelled in the caption's tokens."
            )
        for field, choices in (("retrieval_rule", RETRIEVAL_RULES), ("retrieval_space", RETRIEVAL_SPACES)):
            if getattr(self, field) not in choices:
                raise ValueError(f"`{field}` must be one of {', '.join(choices)}; got {getattr(self, field)!r}.")
        for field in ("num_query_tokens", "num_name_query_tokens", "num_neighbors_per_query", "max_candidates"):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1, got {getattr(self, field)}.")
        penalty = self.retrieval_options.get("ridge_penalty")
        if penalty is not None and penalty <= 0:
            raise ValueError(
                f"`ridge_penalty` in `retrieval_options` must be above 0, got {penalty}; None ranks by votes."
            )
        if self.num_retrieved_names < 0:
            raise ValueError(f"`num_retrieved_names` must not be negative, got {self.num_retrieved_names}.")

    @property
    def num_prefix_tokens(self) -> int:
        """`int`: Vectors that stand for the photo in the language model's input, queries and object-name features."""
        return self.num_query_tokens + self.num_name_query_tokens


__all__ = ["EVCapConfig"]
