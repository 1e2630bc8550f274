"""Peak memory of a call over what there was before it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler writes two lines at every use, through progress bars


def peak(call: Callable[[], Any], device: str) -> int:
    """Bytes that torch's allocator had given out at most during the call, less those before it.

    Results that the call allocates count, those written to memory given with ``out=`` do not. On a GPU it is
    ``torch.cuda.max_memory_allocated``. On a CPU it is the running sum of the allocations and frees that
    ``torch.profiler`` saw: everything from torch's allocator, of compiled chains too, and nothing else.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held = most = 0
    for *_, count in changes:
        held += count
        most = max(most, held)
    return most
