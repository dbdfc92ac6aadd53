"""Processor of EVCap: photos to pixel values, prompts to token ids with a place for the photo, captions to labels."""

from __future__ import annotations

import os
import re
from typing import Any

from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack
from typing_extensions import Self

from .chat_messages import write_chat_template
from .processing_retrieval import RetrievalProcessor, one_each
from .prompt_rows import PromptRow, collate_rows, refuse_options


IMAGE_TOKEN = "<image>"
_TOKENIZED_WITH = ("add_special_tokens", "return_offsets_mapping", "sanitize_control_tokens", "verbose")


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
        chat_template (`str`, *optional*): Jinja template of chats; made of `prompt_template` and `prompt` when absent.

    Example:
    ```python
    >>> processor = EVCapProcessor.from_pretrained(hf_evcap.default_model())
    >>> inputs = processor(images=["a.jpg", "b.jpg"], return_tensors="pt")
    >>> batch = processor(images=photos, suffix=captions, return_tensors="pt")  # with labels, for training

    >>> parts = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What is this?"}]
    >>> chat = [{"role": "user", "content": parts}]
    >>> inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    ```
    """

    image_token = IMAGE_TOKEN

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
        chat_template: str | None = None,
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
        super().__init__(image_processor, tokenizer, name_tokenizer, chat_template=chat_template, **kwargs)
        self.refresh_chat_template()

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
            use_chat_template (`bool`, *optional*, defaults to `False`):
                Write the prompt as the language model's own chat template says, and end captions with its end token.
            processor_options (`dict`, *optional*): Arguments of the processor, such as `prompt`, `prompt_template` and
                `caption_end`.
            options: All others are as for the model.

        Example:
        ```python
        >>> parts = ("google/siglip-base-patch16-224", "HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> options = {"use_chat_template": True, "processor_options": {"prompt": "Describe this photo."}}
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

    @property
    def takes_requests(self) -> bool:
        """`bool`: Whether `prompt_template` has a place for a prompt; otherwise the model captions, whatever it is."""
        return "{prompt}" in self.prompt_template

    def make_chat_template(self) -> str:
        """The chat template that puts a conversation with a photo into `prompt_template`."""
        return write_chat_template(
            self.prompt_template,
            self.prompt,
            self.caption_end,
            IMAGE_TOKEN,
            starts_with_bos=self.add_bos_token and self.tokenizer.bos_token is not None,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        suffix: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images (photo, list of photos or list of lists with a photo each, *optional*):
                Anything that [`~photo_loading.load_photo`] reads. A text whose list is empty has no photo.
            text (`str` or `list[str]`, *optional*):
                Prompt for all photos, or one a photo; the processor's own when absent. It is put into
                `prompt_template`, unless it holds `{image}` or the image token itself and so is a whole prompt. Text
                that belongs to no photo, and to no caption, is tokenised as it is.
            suffix (`str` or `list[str]`, *optional*): Captions, appended to the prompts and returned as `labels`.
            kwargs:
                Options of the tokenizer and the image processor, by themselves or in `text_kwargs` and
                `images_kwargs`. `return_tensors` is `"pt"` or `"np"`; lists when absent. `padding` is `True` when
                absent, and left unless `padding_side` says otherwise. `max_length` is what `padding="max_length"`
                pads to and `truncation=True` cuts to, never into a photo; without them, with `suffix`, it is a
                caption's tokens with its end.

        Returns:
            [`~transformers.BatchFeature`] with `pixel_values` `(batch_size, 3, height, width)` where photos are given,
            `input_ids`, `attention_mask` and, with `suffix`, `labels` of shape `(batch_size, sequence_length)`; labels
            are -100 on prompt and padding.

        Raises:
            ValueError: Photos, texts and captions do not fit together, or the model has no place for a prompt.
            TypeError: An option is unknown.
        """
        if images is None and text is None and suffix is None:
            raise ValueError("Give `images`, `text` or both.")
        call = self.read_call(images, (text, suffix), kwargs)
        data, text_options = call.pixels, call.text_options
        # Without photos here the model has them encoded already, unless there is text alone.
        places = [int(suffix is not None or text is None)] * call.count if call.places is None else call.places
        texts = [None] * call.count if text is None else one_each(text, call.count, "text")
        captions = None if suffix is None else one_each(suffix, call.count, "suffix")
        prompts = [self._whole_prompt(*row, call.places is None) for row in zip(texts, places, strict=True)]
        if captions is None and not any(map(_has_place, prompts)):
            data.update(self.tokenizer(prompts, **text_options))
        else:
            refuse_options(text_options)
            rows = [self._tokenize(prompt, text_options) for prompt in prompts]
            limit = None if text_options.get("truncation") else call.max_length
            for row, caption in zip(rows, captions or [], strict=False):
                row.add_caption(self.encode_caption(caption, limit))
            data.update(collate_rows(rows, self.tokenizer, text_options, self.image_token_id, captions is not None))
        return BatchFeature(data, tensor_type=call.return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def _whole_prompt(self, text: str | None, places: int, encoded: bool) -> str:
        """A text as the model reads it; `encoded` photos are given to the model instead of here."""
        if text is None and not places:
            raise ValueError("There is neither a photo nor a text for a prompt.")
        if text is None or places and not _has_place(text):
            return self.build_prompt(text)
        if not places and not encoded and _has_place(text):
            raise ValueError(f"The prompt {text!r} has a place for a photo, but none is given for it.")
        return self.build_prompt(text) if _has_place(text) else text

    def build_prompt(self, prompt: str | None = None) -> str:
        """
        A whole prompt as text, with the image token for the photo.

        Args:
            prompt (`str`, *optional*): What to put into `prompt_template`, or a whole prompt with `{image}`; the
                processor's own `prompt` when absent.

        Raises:
            ValueError: `prompt_template` has no place for a prompt.
        """
        prompt = self.prompt if prompt is None else prompt
        if _has_place(prompt):
            return prompt.replace("{image}", IMAGE_TOKEN)
        if prompt.strip() and not self.takes_requests:
            raise ValueError(
                f"This model captions photos without being asked: its prompt_template {self.prompt_template!r} has no "
                f"place for the text {prompt!r}. Leave the text out, or give a whole prompt with {{image}} for the "
                f"photo, such as {self.prompt_template + 'a photo of'!r}."
            )
        return self.prompt_template.replace("{image}", IMAGE_TOKEN).replace("{prompt}", prompt)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt: its pieces around the photo tokenised apart, the image token repeated between."""
        return self._tokenize(self.build_prompt(prompt), {}).ids

    def _tokenize(self, prompt: str, options: dict[str, Any]) -> PromptRow:
        """A whole prompt, or text without a photo, as tokens."""
        row = PromptRow()
        if IMAGE_TOKEN not in prompt:
            self._add_text(row, prompt, {"add_special_tokens": True, **options})
            return row
        pieces = prompt.split(IMAGE_TOKEN)
        if len(pieces) != 2:
            raise ValueError(f"A prompt has one photo; {prompt!r} has {len(pieces) - 1} places for one.")
        before, after = pieces
        bos = self.tokenizer.bos_token
        if bos is not None and before.startswith(bos):
            row.add([self.tokenizer.bos_token_id], bos)
            before = before[len(bos) :]
        elif bos is not None and self.add_bos_token and options.get("add_special_tokens") is not False:
            row.add([self.tokenizer.bos_token_id], "")
        self._add_text(row, before, {**options, "add_special_tokens": False})
        row.add_photo(self.image_token_id, IMAGE_TOKEN, self.num_prefix_tokens)
        # What stands after the template's end belongs to the caption, which is tokenised apart from the prompt.
        end = re.split(r"\{(?:image|prompt)\}", self.prompt_template)[-1]
        head, found, caption = after.rpartition(end) if end.strip() else ("", "", after)
        for piece in (head + found, caption):
            self._add_text(row, piece, {**options, "add_special_tokens": False})
        return row

    def _add_text(self, row: PromptRow, text: str, options: dict[str, Any]) -> None:
        if not text:
            return
        wanted = {name: options[name] for name in _TOKENIZED_WITH if options.get(name) is not None}
        encoded = self.tokenizer(text, **wanted)
        row.add(encoded["input_ids"], text, encoded.get("offset_mapping"))

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


def _has_place(prompt: str) -> bool:
    """Whether a prompt is a whole one, with a photo's place."""
    return IMAGE_TOKEN in prompt or "{image}" in prompt


__all__ = ["EVCapProcessor"]
