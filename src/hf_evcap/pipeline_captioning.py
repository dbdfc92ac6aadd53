"""`pipeline("image-to-text")`: photos in, captions and what was retrieved for them out, for both families."""

from __future__ import annotations

import copy
import inspect
import os
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import GenerationMixin, ImageTextToTextPipeline, Pipeline
from transformers.pipelines.image_text_to_text import ReturnType
from transformers.utils import logging

from .chat_messages import is_conversation, photos_of, read_conversation
from .hub_upload import take_hub_arguments
from .photo_datasets import undecoded
from .photo_loading import is_photo, load_photo
from .row_columns import find_photo_column
from .store_photos import check_preprocessing


logger = logging.get_logger(__name__)

ON_ERROR = ("raise", "skip")
# Arguments of a call that are not of `generate`: how a photo is read, and how a caption is given back.
_READING = ("timeout", "text", "on_error", "continue_final_message", "processor_kwargs")
_DECODING = ("skip_special_tokens", "clean_up_tokenization_spaces")
_WRITING = ("return_full_text", "return_tensors", "return_type", *_DECODING)


class CaptioningPipeline(ImageTextToTextPipeline):
    r"""
    Captions photos, with or without a prompt. For models of other families it is the pipeline it derives from.

    transformers 5 sends `image-to-text` to `image-text-to-text`, whose pipeline refuses a photo without text; this one
    is registered in its place and takes photos alone.

    Calling it:
        - `pipe("photo.jpg")`, a URL, a PIL image, an array, or a list, generator or dataset of them; rows of a dataset
          are dictionaries with a photo, under `image` or whatever holds the only one, and maybe a prompt under `text`.
        - `text="..."`: a prompt for all photos.
        - Chats, `pipe(text=[{"role": "user", "content": [{"type": "image", "image": "photo.jpg"}]}])`, one or a list,
          generator or dataset of them (rows with `messages`, the photo in the message or beside it). A message's text
          is the prompt; a last message of the assistant is the beginning of the caption. `generated_text` is then the
          chat with the answer, as stock pipelines give it.
        - `return_full_text=True` puts the prompt before the caption, `False` gives the answer of a chat alone;
          `return_tensors=True` gives `generated_token_ids`.
        - `batch_size=8`: photos captioned at once; changes nothing else.
        - `on_error="skip"`: a photo that cannot be read gives `{"generated_text": None, "error": ...}` in its place,
          the others are captioned. The default `"raise"` stops.
        - `memory="org/other"`: another memory or datastore for this call. EVCap takes layers, too,
          `memory=["lvis", "my-kitchen"]`; names then tell which `"memory"` they came from. `name_column="name_ko"`:
          names as another column words them.
        - `max_new_tokens=`, `num_beams=` and every other option of `generate`, or `generate_kwargs={...}`;
          `stop_sequence="..."`; `processor_kwargs={...}`. Scores and the like come from `model.generate` only.

    Returns for each photo `[{"generated_text": str, "retrieved_names": [{"name": str, "score": float}, ...]}]`, or for
    SmallCap `"retrieved_captions": [{"caption": str, "score": float, "image_id": str or None}, ...]`, one dictionary
    for each of `num_return_sequences`.

    Example:
    ```python
    >>> import hf_evcap
    >>> from transformers import pipeline

    >>> pipe = pipeline("image-to-text", model=hf_evcap.default_model())
    >>> pipe("photo.jpg", num_beams=5)
    ```
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        memory = getattr(self.model, "memory", None) if self.captions_photos else None
        for store in [] if memory is None else getattr(memory, "memories", {"": memory}).values():
            try:
                check_preprocessing(store, self.processor)
            except ValueError as problem:
                logger.warning(str(problem))

    @property
    def captions_photos(self) -> bool:
        """`bool`: Whether the model is one of this package's, which need no text."""
        return hasattr(self.model, "encode_images")

    def _generation_options(self, generate_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """Options of this call on top of those given when the pipeline was made; the rest is the model's config."""
        options = dict(generate_kwargs or {})
        if "generation_config" not in options:  # one that is given takes the place of everything before it
            made_with = getattr(self, "_generate_kwargs", None)
            if made_with is not None:
                options = {**made_with, **options}
            else:  # transformers before 5.20 merges those options, and its defaults, into a generation config
                config = copy.deepcopy(self.generation_config)
                config.max_length = self.model.generation_config.max_length
                options = {**config.update(**options), "generation_config": config}
        config = options.get("generation_config") or self.model.generation_config
        if options.get("stop_strings") or config.stop_strings:
            options.setdefault("tokenizer", self.tokenizer)
        return options

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if not self.captions_photos:
            return super()._sanitize_parameters(**kwargs)
        generate_kwargs = dict(kwargs.pop("generate_kwargs", None) or {})
        preprocess = {name: kwargs.pop(name) for name in _READING if name in kwargs}
        postprocess = {name: kwargs.pop(name) for name in _WRITING if name in kwargs}
        preprocess, postprocess = (
            {name: value for name, value in given.items() if value is not None} for given in (preprocess, postprocess)
        )
        if {"return_full_text", "return_tensors"} <= set(postprocess):
            raise ValueError("`return_full_text` is of text and `return_tensors` of token ids; give one.")
        stop = kwargs.pop("stop_sequence", None)
        if stop is not None:
            if "stop_strings" in {*kwargs, *generate_kwargs}:
                raise ValueError("`stop_sequence` and `stop_strings` mean the same; give one.")
            generate_kwargs["stop_strings"] = [stop] if isinstance(stop, str) else list(stop)
        retrieval = {name: kwargs.pop(name) for name in self.model.retrieval_arguments if name in kwargs}
        if preprocess.get("on_error", "raise") not in ON_ERROR:
            raise ValueError(f"`on_error` must be one of {', '.join(ON_ERROR)}; got {preprocess['on_error']!r}.")
        options = {name for name in vars(self.model.generation_config) if not name.startswith("_")}
        unknown = sorted(
            set(kwargs) - options - {"generation_config", *inspect.signature(GenerationMixin.generate).parameters}
        )
        if unknown:
            raise TypeError(f"Unknown arguments {unknown}: not of this pipeline, and not options of `generate`.")
        repeated = sorted(set(kwargs) & set(generate_kwargs))
        if repeated:
            raise ValueError(
                f"{repeated} stand both in `generate_kwargs` and as arguments of their own; give them once."
            )
        generate_kwargs.update(kwargs)
        forward = {"generate_kwargs": generate_kwargs, "retrieval": retrieval}
        return preprocess, {name: value for name, value in forward.items() if value}, postprocess

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Captions photos; see the class."""
        if not self.captions_photos:
            return super().__call__(images, text=text, **kwargs)
        if images is None:
            images = kwargs.pop("inputs", None)
        if images is None and not isinstance(text, str) and not _holds_strings(text):
            images, text = text, None  # chats, which hold their photos
        if images is None:
            raise ValueError("Give a photo: a path, a URL, a PIL image, or a list, generator or dataset of them.")
        if is_conversation(text):
            images, text = {"image": images, "messages": text}, None
        if text is not None and not isinstance(text, str):
            if not isinstance(images, (list, tuple)) or len(text) != len(images):
                raise ValueError(
                    "`text` must be a prompt for all photos, or a list with one for each photo of a list."
                )
            images = [
                {"image": image, "messages" if is_conversation(prompt) else "text": prompt}
                for image, prompt in zip(images, text, strict=True)
            ]
            text = None
        if text is not None:
            kwargs["text"] = text
        if isinstance(images, tuple):
            images = list(images)
        if isinstance(images, list) and not images:
            return []
        images = undecoded(images)
        if _is_iterable_dataset(images):
            images = (row for row in images)
        return Pipeline.__call__(self, images, **kwargs)

    def preprocess(self, inputs: Any = None, **kwargs: Any) -> dict[str, Any]:
        if not self.captions_photos:
            return super().preprocess(inputs, **kwargs)
        row = _Row.read(inputs, kwargs.get("text"))
        try:
            photo = load_photo(row.photo, timeout=kwargs.get("timeout"))
        except (OSError, TypeError, ValueError) as problem:
            if kwargs.get("on_error") != "skip":
                raise
            logger.warning(f"Skipped: {problem}")
            photo, row.error = Image.new("RGB", (32, 32)), str(problem)
        options = kwargs.get("processor_kwargs") or {}
        if row.messages is None:
            prompt = {self.processor.prompt_argument: row.text}
            return {**self.processor(images=photo, return_tensors="pt", **prompt, **options), "row": row}
        messages = read_conversation(row.messages, photo)
        row.continues = kwargs.get("continue_final_message")
        if row.continues is None:
            row.continues = messages[-1]["role"] == "assistant"
        model_inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=not row.continues,
            continue_final_message=row.continues,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=dict(options),
        )
        return {**model_inputs, "row": row}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        generate_kwargs: dict[str, Any] | None = None,
        retrieval: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        if not self.captions_photos:
            return super()._forward(model_inputs, generate_kwargs=generate_kwargs)
        rows = model_inputs.pop("row")
        pixel_values = model_inputs.pop("pixel_values")
        if "prompts" in model_inputs:  # strings, one in a list for each photo of a batch
            model_inputs["prompts"] = [
                prompt if isinstance(prompt, str) else prompt[0] for prompt in model_inputs["prompts"]
            ]
        encoded = self.model.encode_images(pixel_values, **(retrieval or {}))
        options = self._generation_options(generate_kwargs)
        generated = self.model.generate(**model_inputs, encoded_images=encoded, **options)
        sequences = getattr(generated, "sequences", generated)  # of `return_dict_in_generate`
        return {
            "sequences": sequences.view(len(pixel_values), -1, sequences.shape[-1]),
            "retrieved": self.model.describe_retrieved(encoded),
            "row": rows if isinstance(rows, list) else [rows],
        }

    def postprocess(self, model_outputs: dict[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        if not self.captions_photos:
            return super().postprocess(model_outputs, **kwargs)
        # A single photo comes with a batch dimension, an item of a batch may come without.
        sequences: torch.Tensor = model_outputs["sequences"].flatten(0, -2)
        retrieved, row = model_outputs["retrieved"], model_outputs["row"]
        retrieved = retrieved[0] if retrieved and isinstance(retrieved[0], list) else retrieved
        row = row[0] if isinstance(row, list) else row
        told = {} if row.messages is None else {"input_text": row.given_messages}
        if row.error is not None:
            return [{**told, "generated_text": None, self.model.retrieved_field: [], "error": row.error}]
        kind = kwargs.get("return_type")
        if kwargs.get("return_tensors") or kind == ReturnType.TENSORS:
            return [{**told, "generated_token_ids": ids, self.model.retrieved_field: retrieved} for ids in sequences]
        full = (
            kwargs.get("return_full_text", row.messages is not None) if kind is None else kind == ReturnType.FULL_TEXT
        )
        texts = self._decode(sequences, row, {name: kwargs[name] for name in _DECODING if name in kwargs})
        return [
            {**told, "generated_text": row.complete(text) if full else text, self.model.retrieved_field: retrieved}
            for text in texts
        ]

    def _decode(self, sequences: torch.Tensor, row: _Row, options: dict[str, Any]) -> list[str]:
        """Captions as text; of one that goes on with a chat's last message, what comes after that."""
        if not row.continues:
            return self.processor.post_process_image_text_to_text(sequences, **options)
        options.setdefault("skip_special_tokens", True)
        begun = self.tokenizer(row.beginning, add_special_tokens=False)["input_ids"]
        length = len(self.tokenizer.decode(begun, **options))
        return [self.tokenizer.decode([*begun, *ids], **options)[length:].rstrip() for ids in sequences.tolist()]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves the model with its memory and, unlike the stock pipeline, the processor."""
        if not self.captions_photos:
            super().save_pretrained(save_directory, **kwargs)
            return
        hub = take_hub_arguments(kwargs)
        push_to_hub = kwargs.pop("push_to_hub", False)
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **hub)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """
        Uploads model, processor, memory, code and card in one commit.

        Args:
            repo_id (`str`): Such as `"user/name"`.
            kwargs: `private`, `revision`, `create_pr`, `commit_message`, `token`, ... of the model's `push_to_hub`.
        """
        if not self.captions_photos:
            return super().push_to_hub(repo_id, **kwargs)
        return self.model.push_to_hub(repo_id, processor=self.processor, **kwargs)


@dataclass
class _Row:
    """
    What a call or a row of a dataset gives for one caption.

    Args:
        photo: Whatever [`load_photo`] reads.
        text (`str`, *optional*): Prompt.
        messages (*optional*): A chat, instead of a prompt.
        continues (`bool`): Whether the caption goes on with the chat's last message.
        error (`str`, *optional*): Why the photo cannot be read, where such photos are skipped.
    """

    photo: Any
    text: str | None = None
    messages: Any = None
    continues: bool | None = None
    error: str | None = None

    @classmethod
    def read(cls, inputs: Any, text: str | None) -> _Row:
        """Reads a photo, a chat, or a dictionary with `image` and maybe `text` or `messages`."""
        messages, photo = (inputs, None) if is_conversation(inputs) else (None, inputs)
        if isinstance(inputs, dict) and not set(inputs) <= {"bytes", "path"}:
            messages, text = inputs.get("messages"), inputs.get("text") or text
            column = "images" if "images" in inputs else find_photo_column(inputs, None, inputs)
            photo = None if column is None else inputs[column]
            if isinstance(photo, (list, tuple)) and len(photo) == 1:
                photo = photo[0]
            if column is None and messages is None:
                raise ValueError(f"A row needs a photo under `image`; this one has {', '.join(map(str, inputs))}.")
        if messages is None:
            return cls(photo, text)
        if text is not None:
            raise ValueError("Give the text in the chat's messages, or `text` without a chat.")
        photos = [*photos_of(read_conversation(messages)), *([] if photo is None else [photo])]
        if len(photos) != 1:
            raise ValueError(
                f"A chat must have one photo, this one has {len(photos)}: put "
                '{"type": "image", "image": PHOTO} into the content of a message of the role "user".'
            )
        return cls(photos[0], None, messages)

    @property
    def given_messages(self) -> list[dict[str, Any]]:
        """The chat as it was given."""
        return list(getattr(self.messages, "messages", self.messages))

    @property
    def beginning(self) -> str:
        """What a caption goes on with, where it `continues`: the text of the chat's last message."""
        return read_conversation(self.messages)[-1]["content"][-1]["text"]

    def complete(self, text: str) -> Any:
        """The prompt with the caption after it, or the chat with the answer."""
        if self.messages is None:
            return f"{self.text or ''} {text}".strip()
        given = self.given_messages
        if not self.continues:
            return [*given, {"role": "assistant", "content": text}]
        *before, last = given
        content = last["content"]
        if isinstance(content, str):
            return [*before, {**last, "content": content + text}]
        return [*before, {**last, "content": [*content[:-1], {"type": "text", "text": self.beginning + text}]}]


def _holds_strings(text: Any) -> bool:
    return isinstance(text, (list, tuple)) and any(isinstance(one, str) for one in text)


def _is_iterable_dataset(images: Any) -> bool:
    """Whether rows come from something to iterate that is neither a sequence of photos nor a photo itself."""
    if isinstance(images, list) or hasattr(images, "__array__") or is_photo(images):
        return False
    return hasattr(images, "__iter__") and not isinstance(images, torch.utils.data.Dataset)


__all__ = ["CaptioningPipeline"]
