"""SmallCap: encode a photo, retrieve captions of similar ones, put them into a prompt, and let the decoder write."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithCrossAttentions
from transformers.utils import ModelOutput, can_return_tuple, logging

from .cache_name import CACHE, CACHE_NAMES, takes_cache
from .caption_generation import CaptionGenerationMixin
from .configuration_smallcap import SmallCapConfig
from .cross_attention_smallcap import build_decoder, empty_cache
from .datastore_smallcap import CaptionDatastore
from .frozen_encoder import OUTPUT_OPTIONS, make_vision_tower
from .modeling_retrieval import RetrievalPreTrainedModel
from .offloading import to_part
from .retrieval_smallcap import CaptionChoice, CaptionRetriever, SmallCapRetrievedCaptions
from .vision_space_evcap import EVCapVisionSpace


logger = logging.get_logger(__name__)

# Of the released implementation; a saved `generation_config.json` comes before them.
GENERATION_DEFAULTS = {"max_new_tokens": 25, "num_beams": 3, "length_penalty": 0.0, "early_stopping": True}


@dataclass
class SmallCapImageFeatures(BaseModelOutputWithPooling):
    """
    What the frozen encoder makes of photos.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`): What the decoder
            attends to, also named `vision_hidden_states`.
        pooler_output (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`): The same: the decoder
            attends to the patches themselves.
        hidden_states, attentions (`tuple`, *optional*): The vision encoder's, where asked for.
        retrieval_queries (`torch.Tensor` of shape `(batch_size, key_size)`, *optional*): What is compared with the
            datastore's keys.
    """

    retrieval_queries: torch.Tensor | None = None

    @property
    def vision_hidden_states(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`: What the decoder attends to."""
        return self.last_hidden_state


@dataclass
class SmallCapEncodedImages(ModelOutput):
    """
    Photos ready for the decoder.

    Args:
        vision_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`): Patches.
        captions ([`SmallCapRetrievedCaptions`]): Captions for the prompt.
        image_outputs ([`SmallCapImageFeatures`]): What the encoder made of the photos.
    """

    vision_hidden_states: torch.Tensor | None = None
    captions: SmallCapRetrievedCaptions | None = None
    image_outputs: SmallCapImageFeatures | None = None


@dataclass
class SmallCapOutput(CausalLMOutputWithCrossAttentions):
    """
    Output of [`SmallCapForConditionalGeneration`].

    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*): Next-token cross-entropy, where labels are given.
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`): Prediction scores; of the caption
            and the token before it only, where the model made the prompt.
        cache, or past_key_values before transformers 5.24 (`Cache`, *optional*): Keys and values of the decoder and
            of the photos.
        hidden_states, attentions, cross_attentions (`tuple`, *optional*): The decoder's, where asked for.
        captions ([`SmallCapRetrievedCaptions`], *optional*): Captions that the prompts hold.
        image_outputs ([`SmallCapImageFeatures`], *optional*): What the encoder made of the photos.
    """

    captions: SmallCapRetrievedCaptions | None = None
    image_outputs: SmallCapImageFeatures | None = None


class SmallCapPreTrainedModel(RetrievalPreTrainedModel):
    """Loading, initialisation and capabilities of SmallCap models."""

    config_class = SmallCapConfig
    base_model_prefix = "smallcap"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "GPT2Block", "SmallCapOPTDecoderLayer"]
    _keep_in_fp32_modules_strict = ["vision_space"]
    _skip_keys_device_placement = list(CACHE_NAMES)

    memory_class = CaptionDatastore
    memory_folder = "datastore"
    tokenizer_attribute = "tokenizer"
    tokenizer_folder = ""
    retrieved_field = "retrieved_captions"
    rebuild_hint = "Build one from the captions with this model's encoder: `hf-evcap datastore build`."
    trainable_parts = {
        "paper": ("crossattention",),
        "cross_attention_norms": ("crossattention", "ln_cross_attn"),
        "decoder": ("language_model",),
    }

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: Parts whose weights decide what a photo's query means."""
        spaces = {"clip": ("vision_model", "visual_projection"), "vision": ("vision_model", "vision_space")}
        return spaces.get(self.config.retrieval_space, ())


class SmallCapForConditionalGeneration(CaptionGenerationMixin, SmallCapPreTrainedModel):
    r"""
    SmallCap (CVPR 2023, arXiv 2209.15323). The stages are methods, in the order in which the data flows:
    [`get_image_features`], [`retrieve_captions`], [`tokenize_prompts`], [`generate`].

    Args:
        config ([`SmallCapConfig`]): Sizes of the parts, the prompt and the retrieval.

    Example:
    ```python
    >>> from hf_evcap import SmallCapForConditionalGeneration, SmallCapProcessor

    >>> model = SmallCapForConditionalGeneration.from_pretrained("path/or/repo", datastore="org/captions")
    >>> processor = SmallCapProcessor.from_pretrained("path/or/repo")
    >>> ids = model.generate(**processor(images="photo.jpg", return_tensors="pt"))
    >>> processor.batch_decode(ids, skip_special_tokens=True)
    ```
    """

    def __init__(self, config: SmallCapConfig) -> None:
        super().__init__(config)
        self.vision_model = make_vision_tower(config.vision_config)
        if config.retrieval_space == "clip":
            projection_dim = config.vision_config.projection_dim
            self.visual_projection = nn.Linear(config.encoder_hidden_size, projection_dim, bias=False)
        elif config.retrieval_space == "vision":
            self.vision_space = EVCapVisionSpace(config.retrieval_options, config.encoder_hidden_size)
        self.language_model = build_decoder(config)
        self.tokenizer: Any = None
        self._datastore: CaptionDatastore | None = None
        self._loaded: dict[str, CaptionDatastore] = {}  # folders and Hub ids that calls named
        self._retriever: CaptionRetriever | None = None  # of the datastore that was used last
        self.generation_config.update(**GENERATION_DEFAULTS)
        self._keep_in_fp32_modules_strict = [part for part in self._keep_in_fp32_modules_strict if hasattr(self, part)]
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, datastore: Any = None, **kwargs: Any) -> Any:
        """
        Loads a model with its datastore; see [`~model_repo.ModelRepoMixin.from_pretrained`].

        Args:
            datastore (*optional*): Another word for `memory`: a folder, a repo id, a datastore, or `False` for none.
        """
        if datastore is not None:
            if kwargs.get("memory") is not None:
                raise ValueError("`datastore` and `memory` mean the same; give one.")
            kwargs["memory"] = datastore
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_encoder_decoder_pretrained(
        cls, encoder: str | os.PathLike, decoder: str | os.PathLike, *, datastore: Any = None, **options: Any
    ) -> SmallCapForConditionalGeneration:
        r"""
        Assembles a model from pretrained parts. The cross-attention between them starts at random, the same for a
        seed, but for its last projection, which starts at zero.

        Args:
            encoder (`str` or `os.PathLike`):
                Folder or repo id (`"org/name"` or `"org/name@revision"`) of a CLIP, which makes its own queries for
                captions, or of another vision tower (SigLIP, DINOv2, ViT, ...), or a published EfficientNet-Lite's
                `.pth` file; captions are then found by the photos that they describe.
            decoder (`str` or `os.PathLike`):
                Folder, repo id or `.gguf` file of a GPT-2, an OPT, or another language model of a type in
                `configuration_smallcap.DECODERS`. It begins as it was: untrained cross-attention adds nothing.
            datastore (*optional*): [`CaptionDatastore`], its folder or its repo id.
            processor ([`SmallCapProcessor`], *optional*): To use instead of the one that
                [`SmallCapProcessor.from_encoder_decoder_pretrained`] makes of the same arguments.
            image_processor, processor_options: See there.
            seed (`int`, *optional*, defaults to 0): Of the cross-attention.
            vision_space_photos (`Sequence`, *optional*):
                Photos to which the retrieval space of a tower without a text side is fitted; without them plain pooled
                features are compared. See [`~vision_space_evcap.fit_vision_space`].
            gguf_file (`str`, *optional*): GGUF file in `decoder` that holds it.
            options: Fields of [`SmallCapConfig`] (`vision_config` as a `dict` of what to change), and options of
                loading: `dtype` (by default the decoder's), `device_map`, `quantization_config` (the decoder alone is
                quantized), `attn_implementation`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Returns:
            [`SmallCapForConditionalGeneration`]: In eval mode.

        Raises:
            ValueError: The parts cannot work together; the message says why and what to do.

        Example:
        ```python
        >>> model = SmallCapForConditionalGeneration.from_encoder_decoder_pretrained(
        ...     "openai/clip-vit-base-patch32", "openai-community/gpt2"
        ... )
        ```
        """
        from .assembly_smallcap import SmallCapAssembly
        from .processing_smallcap import SmallCapProcessor

        return SmallCapAssembly(SmallCapProcessor, encoder, decoder, **options).load(cls, datastore)

    # Stage 1: encode

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SmallCapImageFeatures:
        """
        Encodes photos (section 3.1).

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`, *optional*): From the processor.
            vision_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`, *optional*):
                What this method returned for the photos before, to skip the vision encoder.
            kwargs: `return_dict`, `output_hidden_states`, `output_attentions` and the like, of the vision encoder.
        """
        features = self.run_vision_model(pixel_values, vision_hidden_states, **kwargs)
        patches = features["last_hidden_state"]
        queries = None
        if self.config.retrieval_space == "clip":
            class_token = patches[:, 0].to(self.vision_model.dtype)
            queries = self.visual_projection(self.vision_model.post_layernorm(class_token))
        elif self.config.retrieval_space == "vision":
            queries = self.vision_space(patches)[:, 0]
        return SmallCapImageFeatures(**features, pooler_output=patches, retrieval_queries=queries)

    @property
    def memory_key_size(self) -> int | None:
        """`int` or `None`: Dimension of the datastore's keys; `None` where queries are made elsewhere."""
        if self.config.retrieval_space == "vision":
            return self.vision_space.key_size
        return self.config.vision_config.projection_dim if self.config.retrieval_space == "clip" else None

    @property
    def query_tokens_hash(self) -> None:
        """`None`: There are no image queries."""
        return None

    def get_memory_keys(
        self, pixel_values: torch.Tensor | None = None, vision_hidden_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Keys of photos for a datastore that stores captions under the photos that they describe.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`, *optional*): From the processor.
            vision_hidden_states (`torch.Tensor`, *optional*): Photos encoded already; see [`get_image_features`].

        Returns:
            `torch.Tensor` of shape `(batch_size, memory_key_size)`.
        """
        features = self.get_image_features(pixel_values, vision_hidden_states, return_dict=True)
        queries = features.retrieval_queries
        if queries is None:
            raise ValueError(
                f"This model makes no keys: its queries come from {self._external_encoder}. Make the keys with that."
            )
        return queries

    @property
    def _external_encoder(self) -> str:
        return self.config.retrieval_encoder or "an external encoder"

    # Stage 2: retrieve

    @property
    def memory(self) -> CaptionDatastore | None:
        """[`CaptionDatastore`] or `None`: What captions are retrieved from."""
        return self._datastore

    @property
    def datastore(self) -> CaptionDatastore | None:
        """[`CaptionDatastore`] or `None`: The same as `memory`."""
        return self._datastore

    def set_memory(self, memory: CaptionDatastore | None) -> None:
        """
        Attaches a datastore in place of the present one; `None` detaches it. Weights stay as they are.

        Args:
            memory ([`CaptionDatastore`] or `None`): With keys of this model's encoder, or of CLIP's text side that
                belongs to it. It may be edited later: the next caption sees the change.

        Raises:
            ValueError: The datastore was built by another encoder or has another dimension.
        """
        if memory is not None:
            self.check_memory(memory)
        self._datastore = memory
        self._retriever = None

    def set_datastore(self, datastore: CaptionDatastore | None) -> None:
        """The same as [`set_memory`]."""
        self.set_memory(datastore)

    def _retriever_of(self, memory: Any) -> CaptionRetriever:
        """The attached datastore, or the one of this call, ready for search."""
        memory = self._datastore if memory is None else memory
        if memory is None:
            raise ValueError(
                "The model has no datastore to retrieve captions from. Attach one with `model.set_datastore(...)` or "
                "`from_pretrained(..., datastore=...)`, give `captions`, or set `model.config.num_retrieved_captions` "
                "to 0 to caption without retrieval."
            )
        if isinstance(memory, (str, os.PathLike)):
            if str(memory) not in self._loaded:
                self._loaded[str(memory)] = CaptionDatastore.from_pretrained(memory)
            memory = self._loaded[str(memory)]
        retriever = self._retriever
        if retriever is None or retriever.memory is not memory:
            if memory is not self._datastore:
                self.check_memory(memory)
            retriever = self._retriever = CaptionRetriever(memory)
        return retriever

    @torch.compiler.disable  # a search is no graph
    @torch.no_grad()
    def retrieve_captions(
        self,
        retrieval_queries: torch.Tensor,
        exclude_rows: torch.LongTensor | None = None,
        memory: Any = None,
        k: int | None = None,
        own_captions: list[str] | None = None,
    ) -> SmallCapRetrievedCaptions:
        """
        Retrieves the captions most similar to photos (section 3.2).

        Args:
            retrieval_queries (`torch.Tensor` of shape `(batch_size, key_size)`): From [`get_image_features`], or made
                by the encoder of the datastore's keys; normalised here.
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                Rows that a photo must not retrieve, its own captions in training; -1 excludes nothing. See
                [`~CaptionDatastore.rows_of_images`].
            memory (*optional*): Datastore for this call, or its folder or Hub id, instead of the attached one.
            k (`int`, *optional*): Captions for each photo; `config.num_retrieved_captions` when absent.
            own_captions (`list[str]`, *optional*): A caption a photo that it must not retrieve, the one to learn.
        """
        k = self.config.num_retrieved_captions if k is None else k
        if k == 0:
            return SmallCapRetrievedCaptions.given([[] for _ in range(len(retrieval_queries))])
        retriever = self._retriever_of(memory)
        if retrieval_queries.ndim != 2 or retrieval_queries.shape[1] != retriever.memory.dim:
            raise ValueError(
                f"`retrieval_queries` must have the shape (batch_size, {retriever.memory.dim}) of the datastore's "
                f"keys, got {tuple(retrieval_queries.shape)}."
            )
        drawn_by = self.training_retrieval if self.training else None
        choice = CaptionChoice(self.config.max_captions_per_image, self.config.duplicate_overlap, own_captions)
        return retriever(retrieval_queries, k, exclude_rows, drawn_by, choice)

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        captions: SmallCapRetrievedCaptions | list[list[str]] | None = None,
        retrieval_queries: torch.Tensor | None = None,
        exclude_rows: torch.LongTensor | None = None,
        memory: Any = None,
        own_captions: list[str] | None = None,
        **kwargs: Any,
    ) -> SmallCapEncodedImages:
        """
        Encodes photos and retrieves captions for them. `captions` replaces the retrieval, `retrieval_queries` the
        model's own queries; see the stages for the other arguments, of which `kwargs` go to [`get_image_features`].
        """
        features = self.get_image_features(pixel_values, vision_hidden_states, **{**kwargs, "return_dict": True})
        count = features.vision_hidden_states.shape[0]
        found = SmallCapRetrievedCaptions.given(captions) if isinstance(captions, list) else captions
        if found is None:
            queries = features.retrieval_queries if retrieval_queries is None else retrieval_queries
            if queries is None and self.config.num_retrieved_captions:
                raise ValueError(
                    f"This model's datastore is searched with vectors of {self._external_encoder}, which is not part "
                    "of it: give `retrieval_queries`, or `captions` that were retrieved before."
                )
            if queries is None:
                queries = features.vision_hidden_states.new_zeros(count, 1)
            found = self.retrieve_captions(queries, exclude_rows, memory, own_captions=own_captions)
        if len(found.captions) != count:
            raise ValueError(f"Got captions for {len(found.captions)} of {count} photos.")
        return SmallCapEncodedImages(features.vision_hidden_states, found, features)

    def describe_retrieved(self, encoded: SmallCapEncodedImages) -> list[list[dict[str, Any]]]:
        """The captions of each photo with scores and image ids, as plain Python values."""
        found = encoded.captions
        return [
            [
                {"caption": caption, "score": round(score, 4), "image_id": image_id}
                for caption, score, image_id in zip(*photo, strict=False)
            ]
            for photo in zip(found.captions, found.scores.tolist(), found.image_ids, strict=True)
        ]

    # Stage 3: prompt

    def build_prompts(self, captions: list[list[str]], prompts: str | list[str] | None = None) -> list[str]:
        """
        Puts captions into the prompt (section 3.2).

        Args:
            captions (`list[list[str]]`): A list for each photo; an empty one gives `config.prompt_without_captions`.
            prompts (`str` or `list[str]`, *optional*): Instead of `config.prompt_template`, for all photos or each;
                `{prompt}` stands for it, `{captions}` for the captions.
        """
        if prompts is None or isinstance(prompts, str):
            prompts = ["{prompt}" if prompts is None else prompts] * len(captions)
        if len(prompts) != len(captions):
            raise ValueError(f"Got {len(prompts)} prompts for {len(captions)} photos; give one each, or one for all.")
        joined = [self.config.caption_separator.join(photo) for photo in captions]
        built = []
        for prompt, text in zip(prompts, joined, strict=True):
            own = self.config.prompt_template if text else self.config.prompt_without_captions
            if "{captions}" in prompt and not text:
                prompt = self.config.prompt_without_captions
            built.append(prompt.replace("{prompt}", own).replace("{captions}", text))
        return built

    def tokenize_prompts(
        self,
        captions: list[list[str]],
        prompts: str | list[str] | None = None,
        labels: torch.LongTensor | None = None,
        room: int = 0,
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """
        Tokenises the prompts, and puts the captions to learn after them.

        Args:
            captions, prompts: As in [`build_prompts`].
            labels (`torch.LongTensor` of shape `(batch_size, caption_length)`, *optional*): From the processor.
            room (`int`, *optional*, defaults to 0): Tokens that must fit after the prompt.

        Returns:
            `input_ids`, `attention_mask` and labels of shape `(batch_size, sequence_length)`, padded on the left;
            labels are -100 but for the captions.

        Raises:
            ValueError: A prompt is longer than the decoder can read.
        """
        if self.tokenizer is None:
            raise ValueError("The model has no tokenizer for prompts; set `model.tokenizer = processor.tokenizer`.")
        texts = self.build_prompts(captions, prompts)
        start = (self.tokenizer("")["input_ids"] or [self.tokenizer.bos_token_id]) if self.config.add_bos_token else []
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        learned = [[]] * len(texts) if labels is None else [[i for i in row if i >= 0] for row in labels.tolist()]
        if len(learned) != len(texts):
            raise ValueError(f"Got {len(learned)} rows of `labels` for {len(texts)} photos.")
        read = [start + prompt + caption for prompt, caption in zip(encoded, learned, strict=True)]
        length, limit = max(map(len, read), default=0), self.config.text_config.max_position_embeddings
        if length + room > limit:
            raise ValueError(
                f"A prompt with its caption takes {length + room} tokens, the decoder reads at most {limit}. A "
                "datastore's captions should have at most 25 tokens (`hf-evcap datastore build` drops longer ones); "
                "or set `model.config.num_retrieved_captions` lower."
            )
        pad = self.tokenizer.pad_token_id or 0
        rows = [[pad] * (length - len(ids)) + ids for ids in read]
        masks = [[0] * (length - len(ids)) + [1] * len(ids) for ids in read]
        targets = [[-100] * (length - len(ids)) + ids for ids in learned]
        input_ids, attention_mask, targets = (
            to_part(torch.tensor(values).view(len(texts), length), self.get_input_embeddings())
            for values in (rows, masks, targets)
        )
        return input_ids, attention_mask, targets

    # The decoder

    def embed_prompt(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeds a prompt; one that is embedded already stays as it is."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`.")
        return self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds

    @can_return_tuple
    @takes_cache
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        captions: SmallCapRetrievedCaptions | list[list[str]] | None = None,
        prompts: str | list[str] | None = None,
        retrieval_queries: torch.Tensor | None = None,
        exclude_rows: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> SmallCapOutput:
        r"""
        Without `input_ids` the model retrieves captions, makes the prompts, and learns to go on with `labels`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`, *optional*): Photos.
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                All that the decoder reads, prompt included; nothing is retrieved then.
            vision_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`, *optional*):
                Photos already encoded; these or `pixel_values` are needed with a cache, too.
            cache (`Cache`, *optional*): The decoder's, of the tokens before; also `past_key_values`.
            labels (`torch.LongTensor`, *optional*):
                Without `input_ids` the captions' tokens `(batch_size, caption_length)` from the processor; with them
                tokens to predict `(batch_size, sequence_length)`, shifted inside. -100 where there is none.
            captions ([`SmallCapRetrievedCaptions`] or `list[list[str]]`, *optional*): Use instead of retrieving.
            prompts (`str` or `list[str]`, *optional*): As in [`build_prompts`].
            retrieval_queries, exclude_rows: As in [`retrieve_captions`].
            kwargs: Passed to the decoder (`use_cache`, `output_attentions`, ...) and the loss.
        """
        if pixel_values is None and vision_hidden_states is None:
            raise ValueError("The decoder attends to a photo: give `pixel_values` or `vision_hidden_states`.")
        asked_for = {name: kwargs[name] for name in OUTPUT_OPTIONS if name in kwargs}
        if input_ids is None and inputs_embeds is None:
            if kwargs.get("shift_labels") is not None:
                raise ValueError("`shift_labels` belong to `input_ids`; without a prompt of your own, give `labels`.")
            own = None
            if self.training and labels is not None and self.tokenizer is not None:
                ids = [[token for token in row if token >= 0] for row in labels.tolist()]
                own = self.tokenizer.batch_decode(ids, skip_special_tokens=True)  # copying it would teach nothing
            encoded = self.encode_images(
                pixel_values, vision_hidden_states, captions, retrieval_queries, exclude_rows, None, own, **asked_for
            )
            if labels is not None:  # logits of the prompt are of no use; the vocabulary makes them the largest tensor
                kwargs.setdefault("logits_to_keep", labels.shape[1] + 1)
            made = self.tokenize_prompts(encoded.captions.captions, prompts, labels)
            input_ids, attention_mask, labels = made if labels is not None else (*made[:2], None)
        else:
            features = self.get_image_features(pixel_values, vision_hidden_states, return_dict=True, **asked_for)
            encoded = SmallCapEncodedImages(features.vision_hidden_states, image_outputs=features)
        features = self._decoder_features(encoded.vision_hidden_states)
        loss, outputs = self.run_language_model(
            self.embed_prompt(input_ids, inputs_embeds),
            attention_mask,
            position_ids,
            cache=cache,
            labels=labels,
            encoder_hidden_states=features,
            **kwargs,
        )
        fields = ("logits", CACHE, "hidden_states", "attentions", "cross_attentions")
        own = {name: outputs.get(name) for name in fields}
        return SmallCapOutput(loss=loss, **own, captions=encoded.captions, image_outputs=encoded.image_outputs)

    def _decoder_features(self, vision_hidden_states: torch.Tensor) -> torch.Tensor:
        embeddings = self.get_input_embeddings()
        return to_part(vision_hidden_states, embeddings).to(embeddings.weight.dtype).contiguous()

    def _empty_cache(self) -> Cache:
        return empty_cache(self.config.text_config)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        captions: SmallCapRetrievedCaptions | list[list[str]] | None = None,
        prompts: str | list[str] | None = None,
        retrieval_queries: torch.Tensor | None = None,
        exclude_rows: torch.LongTensor | None = None,
        encoded_images: SmallCapEncodedImages | None = None,
        memory: Any = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Writes captions, with every option of [`~transformers.GenerationMixin.generate`].

        Args:
            pixel_values, vision_hidden_states, captions, prompts, retrieval_queries, exclude_rows: As in [`forward`].
            input_ids, inputs_embeds, attention_mask (*optional*): A prompt of your own, as tokens or embedded, instead
                of one with retrieved captions.
            encoded_images ([`SmallCapEncodedImages`], *optional*):
                What [`encode_images`] returned, instead of photos; its captions tell what was retrieved.
            memory (*optional*): As in [`retrieve_captions`].
            kwargs: `num_beams`, `max_new_tokens`, `do_sample`, `streamer`, `generation_config`, ...

        Returns:
            The new tokens, without the prompt: `torch.LongTensor` of shape `(batch_size, new_tokens)`, or the output
            object of transformers when `return_dict_in_generate=True`.
        """
        own_prompt = input_ids is not None or inputs_embeds is not None
        if encoded_images is None and own_prompt:
            features = self.get_image_features(pixel_values, vision_hidden_states, return_dict=True)
            encoded_images = SmallCapEncodedImages(features.vision_hidden_states)
        elif encoded_images is None:
            encoded_images = self.encode_images(
                pixel_values, vision_hidden_states, captions, retrieval_queries, exclude_rows, memory
            )
        if not own_prompt:
            given = kwargs.get("generation_config") or self.generation_config
            room = kwargs.get("max_new_tokens") or given.max_new_tokens or 0
            input_ids, attention_mask, _ = self.tokenize_prompts(encoded_images.captions.captions, prompts, room=room)
        prompt = self.embed_prompt(input_ids, inputs_embeds)
        if attention_mask is None:
            attention_mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        features = self._decoder_features(encoded_images.vision_hidden_states)
        return self.write_captions(prompt, attention_mask, {"encoder_hidden_states": features}, **kwargs)


__all__ = ["SmallCapForConditionalGeneration", "SmallCapPreTrainedModel"]
