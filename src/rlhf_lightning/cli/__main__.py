"""``python -m rlhf_lightning.cli`` is ``rlhf``."""

import sys

from rlhf_lightning.cli import main

sys.exit(main())
