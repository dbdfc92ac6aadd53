"""`CaptionTrainer` for scripts of your own, and what transformers' own `Trainer` needs for the same datasets."""

from .fine_tuning.caption_collator import PhotoCaptionCollator
from .fine_tuning.caption_examples import CaptionExamples, StreamedCaptionExamples
from .fine_tuning.caption_trainer import CaptionScores, CaptionTrainer, last_whole_checkpoint


__all__ = [
    "CaptionExamples",
    "CaptionScores",
    "CaptionTrainer",
    "PhotoCaptionCollator",
    "StreamedCaptionExamples",
    "last_whole_checkpoint",
]
