"""What the processors of both families share: saving, publishing, decoding."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub import CommitInfo
from transformers import AutoImageProcessor, ProcessorMixin

from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .hub_upload import push_saved, take_hub_arguments
from .image_processing_efficientnet_lite import EfficientNetLiteImageProcessor


AutoImageProcessor.register(
    EfficientNetLiteConfig, slow_image_processor_class=EfficientNetLiteImageProcessor, exist_ok=True
)


class RetrievalProcessor(ProcessorMixin):
    """Saves and publishes itself, and decodes captions."""

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """
        Saves the image processor, the tokenizers, the settings and the code.

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


def one_each(value: str | list[str], count: int, argument: str) -> list[str]:
    """Gives a string for each photo, from one for all or a list of them."""
    values = [value] * count if isinstance(value, str) else list(value)
    if len(values) != count:
        raise ValueError(
            f"Got {len(values)} strings in `{argument}` for {count} photos; give one a photo, or one for all."
        )
    if not all(isinstance(string, str) for string in values):
        raise TypeError(f"`{argument}` must be a string or a list of strings.")
    return values


__all__ = ["RetrievalProcessor", "one_each"]
