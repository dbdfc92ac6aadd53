"""What an evaluation is told."""

from __future__ import annotations

from dataclasses import dataclass, field


METRICS = (
    "cider", "bleu", "rouge_l", "meteor", "spice", "clip_score", "name_hallucination", "novel_object_recall",
    "retrieval_recall",
)  # fmt: skip
ABLATIONS = ("memory", "names", "rule", "rejection", "beams")


@dataclass
class EvaluationArguments:
    """
    Settings of [`evaluate_captioner`]; the flags of `hf-evcap evaluate` have the same names.

    Args:
        dataset (`str`): Benchmark, file, folder or Hub dataset; see [`~caption_data.load_caption_data`].
        output (`str`): Folder of the results. An interrupted evaluation goes on in it.
        model (`str`, *optional*): Folder or Hub id; the embedded default when absent.
        revision (`str`, *optional*): Of the model.
        memory (`str` or `list[str]`, *optional*): Memory or datastore instead of the model's own, several memories as
            layers; `"none"` for none.
        predictions (`str`, *optional*): COCO-format JSON of captions to score instead of captioning.
        split, images, annotations, format, config_name, dataset_revision, image_column, caption_column, id_column,
            domain_column (`str`, *optional*): See [`~caption_data.load_caption_data`].
        object_column (`str`, *optional*): Column with the name or names of what a photo shows: adds the recall of
            names in captions and in what was retrieved.
        limit (`int`, *optional*): Only so many photos, the first.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves out photos that are missing or cannot be
            read, and counts them.
        allow_urls (`bool`, *optional*, defaults to `False`): Fetch photos that the dataset names by their address.
        leave_out_memory_photos (`bool`, *optional*, defaults to `False`): Leave out photos that are in the model's
            memory; without it they are counted and named in the results.
        text (`str`, *optional*): Prompt; the model's own when absent.
        num_beams, max_new_tokens (`int`, *optional*): The model's own when absent.
        batch_size (`int`, *optional*, defaults to 16): Photos captioned at once.
        num_workers (`int`, *optional*, defaults to 0): Processes that read photos ahead.
        metrics (`list[str]`, *optional*): Of `METRICS`; CIDEr, BLEU, ROUGE-L and hallucinated names when absent.
        clip_model (`str`, *optional*): CLIP model of `clip_score`.
        group_by (`str`, *optional*, defaults to `"domain"`): Column by which results are told apart.
        memory_effect (`bool`, *optional*, defaults to `True`): Also caption without the memory.
        ablate (`list[str]`, *optional*): What to vary: of `ABLATIONS`, or `"all"`.
        ablate_names (`list[int]`, *optional*): Numbers of retrieved names to try.
        ablate_beams (`list[int]`, *optional*): Numbers of beams to try.
        other_memory (`list[str]`, *optional*): Further memories to try.
        min_similarity (`float`, *optional*): Threshold of the rejection to try, where the memory has none.
        report_photos (`int`, *optional*, defaults to 12): Photos in each part of the HTML report; 0 writes none.
        update_card (`bool`, *optional*, defaults to `False`): Put the figures into the model folder's card.
        restart (`bool`, *optional*, defaults to `False`): Forget what an earlier run in the folder captioned.
        overwrite (`bool`, *optional*, defaults to `False`): Replace what the folder holds.
        device, dtype (`str`, *optional*): Where and in which precision the model runs.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run code that comes with a Hub repo.
    """

    dataset: str
    output: str
    model: str | None = None
    revision: str | None = None
    memory: str | list[str] | None = None
    predictions: str | None = None
    split: str | None = None
    images: str | None = None
    annotations: str | None = None
    format: str | None = None
    config_name: str | None = None
    dataset_revision: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    id_column: str | None = None
    domain_column: str | None = None
    object_column: str | None = None
    limit: int | None = None
    on_error: str = "raise"
    allow_urls: bool = False
    leave_out_memory_photos: bool = False
    text: str | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    num_workers: int = 0
    metrics: list[str] = field(default_factory=list)
    clip_model: str | None = None
    group_by: str = "domain"
    memory_effect: bool = True
    ablate: list[str] = field(default_factory=list)
    ablate_names: list[int] = field(default_factory=list)
    ablate_beams: list[int] = field(default_factory=list)
    other_memory: list[str] = field(default_factory=list)
    min_similarity: float | None = None
    report_photos: int = 12
    update_card: bool = False
    restart: bool = False
    overwrite: bool = False
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        self.restart |= self.overwrite
        for name in ("batch_size", "limit", "num_beams", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        for name, values, known in (("metrics", self.metrics, METRICS), ("ablate", self.ablate, (*ABLATIONS, "all"))):
            unknown = sorted(set(values) - set(known))
            if unknown:
                raise ValueError(f"`{name}` has no {', '.join(unknown)}; there are {', '.join(known)}.")
        if self.predictions is not None and (self.ablate or self.update_card):
            raise ValueError("`predictions` are scored as they are: `ablate` and `update_card` need a model.")
        if self.update_card and self.model is None:
            raise ValueError("`update_card` writes into the model's folder: name it with `model`.")
