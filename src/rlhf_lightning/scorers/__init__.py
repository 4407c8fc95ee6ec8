"""Scorers: verifiers with a time limit, formats, and weighted sums of them."""

from rlhf_lightning.scorers.format import FormatScorer
from rlhf_lightning.scorers.mixture import MixtureScorer, combine
from rlhf_lightning.scorers.verifier import VerifierScorer

__all__ = ["FormatScorer", "MixtureScorer", "VerifierScorer", "combine"]
