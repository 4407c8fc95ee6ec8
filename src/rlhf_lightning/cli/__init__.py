"""The command line: ``rlhf fit --config quickstart.yaml`` and its sisters."""

from rlhf_lightning.cli.main import main

__all__ = ["main"]
