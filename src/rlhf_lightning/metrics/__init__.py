"""Numbers that are gathered while a run goes on."""

from rlhf_lightning.metrics.means import Means
from rlhf_lightning.metrics.quantiles import Quantiles, quantiles

__all__ = ["Means", "Quantiles", "quantiles"]
