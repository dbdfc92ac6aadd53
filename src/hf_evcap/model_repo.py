"""A model's folder or Hub repo: weights, config, the tokenizer of what is retrieved, code and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PushToHubMixin, cached_file, logging

from .checkpoint_reader import read_state_file
from .frozen_references import (
    parts_read_from,
    read_referenced_parts,
    referenced_parts,
    remember_quantized_parts,
    split_state,
)
from .hub_upload import take_hub_arguments
from .language_models import quantizing_language_model
from .model_source import DOWNLOAD_OPTIONS
from .offloading import without_parameters_on_disk
from .store_folder import delete_store
from .store_manifest import MANIFEST_NAME
from .stored_precision import halve_exact


logger = logging.get_logger(__name__)

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_PIPELINE_TASKS = ("image-to-text", "image-text-to-text")


def class_address(code: type) -> str:
    """Where a repo that carries the code finds a class: `"module.Class"`."""
    return f"{code.__module__.split('.')[-1]}.{code.__name__}"


def pipeline_entries(pipeline_class: type) -> dict[str, Any]:
    """What a repo's config says under `custom_pipelines`."""
    entry = {"impl": class_address(pipeline_class), "pt": ["AutoModelForImageTextToText"]}
    return {task: entry for task in _PIPELINE_TASKS}


class ModelRepoMixin(PushToHubMixin):
    """
    For models that carry a memory: `from_pretrained` brings it, `save_pretrained` writes a repo that is complete.

    Subclasses say which class their memory has and in which folder of the repo it lies, and have `memory`,
    `set_memory` and `check_memory`.
    """

    memory_class: Any = None
    memory_folder = "memory"
    own_parameters: tuple[str, ...] = ()  # of the model itself, beside its parts
    tokenizer_attribute = "name_tokenizer"  # of the tokenizer that reads what is retrieved ...
    tokenizer_folder = "name_tokenizer"  # ... and where in the repo it lies; the processor's lies in ""

    @classmethod
    def pipeline_class(cls) -> type:
        """The pipeline that a saved repo names in its config and carries, for environments without hf_evcap."""
        from .pipeline_captioning import CaptioningPipeline

        return CaptioningPipeline

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        memory: Any = None,
        parts: Mapping[str, str | os.PathLike] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Loads a model with its memory. Parts that its repo only names (`config.part_sources`) come from their own
        repos, and are refused if their weights are not those that the model was made with.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a repo id on the Hub.
            memory (*optional*):
                Memory to use instead of the model's own: a folder, a repo id such as `"org/name"` or
                `"org/name@revision"`, or a memory object. `False` loads none.
            parts (`dict[str, str]`, *optional*):
                Folders or repo ids from which to read parts that the repo only names, such as
                `{"language_model": "path/vicuna-13b"}`, where their own repos are gone or out of reach.
            kwargs: Everything that [`~transformers.PreTrainedModel.from_pretrained`] takes. A `quantization_config`
                that does not say itself which modules it leaves as they are quantizes the language model alone.
        """
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
        subfolder = kwargs.get("subfolder") or ""
        if kwargs.get("quantization_config") is not None and pretrained_model_name_or_path is not None:
            kwargs["quantization_config"] = cls._quantizing_language_model(
                str(pretrained_model_name_or_path), subfolder, kwargs, hub
            )
        if kwargs.get("device_map") is not None:
            kwargs["device_map"] = without_parameters_on_disk(kwargs["device_map"], cls.own_parameters)
        with parts_read_from(parts):
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is None:  # only a config and a state dict were given
            return loaded
        source = str(pretrained_model_name_or_path)
        if getattr(model, "_hf_peft_config_loaded", False) and not _has_file(
            source, os.path.join(subfolder, "config.json"), hub
        ):
            source = next(iter(model.peft_config.values())).base_model_name_or_path  # a repo of adapters alone
            hub.pop("revision", None)
        remember_quantized_parts(model)
        model._load_tokenizer(source, subfolder, hub)
        model._load_memory(source, subfolder, memory, hub)
        return loaded

    @classmethod
    def _quantizing_language_model(
        cls, source: str, subfolder: str, options: dict[str, Any], hub: dict[str, Any]
    ) -> Any:
        """The quantization config that was asked for, for the language model alone."""
        config = options.get("config")
        if config is None and _has_file(source, os.path.join(subfolder, "config.json"), hub):
            config = cls.config_class.from_pretrained(source, subfolder=subfolder, **hub)
        if not isinstance(config, PreTrainedConfig):  # adapters, whose base model is loaded with its own config
            return options["quantization_config"]
        with torch.device("meta"):
            return quantizing_language_model(options["quantization_config"], cls(config))

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: Any, checkpoint_files: list[str] | None, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Adds to the repo's own weights those of the parts that it names; transformers then loads all as ever."""
        if state_dict is None and checkpoint_files is not None and referenced_parts(model.config):
            given = load_config.download_kwargs or {}
            download = {name: given[name] for name in DOWNLOAD_OPTIONS if given.get(name)}
            state_dict = read_referenced_parts(model, download, load_config.dtype)
            for file in checkpoint_files:
                state_dict.update(read_state_file(Path(file)))
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def _load_tokenizer(self, source: str, subfolder: str, hub: dict[str, Any]) -> None:
        folder = os.path.join(subfolder, self.tokenizer_folder)
        if _has_file(source, os.path.join(folder, "tokenizer_config.json"), hub):
            # In the repo's own folder AutoTokenizer would load the config again, and ask whether to trust its code.
            known = {} if self.tokenizer_folder else {"config": self.config}
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=folder, **known, **hub)
            setattr(self, self.tokenizer_attribute, tokenizer)

    def _load_memory(self, source: str, subfolder: str, memory: Any, hub: dict[str, Any]) -> None:
        download = {name: value for name, value in hub.items() if name not in ("force_download", "revision")}
        if memory is False:
            return
        if memory is None:
            reference = self.config.memory_reference
            folder = os.path.join(subfolder, self.memory_folder)
            if reference:
                memory = self.memory_class.from_pretrained(
                    reference["repo_id"], revision=reference.get("revision"), **download
                )
            elif _has_file(source, f"{folder}/{MANIFEST_NAME}", hub):
                memory = self.memory_class.from_pretrained(
                    source, subfolder=folder, repo_type="model", revision=hub.get("revision"), **download
                )
        elif isinstance(memory, (str, os.PathLike)):
            memory = self.memory_class.from_pretrained(memory, **download)
        if memory is not None:
            self.set_memory(memory)

    # Saving

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        frozen: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Saves weights, config, the tokenizer of what is retrieved, code and memory. A memory that came unchanged from
        the Hub is named by repo id and revision instead of copied.

        No value is rounded. Weights in float32 that are as a checkpoint in half precision had them, such as the frozen
        parts of a tuned evcap-tiny, are stored in half precision again; those that training moved are stored in
        float32. `config.dtype` is the precision in which the model is loaded, whichever a weight is stored in. To give
        up what training gained below half precision, save `model.half()`.

        Args:
            save_directory (`str` or `os.PathLike`): Made if it does not exist.
            frozen (`str`, *optional*):
                `"reference"` leaves out the parts that are as their repos on the Hub hold them, and names those in the
                config by repo id, commit and SHA-256 (`config.part_sources`); a part that was trained is saved whole.
                `"copy"` saves everything. By default parts stay as they were: named if the repo that the model came
                from named them, or if it was assembled from parts on the Hub.
            push_to_hub (`bool`, *optional*, defaults to `False`): Also upload; `repo_id` and the like go to
                `push_to_hub`.
            kwargs: Everything that [`~transformers.PreTrainedModel.save_pretrained`] takes.
        """
        if push_to_hub:
            hub = take_hub_arguments(kwargs)
            self.save_pretrained(save_directory, is_main_process=is_main_process, frozen=frozen, **kwargs)
            if is_main_process:
                self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), frozen=frozen, **hub)
            return
        unrecorded = self.config.encoder_fingerprint is None
        if self.encoder_parts and unrecorded:
            self.config.encoder_fingerprint = self.encoder_fingerprint
        memory = self._fitting_memory() if unrecorded else self.memory
        self.config.memory_reference = memory.hub_reference if memory is not None else None
        pipeline_class = self.pipeline_class()
        self.config.custom_pipelines = pipeline_entries(pipeline_class)
        try:
            with self._without_referenced_parts(frozen, kwargs) as options:
                if is_main_process:
                    options = self._in_stored_precision(options)
                super().save_pretrained(save_directory, is_main_process=is_main_process, **options)
        finally:
            del self.config.custom_pipelines  # in this process the pipeline is registered
            if unrecorded and self.trains_encoder:
                self.config.encoder_fingerprint = None  # the next step of training changes the encoder again
        if not is_main_process:
            return
        folder = Path(save_directory)
        custom_object_save(pipeline_class, folder)
        tokenizer = getattr(self, self.tokenizer_attribute, None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / self.tokenizer_folder)
        if memory is not None and self.config.memory_reference is None:
            memory.save_pretrained(folder / self.memory_folder)
        elif (folder / self.memory_folder / MANIFEST_NAME).is_file():
            delete_store(folder / self.memory_folder)  # of an earlier save; it would come back at loading

    @contextmanager
    def _without_referenced_parts(self, frozen: str | None, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Options of a save that leaves out what other repos hold, with the config that goes with it."""
        sources = self.config.part_sources
        if not sources or getattr(self, "_hf_peft_config_loaded", False):  # adapters alone are saved
            if frozen == "reference" and not sources:
                logger.warning(
                    "The config does not say that parts came from repos on the Hub (`part_sources`): all are saved."
                )
            yield options
            return
        state = options.get("state_dict")
        state, records = split_state(self, self.state_dict() if state is None else state, frozen)
        quantizer = getattr(self, "hf_quantizer", None)
        quantized = getattr(self.config, "quantization_config", None)
        unquantized = quantizer is not None and records["language_model"]["referenced"]
        self.config.part_sources = records
        try:
            if unquantized:  # no quantized weight is saved, and what is loaded next is as its own load says
                self.hf_quantizer = None
                del self.config.quantization_config
            yield {**options, "state_dict": state}
        finally:
            self.config.part_sources = sources
            if unquantized:
                self.hf_quantizer, self.config.quantization_config = quantizer, quantized

    def _in_stored_precision(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a save whose weights take no more room than their values need; see [`halve_exact`]."""
        adapters = getattr(self, "_hf_peft_config_loaded", False)  # are saved alone
        if adapters or getattr(self, "hf_quantizer", None) is not None:
            return options
        state = options.get("state_dict")
        return {**options, "state_dict": halve_exact(self.state_dict() if state is None else state)}

    def _fitting_memory(self) -> Any:
        """The memory, unless training has since changed the encoder that built it: no model could load it again."""
        memory = self.memory
        if memory is None:
            return None
        try:
            for one in getattr(memory, "memories", {"": memory}).values():
                self.check_memory(one)
        except ValueError:
            logger.warning_once(
                "The encoder was trained, so the memory's keys no longer fit and it is saved without a memory. Build "
                "one with the trained model: `hf-evcap memory build SOURCE --model DIR --output MEMORY`."
            )
            return None
        return memory


def _has_file(source: str, file: str, hub: dict[str, Any]) -> bool:
    """Whether a folder or Hub repo holds a file."""
    if os.path.isdir(source):
        return os.path.isfile(os.path.join(source, file))
    found = cached_file(
        source,
        file,
        **hub,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


__all__ = ["ModelRepoMixin", "class_address", "pipeline_entries"]
