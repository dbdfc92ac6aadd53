"""What models that retrieve share: the memory they bring along, saving a complete repo, and frozen parts."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from transformers import AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import cached_file, logging

from .hub_upload import push_saved, take_hub_arguments
from .photo_loading import load_photo
from .store_files import MANIFEST_NAME


logger = logging.get_logger(__name__)

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
_PIPELINE_TASKS = ("image-to-text", "image-text-to-text")


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """
    Fingerprint of weights: SHA-256 over names, shapes and 64 evenly spaced values of each tensor.

    Training moves every value of a tensor, so a sample tells encoders apart without reading gigabytes.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().reshape(-1)
        places = torch.linspace(0, values.numel() - 1, steps=min(64, values.numel())).long().to(values.device)
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(values[places].float().cpu().numpy().astype("<f4").tobytes() if values.numel() else b"")
    return digest.hexdigest()


def class_address(code: type) -> str:
    """Where a repo that carries the code finds a class: `"module.Class"`."""
    return f"{code.__module__.split('.')[-1]}.{code.__name__}"


def pipeline_entries(pipeline_class: type) -> dict[str, Any]:
    """What a repo's config says under `custom_pipelines`."""
    entry = {"impl": class_address(pipeline_class), "pt": ["AutoModelForImageTextToText"]}
    return {task: entry for task in _PIPELINE_TASKS}


class RetrievalPreTrainedModel(PreTrainedModel):
    """
    A model that carries a memory: `from_pretrained` brings it, `save_pretrained` writes a repo that is complete.

    Subclasses say which class their memory has and in which folder of the repo it lies, and implement `set_memory`.
    """

    memory_class: Any = None
    memory_folder = "memory"
    tokenizer_attribute = "name_tokenizer"  # of the tokenizer that reads what is retrieved ...
    tokenizer_folder = "name_tokenizer"  # ... and where in the repo it lies; the processor's lies in ""
    retrieved_field = ""  # of the pipeline's answer: what was retrieved for a photo
    rebuild_hint = ""  # how to make a memory that fits, for messages
    retrieval_arguments: tuple[str, ...] = ("memory",)  # of `encode_images`, which a pipeline's call may give
    # In training mode, draws what is kept of what was retrieved; see `training.retrieval_in_training`.
    training_retrieval: Any = None
    # Freezing policy -> what it trains: dotted segments of parameter names.
    trainable_parts: dict[str, tuple[str, ...]] = {}
    # Parts that LoRA adapters go to by default.
    lora_parts: tuple[str, ...] = ("language_model",)

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """Names of the frozen parts whose weights decide what memory keys mean."""
        return ()

    def set_memory(self, memory: Any) -> None:
        """Attaches a memory."""
        raise NotImplementedError(f"{type(self).__name__} does not take a memory.")

    @property
    def memory(self) -> Any:
        """The attached memory, or `None`."""
        return None

    @property
    def memory_key_size(self) -> int | None:
        """`int` or `None`: Dimension of the keys of a memory for this model; `None` where any will do."""
        return None

    def check_memory(self, memory: Any) -> None:
        """Raises `ValueError` if the memory's keys cannot be compared with this model's queries."""
        word = self.memory_class.store_word
        if self.memory_key_size not in (None, memory.dim):
            raise ValueError(
                f"The {word}'s keys have dimension {memory.dim}, this model's queries {self.memory_key_size}. "
                f"{self.rebuild_hint}"
            )
        theirs, ours = memory.encoder_fingerprint, self.encoder_fingerprint
        if None not in (theirs, ours) and theirs != ours:
            raise ValueError(
                f"The {word} was built by the encoder {theirs[:12]}, this model's encoder is {ours[:12]}: their "
                f"vectors cannot be compared. Use the model that built the {word}. {self.rebuild_hint}"
            )

    def get_memory_keys(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What a memory stores for photos, of shape `(batch_size, memory_key_size)`."""
        raise NotImplementedError(f"{type(self).__name__} makes no keys of photos.")

    @torch.no_grad()
    def encode_memory_keys(self, processor: Any, images: list[Any]) -> torch.Tensor:
        """Prepares photos (paths, URLs, PIL images) with the processor and gives their memory keys, on the CPU."""
        photos = [load_photo(image) for image in images]
        pixel_values = processor.image_processor(photos, return_tensors="pt")["pixel_values"]
        return self.get_memory_keys(pixel_values).float().cpu()

    @classmethod
    def pipeline_class(cls) -> type:
        """The pipeline that a saved repo names in its config and carries, for environments without hf_evcap."""
        from .pipeline_captioning import CaptioningPipeline

        return CaptioningPipeline

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        memory: Any = None,
        **kwargs: Any,
    ) -> Any:
        """
        Loads a model with its memory.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a repo id on the Hub.
            memory (*optional*):
                Memory to use instead of the model's own: a folder, a repo id such as `"org/name"` or
                `"org/name@revision"`, or a memory object. `False` loads none.
            kwargs: Everything that [`~transformers.PreTrainedModel.from_pretrained`] takes.
        """
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
        subfolder = kwargs.get("subfolder") or ""
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
        model._load_tokenizer(source, subfolder, hub)
        model._load_memory(source, subfolder, memory, hub)
        return loaded

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

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """
        Saves weights, config, the tokenizer of what is retrieved, code and memory. A memory that came unchanged from
        the Hub is named by repo id and revision instead of copied.

        Args:
            save_directory (`str` or `os.PathLike`): Made if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`): Also upload; `repo_id` and the like go to
                `push_to_hub`.
            kwargs: Everything that [`~transformers.PreTrainedModel.save_pretrained`] takes.
        """
        if push_to_hub:
            hub = take_hub_arguments(kwargs)
            self.save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
            if is_main_process:
                self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)
            return
        unrecorded = self.config.encoder_fingerprint is None
        if self.encoder_parts and unrecorded:
            self.config.encoder_fingerprint = self.encoder_fingerprint
        memory = self._fitting_memory() if unrecorded else self.memory
        self.config.memory_reference = memory.hub_reference if memory is not None else None
        pipeline_class = self.pipeline_class()
        self.config.custom_pipelines = pipeline_entries(pipeline_class)
        try:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
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
            shutil.rmtree(folder / self.memory_folder)  # of an earlier save; it would come back at loading

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
                "one with the trained model: `hf-evcap memory build SOURCE --model DIR --out MEMORY`."
            )
            return None
        return memory

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
    ) -> CommitInfo:
        """
        Uploads a repo that works by itself, in one commit: weights, config, code, memory (or its repo and revision),
        and a card. Text that people wrote around the generated block of the repo's card stays.

        Args:
            repo_id (`str`): Such as `"user/name"`.
            processor (*optional*): Processor to upload in the same commit.
            commit_message (`str`, *optional*, defaults to `"Upload model"`): Title of the commit.
            private (`bool`, *optional*): Whether a new repo is private.
            revision (`str`, *optional*): Branch to commit to; made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
            max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): Size of a weight file at most.
            tags (`list[str]`, *optional*): Further tags of the card.

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit, with `oid` and `pr_url`.
        """

        def save(folder: Path) -> None:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if processor is not None:
                processor.save_pretrained(folder)
            given = [tags] if isinstance(tags, str) else tags or []
            _write_card(folder, repo_id=repo_id, memory=self.memory, tags=[*(self.model_tags or []), *given])

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

    # Identity of the frozen encoder

    @property
    def encoder_fingerprint(self) -> str | None:
        """
        `str`: Identity of the frozen parts that make memory keys; a memory of another encoder does not fit. `None` for
        a model whose queries are made elsewhere.
        """
        if self.config.encoder_fingerprint is not None or not self.encoder_parts:
            return self.config.encoder_fingerprint
        state = self.state_dict()
        return hash_tensors({name: state[name] for name in state if name.split(".")[0] in self.encoder_parts})

    # The vision encoder

    def get_vision_hidden_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Runs the vision encoder alone. Frozen, it gives the same for a photo in every epoch: see `hf-evcap
        cache-features`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`): From the processor.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`.
        """
        pixel_values = pixel_values.to(self.vision_model.device, self.vision_model.dtype)
        hidden_states = self.vision_model(pixel_values=pixel_values).last_hidden_state
        if hidden_states.ndim == 4:  # a convolutional tower's (batch, width, rows, columns)
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        return hidden_states

    # Freezing

    def freeze_for_training(self, policy: str = "paper") -> int:
        """
        Leaves only the parts that a policy trains with `requires_grad`, and keeps the others in eval mode.

        Args:
            policy (`str`, *optional*, defaults to `"paper"`): One of the class's `trainable_parts`, or `"full"`.

        Returns:
            `int`: Trainable parameters.
        """
        if policy != "full" and policy not in self.trainable_parts:
            policies = ", ".join([*self.trainable_parts, "full"])
            raise ValueError(f"Unknown freezing policy {policy!r}; this model has {policies}.")
        parts = self.trainable_parts.get(policy, ())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(policy == "full" or any(f".{part}." in f".{name}." for part in parts))
        if self.trains_encoder:
            self.config.encoder_fingerprint = None  # what training changes is another encoder
        self.train(self.training)
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def trains_encoder(self) -> bool:
        """`bool`: Whether a parameter that decides what memory keys mean is being trained."""
        return any(
            parameter.requires_grad
            for name, parameter in self.named_parameters()
            if name.split(".")[0] in self.encoder_parts
        )

    def train(self, mode: bool = True) -> Any:
        """Sets training mode, but for modules that are wholly frozen: their dropout and batch statistics stay off."""
        super().train(mode)
        if mode:
            self._rest_frozen(self)
        return self

    def _rest_frozen(self, module: torch.nn.Module) -> None:
        for part in module.children():
            trained = [parameter.requires_grad for parameter in part.parameters()]
            if any(trained):
                if not all(trained):
                    self._rest_frozen(part)
            elif trained or module is self:
                part.eval()
                self._keep_checkpointing(part)

    @staticmethod
    def _keep_checkpointing(part: torch.nn.Module) -> None:
        """
        Lets a frozen part's layers recompute their activations where gradient checkpointing is enabled.

        transformers checkpoints layers in training mode only. Gradients flow through a frozen language model to what
        is trained in front of it, and its activations are most of the memory. The layer's own flag does not reach its
        dropout modules; layers that drop out by their own flag (OPT) are left in eval mode.
        """
        for layer in part.modules():
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                drops_out = any("dropout" in name and value for name, value in vars(layer).items())
                layer.training = not drops_out

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        self.train(self.training)


def _write_card(folder: Path, **facts: Any) -> None:
    """Writes the model card where hf_evcap is installed; a model that runs from a repo's code leaves cards alone."""
    try:
        from hf_evcap.hub.model_card import write_model_card
    except ImportError:
        return
    write_model_card(folder, **facts)


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


__all__ = ["RetrievalPreTrainedModel"]
