"""Whether tests that draw or count take all of it, as in ``.ci/run``, or a part."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("EQUIKERN_THOROUGH") == "1"
