"""``python -m equikern info | demo | audit | bench``."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, active_backend, build_info
from .auditing import command
from .backends import BACKENDS, unavailable
from .repository import ADDRESS


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
        for name in BACKENDS:
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


def bench(arguments: list[str]) -> int:
    """Run the benchmarks of the repository that this package is imported from; returns the exit status."""
    folder = Path(__file__).resolve().parents[1] / "bench"
    if not (folder / "command.py").exists():
        sys.exit(
            "the benchmarks are part of equikern's repository, not of the installed package:\n"
            f"git clone {ADDRESS} && cd equikern\n"
            'pip install -c constraints.txt -e ".[bench]" && python -m equikern bench'
        )
    sys.path.insert(0, str(folder.parent))
    return int(importlib.import_module("bench.command").run(arguments))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m equikern", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, backends, CPU features, CUDA build")
    demo = commands.add_parser("demo", help="pretrained models made equivariant, on real images")
    demo.add_argument("--output", type=Path, default=Path("equikern_demo.png"), help="picture to write (%(default)s)")
    demo.add_argument("--force", action="store_true", help="overwrite existing pictures")
    audits = commands.add_parser("audit", help="how far a model is from a symmetry, and where it is lost")
    command.add_arguments(audits)
    commands.add_parser("bench", help="measure every operator on this machine")
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["bench"]:  # whose options stand with the benchmarks
        sys.exit(bench(given[1:]))
    options = parser.parse_args(given)
    if options.command == "info":
        info()
        return
    if options.command == "audit":
        sys.exit(command.run(options))
    from .demo import run

    try:
        run(options.output, options.force)
    except (FileExistsError, NotADirectoryError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
