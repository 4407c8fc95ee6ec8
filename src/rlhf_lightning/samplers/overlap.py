"""A sampler that draws one rollout in the background, from weights that the policy has meanwhile moved on from."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.axes import to_device
from rlhf_lightning.holdings import Decoding
from rlhf_lightning.protocols import FurtherPrompts, Sampler
from rlhf_lightning.samplers.wrappers import SamplerWrapper
from rlhf_lightning.types import Prompt, Rollout, SamplingParams, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PATIENCE = 5.0
"""Seconds that a draw nobody wants any more is waited for; one that hangs longer ends with the process."""


class OverlapSampler(SamplerWrapper):
    """Another sampler, and at most one call of it that was begun before it is asked for.

    ``begin`` starts the call in a thread, with the weights of the last ``sync``; the call with the same seeds then
    gives what was drawn. Whatever else is asked of the sampler waits for the thread first, so the sampler inside never
    does two things at once, and what it draws is a function of weights and seeds, whenever it is drawn.

    Args:
        sampler: Draws on this rank, without a word to the others.

    Attributes:
        speed: Tokens a second of the last draw in the background; None when what is there came from a checkpoint.

    Raises:
        ConfigError: If the sampler cannot hold weights while the policy trains.
    """

    def __init__(self, sampler: Sampler) -> None:
        sampler.hold_weights()
        super().__init__(sampler)
        self.speed: float | None = None
        self._draw: _Draw | None = None
        self._ready: tuple[Tensor, Rollout] | None = None
        self._model: PreTrainedModel | None = None
        self._told: Callable[[int], None] | None = None

    @property
    def on_tokens(self) -> Callable[[int], None] | None:  # type: ignore[override]
        """Told of what is drawn while the caller waits; of nothing that is drawn in the background."""
        return self._told

    @on_tokens.setter
    def on_tokens(self, told: Callable[[int], None] | None) -> None:
        """Tells the sampler inside."""
        self._told = self.sampler.on_tokens = told

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Binds the sampler inside, with a tokenizer of its own: they are not made for two threads."""
        self._model = model
        super().bind(model, copy.deepcopy(tokenizer))

    def decoding(self) -> Decoding | None:
        """As the sampler inside, all through training."""
        found = self.sampler.decoding()
        return None if found is None else replace(found, ahead=True, sleeps=False)

    def hold_weights(self) -> None:
        """Asked already."""

    def wrap_drawing(self, wrapper: Callable[[Sampler], Sampler]) -> Sampler:
        """Puts it around itself: what is drawn in the background is drawn without a word to the other ranks."""
        return wrapper(self)

    def refill(
        self, rollout: Rollout, scores: Scores, *, further: FurtherPrompts, score: Callable[[Rollout], Scores]
    ) -> tuple[Rollout, Scores, Mapping[str, float]]:
        """Refilled by the sampler inside, once nothing is drawn in the background."""
        self._settle()
        return self.sampler.refill(rollout, scores, further=further, score=score)

    def sync(self, weights_version: int) -> None:
        """Syncs the sampler inside, once nothing is drawn with the weights it has."""
        self._settle()
        super().sync(weights_version)

    def release(self) -> None:
        """Releases the sampler inside, unless it is drawing."""
        if self._draw is None:
            self.sampler.release()

    def begin(self, prompts: Sequence[Prompt], *, samples_per_prompt: int, seeds: Tensor) -> None:
        """Starts a call; its arguments are those of :meth:`__call__`."""
        self._settle()
        call = partial(self.sampler, prompts, samples_per_prompt=samples_per_prompt, seeds=seeds)
        self._ready, self._draw = None, _Draw(call, seeds, self._device)
        self.sampler.on_tokens = self._draw.told
        self._draw.start()

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """What was drawn ahead if it is what is asked for, and else what the sampler inside draws now.

        Raises:
            Exception: What the draw in the background has raised, with its traceback.
        """
        rollout = self.waiting()
        if rollout is not None and params is None and self._is_ready(seeds):
            self._ready = None
            return to_device(rollout, self._device)
        return super().__call__(prompts, samples_per_prompt=samples_per_prompt, seeds=seeds, params=params)

    def waiting(self) -> Rollout | None:
        """What was drawn and not asked for yet, once it is there.

        Raises:
            Exception: As in a call.
        """
        self._settle()
        return None if self._ready is None else self._ready[1]

    def put(self, rollout: Rollout, seeds: Tensor) -> None:
        """Takes a rollout for the one that was begun with these seeds; it was, before the run was interrupted."""
        self._settle()
        self._ready, self.speed = (seeds, rollout), None

    def drop(self) -> None:
        """Ends what is being drawn, and forgets it."""
        self._ready = None
        if self._draw is not None and self._draw.cancel(PATIENCE):
            self._settle()

    def _settle(self) -> None:
        """Waits for the thread; what it drew is ready then."""
        if self._draw is None:
            return
        self._draw.wait()
        draw, self._draw, self.sampler.on_tokens = self._draw, None, self._told
        if not draw.cancelled:
            rollout = draw.result()
            self._ready, self.speed = (draw.seeds, rollout), int(rollout.mask.sum()) / max(draw.seconds, 1e-9)

    def __getstate__(self) -> dict[str, Any]:
        """With what was drawn, once it is there; a thread cannot be copied."""
        self._settle()
        return self.__dict__

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self._model is None else self._model.device

    def _is_ready(self, seeds: Tensor) -> bool:
        return self._ready is not None and torch.equal(self._ready[0], seeds)


class _Cancelled(Exception):
    """Nobody wants the draw any more."""


class _Draw:
    """A call in a thread of its own, which computes with as many threads as the one that starts it."""

    def __init__(self, call: Callable[[], Rollout], seeds: Tensor, device: torch.device) -> None:
        self.seeds, self.seconds, self.cancelled = seeds, 0.0, False
        self._call, self._device, self._threads = call, device, torch.get_num_threads()
        self._rollout: Rollout | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rollout drawn ahead", daemon=True)
        self.start, self.wait = self._thread.start, self._thread.join

    def told(self, tokens: int) -> None:
        """Every few tokens, in the thread."""
        if self.cancelled:
            raise _Cancelled

    def cancel(self, patience: float) -> bool:
        """Asks the thread to end; whether it has, within so many seconds."""
        self.cancelled = True
        self.wait(patience)
        return not self._thread.is_alive()

    def result(self) -> Rollout:
        if self._error is not None:
            raise self._error
        assert self._rollout is not None
        return self._rollout

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        began = time.perf_counter()
        try:
            self._rollout = self._call()
        except BaseException as error:  # handed to the thread that waits
            self._error = error
        self.seconds = time.perf_counter() - began
