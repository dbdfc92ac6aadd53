"""`hf-evcap convert`: the reference implementation's files into this package's."""

from __future__ import annotations

import os
from typing import Any

from ..output_folders import check_output
from ..weight_files import check_weight_file
from . import logs
from .common_options import add_output, add_overwrite, alias
from .options import dtype_or_auto, existing_file, start
from .sources import check_model, check_store
from .verb_parser import VerbParser


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap convert",
        description="Convert checkpoints, memories and datastores of the references.",
        examples=[
            "convert evcap CHECKPOINT.pth --memory ext_memory.pkl --fusion-init random:0 --output evcap-13b",
            "convert smallcap Yova/SmallCap7M --output smallcap-7m",
        ],
        epilog="`hf-evcap convert KIND --help` tells a kind's options.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", title="kinds")
    evcap = kinds.add_parser(
        "evcap",
        help="an EVCap checkpoint",
        description="Convert an EVCap checkpoint: complete, or the one that the reference's training writes (image "
        "queries, object-name queries, projection), on top of a BLIP-2 model and a Vicuna.",
        examples=[
            "convert evcap CHECKPOINT.pth --memory ext_memory.pkl --fusion-init random:0 --output evcap-13b",
            "convert evcap WHOLE.pth --model-config evcap-vicuna-7b --output evcap-7b",
        ],
    )
    evcap.add_argument("checkpoint", type=existing_file, metavar="CHECKPOINT", help="the reference's checkpoint file")
    add_output(evcap, "the converted model, processor and memory")
    evcap.add_argument(
        "--memory", metavar="MEMORY", help="the reference's ext_memory.pkl, or a memory folder or Hub id"
    )
    evcap.add_argument(
        "--model-config",
        dest="config",
        metavar="CONFIG",
        help="EVCapConfig as a JSON file, folder, Hub id or name of `hf-evcap configs` (default: the paper's)",
    )
    alias(evcap, "--model-config", "--config")
    evcap.add_argument(
        "--llm-tokenizer", metavar="ID", help="folder, tokenizer.model or Hub id (default: --language-model's)"
    )
    evcap.add_argument(
        "--name-tokenizer", metavar="ID", default="google-bert/bert-base-uncased", help="folder, vocab.txt or Hub id"
    )
    evcap.add_argument("--blip2", metavar="ID", default="Salesforce/blip2-flan-t5-xxl", help="BLIP-2 model")
    evcap.add_argument("--language-model", metavar="ID", default="lmsys/vicuna-13b-v1.3", help="language model")
    evcap.add_argument(
        "--fusion-init",
        type=start("blip2", sources=False),
        metavar="blip2|random:SEED",
        help="how to initialise a fusion Q-Former that the checkpoint lacks; without it such a checkpoint is refused, "
        "because the release did not save the fusion it used",
    )
    _add_dtype(evcap)
    smallcap = kinds.add_parser(
        "smallcap",
        help="a SmallCap checkpoint",
        description="Convert a released SmallCap (config.json and pytorch_model.bin, decoder this_gpt2 or this_opt), "
        "such as Yova/SmallCap7M.",
        examples=[
            "convert smallcap Yova/SmallCap7M --clip openai/clip-vit-base-patch32 --memory coco --output smallcap-7m"
        ],
    )
    smallcap.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id")
    add_output(smallcap, "the converted model, processor and datastore")
    smallcap.add_argument("--revision", metavar="REV", help="branch, tag or commit of the checkpoint's repo")
    smallcap.add_argument(
        "--tokenizer",
        metavar="ID",
        help="the decoder's, folder or Hub id (default: the checkpoint's, or that of GPT-2 or OPT)",
    )
    smallcap.add_argument(
        "--clip",
        metavar="CLIP",
        help="CLIP model of the vision encoder, such as openai/clip-vit-base-patch32; with its projection the model "
        "searches a datastore of that CLIP by itself (without: queries of the release's RN50x64 are given to it)",
    )
    smallcap.add_argument(
        "--memory", dest="datastore", metavar="DATASTORE", help="datastore folder or Hub id to go with the model"
    )
    alias(smallcap, "--memory", "--datastore")
    _add_dtype(smallcap)
    memory = kinds.add_parser(
        "memory",
        help="an EVCap memory",
        description="Convert ext_memory.pkl into a memory folder (nothing is unpickled).",
        examples=["convert memory ext_memory.pkl --output lvis"],
    )
    memory.add_argument("pickle", type=existing_file, metavar="FILE", help="the reference's ext_memory.pkl")
    add_output(memory, "the memory")
    datastore = kinds.add_parser(
        "datastore",
        help="a SmallCap datastore",
        description="Convert coco_index and coco_index_captions.json into a datastore folder, with the keys as they "
        "are (CLIP RN50x64's). `hf-evcap datastore build` encodes its captions anew for another CLIP.",
        examples=["convert datastore coco_index coco_index_captions.json --output coco"],
    )
    datastore.add_argument(
        "index", type=existing_file, metavar="INDEX", help="the reference's coco_index, a flat FAISS index"
    )
    datastore.add_argument("captions", type=existing_file, metavar="CAPTIONS", help="its coco_index_captions.json")
    add_output(datastore, "the datastore")
    for kind in (evcap, smallcap, memory, datastore):
        add_overwrite(kind)
        kind.add_common()
    return parser


def _add_dtype(parser: VerbParser) -> None:
    parser.add_argument(
        "--dtype",
        type=dtype_or_auto,
        default="auto",
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: as in the checkpoint)",
    )


def main(argv: list[str] | None = None) -> int:
    """Converts and says what became of every key."""
    arguments = make_parser().parse_args(argv)
    check_output(arguments.output, arguments.overwrite)
    if arguments.kind == "smallcap":
        check_model(arguments.checkpoint, arguments.revision)
        check_store(arguments.datastore, "datastore")
    elif arguments.kind == "evcap":
        check_weight_file(arguments.checkpoint)
        if arguments.memory is not None and not os.path.isfile(arguments.memory):
            check_store(arguments.memory)
    from ..conversion import (
        ConversionReport,
        convert_evcap,
        convert_smallcap,
        load_evcap_memory,
        load_smallcap_datastore,
    )
    from ..hub.ready_configs import find_config

    logs.settle()
    if arguments.kind == "memory":
        memory = load_evcap_memory(arguments.pickle)
        memory.save_pretrained(arguments.output)
        print(f"{memory!r} written to {arguments.output}")
        return 0
    if arguments.kind == "datastore":
        datastore = load_smallcap_datastore(arguments.index, arguments.captions)
        datastore.save_pretrained(arguments.output)
        print(f"{datastore!r} written to {arguments.output}")
        return 0
    report = ConversionReport()
    if arguments.kind == "smallcap":
        smallcap, its_processor = convert_smallcap(
            arguments.checkpoint,
            tokenizer=arguments.tokenizer,
            clip=arguments.clip,
            datastore=arguments.datastore,
            revision=arguments.revision,
            dtype=arguments.dtype,
            report=report,
        )
        _save(smallcap, its_processor, report, arguments.output)
        return 0
    model, processor = convert_evcap(
        arguments.checkpoint,
        config=arguments.config and find_config(arguments.config),
        llm_tokenizer=arguments.llm_tokenizer,
        name_tokenizer=arguments.name_tokenizer,
        memory=arguments.memory,
        blip2=arguments.blip2,
        language_model=arguments.language_model,
        fusion_init=arguments.fusion_init,
        dtype=arguments.dtype,
        report=report,
    )
    _save(model, processor, report, arguments.output)
    return 0


def _save(model: Any, processor: Any, report: Any, out: str) -> None:
    model.save_pretrained(out)
    print(report)
    if processor is None:
        print("no processor: nothing tells which tokenizer the decoder has; give --tokenizer")
    else:
        processor.save_pretrained(out)
    print(f"written to {out}")
