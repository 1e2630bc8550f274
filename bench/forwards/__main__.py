"""``python bench/forwards``: accuracy per forward, from the committed results of every program here."""

import importlib
import sys
from pathlib import Path

if not __package__:  # run as a folder
    # The repository last, so that an installed equikern, with its kernels, is not hidden by the one in the repository.
    sys.path[:1] = []
    sys.path.append(str(Path(__file__).resolve().parents[2]))

sys.exit(importlib.import_module("bench.forwards.page").run(sys.argv[1:]))
