"""A policy that a trainer elsewhere hands weights to and asks for responses: all of ``rlhf serve-policy`` but HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_lightning.models.prepare import frozen
from rlhf_lightning.protocols import ModelSource, Sampler
from rlhf_lightning.samplers._vocabulary import vocabulary_of
from rlhf_lightning.samplers._weights import effective_weights
from rlhf_lightning.serving._http import BadRequest
from rlhf_lightning.serving.sample_requests import Asked
from rlhf_lightning.types import Rollout

T = TypeVar("T")


class ServedPolicy:
    """A model, once it is loaded, and a sampler bound to it.

    Weights come in parts, part 0 first; from then on until the last part nothing can be sampled. A part that comes
    twice (its answer was lost) is laid over itself.

    Args:
        source: Where the model comes from; its weights are not sampled from before a trainer's have come.
        sampler: Draws.
        weights_root: Folder below which safetensors may be read on request; None reads none.
    """

    def __init__(self, source: ModelSource, sampler: Sampler, *, weights_root: Path | None = None) -> None:
        self._source = source
        self.identity, self.sampler, self.weights_root = source.identity(), sampler, weights_root
        self._tokenizer, config = source.tokenizer(), source.config()
        sampler.check(self._tokenizer, config)
        self.vocabulary = vocabulary_of(self._tokenizer, config)
        self._model: Any = None
        self._tensors: dict[str, Tensor] = {}
        self.version: int | None = None
        self._incoming, self._next = -1, 0
        self._missing: set[str] = set()
        self._hand = ThreadPoolExecutor(1, thread_name_prefix="policy")

    def load(self, device: torch.device) -> None:
        """Loads the model.

        Args:
            device: Where it is to live; an engine of another program may live elsewhere.
        """
        self._model = frozen(self._source.load()).to(device)  # type: ignore[arg-type]
        self._tensors = dict(effective_weights(self._model))
        self.sampler.bind(self._model, self._tokenizer)

    def health(self) -> dict[str, Any]:
        """Which policy this is, and which weights it has."""
        dtypes = {self._model.dtype, getattr(self.sampler, "dtype", None) or self._model.dtype}
        return {
            "model": self.identity,
            "vocabulary": self.vocabulary.plain(),
            "dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in dtypes),
            "sampler": type(self.sampler).__name__,
            "weights_version": self.version,
        }

    def take(self, tensors: Mapping[str, Tensor], *, version: int, part: int, last: bool) -> None:
        """Lays weights over the model's.

        Raises:
            BadRequest: If they are not the model's, or not what comes next.
            RLHFError: If the sampler refuses them.
        """
        self._at_hand(lambda: self._take(tensors, version, part, last))

    def take_folder(self, folder: str, *, version: int) -> None:
        """As :meth:`take`, all at once out of the safetensors files of a folder.

        Raises:
            BadRequest: If it is not below ``weights_root``, or has none.
        """
        files = self._files(folder)
        self._at_hand(lambda: self._take_files(files, version))

    def sample(self, asked: Asked) -> Rollout:
        """The responses.

        Raises:
            StaleError: If the weights are not those that were asked for.
        """
        return self._at_hand(lambda: self._sample(asked))

    def close(self) -> None:
        """Ends the thread that works."""
        self._hand.shutdown(wait=False, cancel_futures=True)

    def _at_hand(self, work: Callable[[], T]) -> T:
        """In the one thread that ever touches model and engine: their own threads belong to it."""
        return self._hand.submit(work).result()

    def _sample(self, asked: Asked) -> Rollout:
        if self.version != asked.version:
            raise StaleError(f"the weights here are of version {self.version}, {asked.version} was asked for")
        return self.sampler(
            asked.prompts, samples_per_prompt=asked.samples_per_prompt, seeds=asked.seeds, params=asked.params
        )

    @torch.no_grad()
    def _take(self, tensors: Mapping[str, Tensor], version: int, part: int, last: bool) -> None:
        self._begin(version, part)
        for name, tensor in tensors.items():
            own = self._tensors.get(name)
            if own is None or own.shape != tensor.shape:
                here = "there is none" if own is None else f"it has {tuple(own.shape)} here"
                raise BadRequest(f"weight {name!r} of shape {tuple(tensor.shape)} does not fit: {here}")
            own.copy_(tensor)
            self._missing.discard(name)
        self._next = part + 1
        if last:
            self._finish(version)

    def _begin(self, version: int, part: int) -> None:
        if part == 0:
            self.version, self._incoming, self._missing = None, version, set(self._tensors)
        elif version != self._incoming or part not in (self._next, self._next - 1):
            raise BadRequest(f"part {part} of version {version} is not what comes next: begin again with part 0")

    def _finish(self, version: int) -> None:
        if self._missing:
            raise BadRequest(f"{len(self._missing)} weights did not come, first {min(self._missing)!r}")
        self.sampler.sync(version)
        self.version = version

    def _take_files(self, files: list[Path], version: int) -> None:
        from safetensors import safe_open

        for number, file in enumerate(files):
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            self._take(tensors, version, number, last=number == len(files) - 1)

    def _files(self, folder: str) -> list[Path]:
        if self.weights_root is None:
            raise BadRequest("this server reads no folders: it was started without --weights_root")
        path = Path(folder).resolve()
        if not path.is_relative_to(self.weights_root.resolve()):
            raise BadRequest(f"{folder} is not below this server's weights_root")
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise BadRequest(f"{folder} holds no .safetensors files")
        return files


class StaleError(Exception):
    """The weights here are not those that were asked for."""
