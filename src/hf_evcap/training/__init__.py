"""
Training, a room for each guest. Nothing here is loaded for captioning.

- `fine_tuning`: training any model on captioned photos; `hf-evcap train` and [`caption_trainer.CaptionTrainer`].
- `feature_cache`: what the frozen vision encoder makes of photos, computed once, for both of the others.
- `from_scratch`: how the embedded models came about: stages, text exercises, data, export and measurements.
- `recipes`: numbers of both kinds of training, as YAML; `recipe_presets` lists them.
"""
