"""``python -m rlhf_lightning.cli`` is ``rlhf``."""

import sys

from rlhf_lightning.start import main

sys.exit(main())
