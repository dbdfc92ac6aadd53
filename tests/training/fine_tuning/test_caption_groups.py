"""Tests of captions that share their photo's prompt."""

import pytest
import torch

from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_groups import group_captions


CAPTIONS = [["a dog runs", "two dogs"], ["a red ball on the grass near a dog"]]


def test_layout():
    group = group_captions([7, 8, 9], [[[1, 2], [3]], [[4]]], pad_token_id=0)
    assert group["input_ids"].tolist() == [[7, 8, 9, 1, 2, 9, 3], [7, 8, 9, 4, 0, 0, 0]]
    assert group["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 3, 0, 0, 0]]
    assert group["labels"].tolist() == [[-100, -100, -100, 1, 2, -100, 3], [-100, -100, -100, 4, -100, -100, -100]]
    sees = group["attention_mask"][0, 0]
    assert sees[6].tolist() == [True, True, False, False, False, True, True]
    assert sees[4].tolist() == [True, True, True, True, True, False, False]
    assert group["attention_mask"].any(dim=-1).all()  # a row without anything to see would become NaN


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_is_that_of_single_captions(tiny_dir, processor, photos, attention):
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir, attn_implementation=attention)
    examples = [{"row": n, "image": photos[n], "caption_group": CAPTIONS[n], "epoch": 0} for n in range(2)]
    batch = PhotoCaptionCollator(processor)(examples)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, -labels.shape[1] :]
    together = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    alone = 0.0
    for number, captions in enumerate(CAPTIONS):
        for caption in captions:
            inputs = processor(images=photos[number], suffix=caption, return_tensors="pt")
            count = (inputs["labels"][:, 1:] != -100).sum()
            alone = alone + model(**inputs).loss * count
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-5)
