"""EVCap: encode a photo, retrieve object names from a memory, fuse them, project, and let the language model write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerEncoder, Blip2QFormerModel, Blip2VisionModel
from transformers.utils import ModelOutput, can_return_tuple, logging, torch_compilable_check

from .cache_name import CACHE, CACHE_NAMES, takes_cache
from .caption_generation import CaptionGenerationMixin
from .configuration_evcap import EVCapConfig
from .frozen_encoder import OUTPUT_OPTIONS, make_vision_tower
from .memory_evcap import MemoryLayers, VisualNameMemory
from .modeling_retrieval import RetrievalPreTrainedModel, hash_tensors
from .offloading import own_parameter, to_part
from .retrieval_evcap import EVCapRetrievedNames, NameRetriever, NameTokens, normalize_name
from .retrieval_layers import Retrievers
from .spelling_evcap import EVCapSpelling, SpellingLogitsProcessor
from .vision_space_evcap import EVCapVisionSpace


logger = logging.get_logger(__name__)


@dataclass
class EVCapImageFeatures(BaseModelOutputWithPooling):
    """
    What the frozen encoder makes of photos.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`):
            Patches, also named `vision_hidden_states`.
        pooler_output (`torch.Tensor` of shape `(batch_size, num_query_tokens, hidden_size)`):
            Q in the paper, also named `query_output`.
        hidden_states, attentions (`tuple`, *optional*): The vision encoder's, where asked for.
        retrieval_queries (`torch.Tensor` of shape `(batch_size, num_queries, memory_key_size)`): What is compared
            with the memory's keys.
    """

    retrieval_queries: torch.Tensor | None = None

    @property
    def vision_hidden_states(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`: Patches."""
        return self.last_hidden_state

    @property
    def query_output(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(batch_size, num_query_tokens, hidden_size)`: Q in the paper."""
        return self.pooler_output


@dataclass
class EVCapEncodedImages(ModelOutput):
    """
    Photos ready for the language model.

    Args:
        prefix (`torch.Tensor` of shape `(batch_size, num_prefix_tokens, text_hidden_size)`): phi(Q ++ V).
        names ([`EVCapRetrievedNames`]): Names that went into it.
        image_outputs ([`EVCapImageFeatures`]): What the encoder made of the photos.
    """

    prefix: torch.Tensor | None = None
    names: EVCapRetrievedNames | None = None
    image_outputs: EVCapImageFeatures | None = None


@dataclass
class EVCapOutput(CausalLMOutputWithPast):
    """
    Output of [`EVCapForConditionalGeneration`].

    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*): Next-token cross-entropy, where labels are given.
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`): Prediction scores.
        cache, or past_key_values before transformers 5.24 (`Cache`, *optional*): The language model's cache.
        hidden_states, attentions (`tuple`, *optional*): The language model's, where asked for.
        names ([`EVCapRetrievedNames`], *optional*): Names retrieved for the photos.
        image_outputs ([`EVCapImageFeatures`], *optional*): What the encoder made of the photos.
    """

    names: EVCapRetrievedNames | None = None
    image_outputs: EVCapImageFeatures | None = None


class EVCapNameEmbeddings(nn.Module):
    """Embeds name tokens for the fusion: words plus positions, normalised."""

    def __init__(self, config: EVCapConfig) -> None:
        super().__init__()
        fusion = config.fusion_qformer_config
        if not config.tie_name_embeddings:
            self.word_embeddings = nn.Embedding(fusion.vocab_size, fusion.hidden_size, padding_idx=fusion.pad_token_id)
        self.position_embeddings = nn.Embedding(fusion.max_position_embeddings, fusion.hidden_size)
        self.LayerNorm = nn.LayerNorm(fusion.hidden_size, eps=fusion.layer_norm_eps)
        self.dropout = nn.Dropout(fusion.hidden_dropout_prob)

    def forward(self, input_ids: torch.LongTensor, word_embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Args: name tokens `(batch_size, sequence_length)`, and their embeddings where they are not this module's."""
        if word_embeddings is None:
            word_embeddings = self.word_embeddings(input_ids)
        positions = self.position_embeddings(torch.arange(input_ids.shape[1], device=input_ids.device))
        return self.dropout(self.LayerNorm(word_embeddings.to(positions.dtype) + positions))


class EVCapFusionQFormer(nn.Module):
    """
    Fusion Q-Former F(S, Q, T_obj) of the paper: object-name queries read the names and keep what the photo supports.

    Self-attention runs over `[T_obj ; Q]`; only T_obj cross-attends, to the embedded names, and passes the query
    feed-forward, while Q passes the text feed-forward. Nothing is normalised on the way in.

    Args:
        config ([`EVCapConfig`]): The whole model's; `fusion_qformer_config` gives the sizes.
    """

    def __init__(self, config: EVCapConfig) -> None:
        super().__init__()
        self.embeddings = EVCapNameEmbeddings(config)
        self.encoder = Blip2QFormerEncoder(config.fusion_qformer_config)

    def forward(
        self,
        name_queries: torch.Tensor,
        query_output: torch.Tensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        word_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            name_queries (`torch.Tensor` of shape `(batch_size, num_name_query_tokens, hidden_size)`): T_obj.
            query_output (`torch.Tensor` of shape `(batch_size, num_query_tokens, hidden_size)`): Q.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The names.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): 1 for name tokens.
            word_embeddings (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Of the name tokens, where the language model has them.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_name_query_tokens, hidden_size)`: V.
        """
        hidden_states = torch.cat([name_queries, query_output], dim=1)
        names = self.embeddings(input_ids, word_embeddings)
        mask = torch.zeros_like(attention_mask, dtype=names.dtype)
        mask = mask.masked_fill(attention_mask == 0, torch.finfo(names.dtype).min)[:, None, None, :]
        outputs = self.encoder(
            hidden_states,
            encoder_hidden_states=names,
            encoder_attention_mask=mask,
            query_length=name_queries.shape[1],
        )
        return outputs[0][:, : name_queries.shape[1]]


def build_vision_model(config: EVCapConfig) -> PreTrainedModel:
    """Makes the vision encoder: BLIP-2's, whose final LayerNorm has an epsilon of its own, or any `AutoModel`."""
    vision_config = config.vision_config
    if vision_config.model_type != "blip_2_vision_model":
        return make_vision_tower(vision_config)
    model = Blip2VisionModel._from_config(vision_config)
    if config.vision_layer_norm_eps is not None:
        model.post_layernorm.eps = config.vision_layer_norm_eps
    return model


class EVCapPreTrainedModel(RetrievalPreTrainedModel):
    """Loading, initialisation and capabilities of EVCap models."""

    config_class = EVCapConfig
    base_model_prefix = "evcap"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = False  # the Q-Formers stay in fp32
    _supports_attention_backend = True
    _no_split_modules = ["Blip2EncoderLayer", "Blip2QFormerLayer", "EVCapNameEmbeddings"]
    _keep_in_fp32_modules_strict = ["query_tokens", "name_query_tokens", "qformer", "fusion_qformer", "vision_space"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    own_parameters = ("query_tokens", "name_query_tokens")

    memory_class = VisualNameMemory
    retrieved_field = "retrieved_names"
    rebuild_hint = "Rebuild the memory with this model: `VisualNameMemory.from_images(model, processor, dataset)`."
    retrieval_arguments = ("memory", "name_column")
    trainable_parts = {
        "paper": ("query_tokens", "name_query_tokens", "language_projection"),
        "fusion": ("query_tokens", "name_query_tokens", "language_projection", "fusion_qformer"),
        "qformers": ("query_tokens", "name_query_tokens", "language_projection", "fusion_qformer", "qformer"),
    }

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: Parts whose weights decide what memory keys mean."""
        return ("vision_model", "vision_space" if self.config.retrieval_space == "vision" else "qformer")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EVCapForConditionalGeneration):
            std = self.config.initializer_range
            nn.init.normal_(module.query_tokens, std=std)
            nn.init.normal_(module.name_query_tokens, std=std)


class EVCapForConditionalGeneration(CaptionGenerationMixin, EVCapPreTrainedModel):
    r"""
    EVCap (CVPR 2024, arXiv 2311.15879). The stages are methods, in the order in which the data flows:
    [`get_image_features`], [`retrieve_names`], [`fuse_names`], [`project`], [`generate`].

    Args:
        config ([`EVCapConfig`]): Sizes of the parts and the numbers of the retrieval.

    Example:
    ```python
    >>> from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor, default_model

    >>> model = EVCapForConditionalGeneration.from_pretrained(default_model())
    >>> processor = EVCapProcessor.from_pretrained(default_model())
    >>> inputs = processor(images="photo.jpg", return_tensors="pt")
    >>> ids = model.generate(**inputs, num_beams=5)
    >>> processor.batch_decode(ids, skip_special_tokens=True)
    ```
    """

    def __init__(self, config: EVCapConfig) -> None:
        super().__init__(config)
        self.vision_model = build_vision_model(config)
        # Retrieval and fusion compute in fp32, whatever the dtype of the rest.
        queries = (1, config.num_query_tokens, config.qformer_config.hidden_size)
        self.query_tokens = nn.Parameter(torch.zeros(queries, dtype=torch.float32))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config).float()
        if config.retrieval_space == "vision":
            self.vision_space = EVCapVisionSpace(config.retrieval_options, config.qformer_config.encoder_hidden_size)
        name_queries = (1, config.num_name_query_tokens, config.fusion_qformer_config.hidden_size)
        self.name_query_tokens = nn.Parameter(torch.zeros(name_queries, dtype=torch.float32))
        config.fusion_qformer_config._attn_implementation = self.qformer.config._attn_implementation
        self.fusion_qformer = EVCapFusionQFormer(config).float()
        text_width = config.text_config.get_text_config().hidden_size
        self.language_projection = nn.Linear(config.fusion_qformer_config.hidden_size, text_width)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        if config.known_words_only:
            self.spelling = EVCapSpelling(config)
        self.name_tokenizer: Any = None
        self._memory: VisualNameMemory | MemoryLayers | None = None
        self._retrievers: Retrievers | None = None
        self._keep_in_fp32_modules_strict = [part for part in self._keep_in_fp32_modules_strict if hasattr(self, part)]
        self.post_init()

    @classmethod
    def from_encoder_and_language_model_pretrained(
        cls, encoder: str | os.PathLike, language_model: str | os.PathLike, *, memory: Any = None, **options: Any
    ) -> EVCapForConditionalGeneration:
        r"""
        Assembles a model from pretrained parts. What no part brings starts at random, the same for a seed.

        Args:
            encoder (`str` or `os.PathLike`):
                Folder or repo id (`"org/name"` or `"org/name@revision"`) of a BLIP-2 (its vision encoder, Q-Former and
                queries), of an EVCap (all but its language model; its memory comes along), or of a vision tower such
                as CLIP, SigLIP, DINOv2 or ViT; or a published EfficientNet-Lite's `.pth` file.
            language_model (`str` or `os.PathLike`):
                Any that `AutoModelForCausalLM` knows, or a `.gguf` file.
            memory (*optional*): [`VisualNameMemory`], its folder or its repo id; `False` leaves out an EVCap's own.
            fusion_init (`str`, *optional*):
                What the fusion Q-Former starts from: `"blip2"` (the image Q-Former, as far as shapes allow),
                `"random:SEED"`, or a folder or repo id of an EVCap (its fusion), a BLIP-2 or a BERT. By default an
                EVCap's own, else `"blip2"`, or random where the image Q-Former is.
            qformer_init (`str`, *optional*, defaults to `"random:0"`):
                What the image Q-Former of a vision tower alone starts from: `"random:SEED"`, a BERT (as BLIP-2 began),
                or the BLIP-2 or EVCap that has the same tower.
            processor ([`EVCapProcessor`], *optional*): To use instead of the one that
                [`EVCapProcessor.from_encoder_and_language_model_pretrained`] makes of the same arguments.
            name_tokenizer, image_processor, use_chat_template: See there.
            vision_space_photos (`Sequence`, *optional*):
                Photos to which the retrieval space of a vision tower is fitted (paths or images, more than 256);
                without them plain pooled features are compared. See [`~vision_space_evcap.fit_vision_space`].
            gguf_file (`str`, *optional*): GGUF file in `language_model` that holds it.
            options: Fields of [`EVCapConfig`] (`num_name_query_tokens=16`; `vision_config`, `qformer_config` and
                `fusion_qformer_config` as a `dict` of what to change), and options of loading: `dtype` (by default the
                language model's), `device_map`, `quantization_config` (the language model alone is quantized),
                `attn_implementation`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Returns:
            [`EVCapForConditionalGeneration`]: In eval mode.

        Raises:
            ValueError: The parts cannot work together; the message says why and what to do.

        Example:
        ```python
        >>> model = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(
        ...     "Salesforce/blip2-flan-t5-xxl", "lmsys/vicuna-13b-v1.3", dtype="bfloat16"
        ... )
        >>> model.freeze_for_training("paper")
        3968000
        ```
        """
        from .assembly_evcap import EVCapAssembly
        from .processing_evcap import EVCapProcessor

        return EVCapAssembly(EVCapProcessor, encoder, language_model, **options).load(cls, memory)

    # Stage 1: encode

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> EVCapImageFeatures:
        """
        Encodes photos with the vision encoder and the image Q-Former (section 3.1).

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`, *optional*): From the processor.
            vision_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`, *optional*):
                What this method returned for the photos before, to skip the vision encoder.
            kwargs: `return_dict`, `output_hidden_states`, `output_attentions` and the like, of the vision encoder.
        """
        features = self.run_vision_model(pixel_values, vision_hidden_states, **kwargs)
        patches = features["last_hidden_state"]
        queries = own_parameter(self, "query_tokens").expand(patches.shape[0], -1, -1)
        query_output = self.qformer(
            query_embeds=queries, encoder_hidden_states=to_part(patches, self.qformer), return_dict=True
        ).last_hidden_state
        in_vision_space = self.config.retrieval_space == "vision"
        retrieval_queries = self.vision_space(patches) if in_vision_space else query_output
        return EVCapImageFeatures(**features, pooler_output=query_output, retrieval_queries=retrieval_queries)

    @property
    def memory_key_size(self) -> int:
        """`int`: Dimension of the keys of a memory for this model."""
        if self.config.retrieval_space == "vision":
            return self.vision_space.key_size
        return self.config.qformer_config.hidden_size

    def get_memory_keys(
        self, pixel_values: torch.Tensor | None = None, vision_hidden_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        What a memory stores for photos: in the paper's space the mean of the query outputs, not normalised.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`, *optional*): From the processor.
            vision_hidden_states (`torch.Tensor`, *optional*): Photos encoded already; see [`get_image_features`].

        Returns:
            `torch.Tensor` of shape `(batch_size, memory_key_size)`.
        """
        features = self.get_image_features(pixel_values, vision_hidden_states, return_dict=True)
        queries = features.retrieval_queries
        return queries[:, 0] if self.config.retrieval_space == "vision" else queries.mean(dim=1)

    @property
    def query_tokens_hash(self) -> str:
        """`str`: Hash of the image queries, which the paper trains on after the memory was built."""
        return hash_tensors({"query_tokens": own_parameter(self, "query_tokens")})

    # Stage 2: retrieve

    @property
    def memory(self) -> VisualNameMemory | MemoryLayers | None:
        """[`VisualNameMemory`], [`MemoryLayers`] or `None`: What names are retrieved from."""
        return self._memory

    def set_memory(
        self, memory: VisualNameMemory | MemoryLayers | Mapping[str, Any] | None, name_tokenizer: Any = None
    ) -> None:
        """
        Attaches a memory in place of the present one; `None` detaches it. Weights stay as they are.

        Args:
            memory ([`VisualNameMemory`], [`MemoryLayers`], `dict` or `None`): A memory built by this model's encoder,
                or several by name. They may be edited later: the next caption sees the change.
            name_tokenizer (*optional*): Tokenizer of the fusion Q-Former, where the model was not loaded with one.

        Raises:
            ValueError: The memory was built by another encoder or has another dimension, or no tokenizer is known.
        """
        name_tokenizer = name_tokenizer if name_tokenizer is not None else self.name_tokenizer
        if isinstance(memory, Mapping):
            memory = MemoryLayers(memory)
        if memory is not None:
            for one in memory.memories.values() if isinstance(memory, MemoryLayers) else [memory]:
                self.check_memory(one)
            if name_tokenizer is None:
                raise ValueError(
                    "The model has no name tokenizer to read the memory with. Pass the processor's: "
                    "`model.set_memory(memory, name_tokenizer=processor.name_tokenizer)`."
                )
        self.name_tokenizer = name_tokenizer
        self._memory = memory
        self._retrievers = Retrievers(name_tokenizer, self.config.max_name_length)

    @property
    def retriever(self) -> NameRetriever | None:
        """[`NameRetriever`] or `None`: The attached memory, ready for search; it follows edits of the memory."""
        retriever = self._retriever_of(None, None)
        if retriever is not None:
            retriever.ready()
        return retriever

    def _retriever_of(self, memory: Any, name_column: str | None) -> NameRetriever | None:
        retrievers = self._retrievers
        if retrievers is None or retrievers.name_tokenizer is not self.name_tokenizer:
            retrievers = self._retrievers = Retrievers(self.name_tokenizer, self.config.max_name_length)
        return retrievers.of(self._memory, memory, name_column, self.check_memory)

    @torch.compiler.disable  # a search is no graph
    @torch.no_grad()
    def retrieve_names(
        self,
        retrieval_queries: torch.Tensor,
        exclude_rows: torch.LongTensor | None = None,
        memory: Any = None,
        name_column: str | None = None,
    ) -> EVCapRetrievedNames:
        """
        Retrieves names for photos by `config.retrieval_rule` (section 3.2).

        Args:
            retrieval_queries (`torch.Tensor` of shape `(batch_size, num_queries, memory_key_size)`):
                From [`get_image_features`]; normalised here.
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                Memory rows that a photo must not retrieve, such as itself in training; -1 excludes nothing.
            memory (*optional*): Names of layers, memories, folders or Hub ids to use in this call, one or a list, or
                a `dict` of them to weights; see [`~memory_choice.choose_memories`].
            name_column (`str`, *optional*): Column of the memory that words the names, such as `name_ko`.
        """
        retriever = self._retriever_of(memory, name_column)
        if retriever is None or retriever.rows == 0:
            what = "an empty memory" if retriever is not None else "no memory (see `model.set_memory`)"
            logger.warning_once(f"The model has {what}: captions are written without retrieved names.")
        if retriever is None:
            return self._without_names(retrieval_queries.shape[0], retrieval_queries.device)
        drawn_by = self.training_retrieval if self.training else None
        return retriever(retrieval_queries, self.config, exclude_rows, drawn_by)

    def tokenize_names(self, names: list[list[str]]) -> EVCapRetrievedNames:
        """Prepares given names, a list for each photo, as [`retrieve_names`] returns them; no rows, scores 0."""
        if any(isinstance(photo, str) for photo in names):
            raise TypeError(f"`names` must hold a list of names for each photo, such as [['owl']]; got {names!r}.")
        normalized = [[normalize_name(name) for name in photo] for photo in names]
        flat = [name for photo in normalized for name in photo]
        if not flat:
            return self._without_names(len(names))
        if self.name_tokenizer is None:
            raise ValueError("The model has no name tokenizer; set `model.name_tokenizer = processor.name_tokenizer`.")
        counts = torch.tensor([len(photo) for photo in names], dtype=torch.long)
        slots = torch.arange(int(counts.max())).expand(len(names), -1)
        starts = (counts.cumsum(0) - counts)[:, None]
        ids = torch.where(slots < counts[:, None], starts + slots, -1)
        tokens = NameTokens(flat, self.name_tokenizer, self.config.max_name_length)
        rows = torch.full_like(ids, -1)
        return EVCapRetrievedNames(normalized, torch.zeros_like(rows, dtype=torch.float), rows, *tokens.join(ids))

    def _without_names(self, batch_size: int, device: torch.device | None = None) -> EVCapRetrievedNames:
        """K times nothing: a separator for each photo, or padding where no tokenizer tells the separator."""
        rows = torch.full((batch_size, self.config.num_retrieved_names), -1, device=device)
        none = torch.zeros(batch_size, 0, dtype=torch.long, device=device)
        if self.name_tokenizer is None:
            pad = self.config.fusion_qformer_config.pad_token_id or 0
            input_ids = torch.full((batch_size, 1), pad, device=device)
            attention_mask = torch.ones_like(input_ids)
        else:
            input_ids, attention_mask = NameTokens([], self.name_tokenizer, self.config.max_name_length).join(none)
        # A list for each photo would fix the batch size of an exported graph.
        names: list[list[str]] | None = None if torch.compiler.is_compiling() else [[] for _ in range(batch_size)]
        return EVCapRetrievedNames(names, torch.zeros_like(rows, dtype=torch.float), rows, input_ids, attention_mask)

    # Stage 3: fuse

    def fuse_names(
        self, query_output: torch.Tensor, input_ids: torch.LongTensor, attention_mask: torch.LongTensor
    ) -> torch.Tensor:
        """
        Drops names that the photo does not support and makes object-name features of the others (section 3.3).

        Args:
            query_output (`torch.Tensor` of shape `(batch_size, num_query_tokens, hidden_size)`): Q.
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The names.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_name_query_tokens, hidden_size)`: V.
        """
        queries = own_parameter(self, "name_query_tokens").expand(query_output.shape[0], -1, -1)
        words = None
        if self.config.tie_name_embeddings:
            embeddings = self.get_input_embeddings()
            words = embeddings(to_part(input_ids, embeddings)).to(queries.device)
        query_output = query_output.to(queries.device, queries.dtype)
        names = input_ids.to(queries.device), attention_mask.to(queries.device)
        return self.fusion_qformer(queries, query_output, *names, words)

    # Stage 4: project

    def project(self, query_output: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
        """
        Projects `[Q ; V]` into the language model's input space (phi in the paper).

        Returns:
            `torch.Tensor` of shape `(batch_size, num_query_tokens + num_name_query_tokens, text_hidden_size)`.
        """
        features = torch.cat([query_output.to(fused.device, fused.dtype), fused], dim=1)
        projection = self.language_projection
        return projection(to_part(features, projection).to(projection.weight.dtype))

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        names: EVCapRetrievedNames | list[list[str]] | None = None,
        exclude_rows: torch.LongTensor | None = None,
        memory: Any = None,
        name_column: str | None = None,
        **kwargs: Any,
    ) -> EVCapEncodedImages:
        """
        Runs the four stages. `names` replaces the retrieval; see the stages for the other arguments, of which `kwargs`
        go to [`get_image_features`].
        """
        features = self.get_image_features(pixel_values, vision_hidden_states, **{**kwargs, "return_dict": True})
        if isinstance(names, list):
            retrieved = self.tokenize_names(names)
        else:
            retrieved = names or self.retrieve_names(features.retrieval_queries, exclude_rows, memory, name_column)
        if retrieved.input_ids.shape[0] != features.query_output.shape[0]:
            raise ValueError(f"Got names for {len(retrieved.input_ids)} of {len(features.query_output)} photos.")
        fused = self.fuse_names(features.query_output, retrieved.input_ids, retrieved.attention_mask)
        return EVCapEncodedImages(self.project(features.query_output, fused), retrieved, features)

    def describe_retrieved(self, encoded: EVCapEncodedImages) -> list[list[dict[str, Any]]]:
        """The names of each photo with their scores, as plain Python values."""
        names = encoded.names
        found: list[list[dict[str, Any]]] = [
            [{"name": name, "score": round(score, 4)} for name, score in zip(photo, scores, strict=False)]
            for photo, scores in zip(names.names, names.scores.tolist(), strict=True)
        ]
        for photo, labels in zip(found, names.memories or [], strict=False):
            for name, label in zip(photo, labels, strict=True):
                name["memory"] = label
        return found

    # The language model

    def embed_prompt(
        self,
        input_ids: torch.LongTensor | None,
        prefix: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Embeds a prompt and puts the photo's vectors in the place of its image placeholder tokens.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): With
                `num_prefix_tokens` placeholders a row, or none when `prefix` is `None`.
            prefix (`torch.Tensor` of shape `(batch_size, num_prefix_tokens, text_hidden_size)`, *optional*).
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, text_hidden_size)`, *optional*):
                Instead of `input_ids`, the prompt embedded, placeholders included.

        Raises:
            ValueError: The placeholders do not fit the photos.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`.")
        if inputs_embeds is not None and prefix is None:
            return inputs_embeds
        is_image = self._find_placeholders(input_ids, inputs_embeds)
        if inputs_embeds is None:
            # The placeholder may lie beyond the language model's vocabulary; it is never looked up.
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if prefix is None:
            return inputs_embeds
        counts = is_image.sum(dim=1)
        torch_compilable_check(
            (counts == prefix.shape[1]).all() if prefix.shape[0] == inputs_embeds.shape[0] else False,
            lambda: (
                f"Each prompt must hold {prefix.shape[1]} image tokens (id {self.config.image_token_id}) for its "
                f"photo; got {counts.tolist()} for {len(prefix)} photos. Make `input_ids` with the model's processor."
            ),
        )
        return inputs_embeds.masked_scatter(is_image[..., None], prefix.to(inputs_embeds.device, inputs_embeds.dtype))

    def _find_placeholders(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.BoolTensor:
        token, embeddings = self.config.image_token_id, self.get_input_embeddings()
        if inputs_embeds is None:
            return torch.zeros_like(input_ids, dtype=torch.bool) if token is None else input_ids == token
        if token is None or token >= embeddings.num_embeddings:
            raise ValueError(
                "This model's image token has no embedding, so photos cannot be put into `inputs_embeds`. Give "
                "`input_ids`, or the photos' vectors inside: "
                "`model.embed_prompt(input_ids, model.encode_images(pixel_values).prefix)`."
            )
        return (inputs_embeds == embeddings(torch.tensor(token, device=inputs_embeds.device))).all(-1)

    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        names: EVCapRetrievedNames | list[list[str]] | None = None,
        exclude_rows: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> EVCapOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Prompt with image placeholder tokens, and the caption in training; from the processor.
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Photos. Not needed when the cache already holds the prompt.
            vision_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`, *optional*):
                Photos already encoded by the vision encoder.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, text_hidden_size)`, *optional*):
                As in [`embed_prompt`].
            names ([`EVCapRetrievedNames`] or `list[list[str]]`, *optional*): Names to use instead of retrieving.
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*): See [`retrieve_names`].
            cache (`Cache`, *optional*): The language model's, of the tokens before; also `past_key_values`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens to predict, -100 where there is nothing to learn; shifted inside. Image tokens are not learned.
            kwargs: Passed to the language model (`use_cache`, `output_attentions`, ...) and the loss; `shift_labels`
                (`torch.LongTensor` of shape `(batch_size, sequence_length)`) are labels that are shifted already, such
                as a context-parallel `Trainer` gives. They are no argument since a `Trainer` waits for all of "label".
        """
        encoded = EVCapEncodedImages()
        if pixel_values is not None or vision_hidden_states is not None:
            asked_for = {name: kwargs[name] for name in OUTPUT_OPTIONS if name in kwargs}
            encoded = self.encode_images(pixel_values, vision_hidden_states, names, exclude_rows, **asked_for)
        inputs_embeds = self.embed_prompt(input_ids, encoded.prefix, inputs_embeds)
        shift_labels = kwargs.pop("shift_labels", None)
        if self.config.image_token_id is not None:
            labels, shift_labels = (
                None if targets is None else targets.masked_fill(targets == self.config.image_token_id, -100)
                for targets in (labels, shift_labels)
            )
        loss, outputs = self.run_language_model(
            inputs_embeds,
            attention_mask,
            position_ids,
            cache=cache,
            labels=labels,
            shift_labels=shift_labels,
            **kwargs,
        )
        own = {name: outputs.get(name) for name in ("logits", CACHE, "hidden_states", "attentions")}
        return EVCapOutput(loss=loss, **own, names=encoded.names, image_outputs=encoded.image_outputs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        names: EVCapRetrievedNames | list[list[str]] | None = None,
        exclude_rows: torch.LongTensor | None = None,
        encoded_images: EVCapEncodedImages | None = None,
        memory: Any = None,
        name_column: str | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Writes captions, with every option of [`~transformers.GenerationMixin.generate`].

        The photo is encoded once. With several beams the prompt, too, runs once a photo and its cache is then given to
        the beams.

        Args:
            input_ids, pixel_values, attention_mask: From the processor.
            inputs_embeds, vision_hidden_states, names, exclude_rows: As in [`forward`].
            encoded_images ([`EVCapEncodedImages`], *optional*):
                What [`encode_images`] returned, instead of photos; its names tell what was retrieved.
            memory, name_column (*optional*): As in [`retrieve_names`].
            kwargs: `num_beams`, `max_new_tokens`, `do_sample`, `streamer`, `generation_config`, ...

        Returns:
            The new tokens, without the prompt: `torch.LongTensor` of shape `(batch_size, new_tokens)`, or the output
            object of transformers when `return_dict_in_generate=True`.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError(
                "`generate` needs `input_ids`, the prompt; call `model.generate(**processor(images=...))`."
            )
        if encoded_images is None and (pixel_values is not None or vision_hidden_states is not None):
            encoded_images = self.encode_images(
                pixel_values, vision_hidden_states, names, exclude_rows, memory, name_column
            )
        elif encoded_images is None and inputs_embeds is None and self._find_placeholders(input_ids, None).any():
            raise ValueError("The prompt has image tokens: give its photos, `pixel_values` or `vision_hidden_states`.")
        encoded_images = encoded_images or EVCapEncodedImages()
        prompt = self.embed_prompt(input_ids, encoded_images.prefix, inputs_embeds)
        if attention_mask is None:
            attention_mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        if self.config.known_words_only:
            processors = kwargs.pop("logits_processor", None) or []
            spelling = self._spelling_processor(encoded_images.names, len(prompt))
            kwargs["logits_processor"] = LogitsProcessorList([*processors, spelling])
        return self.write_captions(prompt, attention_mask, **kwargs)

    def _spelling_processor(self, retrieved: EVCapRetrievedNames | None, batch_size: int) -> SpellingLogitsProcessor:
        """Keeps captions to known words and the words of each photo's names (`config.known_words_only`)."""
        names: list[list[int]] = [[] for _ in range(batch_size)]
        separator = -1
        if retrieved is not None and self.name_tokenizer is not None:
            separator = self.name_tokenizer.sep_token_id
            masks = retrieved.attention_mask.bool()
            names = [ids[mask].tolist() for ids, mask in zip(retrieved.input_ids, masks, strict=True)]
        return self.spelling.processor(names, separator, self.config.max_name_length)


__all__ = ["EVCapForConditionalGeneration", "EVCapPreTrainedModel"]
