"""``python -m bench.papers.fairness``."""

import os
import sys

# Read when the libraries load: threads that wait without spinning, no look for models in the network, no other bars.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"

from .command import run

sys.exit(run(sys.argv[1:]))
