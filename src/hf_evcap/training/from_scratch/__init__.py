"""
How the embedded models were trained from photos and text alone, for data of your own as well.

`tiny_recipe` and `smallcap_tiny` run a recipe of stages (`stage_trainer`) on exercises of text, names and photos
(`tiny_data`, `caption_mixture`, `name_exercises`); `tiny_export` writes the repo, `tiny_measurements` and `tiny_card`
what its card says.
"""
