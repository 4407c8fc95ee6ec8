"""KL regularization towards the reference model."""

from rlhf_lightning.kl.controllers import Adaptive, Fixed
from rlhf_lightning.kl.term import ESTIMATORS, KLTerm
from rlhf_lightning.kl.terms import KLTerms

__all__ = ["ESTIMATORS", "Adaptive", "Fixed", "KLTerm", "KLTerms"]
