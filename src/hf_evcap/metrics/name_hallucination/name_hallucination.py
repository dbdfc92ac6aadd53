"""How often captions name objects of the memory that are not in the photo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate

from hf_evcap.metrics import caption_metric, name_matching


_DESCRIPTION = """
Rates of hallucinated names in the manner of CHAIR: of the names that a caption takes from the memory (or from what was
retrieved for its photo), those that no reference caption and no annotation of the photo supports.
"""

_CITATION = """
@inproceedings{rohrbach2018object,
    title     = {Object Hallucination in Image Captioning},
    author    = {Rohrbach, Anna and Hendricks, Lisa Anne and Burns, Kaylee and Darrell, Trevor and Saenko, Kate},
    booktitle = {Proceedings of the 2018 Conference on Empirical Methods in Natural Language Processing},
    pages     = {4035--4045},
    year      = {2018}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    references (`list` of `list` of `str`): Reference captions of each image. May be left out if there are annotations.
    retrieved_names (`list` of `list` of `str`): Names retrieved for each image.
    annotations (`list` of `list` of `str`): Names of objects known to be in each image.
    memory_names (`list` of `str`): Names of the memory. A caption's mentions are counted for these and for the names
        retrieved for its image; at least one of the two must be given.
    synonyms (`dict` of `str` to `list` of `str`): Other names of an object.
    vocabulary (`list` of `str`): Further names, only to tell longer names apart: with "hot dog" in it, a caption with
        "hot dog" does not mention a dog.{caption_metric.IMAGE_IDS}
Returns:
    hallucination_per_mention (`float`): Unsupported mentions / mentions (CHAIRi), 0 without mentions.
    hallucination_per_caption (`float`): Captions with an unsupported mention / captions (CHAIRs).
    mentions, hallucinated_mentions, hallucinated_captions (`int`): The counts behind them.
    per_name (`list` of `dict`): For each mentioned name `name`, `mentions`, `hallucinated`, worst first.
    hallucinated_per_caption (`list` of `list` of `str`): Unsupported names of each caption.
Examples:
    >>> hallucination = evaluate.load(hf_evcap.metric_path("name_hallucination"))
    >>> results = hallucination.compute(
    ...     predictions=["a dog and two cats on a sofa"],
    ...     references=[["A dog lies on a couch."]],
    ...     memory_names=["dog", "cat", "sofa"],
    ...     synonyms={{"sofa": ["couch"]}},
    ... )
    >>> results["hallucinated_per_caption"], round(results["hallucination_per_mention"], 4)
    ([['cat']], 0.3333)
"""


class NameHallucination(caption_metric.CheckedMetric):
    """Rates of hallucinated names as an `evaluate` metric."""

    checks = {
        "predictions": caption_metric.caption,
        "references": caption_metric.captions_or_none,
        "retrieved_names": caption_metric.names_or_none,
        "annotations": caption_metric.names_or_none,
    }
    optional = frozenset({"references", "retrieved_names", "annotations"})

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=datasets.Features(
            {
                "predictions": datasets.Value("string"),
                "references": datasets.Sequence(datasets.Value("string")),
                "retrieved_names": datasets.Sequence(datasets.Value("string")),
                "annotations": datasets.Sequence(datasets.Value("string")),
            }
        ),
        reference_urls=["https://arxiv.org/abs/1809.02156"],
    )

    def _compute(
        self,
        *,
        predictions: list[str],
        references: list[list[str]],
        retrieved_names: list[list[str]],
        annotations: list[list[str]],
        memory_names: Iterable[str] | None = None,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        vocabulary: Iterable[str] = (),
        image_ids: list[Any] | None = None,
    ) -> dict[str, Any]:
        caption_metric.check_image_ids(image_ids, len(predictions))
        if memory_names is None and not any(retrieved_names):
            raise ValueError("Give `retrieved_names` or `memory_names`: without names there is nothing to look for.")
        for index, (captions, known) in enumerate(zip(references, annotations, strict=True)):
            if not captions and not known:
                raise ValueError(
                    f"Image {index} has neither references nor annotations, so every name would count as hallucinated."
                )
        memory = caption_metric.names_or_none("memory_names", memory_names or [])
        vocabulary = caption_metric.names_or_none("vocabulary", vocabulary)
        known_names = {name for names in (*retrieved_names, *annotations, memory, vocabulary) for name in names}
        matcher = name_matching.NameMatcher(sorted(known_names), synonyms)

        mentions: dict[str, int] = {}
        hallucinated: dict[str, int] = {}
        hallucinated_per_caption = []
        rows = zip(predictions, references, retrieved_names, annotations, strict=True)
        for prediction, captions, retrieved, annotated in rows:
            counted = frozenset(memory).union(retrieved)
            supported = frozenset().union(*map(matcher.mentioned, captions), *map(matcher.objects, annotated))
            unsupported = []
            for mention in matcher.find(prediction):
                if not mention.objects & counted:
                    continue
                name = min(mention.objects & counted)
                mentions[name] = mentions.get(name, 0) + 1
                if not mention.objects & supported:
                    hallucinated[name] = hallucinated.get(name, 0) + 1
                    unsupported.append(name)
            hallucinated_per_caption.append(unsupported)

        num_mentions, num_hallucinated = sum(mentions.values()), sum(hallucinated.values())
        num_captions = sum(map(bool, hallucinated_per_caption))
        per_name = [
            {"name": name, "mentions": mentions[name], "hallucinated": hallucinated.get(name, 0)}
            for name in sorted(mentions, key=lambda name: (-hallucinated.get(name, 0), name))
        ]
        return {
            "hallucination_per_mention": num_hallucinated / num_mentions if num_mentions else 0.0,
            "hallucination_per_caption": num_captions / len(predictions),
            "mentions": num_mentions,
            "hallucinated_mentions": num_hallucinated,
            "hallucinated_captions": num_captions,
            "per_name": per_name,
            "hallucinated_per_caption": hallucinated_per_caption,
        }
