"""The same pipeline and command line for SmallCap."""

from __future__ import annotations

import json

import pytest
from transformers import pipeline

from hf_evcap import CaptioningPipeline, SmallCapForConditionalGeneration
from hf_evcap.cli.main import main


@pytest.fixture(scope="module")
def pipe(smallcap_dir):
    return pipeline("image-to-text", model=str(smallcap_dir))


@pytest.fixture(scope="module")
def expected(smallcap, smallcap_processor, photos):
    """What the model itself writes for the four photos."""
    inputs = smallcap_processor(images=photos, return_tensors="pt")
    found = smallcap.encode_images(inputs["pixel_values"]).captions
    texts = smallcap_processor.post_process_image_text_to_text(smallcap.generate(**inputs))
    return [
        [
            {
                "generated_text": text,
                "retrieved_captions": [
                    {"caption": caption, "score": pytest.approx(score, abs=1e-4), "image_id": image_id}
                    for caption, score, image_id in zip(captions, scores, image_ids, strict=True)
                ],
            }
        ]
        for text, captions, scores, image_ids in zip(
            texts, found.captions, found.scores.tolist(), found.image_ids, strict=True
        )
    ]


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
def test_photo_alone(smallcap_dir, photo_paths, expected, task):
    pipe = pipeline(task, model=str(smallcap_dir))
    assert type(pipe) is CaptioningPipeline and type(pipe.model) is SmallCapForConditionalGeneration
    result = pipe(photo_paths[0])
    assert result == expected[0] and len(result[0]["retrieved_captions"]) == 4
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_lists_batches_and_generators(pipe, photo_paths, photos, expected, batch_size):
    assert pipe(photo_paths, batch_size=batch_size) == expected
    assert pipe(photos, batch_size=batch_size) == expected
    assert list(pipe((path for path in photo_paths), batch_size=batch_size)) == expected


def test_options(pipe, photo_paths, smallcap, smallcap_processor, photos, expected):
    inputs = smallcap_processor(images=photos[:1], return_tensors="pt")
    short = smallcap.generate(**inputs, num_beams=1, max_new_tokens=4)
    written = smallcap_processor.post_process_image_text_to_text(short)[0]
    assert pipe(photo_paths[0], num_beams=1, max_new_tokens=4)[0]["generated_text"] == written
    assert len(pipe(photo_paths, num_beams=4, num_return_sequences=3, batch_size=2)[3]) == 3
    with pytest.raises(TypeError, match="name_column"):
        pipe(photo_paths[0], name_column="name_ko")  # EVCap's
    broken = pipe([photo_paths[0], "missing.jpg"], on_error="skip")
    assert broken[0] == expected[0] and broken[1][0]["retrieved_captions"] == []


def test_prompts(pipe, photo_paths, smallcap, smallcap_processor, photos, expected):
    texts = ["Seen: {captions}. Now: ", "Similar images show {captions}", "No captions: ", "{captions}"]
    inputs = smallcap_processor(images=photos, text=texts, return_tensors="pt")
    wanted = smallcap_processor.post_process_image_text_to_text(smallcap.generate(**inputs))
    assert len(set(wanted)) > 2
    for batch_size in (1, 4):
        results = pipe(photo_paths, text=texts, batch_size=batch_size)
        assert [result[0]["generated_text"] for result in results] == wanted
    again = pipe(photo_paths, text=texts[0], batch_size=2)
    assert again[0][0]["generated_text"] == wanted[0]


def test_another_datastore(pipe, photo_paths, smallcap, smallcap_dir, expected, tmp_path):
    small = smallcap.datastore.subset(lambda caption: "mat" not in caption)
    small.save_pretrained(tmp_path / "small")
    for memory in (small, str(tmp_path / "small")):
        found = pipe(photo_paths[0], memory=memory)[0]["retrieved_captions"]
        assert len(found) == 4 and not [one for one in found if "mat" in one["caption"]]
    assert pipe(photo_paths[0]) == expected[0]
    loaded = pipeline("image-to-text", model=str(smallcap_dir), model_kwargs={"datastore": tmp_path / "small"})
    assert loaded(photo_paths[0])[0]["retrieved_captions"] == found


def test_saved_pipeline_is_complete(pipe, photo_paths, expected, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = pipeline("image-to-text", model=str(tmp_path / "saved"))
    assert again(photo_paths, batch_size=4) == expected


def test_command_line(smallcap_dir, photo_paths, expected, capsys):
    model = ["--model", str(smallcap_dir), "--device", "cpu"]
    assert main(["caption", photo_paths[0], *model, "--names"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = expected[0][0]["retrieved_captions"][0]["caption"]
    assert lines[-1].startswith(f"  captions: {first} (0.")
    assert main(["caption", *photo_paths[:2], *model, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["generated_text"] for row in rows] == [one[0]["generated_text"] for one in expected[:2]]
    assert rows[0]["retrieved_captions"] == expected[0][0]["retrieved_captions"]
