"""Reads the reference implementations' checkpoints, memories and datastores."""

from .conversion_report import ConversionReport
from .evcap import convert_evcap
from .reference_datastore import load_smallcap_datastore
from .reference_memory import load_evcap_memory
from .smallcap import convert_smallcap


__all__ = ["ConversionReport", "convert_evcap", "convert_smallcap", "load_evcap_memory", "load_smallcap_datastore"]
