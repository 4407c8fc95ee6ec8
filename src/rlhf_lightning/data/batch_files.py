"""One update's micro-batches in a safetensors file: tensors as they are, numbers in the file's metadata, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_lightning.errors import DataError
from rlhf_lightning.types import PackedSequences, UpdateBatch

FORMAT = "rlhf-lightning update 1"
"""What the metadata must say under ``format``."""


def save_update(path: Path, batches: Sequence[UpdateBatch], note: Mapping[str, Any]) -> None:
    """Writes an update aside, then renames it into place.

    Args:
        path: The file; its folder is made.
        batches: The update's micro-batches. Tensor ``advantages`` of the first stands under ``0/advantages``.
        note: Plain values to keep with it.
    """
    tensors: dict[str, Tensor] = {}
    scalars: list[dict[str, float]] = []
    for number, batch in enumerate(batches):
        values = _flat(batch)
        tensors |= {f"{number}/{key}": v.cpu().clone() for key, v in values.items() if isinstance(v, Tensor)}
        scalars.append({key: value for key, value in values.items() if isinstance(value, int | float)})
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    save_file(tensors, aside, {"format": FORMAT, "note": json.dumps(dict(note)), "scalars": json.dumps(scalars)})
    aside.replace(path)


def load_update(path: Path) -> tuple[list[UpdateBatch], dict[str, Any]]:
    """Reads what :func:`save_update` wrote.

    Returns:
        The micro-batches, on the CPU, and the note.

    Raises:
        DataError: If the file is missing, is not a safetensors file, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f"{path} holds no update: its metadata has no format {FORMAT!r}")
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    scalars = json.loads(metadata["scalars"])
    return [_batch(number, own, tensors) for number, own in enumerate(scalars)], json.loads(metadata["note"])


def _flat(batch: UpdateBatch) -> dict[str, Any]:
    own = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "packed"}
    return own | {f"packed.{field.name}": getattr(batch.packed, field.name) for field in fields(batch.packed)}


def _batch(number: int, scalars: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> UpdateBatch:
    prefix = f"{number}/"
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    packed = PackedSequences(**{field.name: own.pop(f"packed.{field.name}") for field in fields(PackedSequences)})
    return UpdateBatch(packed=packed, **{"ref_logprobs": None, **own, **scalars})
