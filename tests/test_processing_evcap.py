"""Photos of every kind to the pixels they should be, prompts and captions to tokens."""

from __future__ import annotations

import base64
import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_processor

from hf_evcap import EVCapProcessor
from hf_evcap.photo_loading import load_photo


SIDE = (40, 30)  # width, height


@pytest.fixture(scope="module")
def picture():
    """A smooth picture whose corners differ, so that turning and mirroring it show."""
    width, height = SIDE
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([220 * x + 20, 200 * y + 30, 120 * x * y + 60], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def difference(left, right):
    assert left.size == right.size and left.mode == right.mode == "RGB"
    return np.abs(np.asarray(left, dtype=int) - np.asarray(right, dtype=int)).max()


# Photos


def test_sources_of_a_photo(picture, tmp_path):
    path = tmp_path / "photo.png"
    picture.save(path)
    pixels = np.asarray(picture)
    sources = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "image": picture,
        "array": pixels,
        "channels first": pixels.transpose(2, 0, 1),
        "floats": pixels / 255.0,
        "tensor": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        "float tensor": torch.from_numpy(pixels / 255.0).float().requires_grad_(),
        "bfloat16 tensor": torch.from_numpy(pixels / 255.0).bfloat16(),
        "16-bit array": (pixels.astype(np.uint16) * 257),
        "row with bytes": {"bytes": path.read_bytes(), "path": "elsewhere.png"},
        "row with a path": {"bytes": None, "path": str(path)},
        "base64": base64.b64encode(path.read_bytes()).decode(),
        "data URL": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        "with alpha": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    }
    for name, source in sources.items():
        assert difference(load_photo(source), picture) <= (1 if name == "bfloat16 tensor" else 0), name


def test_grey_arrays(picture):
    grey = np.asarray(picture.convert("L"))
    expected = Image.fromarray(grey).convert("RGB")
    for array in (grey, grey[..., None], grey[None], grey / 255.0, torch.from_numpy(grey.copy())):
        assert difference(load_photo(array), expected) == 0
    mask = grey > 100
    assert difference(load_photo(mask), Image.fromarray(mask).convert("RGB")) == 0


def test_datasets_image_rows(picture):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": saved(picture), "path": None}]})
    decoded = rows.cast_column("image", datasets.Image())[0]["image"]
    kept = rows.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert difference(load_photo(decoded), picture) == 0
    assert difference(load_photo(kept), picture) == 0


def test_urls(photo_server, photo_paths):
    loaded = load_photo(f"{photo_server}/cat.jpg")
    assert difference(loaded, Image.open(photo_paths[1]).convert("RGB")) == 0
    with pytest.raises(ValueError, match=r"(?s)nothing\.jpg.*404"):
        load_photo(f"{photo_server}/nothing.jpg")
    with pytest.raises(ValueError, match=r"LICENSES\.md.*not an image"):
        load_photo(f"{photo_server}/LICENSES.md")
    with pytest.raises(ValueError, match="127.0.0.1:9/cat.jpg"):
        load_photo("http://127.0.0.1:9/cat.jpg", timeout=5)


def test_transparency_is_white_from_any_source(picture, tmp_path, photo_server, monkeypatch):
    """A URL must not give other pixels than the same file on disk."""
    clear = picture.convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    white = Image.new("RGB", clear.size, "white")
    path = tmp_path / "clear.png"
    clear.save(path)
    encoded = base64.b64encode(path.read_bytes()).decode()
    for source in (clear, path, path.read_bytes(), f"data:image/png;base64,{encoded}", encoded):
        assert difference(load_photo(source), white) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_by_exif(picture, orientation):
    """The file holds the turned pixels and says how to turn them back, as telephones do."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    turned = picture.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(load_photo(saved(turned, "PNG", exif=exif)), picture) == 0
    assert difference(load_photo(saved(turned, "JPEG", quality=95, exif=exif)), picture) < 12
    opened = Image.open(io.BytesIO(saved(turned, "PNG", exif=exif)))
    assert difference(load_photo(opened), picture) == 0


def test_colour_modes(picture):
    half = Image.new("L", picture.size, 128)
    grey = picture.convert("L")
    blended = Image.blend(Image.new("RGB", picture.size, "white"), picture, 128 / 255)
    blended_grey = Image.blend(Image.new("RGB", picture.size, "white"), grey.convert("RGB"), 128 / 255)
    rgba, la = picture.convert("RGBA"), grey.convert("LA")
    rgba.putalpha(half)
    la.putalpha(half)
    assert difference(load_photo(saved(rgba)), blended) <= 1
    assert difference(load_photo(saved(la)), blended_grey) <= 1
    assert difference(load_photo(saved(grey)), grey.convert("RGB")) == 0
    assert difference(load_photo(saved(picture.convert("1"))), picture.convert("1").convert("RGB")) == 0
    assert difference(load_photo(saved(picture.convert("HSV").convert("RGB"))), picture) <= 6
    assert difference(load_photo(picture.convert("YCbCr")), picture) <= 3


def test_cmyk_jpeg(picture):
    """Adobe's CMYK files are inverted; read naively a photo comes out as its negative."""
    cmyk = saved(picture.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"
    assert difference(load_photo(cmyk), picture) < 20


def test_palettes(picture):
    palette = picture.quantize(64)
    assert difference(load_photo(saved(palette)), palette.convert("RGB")) == 0
    index = int(np.asarray(palette)[0, 0])
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == index] = 255
    assert difference(load_photo(saved(palette, transparency=index)), Image.fromarray(expected)) == 0
    keyed = Image.new("RGB", (4, 4), (10, 20, 30))
    keyed.putpixel((0, 0), (200, 0, 0))
    loaded = load_photo(saved(keyed, transparency=(10, 20, 30)))
    assert loaded.getpixel((0, 0)) == (200, 0, 0) and loaded.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("brightest", [65535, 200])
def test_sixteen_bits(picture, format, brightest):
    """A dark 16-bit photo is dark, not a photo of 8 bits."""
    grey = np.asarray(picture.convert("L")).astype(np.float64)
    values = (grey / grey.max() * brightest).astype(np.uint16)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    expected = Image.fromarray((values / 257).astype(np.uint8)).convert("RGB")
    assert difference(load_photo(saved(image, format)), expected) <= 1
    assert difference(load_photo(values), expected) <= 1


def test_other_depths(picture):
    grey = np.asarray(picture.convert("L"))
    expected = Image.fromarray(grey).convert("RGB")
    assert difference(load_photo(Image.fromarray(grey.astype(np.int32) * 257)), expected) == 0
    assert difference(load_photo(Image.fromarray(grey.astype(np.int32))), expected) == 0
    assert difference(load_photo(Image.fromarray(grey.astype(np.float32))), expected) == 0
    assert difference(load_photo(Image.fromarray((grey / 255).astype(np.float32))), expected) <= 1


def test_animations_give_their_first_frame(picture):
    second = Image.new("RGB", picture.size, "black")
    for format in ("GIF", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = saved(picture, format, save_all=True, append_images=[second], duration=50, **options)
        assert Image.open(io.BytesIO(data)).n_frames == 2
        assert difference(load_photo(data), picture) < 40


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3000, 2)])
def test_extreme_shapes(processor, size):
    pixels = processor(images=Image.new("RGB", size, (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 56, 56)
    assert pixels[0, 0].std() < 1e-4 and pixels[0, 0].mean() > pixels[0, 1].mean()


def test_bad_photos(tmp_path, photo_paths):
    whole = open(photo_paths[0], "rb").read()
    files = {"text.jpg": b"This is no photo.", "cut.jpg": whole[: len(whole) // 2], "empty.png": b""}
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        for source in (path, str(path), {"bytes": None, "path": str(path)}):
            with pytest.raises(ValueError, match=name):
                load_photo(source)
        if content:
            with pytest.raises(ValueError, match="the photo"):
                load_photo(content)
    broken = saved(Image.new("RGB", (64, 64), "red"))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_photo(broken[:-30])
    for source in (tmp_path / "none.jpg", str(tmp_path / "none.jpg"), {"bytes": None, "path": "none.jpg"}):
        with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
            load_photo(source)
    with pytest.raises(IsADirectoryError, match="folder"):
        load_photo(tmp_path)
    with pytest.raises(TypeError, match="int"):
        load_photo(5)
    with pytest.raises(TypeError, match="NoneType"):
        load_photo(None)
    with pytest.raises(ValueError, match=r"\(2, 2, 3, 3\)"):
        load_photo(np.zeros((2, 2, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(0, 4, 3\)"):
        load_photo(np.zeros((0, 4, 3), np.uint8))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says of damage that it can live with
def test_random_damage_never_escapes_as_another_error(photo_paths):
    """Whatever bytes a scraped data set holds, a caller needs to catch `ValueError` only."""
    generator = random.Random(0)
    image = Image.open(photo_paths[1]).convert("RGB").resize((48, 48))
    for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = saved(image, format)
        for _ in range(40):
            data = bytearray(whole[: generator.randrange(10, len(whole))] if generator.random() < 0.5 else whole)
            for _ in range(generator.randrange(1, 12)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            try:
                assert load_photo(bytes(data)).mode == "RGB"
            except ValueError as error:
                assert "the photo" in str(error)


def test_pixel_values_are_the_image_processors(processor, photos):
    batch = processor(images=photos, return_tensors="pt")["pixel_values"]
    resized = photos[0].resize((56, 56), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_processor.image_mean,
                                                          processor.image_processor.image_std))  # fmt: skip
    torch.testing.assert_close(batch[0], (pixels - mean) / std, atol=1e-4, rtol=0)
    assert torch.equal(processor(images=photos[0], return_tensors="pt")["pixel_values"][0], batch[0])


# Prompts and captions


def test_prompt_template(processor):
    tokenizer, image = processor.tokenizer, processor.image_token_id
    ids = processor(text=processor.build_prompt("Name it."))["input_ids"][0]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(image) == 9
    start = ids.index(image)
    assert ids[start : start + 9] == [image] * 9
    assert tokenizer.decode(ids[1:start]) == "###Human: <Img>"
    assert tokenizer.decode(ids[start + 9 :]).strip() == "</Img> Name it. ###Assistant:"
    assert processor(text=processor.build_prompt())["input_ids"] == [processor.encode_prompt(processor.prompt)]


def test_whole_prompts(processor):
    for whole in ("A {image} shows", "A <image> shows"):
        ids = processor.encode_prompt(whole)
        assert processor.tokenizer.decode([i for i in ids[1:] if i != processor.image_token_id]) == "A  shows"
        assert ids.count(processor.image_token_id) == 9
    assert processor.encode_prompt("<image>") == [1] + [processor.image_token_id] * 9
    with pytest.raises(ValueError, match="2 places"):
        processor.encode_prompt("{image} and <image>")


def test_braces_in_a_prompt_are_text(processor):
    ids = processor.encode_prompt("a {prompt} of {x}")
    assert ids.count(processor.image_token_id) == 9
    assert "{x}" in processor.tokenizer.decode(ids)


def test_a_template_needs_a_place_for_the_photo():
    with pytest.raises(ValueError, match=r"\{image\}"):
        make_processor(prompt_template="Describe: {prompt}")


def test_without_bos_and_with_another_template():
    processor = make_processor(prompt_template="{image}{prompt}", prompt="a", add_bos_token=False)
    image = processor.image_token_id
    ids = processor(text=processor.build_prompt())["input_ids"]
    assert ids == [[image] * 9 + processor.tokenizer("a")["input_ids"][-1:]]


def test_left_padding(processor, photos):
    prompts = ["a", "a dog on the table"]
    batch = processor(images=photos[:2], text=prompts, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    lengths = [len(processor.encode_prompt(prompt)) for prompt in prompts]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["attention_mask"][0].tolist() == [0] * (lengths[1] - lengths[0]) + [1] * lengths[0]
    for ids, prompt, length in zip(batch["input_ids"], prompts, lengths, strict=True):
        assert ids[-length:].tolist() == processor.encode_prompt(prompt)
    wide = processor(images=photos[:2], text=prompts, padding="max_length", max_length=90, return_tensors="pt")
    assert wide["input_ids"].shape == (2, 90)
    assert wide["input_ids"][1, -lengths[1] :].tolist() == processor.encode_prompt(prompts[1])
    ragged = processor(images=photos[:2], text=prompts, padding=False)
    assert [len(ids) for ids in ragged["input_ids"]] == lengths
    with pytest.raises(ValueError, match=f"at least {lengths[1]}"):
        processor(images=photos[:2], text=prompts, padding="max_length", max_length=20)


def test_suffix_makes_labels(processor, photos):
    captions = ["a cat", "a dog on the table"]
    batch = processor(images=photos[:2], suffix=captions, return_tensors="pt")
    prompt = processor.encode_prompt(processor.prompt)
    for ids, mask, labels, caption in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], captions, strict=True
    ):
        tokens = processor.encode_caption(caption)
        assert tokens == processor.tokenizer(caption + "\n", add_special_tokens=False)["input_ids"]
        assert ids[mask.bool()].tolist() == prompt + tokens
        assert labels.tolist() == [-100] * (len(labels) - len(tokens)) + tokens
    one_for_all = processor(images=photos[:2], suffix="a cat", return_tensors="pt")
    assert torch.equal(one_for_all["labels"][0], one_for_all["labels"][1])


def test_long_captions_are_cut_before_their_end(processor):
    whole = processor.encode_caption("a red bus on the street and a traffic light")
    cut = processor.encode_caption("a red bus on the street and a traffic light", max_length=5)
    assert len(cut) == 5 and cut[:4] == whole[:4] and cut[-1] == whole[-1]
    batch = processor(text=["a", "a"], suffix=["a red bus on the street", "a"], max_length=4, return_tensors="pt")
    assert (batch["labels"] >= 0).sum(1).tolist() == [4, len(processor.encode_caption("a"))]


def test_an_image_token_in_a_caption_is_text(processor):
    """A scraped caption must not pass for a photo's place."""
    ids = processor.encode_caption("a <image> of </s> it")
    assert processor.image_token_id not in ids
    assert processor.tokenizer.eos_token_id not in ids


def test_numbers_must_agree(processor, photos):
    with pytest.raises(ValueError, match="3 strings in `text` for 2 photos"):
        processor(images=photos[:2], text=["a", "b", "c"])
    with pytest.raises(ValueError, match="1 strings in `suffix` for 2 photos"):
        processor(images=photos[:2], suffix=["a"])
    with pytest.raises(ValueError, match="`images`, `text` or both"):
        processor()
    with pytest.raises(ValueError, match="empty"):
        processor(images=[])
    with pytest.raises(TypeError, match="`text` must be"):
        processor(images=photos[:2], text=["a", None])
    with pytest.raises(TypeError, match="max_len"):
        processor(text="a", max_len=3)


def test_options_of_tokenizer_and_image_processor(processor, photos):
    """By themselves, in `text_kwargs` and `images_kwargs`, or not at all."""
    prompts = ["a", "a dog on the table"]
    flat = {"padding": "max_length", "max_length": 90, "padding_side": "right", "do_normalize": False}
    text = {name: flat[name] for name in ("padding", "max_length", "padding_side")}
    expected = processor(images=photos[:2], text=prompts, return_tensors="pt", **flat)
    batch = processor(
        images=photos[:2], text=prompts, text_kwargs=text, images_kwargs={"do_normalize": False}, return_tensors="pt"
    )
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    length = len(processor.encode_prompt("a"))
    assert batch["attention_mask"][0].tolist() == [1] * length + [0] * (90 - length)
    assert batch["pixel_values"].min() >= 0
    multiple = processor(images=photos[:2], text=prompts, pad_to_multiple_of=16, return_tensors="pt")
    assert multiple["input_ids"].shape[1] % 16 == 0
    for bad in ({"max_len": 3}, {"text_kwargs": {"max_len": 3}}, {"images_kwargs": {"colour": "red"}}):
        with pytest.raises(TypeError, match="max_len|colour"):
            processor(images=photos[0], **bad)
    with pytest.raises(ValueError, match="two times"):
        processor(images=photos[0], max_length=90, text_kwargs={"max_length": 80})
    with pytest.raises(ValueError, match="no videos"):
        processor(images=photos[0], videos=[photos])
    with pytest.raises(ValueError, match="text_pair cannot be used"):
        processor(images=photos[0], text_pair="a")


def test_truncation_never_cuts_a_photo(processor, photos):
    whole = processor(images=photos[0], suffix="a red bus on the street", return_tensors="pt")
    length = whole["input_ids"].shape[1]
    ids = whole["input_ids"][0].tolist()
    cut = processor(images=photos[0], suffix="a red bus on the street", truncation=True, max_length=length - 2)
    assert cut["input_ids"][0] == [*ids[: length - 3], ids[-1]]  # the caption keeps its end
    photo_end = len(ids) - ids[::-1].index(processor.image_token_id)
    prompt = processor(images=photos[0], truncation=True, max_length=photo_end)
    assert prompt["input_ids"][0] == ids[:photo_end]
    with pytest.raises(ValueError, match=f"which reach to token {photo_end}; give at least {photo_end} or"):
        processor(images=photos[0], truncation=True, max_length=photo_end - 1)


def test_nested_photos_and_text_without_one(processor, photos):
    expected = processor(images=photos[:2], text="a", return_tensors="pt")
    nested = processor(images=[[photos[0]], (photos[1],)], text="a", return_tensors="pt")
    assert all(torch.equal(nested[name], expected[name]) for name in expected)
    mixed = processor(images=[[], [photos[1]]], text=["a dog", "a"], return_tensors="pt")
    assert torch.equal(mixed["pixel_values"], expected["pixel_values"][1:])
    assert mixed["input_ids"][0][mixed["attention_mask"][0].bool()].tolist() == processor.tokenizer("a dog").input_ids
    alone = processor(text=["a dog", "a"], add_special_tokens=False)
    assert alone["input_ids"][0] == processor.tokenizer("a dog", add_special_tokens=False).input_ids
    with pytest.raises(ValueError, match="one photo; got 2"):
        processor(images=[photos[:2]])
    with pytest.raises(ValueError, match="place for a photo, but none"):
        processor(images=[[], [photos[1]]], text=["{image}", "a"])
    with pytest.raises(ValueError, match="neither a photo nor a text"):
        processor(images=[[], [photos[1]]])


def test_sequences_other_than_lists(processor, photos):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [saved(p.resize((64, 64))) for p in photos], "text": ["a"] * 4})
    rows = rows.cast_column("image", datasets.Image())
    expected = processor(images=list(rows["image"]), text=["a"] * 4, suffix=["a"] * 4, return_tensors="pt")
    for images, texts in ((rows["image"], rows["text"]), (tuple(rows["image"]), ("a",) * 4)):
        batch = processor(images=images, text=texts, suffix=texts, return_tensors="pt")
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert len(processor(text=("a", "b"))["input_ids"]) == 2


def test_return_types(processor, photos):
    lists = processor(images=photos[:1])
    arrays = processor(images=photos[:1], return_tensors="np")
    assert isinstance(lists["input_ids"][0], list)
    assert isinstance(arrays["input_ids"], np.ndarray) and arrays["pixel_values"].shape == (1, 3, 56, 56)
    tensors = processor(images=photos[:1], suffix="a", return_tensors="pt").to("cpu", torch.bfloat16)
    assert tensors["pixel_values"].dtype == torch.bfloat16 and tensors["labels"].dtype == torch.long
    assert set(processor.model_input_names) <= set(tensors)


def test_decoding(processor):
    ids = processor.encode_caption("a dog on the table.")
    assert processor.batch_decode([ids], skip_special_tokens=True)[0].strip() == "a dog on the table."
    assert processor.post_process_image_text_to_text(torch.tensor([ids + [2, 2]])) == ["a dog on the table."]


def test_save_and_load(tmp_path, photos):
    settings = {
        "prompt_template": "USER: {image} {prompt} »",
        "prompt": "What is this?",
        "caption_end": " END",
        "add_bos_token": False,
    }
    processor = make_processor(**settings)
    processor.num_prefix_tokens = 5
    processor.save_pretrained(tmp_path)
    loaded = EVCapProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert loaded.num_prefix_tokens == 5 and loaded.image_token_id == processor.image_token_id
    assert loaded.tokenizer.padding_side == "left"
    expected = processor(images=photos, suffix="a cat", return_tensors="pt")
    actual = loaded(images=photos, suffix="a cat", return_tensors="pt")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    names = ["red fox [SEP] owl"]
    assert loaded.name_tokenizer(names)["input_ids"] == processor.name_tokenizer(names)["input_ids"]
    assert len(loaded.tokenizer) == len(processor.tokenizer)  # the image token is not added twice
    loaded.save_pretrained(tmp_path / "again")
    assert EVCapProcessor.from_pretrained(tmp_path / "again").prompt == "What is this?"
