"""Looking at runs in a notebook: metrics, the KL–reward frontier, and responses with their tokens coloured."""

from rlhf_lightning.explore.browse import browse_metrics
from rlhf_lightning.explore.figures import plot_frontier, plot_metrics
from rlhf_lightning.explore.page import Page
from rlhf_lightning.explore.samples import show_samples

__all__ = ["Page", "browse_metrics", "plot_frontier", "plot_metrics", "show_samples"]
