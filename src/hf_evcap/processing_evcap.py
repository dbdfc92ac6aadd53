"""Processor of EVCap: photos to pixel values, prompts to token ids with a place for the photo, captions to labels."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitInfo
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature, ProcessorMixin

# In transformers 5.17, `transformers.AutoImageProcessor` is a dummy without torchvision; the class needs Pillow only.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .hub_upload import push_saved, take_hub_arguments
from .image_processing_efficientnet_lite import EfficientNetLiteImageProcessor


AutoImageProcessor.register(
    EfficientNetLiteConfig, slow_image_processor_class=EfficientNetLiteImageProcessor, exist_ok=True
)

IMAGE_TOKEN = "<image>"


def to_rgb(image: Image.Image) -> Image.Image:
    """Makes a photo an upright RGB one: EXIF rotation applied, deep values scaled, transparency put on white."""
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # greyscale; plain `convert` clips it to white
        values: np.ndarray = np.nan_to_num(np.asarray(image, dtype=np.float32))
        brightest = values.max(initial=0)
        if sixteen_bit or brightest > 255:
            values = values / 257
        elif image.mode == "F" and brightest <= 1:
            values = values * 255
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def load_photo(source: Any, timeout: float | None = None) -> Image.Image:
    """
    Loads a photo as an upright RGB image.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `dict`):
            Path, URL, base64 string, encoded bytes, an image, pixels of shape `(height, width[, channels])` or
            `(3, height, width)` as 8-bit integers or as floats from 0 to 1, or a row `{"bytes": ..., "path": ...}` as
            `datasets` stores images.
        timeout (`float`, *optional*, defaults to 30): Seconds to wait for a URL.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, is truncated, or cannot be downloaded.
    """
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    label = f"the photo {os.fspath(source)!r}" if isinstance(source, (str, os.PathLike)) else "the photo"
    label = label if len(label) < 300 else "the photo (a base64 string)"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return to_rgb(_array_to_image(source))
    if not isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        raise TypeError(f"Expected a path, URL, PIL image, array or bytes as a photo, got {type(source).__name__}.")
    try:
        if not isinstance(source, Image.Image):
            content = source if isinstance(source, bytes) else _read(os.fspath(source), timeout)
            source = Image.open(io.BytesIO(content))
        return to_rgb(source)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file for {label}.") from None
    except (IsADirectoryError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"Could not read {label}: it is not an image in a format that Pillow knows.") from error
    except ConnectionError as error:
        raise ValueError(f"Could not download {label}: {error}") from error
    except Exception as error:  # Pillow's decoders answer damage with errors of every kind
        raise ValueError(f"Could not read {label}: {error}. The file is damaged or incomplete.") from error


def _read(source: str, timeout: float | None) -> bytes:
    """Bytes behind a path, URL or base64 string."""
    if source.startswith(("http://", "https://")):
        return _download(source, 30.0 if timeout is None else timeout)
    if source.startswith("data:"):
        return base64.b64decode(source.partition(",")[2])
    if os.path.isdir(source):
        raise IsADirectoryError(f"{source!r} is a folder; give a photo.")
    if len(source) < 300 or os.path.exists(source):
        return Path(source).read_bytes()
    return base64.b64decode(source)


def _download(url: str, timeout: float) -> bytes:
    try:
        import httpx
    except ImportError:
        from huggingface_hub.utils import httpx
    try:
        answer = httpx.get(url, timeout=timeout, follow_redirects=True, headers={"User-Agent": "hf_evcap"})
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConnectionError(str(error)) from error
    return answer.content


def _array_to_image(array: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"Expected pixels of shape (height, width[, channels]), got {array.shape}.")
    if array.dtype == np.uint16:
        array = array / 257
    elif array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        array = np.nan_to_num(array.astype(np.float32))
        if array.max() > 1.5:  # resizing may overshoot 1 a little
            raise ValueError(
                f"Pixels as floats must be from 0 to 1, these reach {array.max():.6g}; divide them by 255."
            )
        array = (array.clip(0, 1) * 255).round()
    elif array.min() < 0 or array.max() > 255:
        raise ValueError(f"Pixels as integers must be from 0 to 255, these are {array.min()} to {array.max()}.")
    return Image.fromarray(array.astype(np.uint8))


class EVCapProcessor(ProcessorMixin):
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
        if images is None and text is None:
            raise ValueError("Give `images`, `text` or both.")
        data: dict[str, Any] = {}
        photos = None
        if images is not None:
            photos = [load_photo(image) for image in _as_list(images)]
            if not photos:
                raise ValueError("`images` is empty; give at least one photo.")
            data.update(self.image_processor(photos, return_tensors=return_tensors, **kwargs))
        elif kwargs:
            raise TypeError(f"Unknown arguments {sorted(kwargs)} for a prompt without photos.")
        count = len(photos) if photos is not None else 1 if text is None or isinstance(text, str) else len(text)
        prompts = _one_each(self.prompt if text is None else text, count, "text")
        captions = None if suffix is None else _one_each(suffix, count, "suffix")
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

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """
        Saves the image processor, both tokenizers, the settings and the code.

        Args:
            save_directory (`str` or `os.PathLike`): Made if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`): Also upload; `repo_id` and the like go to
                `push_to_hub`.
        """
        hub = take_hub_arguments(kwargs)
        files = super().save_pretrained(save_directory, **kwargs)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **hub)
        return files

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """
        Uploads the processor in one commit; the repo's card and other files stay as they are.

        Args:
            repo_id (`str`): Such as `"user/name"`.
            private (`bool`, *optional*): Whether a new repo is private.
            revision (`str`, *optional*): Branch to commit to; made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
        """
        return push_saved(
            self.save_pretrained,
            repo_id,
            commit_message=commit_message or "Upload processor",
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    def post_process_image_text_to_text(self, generated_outputs: Any, **kwargs: Any) -> list[str]:
        """Decodes generated ids into captions, without special tokens and surrounding white space."""
        kwargs.setdefault("skip_special_tokens", True)
        return [text.strip() for text in self.batch_decode(generated_outputs, **kwargs)]


def _as_list(images: Any) -> list[Any]:
    """Photos as a list: one alone, a list, a column of a dataset, or a batch of pixel arrays."""
    batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    return list(images) if batch or several else [images]


def _one_each(value: str | list[str], count: int, argument: str) -> list[str]:
    values = [value] * count if isinstance(value, str) else list(value)
    if len(values) != count:
        raise ValueError(
            f"Got {len(values)} strings in `{argument}` for {count} photos; give one a photo, or one for all."
        )
    if not all(isinstance(string, str) for string in values):
        raise TypeError(f"`{argument}` must be a string or a list of strings.")
    return values


__all__ = ["EVCapProcessor"]
