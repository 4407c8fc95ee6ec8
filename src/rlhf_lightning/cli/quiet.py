"""Keeps what our libraries say by default off the screen, where it is no news to the user."""

from __future__ import annotations

import logging
import os
import warnings

_KNOWN = (
    r".*You have overridden `transfer_batch_to_device`",  # ours moves our frozen dataclasses
    r".*module\(s\) in eval mode at the start of training",  # the module sets the mode itself, rollout and update
    r".*Total length of `list` across ranks is zero",  # no validation loop during fit: HeldOutEval measures
    r".*You defined a `validation_step` but have no `val_dataloader`",
    r".*does not have many workers",  # prompts are in memory already
    r".*isinstance\(treespec, LeafSpec\)",
)


def quieten() -> None:
    """Hides Lightning's tips, weight-loading bars, and warnings about what is so by design."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("DeepSpeed").addFilter(_not_about_the_cpu)  # where it is installed, other libraries import it
    for pattern in _KNOWN:
        warnings.filterwarnings("ignore", message=pattern)


def _not_about_the_cpu(record: logging.LogRecord) -> bool:
    return "accelerator to CPU" not in record.getMessage()
