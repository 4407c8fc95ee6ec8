"""Jobs that make reward models' training data: scored solutions, and labels of their steps."""

from rlhf_lightning.labelling.sample import SampleSolutions

__all__ = ["SampleSolutions"]
