"""`CaptionTrainer` for scripts of your own, from the room of fine-tuning."""

from .fine_tuning.caption_trainer import CaptionScores, CaptionTrainer, last_whole_checkpoint


__all__ = ["CaptionScores", "CaptionTrainer", "last_whole_checkpoint"]
