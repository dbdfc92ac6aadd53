"""Processor of SmallCap: photos to pixel values, captions to labels, token ids to captions."""

from __future__ import annotations

import os
from typing import Any

from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack
from typing_extensions import Self

from .chat_messages import write_chat_template
from .processing_retrieval import RetrievalProcessor, one_each


# In a prompt: what is retrieved, and the model's own prompt.
PLACES = ("{captions}", "{prompt}")


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
        caption_prefix (`str`, *optional*, defaults to `""`): Put in front of a caption that is tokenised: a space for
            prompts that end in a word.
        chat_template (`str`, *optional*): Jinja template of chats; when absent, one that leaves the prompt to the
            model.

    Example:
    ```python
    >>> processor = SmallCapProcessor.from_pretrained("path/or/repo")
    >>> inputs = processor(images=["a.jpg", "b.jpg"], return_tensors="pt")
    >>> batch = processor(images=photos, suffix=captions, return_tensors="pt")  # with labels, for training
    ```
    """

    prompt_argument = "prompts"

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        pad_token: str = "!",
        end_token: str = ".",
        max_caption_length: int = 25,
        caption_prefix: str = "",
        chat_template: str | None = None,
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
        self.caption_prefix = caption_prefix
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.refresh_chat_template()

    @classmethod
    def from_encoder_decoder_pretrained(
        cls, encoder: str | os.PathLike, decoder: str | os.PathLike, **options: Any
    ) -> Self:
        """
        Makes the processor of a [`SmallCapForConditionalGeneration`] that the method of the same name assembles.

        Args:
            encoder, decoder (`str` or `os.PathLike`): As there.
            image_processor (*optional*): Instead of the encoder's.
            processor_options (`dict`, *optional*): Arguments of the processor, such as `end_token`.
            options: All others are as for the model.
        """
        from .assembly_smallcap import SmallCapAssembly

        return SmallCapAssembly(cls, encoder, decoder, **options).processor

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: Inputs of the model that this processor makes of photos and whole prompts."""
        return ["pixel_values", "input_ids", "attention_mask"]

    def make_chat_template(self) -> str:
        """The chat template that leaves the prompt to the model, and the beginning of a caption to the assistant."""
        return write_chat_template("{image}", "", self.end_token, "{prompt}")

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        suffix: str | list[str] | None = None,
        prompts: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images (photo, list of photos or list of lists with a photo each, *optional*):
                Anything that [`~photo_loading.load_photo`] reads.
            text (`str` or `list[str]`, *optional*):
                Prompt for all photos, or one a photo, instead of the model's `prompt_template`. It may hold
                `{captions}` for what is retrieved and `{prompt}` for the model's own prompt; without them it is
                tokenised here, and nothing is retrieved.
            suffix (`str` or `list[str]`, *optional*): Captions to learn, returned as `labels`.
            prompts (`str` or `list[str]`, *optional*): The same as `text`, but never tokenised here.
            kwargs:
                Options of the tokenizer and the image processor, by themselves or in `text_kwargs` and
                `images_kwargs`. `return_tensors` is `"pt"` or `"np"`; lists when absent. `padding`, `truncation` and
                the like are of `text`. `max_length` is, with `suffix`, a caption's tokens with its end:
                `max_caption_length + 1` when absent.

        Returns:
            [`~transformers.BatchFeature`] with `pixel_values` `(batch_size, 3, height, width)` where photos are given,
            with `suffix` the `labels` `(batch_size, caption_length)`, -100 after a caption's end, and with `text`
            `input_ids` and `attention_mask` `(batch_size, sequence_length)`, or the `prompts`, a list of strings.

        Raises:
            ValueError: Photos, texts and captions do not fit together.
            TypeError: An option is unknown.
        """
        if images is None and text is None and suffix is None and prompts is None:
            raise ValueError("Give `images`, `suffix` (captions to learn) or `text` (a prompt).")
        if text is not None and prompts is not None:
            raise ValueError("`text` and `prompts` are both the prompt; give one.")
        call = self.read_call(images, (suffix, text, prompts), kwargs)
        data = call.pixels
        if suffix is not None:
            captions = one_each(suffix, call.count, "suffix")
            rows = [self.encode_caption(caption, call.max_length) for caption in captions]
            longest = max(map(len, rows), default=0)
            data["labels"] = [row + [-100] * (longest - len(row)) for row in rows]
        texts = None if text is None else one_each(text, call.count, "text")
        if texts is not None and suffix is None and not any(place in one for one in texts for place in PLACES):
            # The end of a caption is an ordinary full stop, which must not split words such as "U.S." here.
            data.update(self.tokenizer(texts, split_special_tokens=True, **call.text_options))
            texts = None
        batch = BatchFeature(data, tensor_type=call.return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)
        if prompts is not None or texts is not None:
            batch["prompts"] = texts if prompts is None else one_each(prompts, call.count, "prompts")
        return batch

    def encode_caption(self, caption: str, max_length: int | None = None) -> list[int]:
        """Token ids of a caption, cut to at most `max_length` with its end; the prompt is tokenised apart."""
        length = self.max_caption_length if max_length is None else max_length - 1
        # The end token is an ordinary full stop: it must not split words such as "U.S." otherwise than in the prompt.
        text = self.caption_prefix + caption.strip()
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        end = self.tokenizer.eos_token_id
        return [*(ids[:-1] if ids[-1:] == [end] else ids)[:length], end]


__all__ = ["SmallCapProcessor"]
