"""Tiny models on the Hub under the names of the public ones that the documentation's pages put together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import tiny_smallcap
import torch
from hub_server import Blob, HubServer, Repo
from tiny_models import IMAGE_SIZE, make_name_tokenizer
from tiny_parts import CHAT_TEMPLATE, SIZES, save_language_model, save_tower, text_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def serve(hub: HubServer, repo_id: str, folder: Path) -> None:
    """Puts a folder's files into a repo of the Hub, whoever its owner is."""
    repo = Repo("model", repo_id)
    files = {file.name: Blob(file.read_bytes(), file.suffix in (".safetensors", ".bin")) for file in folder.iterdir()}
    hub.objects.update({blob.sha256: blob.data for blob in files.values() if blob.lfs})
    repo.branches["main"] = repo.store(files, "parts", None)
    hub.repos["model", repo_id] = repo


def write_parts(folder: Path) -> dict[str, Path]:
    """Tiny models by the names of the real ones."""
    torch.manual_seed(0)
    made = {name: folder / name.replace("/", "--") for name in (
        "Salesforce/blip2-flan-t5-xxl", "google-bert/bert-base-uncased", "Yova/SmallCap7M",
        "openai/clip-vit-base-patch32", "openai-community/gpt2", "lmsys/vicuna-13b-v1.3", "Qwen/Qwen2.5-7B",
        "HuggingFaceTB/SmolLM2-135M-Instruct", "google/siglip-base-patch16-224", "facebook/dinov2-base",
    )}  # fmt: skip
    blip2, bert, smallcap, clip, gpt2, vicuna, qwen, smollm2, siglip, dinov2 = made.values()
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    vision = {**SIZES, "image_size": IMAGE_SIZE, "patch_size": 14}
    text = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "vocab_size": 50}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(vision_config=vision, qformer_config={**SIZES, "vocab_size": 50}, text_config=text)
    Blip2ForConditionalGeneration(config).save_pretrained(blip2)
    BlipImageProcessorPil(size=side).save_pretrained(blip2)
    names = make_name_tokenizer()
    BertModel(BertConfig(**SIZES, vocab_size=len(names))).save_pretrained(bert)
    names.save_pretrained(bert)
    decoder = tiny_smallcap.make_config().text_config
    GPT2LMHeadModel(GPT2Config(**{**decoder.to_dict(), "add_cross_attention": False})).save_pretrained(gpt2)
    tiny_smallcap.make_tokenizer().save_pretrained(gpt2)
    write_smallcap(smallcap, clip)
    save_language_model(vicuna, "llama")
    save_language_model(qwen, "qwen2")
    tokenizer = text_tokenizer("bpe")
    tokenizer.chat_template = CHAT_TEMPLATE
    save_language_model(smollm2, "llama", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(smollm2)
    save_tower(siglip, "siglip")
    save_tower(dinov2, "dinov2")
    return made


def write_smallcap(smallcap: Path, clip: Path) -> None:
    """A SmallCap as the reference saves it, and the CLIP that its encoder is from."""
    model = tiny_smallcap.make_model(datastore=False, retrieval_space="external", retrieval_encoder="RN50x64")
    smallcap.mkdir()
    names = {"vision_model.": "encoder.", "language_model.": "decoder."}
    state = {
        re.sub(r"^\w+\.", lambda found: names[found[0]], name): tensor for name, tensor in model.state_dict().items()
    }
    torch.save(state, smallcap / "pytorch_model.bin")
    decoder = {**model.config.text_config.to_dict(), "model_type": "this_gpt2", "cross_attention_reduce_factor": 4}
    raw = {"encoder": model.config.vision_config.to_dict(), "decoder": decoder, "k": 4, "rag": True}
    raw |= {"retrieval_encoder": "RN50x64", "eos_token_id": model.config.eos_token_id, "pad_token_id": 0}
    (smallcap / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    tiny_smallcap.make_tokenizer().save_pretrained(smallcap)
    text = {**SIZES, "vocab_size": 54, "max_position_embeddings": 24, "bos_token_id": 52, "eos_token_id": 53}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=raw["encoder"], projection_dim=16))
    whole.vision_model.load_state_dict(model.vision_model.state_dict())
    whole.save_pretrained(clip)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = smallcap.parent / "vocab.json"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    (smallcap.parent / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(str(vocabulary), str(smallcap.parent / "merges.txt"), model_max_length=24).save_pretrained(clip)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(clip)
