"""What trainers must be like, so that weights keep their type and all ranks get their share of each update."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import did_you_mean

if TYPE_CHECKING:
    from lightning import Trainer


def check_precision(trainer: Trainer) -> None:
    """Refuses a precision with which Lightning would convert weights.

    Raises:
        ConfigError: With what is possible.
    """
    precision = str(trainer.precision)
    if precision.endswith("-true") and precision != "32-true":
        raise ConfigError(
            f"trainer.precision: {precision} is not for packed batches. For float32 weights and faster products, "
            "take bf16-mixed. For frozen weights of that type, set dtype of the model's source; for weights of it "
            "that train, train_in_16_bits: true besides"
        )


def check_monitors(trainer: Trainer) -> None:
    """Refuses callbacks that look for a number which the first epoch has not given: they would never do anything.

    Lightning's ``EarlyStopping`` and ``ModelCheckpoint`` look after this. ``strict: false`` lets a number come later.

    Raises:
        ConfigError: With the numbers there are.
    """
    there = trainer.callback_metrics
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = getattr(callback, "monitor", None)
        if isinstance(name, str) and name not in there and getattr(callback, "strict", True):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} looks at {name!r}, which this run does not measure."
                f"{_near(name, there)} It measures: {', '.join(sorted(there))}"
            )


def _near(name: str, there: Iterable[str]) -> str:
    """The nearest number: ``reward`` is ``reward/raw_mean``, the first of that name."""
    if below := next((number for number in there if number.startswith(f"{name}/")), ""):
        return f" Did you mean {below!r}?"
    if name.startswith("held_out/") and not any(number.startswith("held_out/") for number in there):
        return " The callback HeldOutEval measures on held-out problems."
    return did_you_mean(name, there)


def check_ranks(trainer: Trainer, smallest_update: int) -> None:
    """Refuses more ranks than an update has responses, and settings of Lightning's that ours take the place of.

    Raises:
        ConfigError: With what is possible.
    """
    if trainer.gradient_clip_val is not None:
        raise ConfigError(
            f"trainer.gradient_clip_val would do nothing: the limit of gradient norms is model.max_grad_norm, so give "
            f"--model.max_grad_norm={trainer.gradient_clip_val} instead"
        )
    size = trainer.world_size
    if size == 1:
        return
    if size > smallest_update:
        raise ConfigError(
            f"trainer: {size} processes cannot share an update of {smallest_update} responses: each needs one. "
            f"Take at most {smallest_update} devices in all, or larger updates"
        )
    if trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "trainer.use_distributed_sampler must be false (as it is from the command line): ranks share each batch "
            "themselves, so Lightning must give all of them the same"
        )
