"""What `hf-evcap train` is told beside transformers' own arguments. Imports no PyTorch, so that its help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass
class ModelArguments:
    """Which model is trained, and what of it."""

    _argument_group_name: ClassVar[str] = "model"

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id org/name. Default: the embedded evcap-tiny."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    memory: str | None = field(
        default=None, metadata={"help": "Memory or datastore instead of the model's own: folder or Hub id."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "float32, bfloat16, float16 or auto, for frozen parts; what is trained is in float32. Default: "
            "auto on accelerators, float32 on a CPU."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Such as sdpa, eager or flash_attention_2."}
    )
    quantization: Literal["8bit", "4bit"] | None = field(
        default=None, metadata={"help": "Load the frozen language model in so many bits, by bitsandbytes."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a Hub repo."})
    policy: str = field(
        default="paper",
        metadata={
            "help": "What is trained. EVCap: paper (queries and projection), fusion (and the fusion Q-Former), "
            "qformers (and the image Q-Former), lora, full. SmallCap: paper (cross-attention), cross_attention_norms, "
            "decoder, lora, full."
        },
    )
    align_names: int = field(
        default=0,
        metadata={
            "help": "Before training, so many steps in which an untrained fusion Q-Former learns to hand names on as "
            "the language model reads words (100 are enough; EVCap with tie_name_embeddings)."
        },
    )
    lora_parts: list[str] | None = field(
        default=None, metadata={"help": "Parts that get LoRA adapters, such as language_model fusion_qformer."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters, divided by their rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapters."})
    lora_beside: str = field(
        default="paper", metadata={"help": "Policy whose modules are trained whole beside the adapters."}
    )
    merge_adapters: bool = field(
        default=False, metadata={"help": "Save the finished model with the adapters merged, not the adapters."}
    )


@dataclass
class DataArguments:
    """Captioned photos to train and evaluate on."""

    _argument_group_name: ClassVar[str] = "data"

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Photos with captions: COCO's or Karpathy's JSON, JSONL, CSV, parquet, a folder, coco-karpathy, "
            "or a Hub dataset."
        },
    )
    dataset_split: str | None = field(
        default=None,
        metadata={"help": "Split, or several as train+restval. Default: the whole file, or the only split."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a dataset on the Hub."}
    )
    dataset_format: str | None = field(
        default=None, metadata={"help": "Format of the dataset. Default: found from the content."}
    )
    images: str | None = field(
        default=None, metadata={"help": "Folder of the photos that a file names. Default: the file's."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the photos. Default: found by its name."}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "Column of the captions. Default: found by its name."}
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column of the photos' ids. Default: found by its name."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data while training; needs --max-steps."})
    shuffle_buffer_size: int = field(default=1000, metadata={"help": "Photos that a stream is shuffled among."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many photos, the first. Default: all."}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Photos to evaluate on. Default: --dataset, where --eval-split is given."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Split of the photos to evaluate on."})
    eval_images: str | None = field(
        default=None, metadata={"help": "Folder of the photos to evaluate on. Default: that of --images."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many photos, the first. Default: all."}
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder of `hf-evcap cache-features`, in place of the vision encoder."}
    )
    eval_feature_cache: str | None = field(default=None, metadata={"help": "The same for the evaluation's photos."})
    captions_per_photo: Literal["all", "one", "first", "together"] = field(
        default="all",
        metadata={
            "help": "Each photo with all its captions an epoch, with one drawn by the seed, or with the first; "
            "together: with all in one example, whose prompt runs once for them (EVCap; batches count photos)."
        },
    )
    max_caption_length: int | None = field(default=128, metadata={"help": "Tokens of a caption, with its end."})
    truncate_captions: bool = field(default=False, metadata={"help": "Cut longer captions; else they are errors."})
    allow_urls: bool = field(default=False, metadata={"help": "Fetch photos that the data name by their address."})
    on_bad_data: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "Unreadable photos, empty captions and those over the limit: stop, or leave out and count."},
    )


@dataclass
class RetrievalArguments:
    """What retrieval does in training and not otherwise; see [`~retrieval_in_training.TrainingRetrieval`]."""

    _argument_group_name: ClassVar[str] = "retrieval in training"

    leave_one_out: bool = field(
        default=True, metadata={"help": "A photo that is in the memory does not retrieve itself, by id and pixels."}
    )
    sample_from: int | None = field(
        default=None,
        metadata={"help": "Draw what is retrieved from this many of the best, instead of taking the best."},
    )
    keep_best: int = field(default=1, metadata={"help": "So many of the best are always among those drawn."})
    name_dropout: float = field(default=0.0, metadata={"help": "Share of retrieved names (captions) withheld."})
    photo_dropout: float = field(default=0.0, metadata={"help": "Share of photos from which all are withheld."})
    replaced_names: float = field(
        default=0.0,
        metadata={
            "help": "Share of photos of which a retrieved name is replaced by another, in list and captions alike, so "
            "that names are copied and not remembered. Needs --captions-per-photo together and --feature-cache."
        },
    )
    replacement_names: str | None = field(
        default=None,
        metadata={"help": "JSON file of the names that are replaced by each other: a list, or LVIS categories."},
    )


@dataclass
class CaptioningOptions:
    """
    What [`CaptionTrainingArguments`] has beside transformers' own arguments, and where its defaults are others.

    Args:
        overwrite (`bool`, *optional*, defaults to `False`): Train anew in an `output_dir` that holds something;
            checkpoints there are deleted.
        early_stopping_patience (`int`, *optional*): Evaluations without a better CIDEr after which training stops.
        compile_layers (`bool`, *optional*, defaults to `False`): Whether the language model's layers are compiled, by
            themselves: unlike `torch_compile` it costs a layer's compiling, and retrieval stays as it is.
        save_only_trained (`bool`, *optional*, defaults to `False`): Checkpoints hold what is trained alone: megabytes
            instead of the frozen language model's gigabytes. They serve to go on; the finished model is whole.
    """

    _argument_group_name: ClassVar[str] = "evaluation, checkpoints and speed"

    predict_with_generate: bool = field(default=True, metadata={"help": "Write captions in evaluation, for CIDEr."})
    metric_for_best_model: str | None = field(
        default="cider", metadata={"help": "What the best checkpoint is best in: cider, bleu_4 or loss."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Is false: collators need the columns."})
    report_to: None | str | list[str] = field(
        default=None, metadata={"help": "tensorboard, wandb, ... or none. Default: tensorboard where installed."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Train anew in an --output that is not empty."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better one."}
    )
    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "Compile the language model's layers, one kernel for all of them: a third less time a step, after "
            "a minute or two of compiling (on a CPU it needs a C++ compiler)."
        },
    )
    save_only_trained: bool = field(
        default=False, metadata={"help": "Checkpoints hold the trained weights alone; the finished model is whole."}
    )


__all__ = ["CaptioningOptions", "DataArguments", "ModelArguments", "RetrievalArguments"]
