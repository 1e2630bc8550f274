"""Something for Nsight to look at: one operator, or EquiTune around a backbone, forward and backward.

    python bench/profile/run.py mean 256,3,224,224 bfloat16 d4
    python bench/profile/run.py weighted 128,64,56,56 float32 c4 --direction backward --backend triton
    python bench/profile/run.py equitune 64,3,224,224 bfloat16 c4

The shape is that of one view. Operators: those of bench/ops. The calls that count come after ``--warmup`` others and
lie between cudaProfilerStart and cudaProfilerStop; see README.md for the command lines of ncu and nsys. On the CPU the
same runs without the profiler's marks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def backbone(channels: int) -> nn.Module:
    """EfficientNet-lite0 where the demo's packages are installed and images have three channels, else a small CNN."""
    if channels == 3:
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            from equikern.repository import install

            print(f"EfficientNet-lite0 is not installed ({install('demo')}): a small CNN instead", file=sys.stderr)
        else:
            model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
            return model
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        layers += [nn.LazyConv2d(width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))


def equitune(shape: tuple[int, ...], dtype: torch.dtype, group: str, device: str) -> Callable[[], object]:
    """One training step without the optimizer: forward and backward of EquiTune around a classifier."""
    import equikern

    x = torch.randn(shape, device=device, dtype=dtype)
    model = backbone(shape[1]).to(device, dtype)
    with torch.no_grad():
        model.eval()(x[:1])  # lazy layers learn their sizes
    model.train()
    model = equikern.EquiTune(model, group, "trivial")

    def step() -> None:
        model.zero_grad()
        model(x).float().logsumexp(-1).sum().backward()

    return step


def operator(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, group: str, direction: str, device: str
) -> tuple[Callable[[], object], int]:
    """One operator's forward or backward pass, and the bytes it must move."""
    from bench.ops.cases import Case

    case = Case(name, direction, group, shape, dtype, device)
    call = case.operator.fused
    if direction == "forward":
        tensors = case.tensors()
        result = call(case.action, *tensors)
        return lambda: call(case.action, *tensors, out=result), case.bytes
    tensors = case.tensors(requires_grad=True)
    result = call(case.action, *tensors)
    outputs = (result,) if isinstance(result, Tensor) else result
    inputs = [t for t in tensors if t.requires_grad]
    upstream = case.upstream()
    return lambda: torch.autograd.grad(outputs, inputs, upstream, retain_graph=True), case.bytes


def main() -> None:
    from bench.ops.operators import OPERATORS
    from equikern.backends import BACKENDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operator", choices=[*OPERATORS, "equitune"])
    parser.add_argument("shape", help="of one view, such as 256,3,224,224")
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("group", choices=["c4", "d4"])
    parser.add_argument("--direction", choices=["forward", "backward"], default="forward", help="of an operator")
    parser.add_argument("--backend", choices=[*BACKENDS])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--calls", type=int, default=3, help="under the profiler (%(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="calls before (%(default)s)")
    options = parser.parse_args()
    try:
        shape = tuple(int(n) for n in options.shape.split(","))
    except ValueError:
        parser.error(f"shape: expected sizes such as 256,3,224,224, got {options.shape!r}")
    if len(shape) != 4:
        parser.error(f"shape: expected B,C,H,W, got {options.shape!r}")
    os.environ["EQUIKERN_NVTX"] = "1" if options.device != "cpu" else "0"
    import equikern

    if options.backend is not None:
        equikern.use_backend(options.backend)
    dtype = DTYPES[options.dtype]
    if options.operator == "equitune":
        call, count = equitune(shape, dtype, options.group, options.device), None
    else:
        call, count = operator(options.operator, shape, dtype, options.group, options.direction, options.device)
    for _ in range(options.warmup):
        call()
    if options.device == "cpu":
        for _ in range(options.calls):
            call()
    else:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for _ in range(options.calls):
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    backend = equikern.active_backend(options.device)
    moves = "" if count is None else f", each moves at least {count / 1e6:.3f} MB"
    print(f"{options.calls} calls of {options.operator} on {options.device} by the backend {backend}{moves}")


if __name__ == "__main__":
    main()
