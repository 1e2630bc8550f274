"""What docs/guides/gpu.md says of bits: which results all instruction sets and backends agree on, and which sets do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from equikern.backends import unavailable
from helpers import fresh
from torch import device

# Moved or compared: the same everywhere.
EVERYWHERE = {
    "orbit", "act", "select", "select identity", "select selected", "select index", "max", "min", "median", "vote",
    "score max",
    "gradient of select", "gradient of select identity", "gradient of select selected", "gradient of max",
    "gradient of min", "gradient of median", "gradient of act",
}  # fmt: skip
# Added up, without a factor of its own for each view: the same on all instruction sets, of planes above 64 elements.
SETS = {
    "symmetrize", "mean", "mean plus", "sum", "gmean", "hmean", "tsharpen", "logodd", "log1p",
    "gradient of orbit", "gradient of symmetrize", "gradient of mean", "gradient of mean plus", "gradient of sum",
    "gradient of weighted", "gradient of weighted softmax", "gradient of weighted as is",
    "gradient of gmean", "gradient of hmean", "gradient of tsharpen", "gradient of logodd", "gradient of log1p",
}  # fmt: skip

SCRIPT = """
import hashlib, json, sys
import torch
sys.path.append(sys.argv[2])
from equikern import orbit_act, orbit_score, use_backend
from helpers.calls import CALLS, gradients, results
from helpers.oracles import CASES
from helpers.strategies import bits, random_values

torch.set_num_threads(1)
use_backend(sys.argv[1])
found = {}
NAMES = ("c4", "d4", "nothing", "cycle3", "channels", "signed", "flow")

def add(name, key, *tensors):
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(bits(t.detach()).numpy().tobytes())
    found[f"{name}: {key}"] = digest.hexdigest()

for case in map(CASES.get, NAMES):
    for dtype in (torch.float32, torch.bfloat16):
        key, lead = f"{case} {dtype}", (2, 2)
        view = case.shape(*lead, side=11)
        for call in CALLS.values():
            if case.signed and call.kind != "signed":
                continue
            kind = torch.int16 if call.kind == "labels" else dtype
            given = [random_values(view if call.takes == "image" else (case.order, *view), kind, 0, call.kind)]
            if call.takes == "plus":
                given.append(random_values(view, dtype, 1))
            elif call.takes in ("weights", "scores"):
                wide = torch.float64 if dtype == torch.float64 else torch.float32
                given.append(random_values((case.order, *lead), wide, 1, "positive"))
            outputs = results(call.run(case.action, *given))
            add(call.name, key, *outputs)
            if call.differentiable:
                add(f"gradient of {call.name}", key, gradients(call, case.action, given)[len(outputs)])
        x = random_values((5, *view), dtype, 2).requires_grad_()
        acted = orbit_act(x, torch.arange(5) % case.order, case.action)
        add("act", key, acted)
        add("gradient of act", key, torch.autograd.grad(acted.square().sum(), x)[0])
        if case.size is not None:
            add("score max", key, orbit_score(x, "max"))
print(json.dumps(found))
"""


@pytest.mark.skipif(unavailable("cpu", device("cpu")) is not None, reason="the C++ module is not built")
def test_the_same_bits() -> None:
    from equikern import _C

    sets = _C.cpu_features()
    tests = str(Path(__file__).parents[2])
    done = [
        fresh.run("-c", SCRIPT, backend, tests, EQUIKERN_CPU=name)
        for backend, name in (("reference", sets[-1]), *(("cpu", name) for name in sets))
    ]
    for run in done:
        assert run.returncode == 0, run.stderr[-3000:]
    reference, *others = (json.loads(run.stdout) for run in done)
    assert {key.partition(":")[0] for key in reference} >= EVERYWHERE | SETS
    for key, digest in reference.items():
        name = key.partition(":")[0]
        if name in EVERYWHERE:
            assert {found[key] for found in others} == {digest}, key
        elif name in SETS:
            assert len({found[key] for found in others}) == 1, key
