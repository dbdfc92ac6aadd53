"""`hf-evcap new`: a captioner put together from an encoder and a language model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..output_folders import check_output
from ..photo_files import list_photos
from . import logs
from .common_options import add_output, add_overwrite, add_seed, alias
from .options import dtype_or_auto, existing_file, start
from .sources import check_part, check_store
from .verb_parser import VerbParser
from .yaml_config import read_yaml


_PHOTOS_TO_FIT = 2000

EVCAP_EXAMPLES = (
    "new evcap --encoder Salesforce/blip2-flan-t5-xxl --language-model lmsys/vicuna-13b-v1.3 --output evcap-13b",
    "new evcap --encoder google/siglip-base-patch16-224 --language-model HuggingFaceTB/SmolLM2-135M-Instruct \\\n"
    "      --chat-template --fit-vision-space photos/ --output evcap-small",
)
SMALLCAP_EXAMPLES = (
    "new smallcap --encoder openai/clip-vit-base-patch32 --decoder openai-community/gpt2 --output smallcap",
)


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap new",
        description="Put a captioner together from pretrained parts, ready to be trained. An ID is a folder or a Hub "
        "repo, org/name or org/name@revision.",
        examples=[*EVCAP_EXAMPLES, *SMALLCAP_EXAMPLES],
        epilog="`hf-evcap new KIND --help` tells a kind's options.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", title="kinds")
    evcap = kinds.add_parser(
        "evcap",
        help="an EVCap",
        description="Put an EVCap together from an encoder and a language model. An ID is a folder or a Hub repo, "
        "org/name or org/name@revision.",
        examples=EVCAP_EXAMPLES,
    )
    evcap.add_argument(
        "--encoder",
        required=True,
        metavar="ID",
        help="a BLIP-2, an EVCap (to change its language model), a vision tower (SigLIP, CLIP, DINOv2, ViT, ...), or "
        "a .pth file of an EfficientNet-Lite",
    )
    _add_parts(evcap, "--language-model", "any that AutoModelForCausalLM knows, or a .gguf file")
    evcap.add_argument("--memory", metavar="MEMORY", help="memory to go with the model: folder or Hub id")
    evcap.add_argument(
        "--fusion-init",
        type=start("blip2"),
        metavar="blip2|random:SEED|ID",
        help="what the fusion Q-Former starts from: the image Q-Former, chance, or an EVCap, a BLIP-2 or a BERT "
        "(default: an EVCap's own, else blip2, or random where the image Q-Former is)",
    )
    evcap.add_argument(
        "--qformer-init",
        type=start(),
        metavar="random:SEED|ID",
        default="random:0",
        help="what the image Q-Former of a vision tower starts from: chance, a BERT as BLIP-2 began, or the BLIP-2 or "
        "EVCap of the same tower",
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
    evcap.add_argument("--prompt", metavar="TEXT", help="what the language model is asked (default: the paper's)")
    evcap.add_argument(
        "--prompt-template",
        metavar="TEXT",
        help="text around it, with {image} and {prompt} (default: the paper's, or of --chat-template)",
    )
    evcap.add_argument("--caption-end", metavar="TEXT", help="what ends a caption (default: the paper's newline)")
    _add_common(evcap)
    smallcap = kinds.add_parser(
        "smallcap",
        help="a SmallCap",
        description="Put a SmallCap together from a vision encoder and a decoder. An ID is a folder or a Hub repo, "
        "org/name or org/name@revision.",
        examples=SMALLCAP_EXAMPLES,
    )
    smallcap.add_argument(
        "--encoder",
        required=True,
        metavar="ID",
        help="a CLIP, another vision tower, or a .pth file of an EfficientNet-Lite",
    )
    _add_parts(smallcap, "--decoder", "a GPT-2, OPT, Llama, Qwen, Mistral, Gemma, XGLM, ... or a .gguf file")
    smallcap.add_argument("--memory", metavar="DATASTORE", help="datastore to go with the model: folder or Hub id")
    alias(smallcap, "--memory", "--datastore")
    add_seed(smallcap, "the cross-attention")
    _add_common(smallcap)
    return parser


def _add_parts(parser: VerbParser, language_model: str, which: str) -> None:
    parser.add_argument(language_model, dest="language_model", required=True, metavar="ID", help=which)
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file in it that holds the weights")


def _add_common(parser: VerbParser) -> None:
    parser.add_argument(
        "--fit-vision-space",
        metavar="PHOTOS",
        help="photos to which the retrieval space of a vision tower is fitted, a folder or a dataset as for `hf-evcap "
        "train`; the first 2,000 of them (default: its pooled features are compared as they are)",
    )
    add_output(parser, "the model")
    parser.add_argument(
        "--model-config",
        dest="config",
        type=existing_file,
        metavar="FILE",
        help="further fields of the model's config, a JSON or YAML file",
    )
    alias(parser, "--model-config", "--config")
    parser.add_argument(
        "--dtype",
        type=dtype_or_auto,
        default="auto",
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: the language model's)",
    )
    parser.add_argument(
        "--frozen",
        choices=("reference", "copy"),
        help="parts from the Hub: only name them, with commit and SHA-256, or copy them (default: reference)",
    )
    add_overwrite(parser)
    parser.add_common()


def main(argv: list[str] | None = None) -> int:
    """Assembles and saves."""
    arguments = make_parser().parse_args(argv)
    output = Path(arguments.output)
    check_output(output, arguments.overwrite)
    fields = _read_fields(arguments.config)
    check_store(arguments.memory, "memory" if arguments.kind == "evcap" else "datastore")
    check_part(arguments.encoder)
    check_part(arguments.language_model, arguments.gguf_file)
    logs.settle()
    assembly, model_class = _assemble(arguments, fields)
    model = assembly.load(model_class, arguments.memory)
    model.save_pretrained(output, frozen=arguments.frozen)
    assembly.processor.save_pretrained(output)
    from ..hub.model_card import write_model_card

    write_model_card(output, repo_id=output.name, memory=model.memory)
    print(_describe(model, output))
    return 0


def _read_fields(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    fields = read_yaml(file)  # JSON is YAML, too
    if not isinstance(fields, dict):
        raise ValueError(f"{file} must hold a mapping of config fields, such as `num_name_query_tokens: 16`.")
    return fields


def _assemble(arguments: argparse.Namespace, fields: dict[str, Any]) -> tuple[Any, Any]:
    options = {"gguf_file": arguments.gguf_file, "dtype": arguments.dtype, **fields}
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
        lines.append(f"It has no {word} yet: `hf-evcap {word} build {what} --model {out} --output {word.upper()}`.")
    return "\n".join(lines)
