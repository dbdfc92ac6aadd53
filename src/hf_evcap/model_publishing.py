"""Publishing a model on the Hub: one commit of a repo that works by itself, with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from .hub_upload import push_saved
from .model_repo import ModelRepoMixin


WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")


class ModelPublishingMixin(ModelRepoMixin):
    """For models whose [`~model_repo.ModelRepoMixin.save_pretrained`] writes the repo."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor: Any = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | str | None = None,
        frozen: str | None = None,
    ) -> CommitInfo:
        """
        Uploads a repo that works by itself, in one commit: weights, config, code, memory (or its repo and revision),
        and a card. Text that people wrote around the generated block of the repo's card stays. Licence (with its text)
        and `base_model` are those that the card of the model says that this one was loaded from.

        Args:
            repo_id (`str`): Such as `"user/name"`.
            processor (*optional*): Processor to upload in the same commit.
            commit_message (`str`, *optional*, defaults to `"Upload model"`): Title of the commit.
            private (`bool`, *optional*): Whether a new repo is private.
            revision (`str`, *optional*): Branch to commit to; made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
            max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): Size of a weight file at most.
            tags (`list[str]`, *optional*): Further tags of the card.
            frozen (`str`, *optional*): `"reference"` or `"copy"`, as for [`save_pretrained`].

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit, with `oid` and `pr_url`.
        """

        def save(folder: Path) -> None:
            self.save_pretrained(folder, max_shard_size=max_shard_size, frozen=frozen)
            if processor is not None:
                processor.save_pretrained(folder)
            given = [tags] if isinstance(tags, str) else tags or []
            _write_card(
                folder,
                repo_id=repo_id,
                memory=self.memory,
                tags=[*(self.model_tags or []), *given],
                tuned_from=self.name_or_path or None,
                tuned_from_revision=getattr(self.config, "_commit_hash", None),
            )

        return push_saved(
            save,
            repo_id,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            stale=[*WEIGHT_FILES, f"{self.memory_folder}/*"],
        )


def _write_card(folder: Path, **facts: Any) -> None:
    """Writes the model card where hf_evcap is installed; a model that runs from a repo's code leaves cards alone."""
    try:
        from hf_evcap.hub.model_card import write_model_card
    except ImportError:
        return
    write_model_card(folder, **facts)


__all__ = ["WEIGHT_FILES", "ModelPublishingMixin"]
