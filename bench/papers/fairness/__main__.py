"""``python bench/papers/fairness``."""

import importlib
import os
import sys
from pathlib import Path

# Read when the libraries load: threads that wait without spinning, no look for models in the network, no other bars.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"

# The repository last, so that an installed equikern, with its kernels, is not hidden by the one in the repository.
sys.path[:1] = []
sys.path.append(str(Path(__file__).resolve().parents[3]))

sys.exit(importlib.import_module("bench.papers.fairness.command").run(sys.argv[1:]))
