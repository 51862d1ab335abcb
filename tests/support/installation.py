"""Make an installation of this checkout that every user of the machine may execute, once for a test run.

The checkout, its virtual environment and even the interpreter may lie below a home directory that is closed to other
users (mode 0700). Tests that run the project as another user use this installation. It is in the directory of the run,
which the processes of pytest-xdist share.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.commands import clean_environment

CHECKOUT = Path(__file__).resolve().parents[2]

#: The environment variable that tells the processes of a run where the directory of the run is.
_RUN_DIRECTORY = "MULTIBINDER_TEST_RUN"
#: Parts of the standard library that none of this code imports. They are half of its size.
_NOT_NEEDED = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "config-*",
)


class Installation(msgspec.Struct, frozen=True):
    """A virtual environment with a wheel of this checkout and its dependencies."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def program(self) -> tuple[str, ...]:
        """Return the command line of ``multibinder`` without arguments. It imports none of the working directory."""
        return (str(self.python), "-P", "-m", "multibinder")

    @property
    def wrapper(self) -> Path:
        return self.directory / "bin" / "multibinder-haproxy"


def is_in_a_run() -> bool:
    """Return whether the process that started this one has made the directory of the run."""
    return _RUN_DIRECTORY in os.environ


@contextlib.contextmanager
def directory_of_the_run() -> Iterator[None]:
    """Make the directory that the processes of this run share."""
    with tempfile.TemporaryDirectory(prefix="mb-run-", ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o755)
        os.environ[_RUN_DIRECTORY] = directory
        try:
            yield
        finally:
            del os.environ[_RUN_DIRECTORY]


@functools.cache
def interpreter_for_everybody() -> Path:
    """Return a Python that every user may execute: the one that runs the tests, or else a copy of it."""
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    if python.exists() and _is_open(python.resolve()) and _is_open(Path(os.__file__).resolve()):
        return python
    with _made_once("python") as (directory, made):
        if not made:
            _copy_interpreter(python, directory)
    return directory / "bin" / python.name


@functools.cache
def wheel() -> Path:
    """Return a wheel of this checkout. The tools that build it must be installed."""
    with _made_once("wheel") as (directory, made):
        if not made:
            build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
            _run([*build, "--wheel-dir", str(directory), str(CHECKOUT)])
    [found] = directory.glob("*.whl")
    return found


@functools.cache
def for_everybody() -> Installation:
    """Return the installation; the first caller of a run makes it."""
    python = interpreter_for_everybody()
    with _made_once("installation") as (directory, made):
        if not made:
            install(python, directory)
            directory.chmod(0o755)
    return Installation(directory)


def install(python: Path, directory: Path) -> None:
    """Install a wheel of this checkout, without a network: the dependencies are copied from the tests' environment."""
    _run([str(python), "-m", "venv", "--without-pip", str(directory)])
    copy_dependencies({"multibinder"}, Path(site_packages(str(directory))))
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install", "--quiet"]
    _run([*pip, "--no-deps", "--no-index", "--root-user-action=ignore", str(wheel())])


def site_packages(environment: str) -> str:
    """Return the directory for packages of a virtual environment."""
    return sysconfig.get_path("purelib", "venv", {"base": environment, "platbase": environment})


def copy_dependencies(roots: set[str], target: Path) -> None:
    """Copy the distributions that ``roots`` need to run, and the roots themselves, but nothing of multibinder."""
    seen: set[str] = set()
    todo = list(roots)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        todo += [
            match[0]
            for requirement in distribution.requires or ()
            if "extra ==" not in requirement
            and (match := re.match(r"[\w.-]+", requirement))
            # Environment markers may exclude a dependency here. What is not installed here is not needed here.
            and _is_installed(match[0])
        ]
        if name == "multibinder":
            continue
        for file in distribution.files or ():
            if ".." not in file.parts and os.path.exists(file.locate()):
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                # Keep the modification time, so that the copied bytecode stays valid for this file.
                shutil.copy2(str(file.locate()), target / file)


def _is_installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.distribution(name))
    return False


def _is_open(path: Path) -> bool:
    """Return whether every user may read this file and search the directories on the way to it."""
    return bool(path.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def _copy_interpreter(python: Path, directory: Path) -> None:
    library = Path(os.__file__).parent
    ours = Path(sys.base_prefix, "lib")
    (directory / "bin").mkdir(parents=True)
    shutil.copytree(
        library, directory / "lib" / library.name, ignore=shutil.ignore_patterns(*_NOT_NEEDED), symlinks=True
    )
    for shared in ours.glob("libpython*.so*"):
        shutil.copy(shared, directory / "lib", follow_symlinks=True)
    copy = directory / "bin" / python.name
    # An interpreter that is linked with libpython names the directory of libpython in DT_RUNPATH (ld.so(8)).
    was, relative = os.fsencode(ours) + b"\0", b"$ORIGIN/../lib"
    copy.write_bytes(python.resolve().read_bytes().replace(was, relative.ljust(len(was), b"\0")))
    copy.chmod(0o755)
    _run(["chmod", "-R", "a+rX", str(directory)])


@contextlib.contextmanager
def _made_once(name: str) -> Iterator[tuple[Path, bool]]:
    """Yield a directory of the run, and whether another process or an earlier call has filled it."""
    run = Path(os.environ[_RUN_DIRECTORY])
    directory, complete = run / name, run / f"{name}.complete"
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(directory, ignore_errors=True)  # remove what a failed attempt left
        yield directory, complete.exists()
        complete.touch()


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False, cwd="/", umask=0o022
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command[:4])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", pytrace=False)
