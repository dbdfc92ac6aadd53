"""Reads the reference implementations' checkpoints, memories and datastores."""

from .evcap import ConversionReport, convert_evcap
from .reference_datastore import load_smallcap_datastore
from .reference_memory import load_evcap_memory


__all__ = ["ConversionReport", "convert_evcap", "load_evcap_memory", "load_smallcap_datastore"]
