"""Options of `hf-evcap plan`, most of them by the names that `hf-evcap train` and transformers have for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass
class PlanArguments:
    """Model, run and machine that are planned for; see the `help` of each field."""

    _argument_group_name: ClassVar[str] = "options"

    model: str | None = field(
        default=None, metadata={"help": "Model folder or Hub id; its weights are not looked at. Default: evcap-tiny."}
    )
    config: str | None = field(
        default=None,
        metadata={"help": "For --model: a config.json, a folder with it, a name of `hf-evcap configs`."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a Hub repo."})

    policy: str = field(default="paper", metadata={"help": "What is trained, as in `hf-evcap train`."})
    lora_parts: list[str] | None = field(default=None, metadata={"help": "Parts that get LoRA adapters."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_beside: str = field(default="paper", metadata={"help": "Policy whose modules are trained beside them."})
    batch_size: int = field(default=8, metadata={"help": "Photos at once on one GPU, in training and captioning."})
    dtype: str = field(
        default="auto",
        metadata={"help": "float32, bfloat16 or float16, for frozen parts; auto is the config's, else float32."},
    )
    quantization: Literal["8bit", "4bit"] | None = field(
        default=None, metadata={"help": "Bits of the frozen language model's weights."}
    )
    bf16: bool = field(default=False, metadata={"help": "Train in mixed precision, bfloat16."})
    fp16: bool = field(default=False, metadata={"help": "Train in mixed precision, float16."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass instead of keeping them."}
    )
    feature_cache: bool = field(default=False, metadata={"help": "Train from features of `hf-evcap cache-features`."})
    optim: str = field(
        default="adamw_torch",
        metadata={"help": "adamw_torch, adamw_torch_fused, adamw_8bit, adafactor or sgd."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Such as sdpa or eager."})

    num_beams: int | None = field(default=None, metadata={"help": "Beams of captioning; the model's own."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a written caption; the model's own."}
    )
    max_caption_length: int | None = field(
        default=None,
        metadata={"help": "Longest caption in training, in tokens. Default: 48, for SmallCap 26."},
    )
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of the prompt beside the photo. Default: counted by the tokenizer, or estimated."},
    )
    retrieved_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of retrieved names that EVCap's fusion reads. Default: 4 a name."},
    )
    memory_rows: int | None = field(
        default=None, metadata={"help": "Rows of the memory or datastore. Default: those of the model's folder."}
    )

    gpus: int | None = field(default=None, metadata={"help": "Processes that train together."})
    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "DDP, FSDP or DeepSpeed: a file of `accelerate launch` or a name of `hf-evcap configs`."},
    )
    device: Literal["cuda", "cpu"] = field(
        default="cuda", metadata={"help": "Where it is to run; PyTorch's optimizers work otherwise on a CPU."}
    )
    memory_gb: float | None = field(
        default=None, metadata={"help": "Memory of a GPU, in 1e9 bytes: says whether it fits, and what to change."}
    )

    photos: int = field(default=113_287, metadata={"help": "Photos trained on. Default: COCO's, Karpathy's split."})
    captions: int = field(default=566_747, metadata={"help": "Captions of them, each an example of an epoch."})
    num_train_epochs: float = field(default=1, metadata={"help": "Epochs."})
    tflops: float | None = field(
        default=None,
        metadata={"help": "TFLOP/s that a GPU really does, for hours; scripts/gpu_check.py measures them."},
    )

    def __post_init__(self) -> None:
        if self.model is not None and self.config is not None:
            raise ValueError("Give either a model or a config, not both.")
        if self.bf16 and self.fp16:
            raise ValueError("Give either `bf16` or `fp16`, not both.")
        least = {"batch_size": 1, "lora_rank": 1, "num_beams": 1, "max_new_tokens": 1, "max_caption_length": 1}
        least |= {"prompt_tokens": 1, "retrieved_tokens": 1, "memory_rows": 0, "gpus": 1, "photos": 1, "captions": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {value}.")
        for name in ("memory_gb", "num_train_epochs", "tflops"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")


__all__ = ["PlanArguments"]
