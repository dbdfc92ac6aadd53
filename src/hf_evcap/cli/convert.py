"""`hf-evcap convert`: the reference implementation's files into this package's."""

from __future__ import annotations

import argparse
from typing import Any

from ..output_folders import check_output
from .build_options import add_overwrite


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap convert", description="Convert checkpoints, memories and datastores of the references."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    evcap = kinds.add_parser(
        "evcap",
        help="an EVCap checkpoint",
        description="Convert an EVCap checkpoint: complete, or the one that the reference's training writes (image "
        "queries, object-name queries, projection), on top of a BLIP-2 model and a Vicuna.",
    )
    evcap.add_argument("checkpoint", help="the reference's checkpoint file")
    evcap.add_argument("--out", required=True, help="folder for the converted model, processor and memory")
    evcap.add_argument("--memory", help="the reference's ext_memory.pkl, or a memory folder or Hub id")
    evcap.add_argument(
        "--config",
        help="EVCapConfig as a JSON file, folder, Hub id or name of `hf-evcap configs` (default: the paper's)",
    )
    evcap.add_argument("--llm-tokenizer", help="folder, tokenizer.model or Hub id (default: --language-model's)")
    evcap.add_argument(
        "--name-tokenizer",
        default="google-bert/bert-base-uncased",
        help="folder, vocab.txt or Hub id (default: %(default)s)",
    )
    evcap.add_argument("--blip2", default="Salesforce/blip2-flan-t5-xxl", help="BLIP-2 model (default: %(default)s)")
    evcap.add_argument(
        "--language-model", default="lmsys/vicuna-13b-v1.3", help="language model (default: %(default)s)"
    )
    evcap.add_argument(
        "--fusion-init",
        metavar="blip2|random:SEED",
        help="how to initialise a fusion Q-Former that the checkpoint lacks; without it such a checkpoint is refused, "
        "because the release did not save the fusion it used",
    )
    evcap.add_argument("--dtype", default="auto", help="float32, float16 or bfloat16 (default: as in the checkpoint)")
    smallcap = kinds.add_parser(
        "smallcap",
        help="a SmallCap checkpoint",
        description="Convert a released SmallCap (config.json and pytorch_model.bin, decoder this_gpt2 or this_opt), "
        "such as Yova/SmallCap7M.",
    )
    smallcap.add_argument("checkpoint", help="folder or Hub id")
    smallcap.add_argument("--out", required=True, help="folder for the converted model, processor and datastore")
    smallcap.add_argument("--revision", help="branch, tag or commit of the checkpoint's repo")
    smallcap.add_argument(
        "--tokenizer", help="the decoder's, folder or Hub id (default: the checkpoint's, or that of GPT-2 or OPT)"
    )
    smallcap.add_argument(
        "--clip",
        help="CLIP model of the vision encoder, such as openai/clip-vit-base-patch32; with its projection the model "
        "searches a datastore of that CLIP by itself (without: queries of the release's RN50x64 are given to it)",
    )
    smallcap.add_argument("--datastore", help="datastore folder or Hub id to go with the model")
    smallcap.add_argument("--dtype", default="auto", help="float32, float16 or bfloat16 (default: the checkpoint's)")
    memory = kinds.add_parser(
        "memory",
        help="an EVCap memory",
        description="Convert ext_memory.pkl into a memory folder (nothing is unpickled).",
    )
    memory.add_argument("pickle", help="the reference's ext_memory.pkl")
    memory.add_argument("--out", required=True, help="folder for the memory")
    datastore = kinds.add_parser(
        "datastore",
        help="a SmallCap datastore",
        description="Convert coco_index and coco_index_captions.json into a datastore folder, with the keys as they "
        "are (CLIP RN50x64's). `hf-evcap datastore build` encodes its captions anew for another CLIP.",
    )
    datastore.add_argument("index", help="the reference's coco_index, a flat FAISS index")
    datastore.add_argument("captions", help="its coco_index_captions.json")
    datastore.add_argument("--out", required=True, help="folder for the datastore")
    for kind in (evcap, smallcap, memory, datastore):
        add_overwrite(kind)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Converts and says what became of every key."""
    arguments = make_parser().parse_args(argv)
    from ..conversion import (
        ConversionReport,
        convert_evcap,
        convert_smallcap,
        load_evcap_memory,
        load_smallcap_datastore,
    )
    from ..hub.ready_configs import find_config

    check_output(arguments.out, arguments.overwrite)
    if arguments.kind == "memory":
        memory = load_evcap_memory(arguments.pickle)
        memory.save_pretrained(arguments.out)
        print(f"{memory!r} written to {arguments.out}")
        return 0
    if arguments.kind == "datastore":
        datastore = load_smallcap_datastore(arguments.index, arguments.captions)
        datastore.save_pretrained(arguments.out)
        print(f"{datastore!r} written to {arguments.out}")
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
        _save(smallcap, its_processor, report, arguments.out)
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
    _save(model, processor, report, arguments.out)
    return 0


def _save(model: Any, processor: Any, report: Any, out: str) -> None:
    model.save_pretrained(out)
    print(report)
    if processor is None:
        print("no processor: nothing tells which tokenizer the decoder has; give --tokenizer")
    else:
        processor.save_pretrained(out)
    print(f"written to {out}")
