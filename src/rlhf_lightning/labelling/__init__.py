"""Jobs that make reward models' training data: scored solutions, and labels of their steps."""

from rlhf_lightning.labelling.sample import SampleSolutions
from rlhf_lightning.labelling.steps import LabelSteps

__all__ = ["LabelSteps", "SampleSolutions"]
