"""``python -m equikern info | demo``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, active_backend, build_info
from .backends import NAMES, unavailable


def info() -> None:
    """Print versions, backends and why one cannot run, the CPU's features, and how the native code was built."""
    print(f"equikern {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "triton", "numpy"):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
        for k in range(torch.cuda.device_count()):
            print(f"GPU {k}: {torch.cuda.get_device_name(k)}, CUDA {torch.version.cuda}")
    else:
        print("no GPU that torch can use")
    asked = os.environ.get("EQUIKERN_BACKEND")
    print(f"EQUIKERN_BACKEND {asked or 'not set'}")
    for device in devices:
        try:
            used = f"{active_backend(device)} is used"
        except ValueError as error:
            used = f"none is used: {error}"
        print(f"\nbackends for {device} tensors, {used}")
        for name in NAMES:
            reason = unavailable(name, torch.device(device))
            print(f"  {name:9} {'runs' if reason is None else f'does not run: {reason}'}")
    try:
        from . import _C
    except ImportError as error:
        print(f"\nno C++ kernels, so CPU tensors take the slower plain-torch path: {error}")
    else:
        print(f"\nCPU kernels: {_C.cpu_isa()} (this machine runs {', '.join(_C.cpu_features())})")
        print(f"threads: {torch.get_num_threads()}")
    print(f"\n{build_info()}")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m equikern", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, backends, CPU features, CUDA build")
    demo = commands.add_parser("demo", help="a pretrained classifier made equivariant, on real images")
    demo.add_argument("--output", type=Path, default=Path("equikern_demo.png"), help="picture to write (%(default)s)")
    demo.add_argument("--force", action="store_true", help="overwrite the picture")
    options = parser.parse_args(arguments)
    if options.command == "info":
        info()
        return
    from .demo import run

    try:
        run(options.output, options.force)
    except FileExistsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
