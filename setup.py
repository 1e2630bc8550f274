"""Builds equikern._C with ninja: g++ or clang++ for csrc/cpu, nvcc for csrc/cuda where it is found.

Environment: CXX, CXXFLAGS, EQUIKERN_CUDA=0|1 (never | must), TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS,
EQUIKERN_REQUIRE_NATIVE=1 (no fallback to plain torch), EQUIKERN_SANITIZE=address,undefined.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ENV = os.environ
REPOSITORY = "https://github.com/equikern/equikern"
CSRC = Path(__file__).parent.resolve() / "csrc"
# csrc/cpu/*.cpp is compiled once for each instruction set, chosen among at run time; every other file is the baseline.
AVX2 = "-mavx2 -mfma -mf16c"
ISA = {"baseline": "", "avx2": AVX2, "avx512": f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl"}
DARWIN = sys.platform == "darwin"  # its clang has no OpenMP


class BuildError(Exception):
    """Why the C++ part cannot be built here."""


def version(compiler):
    """The line of ``--version`` that tells the release."""
    lines = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    return next((line for line in lines if "release" in line), lines[0])


def find_tools():
    """The C++ compiler, nvcc or None, and why there is no nvcc."""
    names = [ENV["CXX"]] if ENV.get("CXX") else ["g++", "clang++", "c++"]
    cxx = next((shlex.split(n) for n in names if shutil.which(shlex.split(n)[0]) and sys.platform != "win32"), None)
    if cxx is None:
        raise BuildError(f"no C++ compiler: {', '.join(names)} not found (install g++ 12 or later, or set CXX)")
    if ENV.get("EQUIKERN_CUDA") == "0":
        return cxx, None, "switched off by EQUIKERN_CUDA=0"
    places = [f"{ENV['CUDA_HOME']}/bin/nvcc"] if ENV.get("CUDA_HOME") else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, places)), None)
    if nvcc is None and ENV.get("EQUIKERN_CUDA") == "1":
        raise BuildError(f"EQUIKERN_CUDA=1, but {' and '.join(places)} not found: put nvcc on PATH or set CUDA_HOME")
    return cxx, nvcc, None if nvcc else "nvcc not found (put it on PATH or set CUDA_HOME)"


def cuda_archs(nvcc_version):
    """TORCH_CUDA_ARCH_LIST, "8.0;9.0a;10.0+PTX" as torch reads it, and nvcc's flags for it."""
    release = tuple(map(int, re.search(r"release (\d+)\.(\d+)", nvcc_version).groups()))
    default = "8.0;9.0a;10.0+PTX" if release >= (12, 8) else "8.0;9.0+PTX" if release >= (11, 8) else "8.0+PTX"
    archs, flags = re.findall(r"[^;\s]+", ENV.get("TORCH_CUDA_ARCH_LIST") or default), []
    for arch in archs:
        if not (match := re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected entries such as 8.0, 9.0a or 10.0+PTX, got {arch!r}")
        number, kinds = match[1] + match[2], ("sm", "compute") if match[3] else ("sm",)
        flags += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
    return archs, " ".join(flags)


def write_ninja(build, cxx, nvcc):
    """Writes build.ninja; returns what build_info() will tell."""
    import pybind11

    # An isolated build has pybind11 in a new place every time: a copy keeps the commands, and so the objects, the same.
    headers = build.parent / f"pybind11-{pybind11.__version__}"
    if not headers.exists():
        shutil.copytree(pybind11.get_include(), headers)
    sanitizers = [f"-fsanitize={name}" for name in ENV.get("EQUIKERN_SANITIZE", "").split(",") if name]
    if sanitizers:  # which look at what asserts say, too
        sanitizers += ["-UNDEBUG", "-Og", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
    flags = "-O3 -DNDEBUG -fPIC -fvisibility=hidden -fno-strict-aliasing -Wall -Werror=switch -Wno-psabi"
    flags += "" if DARWIN else " -fopenmp"
    flags = [*flags.split(), *shlex.split(ENV.get("CXXFLAGS", "")), *sanitizers]
    isa = ISA if sysconfig.get_platform().endswith(("x86_64", "amd64")) else {"baseline": ""}
    info = {"compiler": version(cxx), "flags": " ".join(flags), "cuda": bool(nvcc), "cpu_isa": list(isa)}
    info["nvcc"] = version([nvcc]) if nvcc else None
    info["cuda_archs"], gencode = cuda_archs(info["nvcc"]) if nvcc else ([], "")
    common = f"-std=c++17 -I{headers} -I{sysconfig.get_path('include')} -I{CSRC}"
    link = f"{shlex.join([*cxx, *flags])} -shared {'-undefined dynamic_lookup' if DARWIN else ''}"
    if nvcc:  # which then links, since it knows where its static runtime is
        common += " -DEQUIKERN_WITH_CUDA"
        link = f"{nvcc} -shared -cudart static -ccbin {cxx[-1]} {' '.join(f'-Xcompiler {f}' for f in flags)}"
    depfile = "-MD -MF $out.d -c $in -o $out\n depfile = $out.d\n deps = gcc\n"
    nvflags = f"-O3 -ccbin {cxx[-1]} -Xcompiler -fPIC,-fvisibility=hidden,-Wall {gencode}"
    rules = f"rule cxx\n command = {shlex.join(cxx)} {common} {shlex.join(flags)} $isa {depfile}"
    rules += f"rule cu\n command = {nvcc} {common} {nvflags} {depfile}rule link\n command = {link} $in -o $out\n"
    objects = {f"{f.name}.o": (f, "") for f in sorted(CSRC.glob("*.cpp"))}
    # The baseline first: the linker keeps the first copy of an inline function, which must not need a newer CPU.
    for name, flag in isa.items():
        objects |= {f"{name}/{f.name}.o": (f, f"-DEQK_ISA={name} {flag}") for f in sorted((CSRC / "cpu").glob("*.cpp"))}
    objects |= {f"cuda/{f.name}.o": (f, "") for f in sorted((CSRC / "cuda").glob("*.c*")) if nvcc}
    for target, (f, flag) in objects.items():
        rules += f"build {target}: {'cu' if f.suffix == '.cu' else 'cxx'} {f}\n isa = {flag}\n"
    (build / "build.ninja").write_text(f"{rules}build _C.so: link {' '.join(objects)}\n")
    return info


def compile_native(build):
    """Builds build/_C.so, with CUDA where it can; returns what build_info() will tell."""
    with contextlib.suppress(ImportError):  # else the system's ninja
        import ninja

        ENV["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{ENV.get('PATH', '')}"
    if shutil.which("ninja") is None:
        raise BuildError("ninja not found (pip install ninja)")
    cxx, nvcc, cuda_reason = find_tools()
    build.mkdir(parents=True, exist_ok=True)
    while True:
        info = write_ninja(build, cxx, nvcc)
        command = ["ninja", "-C", str(build), "-j", ENV.get("MAX_JOBS") or str(os.cpu_count() or 1)]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(run.stdout, flush=True)
        if run.returncode == 0:
            return {**info, "cuda_reason": cuda_reason}
        # Not the word alone: commands, which ninja repeats, name flags such as -Werror.
        said = (line.strip() for line in run.stdout.splitlines() if re.search(r"(?i)(error|fatal)\s*:", line))
        error = next(said, "see the output above")
        if nvcc is None or ENV.get("EQUIKERN_CUDA") == "1":
            raise BuildError(f"{info['compiler']} failed: {error}")
        nvcc, cuda_reason = None, f"the build with CUDA failed: {error}"


class BuildNative(build_ext):
    """Puts _C, and _build.json with the record of how it was built, into the package."""

    def run(self):
        target = Path(self.get_ext_fullpath("equikern._C"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a stale one would be loaded if this build fails
        build = CSRC.parent / "build" / f"native-{sysconfig.get_config_var('SOABI')}{ENV.get('EQUIKERN_SANITIZE', '')}"
        try:
            info = {"native": True, "reason": None, **compile_native(build)}
            shutil.copyfile(build / "_C.so", target)
        except BuildError as error:
            if "1" in (ENV.get("EQUIKERN_REQUIRE_NATIVE"), ENV.get("EQUIKERN_CUDA")):
                raise SystemExit(f"equikern's C++ part cannot be built: {error}") from None
            info = {"native": False, "reason": str(error), "cuda": False}
            message = f"\nequikern is installed WITHOUT C++ kernels: {error}\nIt uses slower plain-torch operators.\n"
            print(message, file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):  # pip hides what a build that succeeds prints
                Path("/dev/tty").write_text(message)
        info["environment"] = {name: ENV[name] for name in re.findall(r"[A-Z_]{3,}", __doc__) if name in ENV}
        (target.parent / "_build.json").write_text(json.dumps(info, indent=1) + "\n")


def readme():
    """README.md with links and pictures that are found from a registry's page, too; code stays as it is."""
    parts = (CSRC.parent / "README.md").read_text(encoding="utf-8").split("```")
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{REPOSITORY}/raw/main/", parts[k])
        parts[k] = re.sub(r"(\]\()(?!https?:|#|mailto:)", rf"\1{REPOSITORY}/blob/main/", parts[k])
    return "```".join(parts)


setup(
    ext_modules=[Extension("equikern._C", [])],
    cmdclass={"build_ext": BuildNative},
    long_description=readme(),
    long_description_content_type="text/markdown",
)
