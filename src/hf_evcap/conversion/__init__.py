"""Reads the reference implementations' checkpoints and memories."""

from .evcap import ConversionReport, convert_evcap
from .reference_memory import load_evcap_memory


__all__ = ["ConversionReport", "convert_evcap", "load_evcap_memory"]
