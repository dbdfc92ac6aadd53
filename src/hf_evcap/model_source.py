"""Where a pretrained part comes from: a folder or a Hub repo at one commit, its config and its weights."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging

from .checkpoint_reader import locate_file, read_pretrained
from .hub_upload import explained_hub_errors


_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")
# Options that every download takes.
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


class ModelSource:
    """
    A model that parts are taken from.

    Args:
        name (`str` or `os.PathLike`): Folder, repo id, or `"org/name@revision"`.
        gguf_file (`str`, *optional*): GGUF file there that holds the weights and the config.
        download: Options of [`~huggingface_hub.hf_hub_download`], see `DOWNLOAD_OPTIONS`.

    Raises:
        FileNotFoundError: There is neither a folder nor a repo of this name.
        HfHubHTTPError: The repo is missing, private or gated; the message says what to do.
    """

    def __init__(self, name: str | os.PathLike, *, gguf_file: str | None = None, **download: Any) -> None:
        self.given = os.fspath(name)
        if gguf_file is not None:
            self.given = os.path.join(self.given, gguf_file)
        self.gguf_file = gguf_file
        self.download = download
        self.is_local = os.path.isdir(name)
        self.name, revision = os.fspath(name), ""
        if not self.is_local:
            self.name, _, revision = self.name.partition("@")
            if os.path.isfile(self.name):
                raise FileNotFoundError(f"{self.given!r} is a file: give the folder that it lies in.")
            if self.name.startswith(("./", "../")) or not _REPO_ID.fullmatch(self.name):
                raise FileNotFoundError(f"{self.given!r} is neither a folder nor a Hub repo id such as 'org/name'.")
        self.revision: str | None = revision or None
        with self.explained_errors():
            path = locate_file(self.name, gguf_file or "config.json", self.revision, **download)
        if path is None:
            if gguf_file is not None:
                raise FileNotFoundError(f"There is no GGUF file {self.given!r}.")
            raise FileNotFoundError(
                f"{self.given!r} holds no config.json: give the folder or repo of a whole model; of GGUF files name "
                "one (`gguf_file`)."
            )
        commit = _SNAPSHOT.search(path.as_posix())
        if not self.is_local and commit:  # from here on everything is of one commit
            self.revision = commit[1]

    @cached_property
    def config(self) -> PreTrainedConfig:
        """[`PreTrainedConfig`]: The model's."""
        if self.gguf_file is not None:
            return self._gguf_config()
        try:
            return AutoConfig.from_pretrained(self.name, **self.options)
        except OSError as error:
            raise OSError(f"The config.json of {self.given!r} cannot be read: {error} Get it anew.") from error
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"transformers does not know the model {self.given!r}: {str(error).rstrip('.')}. Give a model of an "
                "architecture that `AutoConfig` knows."
            ) from error

    def _gguf_config(self) -> PreTrainedConfig:
        try:
            return AutoConfig.from_pretrained(self.name, **self.options)
        except ImportError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(
                f"{self.given!r} is damaged, no GGUF file, or of an architecture that transformers does not read from "
                f"one ({error}). Get it anew, or give the model in transformers' own format."
            ) from error

    @property
    def options(self) -> dict[str, Any]:
        """`dict[str, Any]`: Arguments with which any `from_pretrained` reads from this source."""
        revision = {} if self.revision is None else {"revision": self.revision}
        gguf = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {**self.download, **revision, **gguf}

    def path_of(self, file: str) -> Path | None:
        """Path of one of the source's files; `None` if it does not hold it."""
        with self.explained_errors():
            return locate_file(self.name, file, self.revision, **self.download)

    def read(self, *prefixes: str, required: bool = True) -> dict[str, torch.Tensor]:
        """
        Weights under their own names, mapped from the files.

        Args:
            prefixes (`str`): Only names that start with one of these; only the shards that hold some are downloaded.
            required (`bool`, *optional*, defaults to `True`): Whether there must be some.

        Raises:
            FileNotFoundError: There are no weights at all.
            ValueError: None of them has such a name, or a file is damaged.
        """
        try:
            with self.explained_errors():
                weights = read_pretrained(self.name, prefixes or None, self.revision, **self.download)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} Give a folder or repo with all of a model's weights.") from error
        except ValueError as error:
            raise ValueError(f"{self.given!r}: {error}. Get the file anew (`force_download=True`).") from error
        if required and not weights:
            raise ValueError(
                f"{self.given!r} holds no weights named {' or '.join(f'{prefix}*' for prefix in prefixes)}. If they "
                "were renamed there, name an earlier revision: 'org/name@revision'."
            )
        return weights

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Says with the Hub's errors what they mean for the user."""
        if self.is_local:
            yield
            return
        with explained_hub_errors(self.name, "model", self.revision):
            yield


def reads_photos(config: PreTrainedConfig) -> bool:
    """Whether a model is an encoder of photos, or has one."""
    model_class = MODEL_MAPPING.get(type(config), None)
    return hasattr(config, "vision_config") or getattr(model_class, "main_input_name", "") == "pixel_values"


def widest_dtype(weights: dict[str, torch.Tensor]) -> torch.dtype:
    """The floating type that holds all of the weights' values exactly."""
    dtype: torch.dtype | None = None
    for tensor in weights.values():
        if tensor.is_floating_point():
            dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    return torch.float32 if dtype is None else dtype


def load_part(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, torch.Tensor], what: str
) -> dict[str, torch.Tensor]:
    """
    Gives a part's weights the names that the installed transformers has for them. Nothing is copied; what is behind a
    vision tower's last hidden state may be missing.

    Args:
        model_class (`type`): The part's class, or one that loads the same names.
        config ([`PreTrainedConfig`]): The part's.
        weights (`dict[str, torch.Tensor]`): As the checkpoint names them.
        what (`str`): The part and where it comes from, for messages.

    Raises:
        ValueError: Weights are missing, or have other shapes than the config says.
    """
    with _quiet_loading():
        part, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=widest_dtype(weights),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # What a vision tower has behind its last hidden state is not used here, and many checkpoints lack it.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(("pooler.", "head.")))
    wrong = sorted(name for name, *_ in report["mismatched_keys"])
    if missing or wrong:
        count, problem = (len(missing), "are missing") if missing else (len(wrong), "have other shapes")
        raise ValueError(
            f"{what}: {count} weights {problem}, the first of them {', '.join((missing or wrong)[:3])}. It is no "
            f"whole {model_class.__name__}; give another checkpoint or revision."
        )
    return {name: tensor for name, tensor in part.state_dict().items() if name not in report["missing_keys"]}


def own_config(config: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    """A part's config for use inside of another: without precision, quantization and the path it was read from."""
    own = copy.deepcopy(config)
    own.dtype = None
    own._name_or_path = ""
    if hasattr(own, "quantization_config"):
        del own.quantization_config
    for name, value in changes.items():
        if not hasattr(own, name):
            raise ValueError(f"A config of type {own.model_type!r} has no field {name!r}.")
        setattr(own, name, value)
    return own


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keeps transformers' report of weights that a part does not need; what it lacks raises an error."""
    reporter, bars = logging.get_logger("transformers.modeling_utils"), logging.is_progress_bar_enabled()

    def errors_only(record: LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    try:
        reporter.addFilter(errors_only)
        logging.disable_progress_bar()
        yield
    finally:
        reporter.removeFilter(errors_only)
        if bars:
            logging.enable_progress_bar()


__all__ = ["DOWNLOAD_OPTIONS", "ModelSource", "load_part", "own_config", "reads_photos", "widest_dtype"]
