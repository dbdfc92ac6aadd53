"""`hf-evcap env`: versions and devices, to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import platform

from .verb_parser import VerbParser


_PACKAGES = (
    "hf_evcap",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "faiss-cpu",
    "Pillow",
    "peft",
    "evaluate",
    "torchvision",
    "bitsandbytes",
)


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap env", description="Print versions and devices for a bug report.", examples=["env"]
    )
    parser.add_common()
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints versions, devices and the embedded model's identity."""
    make_parser().parse_args(argv)
    import torch
    from transformers import AutoConfig

    import hf_evcap

    print(f"- platform: {platform.platform()}")
    print(f"- python: {platform.python_version()}")
    for package in _PACKAGES:
        try:
            print(f"- {package}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"- {package}: not installed")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"- GPUs: {', '.join(devices) or 'none'}")
    print(f"- CPU threads of torch: {torch.get_num_threads()}")
    fingerprint = AutoConfig.from_pretrained(hf_evcap.default_model()).encoder_fingerprint
    print(f"- embedded default model: encoder {fingerprint[:12]}")
    return 0
