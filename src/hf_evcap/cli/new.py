"""`hf-evcap new`: a captioner put together from an encoder and a language model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..output_folders import check_output
from ..photo_files import list_photos
from .build_options import add_overwrite


_PHOTOS_TO_FIT = 2000

EXAMPLES = """examples:
  hf-evcap new evcap --encoder Salesforce/blip2-flan-t5-xxl --language-model lmsys/vicuna-13b-v1.3 --out evcap-13b
  hf-evcap new evcap --encoder google/siglip-base-patch16-224 --language-model HuggingFaceTB/SmolLM2-135M-Instruct \\
      --chat-template --fit-vision-space photos/ --out evcap-small
  hf-evcap new smallcap --encoder openai/clip-vit-base-patch32 --decoder openai-community/gpt2 --out smallcap"""


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap new",
        description="Put a captioner together from pretrained parts, ready to be trained. An ID is a folder or a Hub "
        "repo, 'org/name' or 'org/name@revision'.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    evcap = kinds.add_parser(
        "evcap", help="an EVCap", description="Put an EVCap together from an encoder and a language model."
    )
    evcap.add_argument(
        "--encoder",
        required=True,
        metavar="ID",
        help="a BLIP-2, an EVCap (to change its language model), a vision tower (SigLIP, CLIP, DINOv2, ViT, ...), or "
        "a .pth file of an EfficientNet-Lite",
    )
    evcap.add_argument("--memory", help="memory folder or Hub id to go with the model")
    evcap.add_argument(
        "--fusion-init",
        metavar="blip2|random:SEED|ID",
        help="what the fusion Q-Former starts from: the image Q-Former, chance, or an EVCap, a BLIP-2 or a BERT "
        "(default: an EVCap's own, else blip2, or random where the image Q-Former is)",
    )
    evcap.add_argument(
        "--qformer-init",
        metavar="random:SEED|ID",
        default="random:0",
        help="what the image Q-Former of a vision tower starts from: chance, a BERT as BLIP-2 began, or the BLIP-2 or "
        "EVCap of the same tower (default: %(default)s)",
    )
    evcap.add_argument(
        "--name-tokenizer",
        metavar="ID",
        help="tokenizer of the names (default: an EVCap's own; the language model's where it embeds the names, as "
        "with a small tower; else google-bert/bert-base-uncased)",
    )
    evcap.add_argument(
        "--chat-template", action="store_true", help="prompt as the language model's chat template says"
    )
    evcap.add_argument("--prompt", help="what the language model is asked (default: the paper's)")
    evcap.add_argument("--prompt-template", metavar="TEXT", help="text around it, with {image} and {prompt}")
    evcap.add_argument("--caption-end", metavar="TEXT", help="what ends a caption (default: the paper's newline)")
    _add_common(evcap, "--language-model", "any that AutoModelForCausalLM knows, or a .gguf file")
    smallcap = kinds.add_parser(
        "smallcap", help="a SmallCap", description="Put a SmallCap together from a vision encoder and a decoder."
    )
    smallcap.add_argument(
        "--encoder",
        required=True,
        metavar="ID",
        help="a CLIP, another vision tower, or a .pth file of an EfficientNet-Lite",
    )
    smallcap.add_argument("--datastore", dest="memory", help="datastore folder or Hub id to go with the model")
    smallcap.add_argument("--seed", type=int, default=0, help="of the cross-attention (default: %(default)s)")
    _add_common(smallcap, "--decoder", "a GPT-2, OPT, Llama, Qwen, Mistral, Gemma, XGLM, ... or a .gguf file")
    return parser


def _add_common(parser: argparse.ArgumentParser, language_model: str, which: str) -> None:
    parser.add_argument(language_model, dest="language_model", required=True, metavar="ID", help=which)
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file in it that holds the weights")
    parser.add_argument(
        "--fit-vision-space",
        metavar="PHOTOS",
        help="photos to which the retrieval space of a vision tower is fitted, a folder or a dataset as for `hf-evcap "
        "train`; the first 2,000 of them (default: its pooled features are compared as they are)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the model")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="further fields of the model's config, a JSON or YAML file"
    )
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (default: the language model's)")
    parser.add_argument(
        "--frozen",
        choices=("reference", "copy"),
        help="parts from the Hub: only name them, with commit and SHA-256, or copy them (default: reference)",
    )
    add_overwrite(parser)


def main(argv: list[str] | None = None) -> int:
    """Assembles and saves."""
    arguments = make_parser().parse_args(argv)
    check_output(arguments.out, arguments.overwrite)
    assembly, model_class = _assemble(arguments)
    model = assembly.load(model_class, arguments.memory)
    model.save_pretrained(arguments.out, frozen=arguments.frozen)
    assembly.processor.save_pretrained(arguments.out)
    from ..hub.model_card import write_model_card

    write_model_card(arguments.out, repo_id=arguments.out.name, memory=model.memory)
    print(_describe(model, arguments.out))
    return 0


def _read_fields(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    import yaml

    fields = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML, too
    if not isinstance(fields, dict):
        raise ValueError(f"{file} must hold a mapping of config fields, such as `num_name_query_tokens: 16`.")
    return fields


def _assemble(arguments: argparse.Namespace) -> tuple[Any, Any]:
    options = {"gguf_file": arguments.gguf_file, "dtype": arguments.dtype, **_read_fields(arguments.config)}
    if arguments.fit_vision_space is not None:
        options["vision_space_photos"] = _photos(arguments.fit_vision_space)
    parts = (arguments.encoder, arguments.language_model)
    if arguments.kind == "smallcap":
        from ..assembly_smallcap import SmallCapAssembly
        from ..modeling_smallcap import SmallCapForConditionalGeneration
        from ..processing_smallcap import SmallCapProcessor

        smallcap = SmallCapAssembly(SmallCapProcessor, *parts, seed=arguments.seed, **options)
        return smallcap, SmallCapForConditionalGeneration
    from ..assembly_evcap import EVCapAssembly
    from ..modeling_evcap import EVCapForConditionalGeneration
    from ..processing_evcap import EVCapProcessor

    wording = {name: getattr(arguments, name) for name in ("prompt", "prompt_template", "caption_end")}
    evcap = EVCapAssembly(
        EVCapProcessor,
        *parts,
        fusion_init=arguments.fusion_init,
        qformer_init=arguments.qformer_init,
        name_tokenizer=arguments.name_tokenizer,
        use_chat_template=arguments.chat_template,
        processor_options={name: value for name, value in wording.items() if value is not None},
        **options,
    )
    return evcap, EVCapForConditionalGeneration


def _photos(source: str) -> Sequence[Any]:
    """Photos of a folder, or of a dataset."""
    if Path(source).is_dir():
        return list_photos(source)[:_PHOTOS_TO_FIT]
    from ..caption_data import load_caption_data

    dataset = load_caption_data(source, require_captions=False)
    return dataset.select(range(min(len(dataset), _PHOTOS_TO_FIT)))["image"][:]


def _describe(model: Any, out: Path) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"{type(model).__name__} of {total:,} parameters written to {out}"]
    untrained = model.config.untrained_parts or []
    if "qformer" in untrained:
        lines.append(f"Its Q-Formers are untrained: train them, `hf-evcap train --model {out} --policy qformers ...`.")
    if model.memory is None:
        word, what = model.memory_class.store_word, "CAPTIONS" if model.memory_folder == "datastore" else "PHOTOS"
        lines.append(f"It has no {word} yet: `hf-evcap {word} build {what} --model {out} --out {word.upper()}`.")
    return "\n".join(lines)
