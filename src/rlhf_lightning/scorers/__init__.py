"""Scorers: reward models, verifiers with a time limit, functions of one's own, formats, and weighted sums of them."""

from rlhf_lightning.scorers.format import FormatScorer
from rlhf_lightning.scorers.function import FunctionScorer
from rlhf_lightning.scorers.mixture import MixtureScorer, combine
from rlhf_lightning.scorers.remote import RemoteScorer
from rlhf_lightning.scorers.reward_model import RewardModelScorer
from rlhf_lightning.scorers.verifier import VerifierScorer
from rlhf_lightning.scorers.wrappers import ScorerWrapper

__all__ = [
    "FormatScorer",
    "FunctionScorer",
    "MixtureScorer",
    "RemoteScorer",
    "RewardModelScorer",
    "ScorerWrapper",
    "VerifierScorer",
    "combine",
]
