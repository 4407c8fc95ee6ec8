"""What each side of the PPO comparison runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESPONSES = 32
"""Responses a rollout, on every side."""

KL = 0.05
PHASES = ("rollout", "score", "reference", "values", "forward", "backward", "optimizer", "rest")


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        title: What the table calls it.
        samples: Responses a prompt.
        epochs: Passes over each rollout, one update each.
        critic: Whether a critic learns too.
        reward_model: Whether a frozen reward model scores, rather than a count of tokens.
    """

    title: str
    samples: int
    epochs: int
    critic: bool
    reward_model: bool

    @property
    def prompts(self) -> int:
        """Prompts a rollout."""
        return RESPONSES // self.samples


SIDES = {
    "ours": Side("ours, 8 prompts × 4", 4, 4, True, True),
    "ours-1": Side("ours, 32 prompts × 1", 1, 4, True, True),
    "trl": Side("TRL 1.12, 32 prompts × 1", 1, 4, True, True),
    "ppo": Side("ours: PPO", 4, 1, True, False),
    "grpo": Side("ours: GRPO", 4, 1, False, False),
}
"""The first three do the same work with four models; the last two differ in the critic alone."""


def reward_folder(policy: Path, root: Path) -> Path:
    """A reward model of the policy's size, made below ``root`` if it is not there."""
    from rlhf_lightning.models import Folder
    from rlhf_lightning.models.reward_folder import RewardCard, save_reward_model
    from rlhf_lightning.models.scalar import scalar_model

    target = root / f"reward-{policy.name}"
    if not target.is_dir():
        source = Folder(str(policy))
        save_reward_model(scalar_model(source.load()), source.tokenizer(), RewardCard(), target)
    return target
