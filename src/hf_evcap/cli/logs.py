"""How much the libraries say: `-q` and `-v`, which every verb has."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ..shown_text import shown


QUIET, USUAL, VERBOSE = "quiet", "usual", "verbose"
_chosen = USUAL


def choose(level: str) -> None:
    """Sets what `-q` and `-v` ask for; the entry point does so before the verb runs."""
    global _chosen
    _chosen = level


def settle(hushed: bool = False) -> None:
    """
    Sets the loggers and progress bars of the Hugging Face libraries, which are imported for it; verbs call it when
    their arguments are right and work begins.

    Args:
        hushed (`bool`, *optional*, defaults to `False`): The verb tells what is wrong itself, so that warnings and
            bars come with `-v` only.
    """
    if _chosen == USUAL and not hushed:
        return
    import datasets
    import huggingface_hub.utils
    import transformers

    if _chosen == VERBOSE:
        level, bars = logging.INFO, True
    else:
        level, bars = logging.ERROR, False
    transformers.utils.logging.set_verbosity(level)
    logging.getLogger("hf_evcap").setLevel(level)
    if _chosen != USUAL:
        datasets.logging.set_verbosity(level)
        huggingface_hub.utils.logging.set_verbosity(level)
    for switch in (
        (transformers.utils.logging.enable_progress_bar, transformers.utils.logging.disable_progress_bar),
        (datasets.enable_progress_bars, datasets.disable_progress_bars),
        (huggingface_hub.utils.enable_progress_bars, huggingface_hub.utils.disable_progress_bars),
    ):
        switch[0 if bars else 1]()


class _ShownRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - the name is logging's
        return shown(super().getMessage())


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """What any library logs meanwhile has its control characters written out: it names names, files and ids."""
    earlier = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_ShownRecord)
    try:
        yield
    finally:
        logging.setLogRecordFactory(earlier)


def bars_shown() -> bool:
    """Whether a verb shows a progress bar of its own, on a terminal."""
    return _chosen != QUIET


__all__ = ["QUIET", "USUAL", "VERBOSE", "bars_shown", "choose", "settle", "written_out"]
