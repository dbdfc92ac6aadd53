"""Registers the models and the pipeline with transformers, at the moment transformers' Auto classes are in use."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Sequence
from types import ModuleType


_WATCHED = ("transformers.", "hf_evcap.")
# Where these are imported, Auto classes or pipelines can be asked for.
_TRIGGERS = ("transformers.models.auto.modeling_auto", "transformers.models.auto.configuration_auto")


class _NoRedirectWarning(logging.Filter):
    """
    Drops transformers' one message that the task `image-to-text` has been removed: here it is registered and works.

    Some versions log it with a stray argument, for which there is no place in it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record but that one."""
        return not str(record.msg).startswith("The task `image-to-text` has been removed")


def register() -> None:
    """Registers everything now; safe to call again."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_evcap import EVCapConfig
    from .configuration_smallcap import SmallCapConfig
    from .modeling_evcap import EVCapForConditionalGeneration
    from .modeling_smallcap import SmallCapForConditionalGeneration
    from .pipeline_captioning import CaptioningPipeline
    from .processing_evcap import EVCapProcessor
    from .processing_smallcap import SmallCapProcessor

    for config, model, processor in (
        (EVCapConfig, EVCapForConditionalGeneration, EVCapProcessor),
        (SmallCapConfig, SmallCapForConditionalGeneration, SmallCapProcessor),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        AutoModelForMultimodalLM.register(config, model, exist_ok=True)
        AutoProcessor.register(config, processor, exist_ok=True)
        # `save_pretrained` then writes code and `auto_map` into a repo, which runs where hf_evcap is not installed.
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModelForImageTextToText")
        processor.register_for_auto_class()

    redirect_logger = logging.getLogger("transformers.pipelines")
    if not any(isinstance(present, _NoRedirectWarning) for present in redirect_logger.filters):
        redirect_logger.addFilter(_NoRedirectWarning())

    # Newer transformers 5 turn "image-to-text" into "image-text-to-text" before they ask the registry, older ones do
    # not know it. CaptioningPipeline does for other models what the stock class does, so the warning about overwriting
    # would tell users nothing.
    registry_logger = logging.getLogger("transformers.pipelines.base")
    level = registry_logger.level
    registry_logger.setLevel(logging.ERROR)
    try:
        stock = PIPELINE_REGISTRY.supported_tasks["image-text-to-text"]
        for task in ("image-text-to-text", "image-to-text"):
            PIPELINE_REGISTRY.register_pipeline(
                task, CaptioningPipeline, pt_model=stock["pt"], default=stock.get("default"), type=stock.get("type")
            )
        # What makes `save_pretrained` write the pipeline's code, for models of other families too. Our models see to
        # it themselves.
        del CaptioningPipeline._registered_impl
    finally:
        registry_logger.setLevel(level)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """
    Calls [`register`] once transformers' Auto classes have been imported.

    Importing them, and torch with them, takes seconds that `import hf_evcap` and the command line's `--help` do not
    need. Registering must wait for the outermost import to end: in the middle of one, modules are half initialised.
    """

    def __init__(self) -> None:
        self.depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds a module as usual and wraps its execution."""
        if not fullname.startswith(_WATCHED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and self in sys.meta_path and any(name in sys.modules for name in _TRIGGERS):
                sys.meta_path.remove(self)
                register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_when_needed() -> None:
    """Registers at once if transformers' Auto classes are imported already, otherwise as soon as they are."""
    if any(name in sys.modules for name in _TRIGGERS):
        register()
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())


__all__ = ["register", "register_when_needed"]
