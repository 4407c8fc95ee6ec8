"""What goes to several policy servers and what comes back: bundles of weights, groups of prompts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning.axes import join
from rlhf_lightning.errors import RLHFError
from rlhf_lightning.samplers._policy_client import BYTES, JSON, PolicyServer, Wanted
from rlhf_lightning.samplers._weights import NamedTensors, buckets, effective_weights, with_last
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Body = tuple[bytes, str, bool]
"""A request's body, its content type, and whether it is the last one."""


@dataclass(frozen=True)
class Parcel:
    """How weights travel.

    Attributes:
        bucket_bytes: Most bytes a request, unless one tensor is larger.
        dtype: Type to send them in; None is their own.
        folder: Shared folder that they are written to instead of sent; None sends them.
    """

    bucket_bytes: int
    dtype: torch.dtype | None
    folder: str | None

    def bodies(self, model: PreTrainedModel, version: int) -> Iterator[Body]:
        """The requests that hand a policy's weights over, as safetensors; one bundle is held at a time."""
        from safetensors.torch import save, save_file

        bundles = buckets(_cast(effective_weights(model), self.dtype), self.bucket_bytes)
        if self.folder is None:
            yield from ((save(bundle), BYTES, last) for bundle, last in with_last(bundles))
            return
        root = Path(self.folder).expanduser()
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"version-{version}-", dir=root) as folder:
            for number, bundle in enumerate(bundles):
                save_file(bundle, Path(folder) / f"model-{number:05}.safetensors")
            yield json.dumps({"path": str(Path(folder).resolve())}).encode(), JSON, True


def hand_over(
    servers: Sequence[PolicyServer], bodies: Iterable[Body], version: int
) -> tuple[list[PolicyServer], list[str]]:
    """Every body to all servers at once.

    Returns:
        The servers that took all of them, and why the others did not.
    """
    ready, causes = list(servers), []
    with ThreadPoolExecutor(len(servers)) as pool:
        for part, (body, kind, last) in enumerate(bodies):
            sent = [pool.submit(s.push, body, version=version, part=part, last=last, kind=kind) for s in ready]
            errors = [future.exception() for future in sent]
            for error in errors:
                if error is not None and not isinstance(error, RLHFError):
                    raise error
            causes += [str(error) for error in errors if error is not None]
            ready = [server for server, error in zip(ready, errors, strict=True) if error is None]
            if not ready:
                break
    return ready, causes


def cut(
    prompts: Sequence[Prompt], seeds: Tensor, *, samples: int, parts: int, params: SamplingParams, version: int
) -> list[Wanted]:
    """A rollout's groups in at most ``parts`` requests of about the same number.

    Raises:
        ValueError: If the number of seeds is not P·G or a prompt is empty.
    """
    if seeds.shape != (len(prompts) * samples,):
        raise ValueError(f"{len(prompts)}·{samples} seeds expected, got shape {tuple(seeds.shape)}")
    empty = [number for number, prompt in enumerate(prompts) if not prompt.tokens]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens")
    numbers, size = seeds.tolist(), max(1, -(-len(prompts) // max(1, parts)))
    shares = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    return [
        Wanted(
            ids=tuple(share),
            prompts=tuple(prompts[i].tokens for i in share),
            samples=samples,
            seeds=tuple(numbers[share.start * samples : share.stop * samples]),
            params=params,
            version=version,
        )
        for share in shares
    ]


def in_order(answers: Sequence[tuple[tuple[int, ...], Rollout]], groups: int) -> Rollout:
    """One rollout of the answers' groups, by their numbers.

    Raises:
        RuntimeError: If a group is missing or there twice.
    """
    found = sorted(answers, key=lambda answer: answer[0])
    if [number for ids, _ in found for number in ids] != list(range(groups)):
        raise RuntimeError("a group of the rollout is missing or there twice")
    return join([rollout for _, rollout in found])


def _cast(weights: NamedTensors, dtype: torch.dtype | None) -> NamedTensors:
    for name, tensor in weights:
        yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
