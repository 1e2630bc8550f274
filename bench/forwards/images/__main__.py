"""``python bench/forwards/images``."""

import importlib
import sys
from pathlib import Path

# The repository last, so that an installed equikern, with its kernels, is not hidden by the one in the repository.
sys.path[:1] = []
sys.path.append(str(Path(__file__).resolve().parents[3]))

sys.exit(importlib.import_module("bench.forwards.images.command").run(sys.argv[1:]))
