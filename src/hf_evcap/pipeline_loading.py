"""The captioning pipeline of a model that is named by words, as commands and evaluations name it."""

from __future__ import annotations

from typing import Any


def load_pipeline(
    model: str | None = None,
    *,
    revision: str | None = None,
    memory: str | None = None,
    device: Any = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """
    Makes the pipeline of a model.

    Args:
        model (`str`, *optional*): Folder or Hub id; the embedded default when absent.
        revision (`str`, *optional*): Of the model.
        memory (`str`, *optional*): Memory or datastore instead of the model's own.
        device (`str` or `torch.device`, *optional*): The first accelerator when absent.
        dtype (`str`, *optional*): As saved when absent, but float32 for the embedded model.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run code that comes with a Hub repo.

    Raises:
        ValueError: The model is no captioner of this package.
    """
    from transformers import pipeline

    import hf_evcap

    pipe = pipeline(
        "image-text-to-text",
        model=model or hf_evcap.default_model(),
        revision=revision,
        device=device,
        dtype=dtype or ("auto" if model else "float32"),
        trust_remote_code=trust_remote_code or None,
        model_kwargs={} if memory is None else {"memory": memory},
    )
    if not getattr(pipe, "captions_photos", False):
        raise ValueError(f"{model} is no captioner of this package but a {type(pipe.model).__name__}.")
    return pipe


__all__ = ["load_pipeline"]
