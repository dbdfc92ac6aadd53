"""Processor of EVCap: photos to pixel values, prompts to token ids with a place for the photo, captions to labels."""

from __future__ import annotations

import os
from typing import Any

from transformers import BatchFeature
from typing_extensions import Self

from .photo_loading import as_list, load_photo
from .processing_retrieval import RetrievalProcessor, one_each


IMAGE_TOKEN = "<image>"


class EVCapProcessor(RetrievalProcessor):
    r"""
    Prepares photos, prompts and captions for [`EVCapForConditionalGeneration`].

    Args:
        image_processor: Image processor of the vision encoder.
        tokenizer: Tokenizer of the language model. Gets an image token if it has none, and pads on the left.
        name_tokenizer: Tokenizer of the fusion Q-Former (BERT uncased in the paper).
        num_prefix_tokens (`int`, *optional*, defaults to 40): Image tokens a photo takes in the prompt, 32 for its
            queries and 8 for its object-name features in the paper.
        prompt_template (`str`, *optional*): Text around a prompt, with `{image}` for the photo and `{prompt}`.
        prompt (`str`, *optional*): Prompt used when none is given.
        caption_end (`str`, *optional*, defaults to a newline): What ends a caption in training.
        add_bos_token (`bool`, *optional*, defaults to `True`): Whether the language model's BOS token comes first.

    Example:
    ```python
    >>> processor = EVCapProcessor.from_pretrained(hf_evcap.default_model())
    >>> inputs = processor(images=["a.jpg", "b.jpg"], return_tensors="pt")
    >>> batch = processor(images=photos, suffix=captions, return_tensors="pt")  # with labels, for training
    ```
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        name_tokenizer: Any,
        num_prefix_tokens: int = 40,
        prompt_template: str = "###Human: <Img>{image}</Img> {prompt} ###Assistant: ",
        prompt: str = "Describe this image in detail.",
        caption_end: str = "\n",
        add_bos_token: bool = True,
        **kwargs: Any,
    ) -> None:
        if "{image}" not in prompt_template:
            raise ValueError(f"`prompt_template` must hold {{image}}, the photo's place; got {prompt_template!r}.")
        self.num_prefix_tokens = num_prefix_tokens
        self.prompt_template = prompt_template
        self.prompt = prompt
        self.caption_end = caption_end
        self.add_bos_token = add_bos_token
        if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
            tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]})
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, name_tokenizer, **kwargs)

    @classmethod
    def from_encoder_and_language_model_pretrained(
        cls, encoder: str | os.PathLike, language_model: str | os.PathLike, **options: Any
    ) -> Self:
        """
        Makes the processor of an [`EVCapForConditionalGeneration`] that the method of the same name assembles.

        Args:
            encoder, language_model (`str` or `os.PathLike`): As there.
            name_tokenizer (*optional*):
                Tokenizer of the names, its folder or repo id. By default an EVCap's own, the language model's where it
                embeds the names too (`tie_name_embeddings`), else BERT's (`google-bert/bert-base-uncased`).
            image_processor (*optional*): Instead of the encoder's.
            chat_template (`bool`, *optional*, defaults to `False`):
                Write the prompt as the language model's own chat template says, and end captions with its end token.
            processor_options (`dict`, *optional*): Arguments of the processor, such as `prompt`, `prompt_template` and
                `caption_end`.
            options: All others are as for the model.

        Example:
        ```python
        >>> parts = ("google/siglip-base-patch16-224", "HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> options = {"chat_template": True, "processor_options": {"prompt": "Describe this photo."}}
        >>> processor = EVCapProcessor.from_encoder_and_language_model_pretrained(*parts, **options)
        >>> model = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(
        ...     *parts, processor=processor
        ... )
        ```
        """
        from .assembly_evcap import EVCapAssembly

        return EVCapAssembly(cls, encoder, language_model, **options).processor

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: Inputs of the model that this processor makes."""
        return ["pixel_values", "input_ids", "attention_mask"]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        suffix: str | list[str] | None = None,
        return_tensors: str | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Args:
            images (photo or list of photos, *optional*): Anything that [`load_photo`] reads.
            text (`str` or `list[str]`, *optional*):
                Prompt for all photos, or one a photo; the processor's own when absent. It is put into
                `prompt_template`, unless it holds `{image}` or the image token itself and so is a whole prompt.
            suffix (`str` or `list[str]`, *optional*): Captions, appended to the prompts and returned as `labels`.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; lists when absent.
            padding (`bool` or `str`, *optional*, defaults to `True`): Left padding to the longest, `"max_length"` to
                `max_length`, or `False`.
            max_length (`int`, *optional*): Caption tokens kept with `suffix`; the length to pad to with
                `padding="max_length"`.

        Returns:
            [`~transformers.BatchFeature`] with `pixel_values` `(batch_size, 3, height, width)` where photos are given,
            `input_ids`, `attention_mask` and, with `suffix`, `labels` of shape `(batch_size, sequence_length)`; labels
            are -100 on prompt and padding.
        """
        if images is None and text is None and suffix is None:
            raise ValueError("Give `images`, `text` or both.")
        data: dict[str, Any] = {}
        photos = None
        if images is not None:
            photos = [load_photo(image) for image in as_list(images)]
            if not photos:
                raise ValueError("`images` is empty; give at least one photo.")
            data.update(self.image_processor(photos, return_tensors=return_tensors, **kwargs))
        elif kwargs:
            raise TypeError(f"Unknown arguments {sorted(kwargs)} for a prompt without photos.")
        given = suffix if photos is None and (text is None or isinstance(text, str)) else text
        count = len(photos) if photos is not None else 1 if given is None or isinstance(given, str) else len(given)
        prompts = one_each(self.prompt if text is None else text, count, "text")
        captions = None if suffix is None else one_each(suffix, count, "suffix")
        data.update(self._tokenize(prompts, captions, padding, max_length))
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenize(
        self, prompts: list[str], captions: list[str] | None, padding: bool | str, max_length: int | None
    ) -> dict[str, list[list[int]]]:
        rows, label_rows = [], []
        for number, prompt in enumerate(prompts):
            ids = self.encode_prompt(prompt)
            labels = [-100] * len(ids)
            if captions is not None:
                caption = self.encode_caption(captions[number], max_length)
                ids, labels = ids + caption, labels + caption
            rows.append(ids)
            label_rows.append(labels)
        masks = [[1] * len(ids) for ids in rows]
        if padding:
            longest = max(map(len, rows))
            if padding == "max_length":
                if max_length is None or max_length < longest:
                    raise ValueError(f'`padding="max_length"` needs a `max_length` of at least {longest}.')
                longest = max_length
            pad = self.tokenizer.pad_token_id
            rows, masks, label_rows = (
                [[fill] * (longest - len(row)) + row for row in sequences]
                for sequences, fill in ((rows, pad), (masks, 0), (label_rows, -100))
            )
        encoded = {"input_ids": rows, "attention_mask": masks}
        return encoded if captions is None else {**encoded, "labels": label_rows}

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt: its pieces around the photo tokenised apart, the image token repeated between."""
        if IMAGE_TOKEN in prompt or "{image}" in prompt:
            whole = prompt.replace("{image}", IMAGE_TOKEN)
        else:
            whole = self.prompt_template.replace("{image}", IMAGE_TOKEN).replace("{prompt}", prompt)
        pieces = whole.split(IMAGE_TOKEN)
        if len(pieces) != 2:
            raise ValueError(f"A prompt has one photo; {prompt!r} has {len(pieces) - 1} places for one.")
        before, after = (
            self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else [] for piece in pieces
        )
        start = [self.tokenizer.bos_token_id] if self.add_bos_token and self.tokenizer.bos_token_id is not None else []
        return start + before + [self.image_token_id] * self.num_prefix_tokens + after

    def encode_caption(self, caption: str, max_length: int | None = None) -> list[int]:
        """Token ids of a caption and its end, tokenised apart from the prompt; at most `max_length` with the end."""
        for token in self.tokenizer.all_special_tokens:  # in a caption they are words, not a photo's place or an end
            caption = caption.replace(token, f"{token[0]} {token[1:]}")
        ids = self._encode(caption + self.caption_end)
        if max_length is not None and len(ids) > max_length:
            end = self._encode(self.caption_end)[-1:]
            ids = ids[: max_length - len(end)] + end
        return ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


__all__ = ["EVCapProcessor"]
