"""SmallCap's stages, its training and its errors."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_smallcap import CAPTIONS, ENCODERS, IMAGE_SIZE, make_config, make_datastore, make_model
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from hf_evcap import CaptionDatastore, SmallCapConfig, SmallCapForConditionalGeneration, SmallCapProcessor
from hf_evcap.clip_encoder import clip_fingerprint


# Sizes of the paper


@pytest.mark.parametrize(
    ("factor", "trained"), [(1, 28_348_416), (2, 14_178_816), (4, 7_094_016), (8, 3_551_616), (16, 1_780_416)]
)
def test_trainable_parameters_of_the_paper(factor, trained):
    with torch.device("meta"):
        model = SmallCapForConditionalGeneration(SmallCapConfig(cross_attention_reduce_factor=factor))
    assert model.freeze_for_training("paper") == trained
    if factor == 4:
        assert trained == 12 * (768 * 192 + 192 + 768 * 384 + 384 + 192 * 768 + 768)
        parts = {name.split(".", 4)[-1] for name, p in model.named_parameters() if p.requires_grad}
        layers = {f"crossattention.{layer}" for layer in ("c_attn", "q_attn", "c_proj")}
        assert parts == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_defaults_are_the_papers():
    config = SmallCapConfig()
    assert (config.vision_config.patch_size, config.vision_config.hidden_size) == (32, 768)
    assert (config.text_config.model_type, config.text_config.n_layer) == ("gpt2", 12)
    assert (config.num_retrieved_captions, config.cross_attention_head_dim) == (4, 16)
    assert config.prompt_template.format(captions="a\n\nb") == "Similar images show\n\na\n\nb.\n\nThis image shows "
    generation = make_model(datastore=False).generation_config
    assert (generation.num_beams, generation.max_new_tokens, generation.length_penalty) == (3, 25, 0.0)


def test_cross_attention_starts_as_gpt2_starts_its_layers():
    model = SmallCapForConditionalGeneration(make_config(text_config={"model_type": "gpt2", "n_embd": 64, "n_head": 4,
                                                                      "n_layer": 8, "vocab_size": 300}))  # fmt: skip
    attention = model.language_model.transformer.h[0].crossattention
    assert attention.q_attn.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert attention.c_proj.weight.std().item() == pytest.approx(0.02 / (2 * 8) ** 0.5, rel=0.2)


# Stages


def test_image_features(smallcap, pixels):
    with torch.no_grad():
        features = smallcap.get_image_features(pixels)
        again = smallcap.get_image_features(vision_hidden_states=features.vision_hidden_states)
        outputs = smallcap.vision_model(pixel_values=pixels)
    assert torch.equal(features.vision_hidden_states, outputs.last_hidden_state)
    embeds = outputs.pooler_output @ smallcap.visual_projection.weight.T  # CLIP's image_embeds
    assert torch.allclose(features.retrieval_queries, embeds, atol=1e-5)
    assert torch.allclose(again.retrieval_queries, features.retrieval_queries, atol=1e-6)
    assert smallcap.encoder_fingerprint == clip_fingerprint(smallcap)


def test_retrieval_finds_the_nearest(smallcap, pixels):
    with torch.no_grad():
        queries = smallcap.get_image_features(pixels).retrieval_queries
    found = smallcap.retrieve_captions(queries)
    keys = torch.nn.functional.normalize(torch.tensor(smallcap.datastore.keys), dim=-1)
    scores, rows = (torch.nn.functional.normalize(queries, dim=-1) @ keys.T).topk(4)
    assert torch.equal(found.row_ids, rows) and torch.allclose(found.scores, scores, atol=1e-6)
    assert found.captions == [[CAPTIONS[row][0] for row in photo] for photo in rows.tolist()]
    assert found.image_ids == [[CAPTIONS[row][1] for row in photo] for photo in rows.tolist()]
    assert smallcap.retrieve_captions(queries, k=2).row_ids.tolist() == rows[:, :2].tolist()


def test_a_photo_leaves_out_its_own_captions(smallcap, pixels):
    with torch.no_grad():
        queries = smallcap.get_image_features(pixels).retrieval_queries
    first = smallcap.retrieve_captions(queries)
    own = [ids[0] for ids in first.image_ids]
    exclude = torch.from_numpy(smallcap.datastore.rows_of_images([*own[:4], None, None, None, None]))
    found = smallcap.retrieve_captions(queries, exclude_rows=exclude)
    for photo in range(4):
        assert own[photo] not in found.image_ids[photo] and len(found.captions[photo]) == 4
    assert found.captions[4:] == first.captions[4:]


def test_training_may_draw_from_more_candidates(smallcap, pixels):
    class Drawn:
        def candidates(self, k):
            return k + 2

        def kept(self, present, k):
            chosen = torch.zeros_like(present)
            chosen[:, 1 : 1 + k] = True
            chosen[0] = False
            return chosen & present

    model = make_model()
    model.training_retrieval = Drawn()
    with torch.no_grad():
        queries = model.get_image_features(pixels).retrieval_queries
    six = model.retrieve_captions(queries, k=6).captions
    assert model.retrieve_captions(queries).captions == [photo[:4] for photo in six]  # not in evaluation
    drawn = model.train().retrieve_captions(queries).captions
    assert drawn == [[], *(photo[1:5] for photo in six[1:])]


def test_which_of_the_nearest_captions_go_into_a_prompt(pixels, smallcap_processor):
    """At most so many of one photo, none that says what a nearer one says, and never the one to learn."""
    model = make_model(datastore=False)
    query = model.get_memory_keys(pixels[:1])
    rows = [
        ("a cat sleeps on a mat", "7", 1.0),
        ("a cat is sleeping on the mat", "7", 0.9),
        ("A cat sleeps on a mat.", "8", 0.8),
        ("two dogs play", "9", 0.7),
        ("a red bus", None, 0.6),
        ("a red bus on a street", None, 0.5),
    ]
    away = torch.nn.functional.normalize(torch.randn_like(query), dim=-1)
    query = torch.nn.functional.normalize(query, dim=-1)
    away = torch.nn.functional.normalize(away - (away * query).sum() * query, dim=-1)
    captions, images, near = zip(*rows, strict=True)
    keys = torch.cat([value * query + (1 - value**2) ** 0.5 * away for value in near])
    model.set_datastore(CaptionDatastore.from_rows(list(captions), keys, image_id=list(images)))
    model.config.num_retrieved_captions = 3

    def found(**more):
        return model.retrieve_captions(query, **more).captions[0]

    assert found() == list(captions[:3])
    model.config.max_captions_per_image = 1
    assert found() == [captions[0], captions[2], captions[3]]
    model.config.duplicate_overlap = 1.0
    assert found() == [captions[0], captions[3], captions[4]]
    model.config.duplicate_overlap = 0.5
    assert found(k=4) == [captions[0], captions[3], captions[4]]  # fewer than were asked for
    assert found(k=2, own_captions=["A cat sleeps on a mat"]) == [captions[1], captions[3]]
    assert (model.retrieve_captions(query, k=4).row_ids[0, 3:] == -1).all()

    batch = smallcap_processor(suffix=["a cat sleeps on a mat"], return_tensors="pt")
    model.config.max_captions_per_image = model.config.duplicate_overlap = None
    model.train()
    assert model(pixels[:1], **batch).captions.captions[0] == [captions[1], captions[3], captions[4]]
    model.eval()
    assert model(pixels[:1], **batch).captions.captions[0] == list(captions[:3])


def test_prompts(smallcap):
    captions = [["a cat.", "two dogs"], []]
    assert smallcap.build_prompts(captions) == [
        "Similar images show\n\na cat.\n\ntwo dogs.\n\nThis image shows ",
        "This image shows ",
    ]
    assert smallcap.build_prompts([["x"]], "Seen: {captions}. Now: ") == ["Seen: x. Now: "]
    assert smallcap.build_prompts([["{captions}"], ["x"]], ["{captions}!", "plain"]) == ["{captions}!", "plain"]
    ids, mask, labels = smallcap.tokenize_prompts(captions)
    assert ids.shape == mask.shape and mask[1].sum() < mask[0].sum() == ids.shape[1]
    decoded = smallcap.tokenizer.batch_decode([row[kept.bool()] for row, kept in zip(ids, mask, strict=True)])
    assert decoded == smallcap.build_prompts(captions)
    assert (labels == -100).all() and mask[1].tolist() == sorted(mask[1].tolist())  # padded on the left


def test_opt_prompts_start_with_bos():
    model = make_model("opt")
    ids, mask, _ = model.tokenize_prompts([["a"], ["a", "longer one"]])
    starts = mask.argmax(1)
    assert ids[torch.arange(2), starts].tolist() == [model.tokenizer.bos_token_id] * 2


# Training


@pytest.mark.parametrize("text", ["gpt2", "opt"])
def test_labels_are_learnt_after_the_prompt(text, smallcap_processor, pixels):
    model = make_model(text)
    batch = smallcap_processor(suffix=["a cat", "two dogs on a mat in the rain"], return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=pixels[:2], labels=batch["labels"])
        captions = outputs.captions.captions
        ids, mask, labels = model.tokenize_prompts(captions, labels=batch["labels"])
        whole = model(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=pixels[:2])
    assert outputs.logits.shape[1] == batch["labels"].shape[1] + 1 < whole.logits.shape[1]
    assert torch.allclose(outputs.logits, whole.logits[:, -outputs.logits.shape[1] :], atol=1e-5)
    assert outputs.loss.item() == pytest.approx(whole.loss.item(), abs=1e-5)
    learnt = labels[0][labels[0] >= 0].tolist()
    tokenizer = model.tokenizer
    assert learnt == tokenizer("a cat", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    # The same by hand: every learnt token is predicted by the position before it.
    scores = whole.logits[:, :-1].log_softmax(-1)
    target = labels[:, 1:]
    picked = scores.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    assert outputs.loss.item() == pytest.approx(-picked[target >= 0].mean().item(), abs=1e-4)
    with torch.no_grad():
        half = model(pixel_values=pixels[:2], labels=batch["labels"], num_items_in_batch=2 * (target >= 0).sum())
    assert half.loss.item() == pytest.approx(outputs.loss.item() / 2, abs=1e-4)


@pytest.mark.parametrize(("text", "vision"), [("gpt2", "clip"), ("opt", "efficientnet_lite")])
def test_only_cross_attention_learns(text, vision, smallcap_processor, photos):
    model = make_model(text, vision)
    trained = model.freeze_for_training("paper")
    expected = sum(p.numel() for name, p in model.named_parameters() if "crossattention" in name)
    assert trained == expected > 0
    model.train()
    for module in (model.vision_model, model.language_model.get_input_embeddings()):
        assert not module.training
    layers = model.language_model.transformer.h if text == "gpt2" else model.language_model.model.decoder.layers
    for layer in layers:
        assert layer.crossattention.training and not layer.ln_cross_attn.training
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = smallcap_processor(images=photos, suffix=["a", "cat", "cup", "tree"], return_tensors="pt")
    losses = []
    for _ in range(3):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == ("crossattention" in name), name


# Datastores


def test_swap_changes_the_prompt_and_nothing_else(pixels):
    model = make_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model.encode_images(pixels).captions.captions, model.generate(pixels).tolist()
    other = CaptionDatastore.from_rows(
        [f"something else, number {n}" for n in range(9)],
        torch.randn(9, 16, generator=torch.Generator().manual_seed(5)),
        encoder_fingerprint=model.encoder_fingerprint,
    )
    mine = model.datastore
    model.set_datastore(other)
    after = model.encode_images(pixels).captions.captions, model.generate(pixels).tolist()
    assert all(caption.startswith("something else") for photo in after[0] for caption in photo)
    assert after[1] != before[1]
    model.set_datastore(mine)
    assert (model.encode_images(pixels).captions.captions, model.generate(pixels).tolist()) == before
    assert model.encode_images(pixels, memory=other).captions.captions == after[0]  # for one call
    assert model.encode_images(pixels).captions.captions == before[0]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_edits_are_seen(pixels):
    model = make_model()
    with torch.no_grad():
        key = model.get_memory_keys(pixels[:1])
    model.encode_images(pixels[:1])
    model.datastore.add(["exactly this photo"], key, image_id="x")
    best = model.describe_retrieved(model.encode_images(pixels[:1]))[0][0]
    assert best == {"caption": "exactly this photo", "score": pytest.approx(1, abs=1e-4), "image_id": "x"}
    model.datastore.remove(["exactly this photo"])
    assert "exactly this photo" not in model.encode_images(pixels[:1]).captions.captions[0]


def test_external_queries(pixels):
    model = make_model(datastore=False, retrieval_space="external", retrieval_encoder="RN50x64")
    keys = torch.randn(len(CAPTIONS), 1024, generator=torch.Generator().manual_seed(0))
    store = CaptionDatastore.from_rows([caption for caption, _ in CAPTIONS], keys, encoder_fingerprint="f" * 64)
    model.set_datastore(store)
    assert model.encode_images(pixels[:2], retrieval_queries=keys[[3, 4]]).captions.row_ids[:, 0].tolist() == [3, 4]
    assert model.generate(pixels[:2], retrieval_queries=keys[:2], num_beams=1).shape[0] == 2
    with pytest.raises(ValueError, match=r"RN50x64.*give `retrieval_queries`, or `captions`"):
        model.generate(pixels[:2])
    with pytest.raises(ValueError, match=r"\(batch_size, 1024\) of the datastore's keys, got \(2, 7\)"):
        model.generate(pixels[:2], retrieval_queries=torch.zeros(2, 7))
    with pytest.raises(ValueError, match="makes no keys: its queries come from RN50x64"):
        model.get_memory_keys(pixels)


def test_without_retrieval(pixels):
    model = make_model(datastore=False, num_retrieved_captions=0)
    encoded = model.encode_images(pixels[:2])
    assert encoded.captions.captions == [[], []] and model.describe_retrieved(encoded) == [[], []]
    ids = model.tokenizer("This image shows ", add_special_tokens=False, return_tensors="pt")["input_ids"]
    direct = model.generate(pixels[:2], input_ids=ids.expand(2, -1))
    assert torch.equal(model.generate(pixels[:2]), direct)


# Saving


@pytest.mark.parametrize(("text", "vision"), [("gpt2", "clip"), ("opt", "efficientnet_lite")])
def test_save_and_load(text, vision, tmp_path, smallcap_processor, photos):
    model = make_model(text, vision)
    model.save_pretrained(tmp_path)
    smallcap_processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModelForImageTextToText"] == "modeling_smallcap.SmallCapForConditionalGeneration"
    assert config["custom_pipelines"]["image-to-text"]["impl"] == "pipeline_captioning.CaptioningPipeline"
    assert config["encoder_fingerprint"] == model.encoder_fingerprint
    files = {path.name for path in tmp_path.iterdir()}
    assert {"modeling_smallcap.py", "processing_smallcap.py", "datastore_smallcap.py", "datastore", "tokenizer.json",
            "generation_config.json", "pipeline_captioning.py"} <= files  # fmt: skip
    assert not [name for name in files if "evcap.py" in name and name != "vision_space_evcap.py"]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is SmallCapForConditionalGeneration
    assert type(AutoConfig.from_pretrained(tmp_path)) is SmallCapConfig
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is SmallCapProcessor
    assert loaded.datastore.captions == model.datastore.captions
    inputs = processor(images=photos, return_tensors="pt")
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_datastore_and_memory_are_one_argument(smallcap, smallcap_dir, tmp_path):
    assert SmallCapForConditionalGeneration.from_pretrained(smallcap_dir, datastore=False).datastore is None
    small = smallcap.datastore.subset(lambda caption: "mat" not in caption)
    small.save_pretrained(tmp_path / "small")
    for argument in ({"datastore": tmp_path / "small"}, {"memory": str(tmp_path / "small")}, {"datastore": small}):
        loaded = SmallCapForConditionalGeneration.from_pretrained(smallcap_dir, **argument)
        assert loaded.memory.captions == small.captions
    with pytest.raises(ValueError, match="mean the same"):
        SmallCapForConditionalGeneration.from_pretrained(smallcap_dir, datastore=small, memory=small)


# Bad input


def test_no_datastore(pixels):
    model = make_model(datastore=False)
    with pytest.raises(ValueError, match=r"no datastore.*set_datastore"):
        model.generate(pixels)
    given = [["a cat", "a dog"]] * 8
    assert len(model.generate(pixels, captions=given, num_beams=1)) == 8
    with pytest.raises(ValueError, match="captions for 2 of 8 photos"):
        model.generate(pixels, captions=given[:2])
    with pytest.raises(TypeError, match="a list of captions for each photo"):
        model.generate(pixels[:1], captions=["a cat"])


def test_datastores_that_do_not_fit(smallcap):
    keys = torch.randn(5, 17)
    texts = [f"caption {number}" for number in range(5)]
    with pytest.raises(ValueError, match="keys have dimension 17, this model's queries 16"):
        smallcap.set_datastore(CaptionDatastore.from_rows(texts, keys))
    with pytest.raises(ValueError, match="built by the encoder aaaaaaaaaaaa, this model's encoder is"):
        smallcap.set_datastore(CaptionDatastore.from_rows(texts, keys[:, :16], encoder_fingerprint="a" * 64))
    assert len(smallcap.datastore) == len(CAPTIONS)  # the old one stays


def test_too_few_rows(smallcap, pixels):
    model = make_model(datastore=False)
    model.set_datastore(make_datastore(model, rows=3))
    with pytest.raises(ValueError, match="has 3 captions, of which a photo may retrieve 3; a prompt has 4"):
        model.generate(pixels)
    with torch.no_grad():
        queries = smallcap.get_image_features(pixels[:1]).retrieval_queries
    with pytest.raises(ValueError, match="may retrieve 3"):
        smallcap.retrieve_captions(queries, exclude_rows=torch.arange(7)[None])


def test_captions_beyond_the_decoder(pixels):
    model = make_model(datastore=False)
    with pytest.raises(ValueError, match=r"takes \d+ tokens, the decoder reads at most 256"):
        model.generate(pixels[:1], captions=[["a long caption " * 60]])
    with pytest.raises(ValueError, match="no tokenizer"):
        model.tokenizer = None
        model.generate(pixels[:1], captions=[["a"]])


def test_forward_needs_a_photo(smallcap):
    with pytest.raises(ValueError, match="attends to a photo"):
        smallcap(input_ids=torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="either `pixel_values` or"):
        smallcap.get_image_features(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE), torch.zeros(1, 17, 24))
    with pytest.raises(ValueError, match="2 rows of `labels` for 1 photos"):
        smallcap(pixel_values=torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE), labels=torch.ones(2, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_attention_reduce_factor": 3}, "must divide the decoder's head dimension"),
        ({"cross_attention_reduce_factor": 0}, "must divide"),
        ({"text_config": {"model_type": "bert"}}, "one of the types gpt2, opt"),
        ({"cross_attention_dim": 0}, "must be positive"),
        ({"text_config": {"model_type": "nonsense"}}, "AutoConfig does not know"),
        ({"max_captions_per_image": 0}, "must be positive"),
        ({"duplicate_overlap": 1.5}, "above 0 and up to 1"),
        ({"num_retrieved_captions": -1}, "must not be negative"),
        ({"prompt_template": "no place"}, r"must hold \{captions\}"),
        ({"retrieval_space": "words"}, "clip, vision, external"),
        ({"vision_config": ENCODERS["efficientnet_lite"], "retrieval_space": "clip"}, "clip_vision_model"),
        ({"retrieval_options": {"key_size": 4}}, "Unknown `retrieval_options`"),
        ({"memory_reference": {"repo_id": "/home/me/store"}}, "repo"),
        ({"encoder": {}, "decoder": {}}, "hf-evcap convert smallcap"),
    ],
)
def test_configs_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)
