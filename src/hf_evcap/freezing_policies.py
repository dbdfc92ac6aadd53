"""Freezing policies of a model: what each trains, and keeping what is frozen as it is while the rest learns."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


class FreezingMixin(torch.nn.Module):
    """For models whose subclasses say in `trainable_parts` what their policies train."""

    # Freezing policy -> what it trains: dotted segments of parameter names.
    trainable_parts: dict[str, tuple[str, ...]] = {}
    # Parts that LoRA adapters go to by default.
    lora_parts: tuple[str, ...] = ("language_model",)

    def freeze_for_training(self, policy: str = "paper") -> int:
        """
        Leaves only the parts that a policy trains with `requires_grad`, and keeps the others in eval mode.

        Args:
            policy (`str`, *optional*, defaults to `"paper"`): One of the class's `trainable_parts`, or `"full"`.

        Returns:
            `int`: Trainable parameters.

        Raises:
            ValueError: There is no such policy, or it would leave an image Q-Former as it is that nobody trained.
        """
        if policy != "full" and policy not in self.trainable_parts:
            policies = ", ".join([*self.trainable_parts, "full"])
            raise ValueError(f"Unknown freezing policy {policy!r}; this model has {policies}.")
        self.begin_policy(policy)
        parts = self.trainable_parts.get(policy, ())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(policy == "full" or any(f".{part}." in f".{name}." for part in parts))
        if self.trains_encoder:
            self.config.encoder_fingerprint = None  # what training changes is another encoder
        self.train(self.training)
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @classmethod
    def policies_for(cls, config: Any) -> list[str]:
        """
        The policies that may train a model as its config describes it: where nobody trained the image Q-Former, only
        those that do.

        Args:
            config (`PreTrainedConfig`): The model's.
        """
        untrained = "qformer" in (config.untrained_parts or ())
        return [policy for policy, parts in cls.trainable_parts.items() if not untrained or "qformer" in parts]

    def begin_policy(self, policy: str) -> None:
        """
        Notes in the config which parts a policy trains that nobody trained before.

        Raises:
            ValueError: It would leave an image Q-Former as it is that nobody trained.
        """
        trained = set(self.trainable_parts.get(policy, ()))
        untrained = set(self.config.untrained_parts or ()) - trained if policy != "full" else set()
        if "qformer" in untrained:
            able = self.policies_for(self.config)
            raise ValueError(
                f"The policy {policy!r} leaves the image Q-Former frozen, but this one was never trained for its "
                "encoder: the language model would see photos through noise. Train it first, by the policy "
                f"{' or '.join([*able, 'full'])}, or assemble the model from an encoder that brings its own Q-Former "
                "(a BLIP-2 or an EVCap)."
            )
        if self.config.untrained_parts:
            self.config.untrained_parts = sorted(untrained)

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

    def enable_input_require_grads(self) -> None:
        """
        Has gradients flow from the inputs of the language model and of the parts that train something.

        What is wholly frozen before them needs none: the way back through a frozen vision encoder takes as long as the
        way there, and trains nothing.
        """
        encoders = [part for name, part in self.named_children() if name != "language_model"]
        trained = [part for part in encoders if any(weight.requires_grad for weight in part.parameters())]
        for part in (self.language_model, *trained):
            if isinstance(part, PreTrainedModel):
                part.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undoes [`enable_input_require_grads`]."""
        for part in self.children():
            if isinstance(part, PreTrainedModel) and hasattr(part, "_require_grads_hook"):
                part.disable_input_require_grads()

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        self.train(self.training)


__all__ = ["FreezingMixin"]
