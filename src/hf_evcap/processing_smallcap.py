"""Processor of SmallCap: photos to pixel values, captions to labels, token ids to captions."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature

from .photo_loading import as_list, load_photo
from .processing_retrieval import RetrievalProcessor, one_each


class SmallCapProcessor(RetrievalProcessor):
    r"""
    Prepares photos and captions for [`SmallCapForConditionalGeneration`]. The prompt is made by the model, which
    retrieves the captions that it holds.

    Args:
        image_processor: Image processor of the vision encoder.
        tokenizer: Tokenizer of the decoder. Its pad and end tokens become those below, and it pads on the left.
        pad_token (`str`, *optional*, defaults to `"!"`): Fills up short rows; a token that captions do not need.
        end_token (`str`, *optional*, defaults to `"."`): Ends a caption.
        max_caption_length (`int`, *optional*, defaults to 25): Tokens of a caption in training, without its end.

    Example:
    ```python
    >>> processor = SmallCapProcessor.from_pretrained("path/or/repo")
    >>> inputs = processor(images=["a.jpg", "b.jpg"], return_tensors="pt")
    >>> batch = processor(images=photos, suffix=captions, return_tensors="pt")  # with labels, for training
    ```
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        pad_token: str = "!",
        end_token: str = ".",
        max_caption_length: int = 25,
        **kwargs: Any,
    ) -> None:
        vocabulary = tokenizer.get_vocab()
        for argument, token in (("pad_token", pad_token), ("end_token", end_token)):
            if token not in vocabulary:
                raise ValueError(f"`{argument}` must be a token of the tokenizer; {token!r} is not.")
        tokenizer.add_special_tokens({"pad_token": pad_token, "eos_token": end_token})  # decoding leaves them out
        tokenizer.padding_side = "left"
        self.pad_token = pad_token
        self.end_token = end_token
        self.max_caption_length = max_caption_length
        super().__init__(image_processor, tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: Inputs of the model that this processor makes."""
        return ["pixel_values", "labels", "prompts"]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        suffix: str | list[str] | None = None,
        return_tensors: str | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Args:
            images (photo or list of photos, *optional*): Anything that [`~photo_loading.load_photo`] reads.
            text (`str` or `list[str]`, *optional*):
                Prompt for all photos, or one a photo, instead of the model's `prompt_template`; with `{captions}` for
                what is retrieved, or without retrieval.
            suffix (`str` or `list[str]`, *optional*): Captions to learn, returned as `labels`.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; lists when absent.
            max_length (`int`, *optional*): Tokens of a caption with its end; `max_caption_length + 1` when absent.

        Returns:
            [`~transformers.BatchFeature`] with `pixel_values` `(batch_size, 3, height, width)` where photos are given,
            with `suffix` the `labels` `(batch_size, caption_length)`, -100 after a caption's end, and with `text` the
            `prompts`, a list of strings.
        """
        if images is None and text is None and suffix is None:
            raise ValueError("Give `images`, `suffix` (captions to learn) or `text` (a prompt).")
        data: dict[str, Any] = {}
        count = len(suffix) if isinstance(suffix, (list, tuple)) else 1
        if images is not None:
            photos = [load_photo(image) for image in as_list(images)]
            if not photos:
                raise ValueError("`images` is empty; give at least one photo.")
            count = len(photos)
            data.update(self.image_processor(photos, return_tensors=return_tensors, **kwargs))
        elif kwargs:
            raise TypeError(f"Unknown arguments {sorted(kwargs)} for captions without photos.")
        elif suffix is None and not isinstance(text, str):
            count = len(text or [])
        if suffix is not None:
            rows = [self.encode_caption(caption, max_length) for caption in one_each(suffix, count, "suffix")]
            longest = max(map(len, rows), default=0)
            data["labels"] = [row + [-100] * (longest - len(row)) for row in rows]
        batch = BatchFeature(data, tensor_type=return_tensors)
        if text is not None:
            batch["prompts"] = one_each(text, count, "text")
        return batch

    def encode_caption(self, caption: str, max_length: int | None = None) -> list[int]:
        """Token ids of a caption, cut to at most `max_length` with its end; the prompt is tokenised apart."""
        length = self.max_caption_length if max_length is None else max_length - 1
        # The end token is an ordinary full stop: it must not split words such as "U.S." otherwise than in the prompt.
        ids = self.tokenizer(caption.strip(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        end = self.tokenizer.eos_token_id
        return [*(ids[:-1] if ids[-1:] == [end] else ids)[:length], end]


__all__ = ["SmallCapProcessor"]
