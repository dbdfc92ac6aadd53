"""`pipeline("image-to-text")`: photos in, captions and what was retrieved for them out, for both families."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from PIL import Image
from transformers import GenerationMixin, ImageTextToTextPipeline, Pipeline
from transformers.utils import logging

from .hub_upload import take_hub_arguments
from .photo_datasets import undecoded
from .photo_loading import is_photo, load_photo
from .store_photos import check_preprocessing


logger = logging.get_logger(__name__)

ON_ERROR = ("raise", "skip")


class CaptioningPipeline(ImageTextToTextPipeline):
    r"""
    Captions photos, with or without a prompt. For models of other families it is the pipeline it derives from.

    transformers 5 sends `image-to-text` to `image-text-to-text`, whose pipeline refuses a photo without text; this one
    is registered in its place and takes photos alone.

    Calling it:
        - `pipe("photo.jpg")`, a URL, a PIL image, an array, or a list, generator or dataset of them; rows of a dataset
          are dictionaries with a photo under `image` (or `images`) and maybe a prompt under `text`.
        - `text="..."`: a prompt for all photos.
        - `batch_size=8`: photos captioned at once; changes nothing else.
        - `on_error="skip"`: a photo that cannot be read gives `{"generated_text": None, "error": ...}` in its place,
          the others are captioned. The default `"raise"` stops.
        - `memory="org/other"`: another memory or datastore for this call. EVCap takes layers, too,
          `memory=["lvis", "my-kitchen"]`; names then tell which `"memory"` they came from. `name_column="name_ko"`:
          names as another column words them.
        - `max_new_tokens=`, `num_beams=` and every other option of `generate`, or `generate_kwargs={...}`.

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
            # transformers before 5.20 merges the options that the pipeline was made with into a generation config
            made_with = getattr(self, "_generate_kwargs", None)
            options = {
                **({"generation_config": self.generation_config} if made_with is None else made_with),
                **options,
            }
        if options.get("stop_strings") is not None:
            options.setdefault("tokenizer", self.tokenizer)
        return options

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if not self.captions_photos:
            return super()._sanitize_parameters(**kwargs)
        preprocess: dict[str, Any] = {}
        generate_kwargs = dict(kwargs.pop("generate_kwargs", None) or {})
        for name in ("timeout", "text", "on_error"):
            value = kwargs.pop(name, None)
            if value is not None:
                preprocess[name] = value
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
        return preprocess, {name: value for name, value in forward.items() if value}, {}

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Captions photos; see the class."""
        if not self.captions_photos:
            return super().__call__(images, text=text, **kwargs)
        if images is None:
            images = kwargs.pop("inputs", None)
        if images is None:
            raise ValueError("Give a photo: a path, a URL, a PIL image, or a list, generator or dataset of them.")
        if text is not None and not isinstance(text, str):
            if not isinstance(images, (list, tuple)) or len(text) != len(images):
                raise ValueError(
                    "`text` must be a prompt for all photos, or a list with one for each photo of a list."
                )
            images = [{"image": image, "text": prompt} for image, prompt in zip(images, text, strict=True)]
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
        text, error = kwargs.get("text"), None
        if isinstance(inputs, dict) and not {"bytes", "path"} & set(inputs):
            text = inputs.get("text") or text
            inputs = inputs.get("image", inputs.get("images"))
        try:
            photo = load_photo(inputs, timeout=kwargs.get("timeout"))
        except (OSError, TypeError, ValueError) as problem:
            if kwargs.get("on_error") != "skip":
                raise
            logger.warning(f"Skipped: {problem}")
            photo, error = Image.new("RGB", (32, 32)), str(problem)
        model_inputs = self.processor(images=photo, text=text, return_tensors="pt")
        return {**model_inputs, "error": error}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        generate_kwargs: dict[str, Any] | None = None,
        retrieval: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        if not self.captions_photos:
            return super()._forward(model_inputs, generate_kwargs=generate_kwargs)
        errors = model_inputs.pop("error")
        pixel_values = model_inputs.pop("pixel_values")
        if "prompts" in model_inputs:  # strings, one in a list for each photo of a batch
            model_inputs["prompts"] = [
                prompt if isinstance(prompt, str) else prompt[0] for prompt in model_inputs["prompts"]
            ]
        encoded = self.model.encode_images(pixel_values, **(retrieval or {}))
        options = self._generation_options(generate_kwargs)
        sequences = self.model.generate(**model_inputs, encoded_images=encoded, **options)
        return {
            "sequences": sequences.view(len(pixel_values), -1, sequences.shape[-1]),
            "retrieved": self.model.describe_retrieved(encoded),
            "error": errors if isinstance(errors, list) else [errors],
        }

    def postprocess(self, model_outputs: dict[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        if not self.captions_photos:
            return super().postprocess(model_outputs, **kwargs)
        # A single photo comes with a batch dimension, an item of a batch may come without.
        sequences: torch.Tensor = model_outputs["sequences"].flatten(0, -2)
        retrieved, error = model_outputs["retrieved"], model_outputs["error"]
        retrieved = retrieved[0] if retrieved and isinstance(retrieved[0], list) else retrieved
        error = error[0] if isinstance(error, list) else error
        if error is not None:
            return [{"generated_text": None, self.model.retrieved_field: [], "error": error}]
        texts = self.processor.post_process_image_text_to_text(sequences)
        return [{"generated_text": text, self.model.retrieved_field: retrieved} for text in texts]

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


def _is_iterable_dataset(images: Any) -> bool:
    """Whether rows come from something to iterate that is neither a sequence of photos nor a photo itself."""
    if isinstance(images, list) or hasattr(images, "__array__") or is_photo(images):
        return False
    return hasattr(images, "__iter__") and not isinstance(images, torch.utils.data.Dataset)


__all__ = ["CaptioningPipeline"]
