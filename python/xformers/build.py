"""python -m xformers.build: compiles the operators for the torch of this Python, once, into the user's cache.

For a torch that the installed package has no library for: a nightly, a distribution's, a later series. Needs g++ 12 or
later, CMake and Ninja; no nvcc, since the kernels are those of the package. The sources are the package's own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from . import _torch_library
from ._cpp_lib import _PACKAGE, _build_info, load
from .version import __version__


class BuildError(Exception):
    """One sentence: what is wrong, and what to do."""


def find_sources() -> Path:
    """Those that the package carries, or the clone that it was built in."""
    for folder in (_PACKAGE / "_sources", Path(os.path.realpath(__file__)).parents[2]):
        if (folder / "CMakeLists.txt").exists() and (folder / "xformers/ops").is_dir():
            return folder
    raise BuildError(f"{_PACKAGE} carries no sources: this is a part of a package.  Fix: install xformers again")


def find_program(name: str, install: str) -> str:
    """From this environment, else from PATH."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if not path:
        raise BuildError(f"{name} was not found beside {sys.executable} or on PATH.  Fix: {install}")
    return path


def staging_folder(target: Path) -> Path:
    """A new folder on the disk of the target, which becomes it by one rename."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    except OSError as error:
        raise BuildError(
            f"the cache {target.parent} can't be written ({error.strerror}).  Fix: make it writable, or set "
            f"XDG_CACHE_HOME to a folder that is, for this command and for the programs that import xformers"
        ) from error


def publish(made: Path, target: Path, replace: bool = False) -> None:
    """Moves a finished folder to its place. Where another process was first, its folder stays, which is as good."""
    if replace and target.exists():
        os.rename(target, made.parent / "replaced")
    try:
        os.rename(made, target)
    except OSError:
        if not (target / _torch_library.RECORD).exists():
            raise


def run(log: Path, *command: str) -> None:
    """A step of the build; of one that fails, the end of what it said."""
    with open(log, "a") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        space = shutil.disk_usage(log.parent).free
        full = "  Fix: free space on that disk." if space < 2**28 else ""
        raise BuildError(f"{tail}\n{command[0]} failed with status {status}; nothing was installed.{full}")


def check_loads(folder: Path) -> None:
    """In a process of its own: a library that crashes must not reach the cache."""
    command = [sys.executable, "-m", "xformers.build", "--try-folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"the library was built, but does not load: {result.stderr.strip()[-500:]}")


def build(target: Path, jobs: int, replace: bool) -> None:
    """Configures, compiles, installs into a folder beside the target, tries it, and moves it there."""
    sources = find_sources()
    compiler = os.environ.get("CXX") or "g++"
    find_program(compiler, "install g++ 12 or later, or set CXX")
    cmake = find_program("cmake", f"{sys.executable} -m pip install cmake")
    ninja = find_program("ninja", f"{sys.executable} -m pip install ninja")
    staging = staging_folder(target)
    try:
        log, tree, prefix = staging / "log", staging / "tree", staging / "prefix"
        run(log, cmake, "-G", "Ninja", "-S", str(sources), "-B", str(tree), f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_CXX_COMPILER={compiler}", f"-DXFORMERS_KERNELS_FROM={_PACKAGE.resolve()}",
            f"-DXFORMERS_TORCH_DIR={Path(torch.__file__).parent}", "-DXFORMERS_DEVELOPER=OFF",
            "-DXFORMERS_EXAMPLES=OFF")  # fmt: skip
        run(log, cmake, "--build", str(tree), "--target", "xformers", "--parallel", str(jobs))
        run(log, cmake, "--install", str(tree), "--prefix", str(prefix), "--component", "torch_library", "--strip")
        (made,) = (prefix / "xformers").iterdir()
        check_loads(made)
        publish(made, target, replace)
    except OSError as error:
        raise BuildError(f"{target.parent} could not be written ({error.strerror}); nothing was installed") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def main() -> int:
    """Exit status 0: there is a library for this torch now. 1: one sentence says why not."""
    parser = argparse.ArgumentParser(prog="python -m xformers.build", description=__doc__)
    parser.add_argument("--force", action="store_true", help="also where a library for this torch is there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once, 2 GB of memory each")
    parser.add_argument("--try-folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.try_folder:
        load(options.try_folder)
        return 0
    try:
        info = _build_info()
        found = _torch_library.find(_PACKAGE, info)
        if found and not options.force:
            print(f"xformers {__version__} has operators for torch {torch.__version__}: {found.folder} ({found.why})")
            return 0
        target = _torch_library.cache_folder(info)
        print(f"compiling the operators of xformers {__version__} for torch {torch.__version__}: minutes", flush=True)
        build(target, options.jobs, options.force)
    except (BuildError, ImportError) as error:
        print(f"xformers.build: {error}", file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
