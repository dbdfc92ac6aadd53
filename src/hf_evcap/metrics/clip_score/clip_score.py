"""CLIPScore of captions with any CLIP model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import torch
import transformers
from PIL import Image

from hf_evcap.metrics import caption_metric


_DESCRIPTION = """
CLIPScore: 2.5 * max(cos(image, caption), 0) of CLIP embeddings, which needs no references. With references also
RefCLIPScore, the harmonic mean of CLIPScore and the best cosine of caption and reference. Any model of transformers
with image and text embeddings works; figures of different models do not compare.
"""

_CITATION = """
@inproceedings{hessel2021clipscore,
    title     = {{CLIPScore}: A Reference-free Evaluation Metric for Image Captioning},
    author    = {Hessel, Jack and Holtzman, Ari and Forbes, Maxwell and Le Bras, Ronan and Choi, Yejin},
    booktitle = {Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing},
    pages     = {7514--7528},
    year      = {2021}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    images (`list` of `PIL.Image.Image`, path or array): The images.
    references (`list` of `list` of `str`): Optional reference captions of each image, for RefCLIPScore.
    model (`str` or `PreTrainedModel`): Model id, folder or loaded model. Default "openai/clip-vit-base-patch32", the
        paper's.
    processor (`str` or processor): Its processor. Default: that of the model's id or folder.
    prefix (`str`): Put in front of each caption. Default "A photo depicts ", the paper's.
    batch_size (`int`): Images or captions in one forward pass. Default 32.
    device (`str` or `torch.device`): Where a model that is loaded here runs. Default: a GPU if there is one.
    {caption_metric.IMAGE_IDS.strip()}
Returns:
    clip_score (`float`): Mean over the images.
    clip_score_per_caption (`list` of `float`): Score of each prediction.
    ref_clip_score, ref_clip_score_per_caption: The same of RefCLIPScore, if there are references.
Examples:
    >>> clip_score = evaluate.load(hf_evcap.metric_path("clip_score"))
    >>> results = clip_score.compute(predictions=["a cat on a mat"], images=["cat.jpg"])
"""

_WEIGHT = 2.5


def _image(name: str, value: Any) -> Any:
    if isinstance(value, (Image.Image, str)) or (hasattr(value, "shape") and len(value.shape) in (2, 3)):
        return value
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"{name} must be a PIL image, a path or an array of one image, got {type(value).__name__}.")


class ClipScore(caption_metric.CheckedMetric):
    """CLIPScore as an `evaluate` metric."""

    checks = {
        "predictions": caption_metric.caption,
        "images": _image,
        "references": caption_metric.captions_or_none,
    }
    optional = frozenset({"references"})

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=datasets.Features(
            {
                "predictions": datasets.Value("string"),
                "images": datasets.Image(),
                "references": datasets.Sequence(datasets.Value("string")),
            }
        ),
        reference_urls=["https://arxiv.org/abs/2104.08718"],
    )

    def _compute(
        self,
        *,
        predictions: list[str],
        images: list[Image.Image],
        references: list[list[str]],
        model: Any = "openai/clip-vit-base-patch32",
        processor: Any = None,
        prefix: str = "A photo depicts ",
        batch_size: int = 32,
        device: Any = None,
        image_ids: list[Any] | None = None,
    ) -> dict[str, Any]:
        caption_metric.check_image_ids(image_ids, len(predictions))
        if any(references) and not all(references):
            index = next(index for index, captions in enumerate(references) if not captions)
            raise ValueError(f"references[{index}] is empty: give references to all images or to none.")
        embedder = _Embedder(model, processor, batch_size, device)
        image_vectors = embedder.embed_images(images)
        caption_vectors = embedder.embed_texts([prefix + caption for caption in predictions])
        scores = _WEIGHT * (image_vectors * caption_vectors).sum(-1).clamp(min=0)
        results = {"clip_score": scores.mean().item(), "clip_score_per_caption": scores.tolist()}
        if any(references):
            flat = [prefix + caption for captions in references for caption in captions]
            vectors = embedder.embed_texts(flat).split([len(captions) for captions in references])
            best = torch.stack([(own @ vector).max() for own, vector in zip(vectors, caption_vectors, strict=True)])
            best = best.clamp(min=0)
            total = scores + best
            both = torch.where(total > 0, 2 * scores * best / total.clamp(min=1e-12), torch.zeros_like(total))
            results["ref_clip_score"] = both.mean().item()
            results["ref_clip_score_per_caption"] = both.tolist()
        return results


class _Embedder:
    """Normalised image and text embeddings of a CLIP model."""

    def __init__(self, model: Any, processor: Any, batch_size: int, device: Any) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {batch_size!r}.")
        if processor is None:
            processor = model if isinstance(model, str) else model.config._name_or_path
            if not processor:
                raise ValueError("Give `processor`: the model was not loaded from a folder or repository.")
        self.processor = (
            transformers.AutoProcessor.from_pretrained(processor) if isinstance(processor, str) else processor
        )
        if isinstance(model, str):
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = transformers.AutoModel.from_pretrained(model).to(device)
        elif device is not None:
            raise ValueError(
                "`device` is for a model that is loaded here; move a loaded model with `model.to(device)`."
            )
        missing = [name for name in ("get_image_features", "get_text_features") if not hasattr(model, name)]
        if missing:
            raise TypeError(
                f"{type(model).__name__} has no {' and no '.join(missing)}: CLIPScore needs a CLIP-like model."
            )
        self.model = model.eval()
        self.batch_size = batch_size

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Embed images, shape `(num_images, dim)`."""
        return self._embed(
            [image.convert("RGB") for image in images],
            lambda batch: self.processor(images=batch, return_tensors="pt"),
            self.model.get_image_features,
        )

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts, cut at the model's length, shape `(num_texts, dim)`."""
        # SigLIP was trained with padded texts and has no attention mask.
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        return self._embed(
            list(texts),
            lambda batch: self.processor(text=batch, padding=padding, truncation=True, return_tensors="pt"),
            self.model.get_text_features,
        )

    @torch.no_grad()
    def _embed(self, items: list[Any], prepare: Callable[..., Any], encode: Callable[..., Any]) -> torch.Tensor:
        vectors = []
        for start in range(0, len(items), self.batch_size):
            inputs = prepare(items[start : start + self.batch_size]).to(self.model.device)
            output = encode(**inputs)
            output = output if isinstance(output, torch.Tensor) else output.pooler_output
            vectors.append(torch.nn.functional.normalize(output.float(), dim=-1).cpu())
        return torch.cat(vectors)
