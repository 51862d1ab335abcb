"""Check that the lock files are complete and exactly installed, and that no advisory names a locked package.

``make lint`` runs this. Offline it checks that the lock files pin, with hashes, every package that pyproject.toml and
its dependencies need, and that the virtual environment has exactly these. Online it asks for known advisories.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

#: osv.dev collects the advisories of PyPA and GitHub, and answers for a whole lock file in one request.
ADVISORIES = "https://api.osv.dev/v1/querybatch"
#: Developers run lint all day, so it must not wait long. This bounds the DNS resolver too, which has no time limit.
ADVISORIES_TIMEOUT_S = 4.0
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
#: The packages that a new virtual environment has.
_NOT_LOCKED = {"pip"}


class Pin(NamedTuple):
    """A package of a lock file. ``place`` is its file and line, ``hashes`` the number of its files with a hash."""

    requirement: Requirement
    version: str
    hashes: int
    place: str

    def applies(self, environment: Mapping[str, str]) -> bool:
        return self.requirement.marker is None or self.requirement.marker.evaluate(dict(environment))


class Lock:
    """The pins of all lock files. ``problems`` are sentences about lines that a lock file must not have."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.pins: dict[str, list[Pin]] = {}
        self.problems: list[str] = []
        for path in paths:
            for place, line in _logical_lines(path):
                self._add(place, line)

    def _add(self, place: str, line: str) -> None:
        text, *_ = _HASH.split(line, maxsplit=1)
        hashes = _HASH.findall(line)
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            self.problems.append(f"{place}: {text.strip()!r} is not a pinned package (an option, a URL or a path?)")
            return
        version = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
        if version is None or requirement.url is not None:
            self.problems.append(f"{place}: {text.strip()!r} does not pin one version with ==")
            return
        if not hashes:
            self.problems.append(f"{place}: {requirement.name} has no sha256 hash")
        pin = Pin(requirement, version[1], len(hashes), place)
        self.pins.setdefault(canonicalize_name(requirement.name), []).append(pin)

    def pin_of(self, name: str, environment: Mapping[str, str]) -> Pin | None:
        return next((pin for pin in self.pins.get(canonicalize_name(name), ()) if pin.applies(environment)), None)

    def disagreements(self, environment: Mapping[str, str]) -> Iterator[str]:
        for name, pins in self.pins.items():
            applying = [pin for pin in pins if pin.applies(environment)]
            if len({pin.version for pin in applying}) > 1:
                yield f"{name} is pinned twice: {', '.join(f'{pin.version} in {pin.place}' for pin in applying)}"


class Project:
    """The requirements and accepted advisories of pyproject.toml."""

    def __init__(self, path: Path) -> None:
        content = tomllib.loads(path.read_text())
        project = content["project"]
        self.name: str = canonicalize_name(project["name"])
        optional: dict[str, list[str]] = dict(project.get("optional-dependencies", {}))
        locked = [*project["dependencies"], *optional.pop("dev", []), *content["build-system"]["requires"]]
        self.locked = [Requirement(text) for text in locked]
        self.unlocked = [Requirement(text) for texts in optional.values() for text in texts]
        versions = (
            re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in project["classifiers"]
        )
        self.pythons = [found[1] for found in versions if found]
        self.accepted: dict[str, str] = content.get("tool", {}).get("audit", {}).get("accepted", {})


def check_lock(lock: Lock, project: Project) -> Iterator[str]:
    """Yield a sentence for each needed package that is not pinned to a usable version, and for each unneeded pin.

    The packages are those that any supported Python needs.
    """
    yield from lock.problems
    yield from lock.disagreements(environment_for())
    reached: set[str] = set()
    for python in project.pythons:
        environment = environment_for(python)
        for requirement, by in needed(project.locked, environment):
            reached.add(canonicalize_name(requirement.name))
            pin = lock.pin_of(requirement.name, environment)
            if pin is None:
                yield f"{requirement.name} is in no lock file, but {by} needs it with Python {python}"
            elif not requirement.specifier.contains(pin.version, prereleases=True):
                yield f"{pin.place}: {requirement.name} is locked to {pin.version}, but {by} needs {requirement}"
    for name in sorted(lock.pins.keys() - reached):
        if pin := lock.pin_of(name, environment_for()):
            yield f"{pin.place}: nothing needs {name} any more"


def check_installed(lock: Lock, project: Project) -> Iterator[str]:
    """Yield a sentence for each installed package that differs from the lock files, or is in none of them.

    Packages of extras that are not locked are allowed.
    """
    environment = environment_for()
    installed: dict[str, str] = {
        canonicalize_name(found.metadata["Name"]): found.version for found in importlib.metadata.distributions()
    }
    for name in sorted(lock.pins):
        pin = lock.pin_of(name, environment)
        if pin and installed.get(name) != pin.version:
            yield f"{pin.place}: {name} is locked to {pin.version}, but {installed.get(name, 'nothing')} is installed"
    others = {canonicalize_name(requirement.name) for requirement, _ in needed(project.unlocked, environment)}
    for name in sorted(installed.keys() - {project.name} - _NOT_LOCKED - others):
        if lock.pin_of(name, environment) is None:
            yield f"{name} {installed[name]} is installed, but in no lock file"


def check_consistency() -> Iterator[str]:
    """Yield what ``pip check`` complains about."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        yield f"pip check: {(done.stdout + done.stderr).strip()}"


def needed(roots: Iterable[Requirement], environment: Mapping[str, str]) -> Iterator[tuple[Requirement, str]]:
    """Yield every needed requirement, and the name of the package (or file) that needs it.

    The dependencies of a package are known only if it is installed.
    """
    queue = [(requirement, "pyproject.toml", "") for requirement in roots]
    seen = set()
    while queue:
        requirement, by, extra = queue.pop()
        if (str(requirement), extra) in seen:
            continue
        seen.add((str(requirement), extra))
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        yield requirement, by
        try:
            texts = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for wanted in ("", *requirement.extras):
            queue += [(Requirement(text), requirement.name, wanted) for text in texts]


def environment_for(python: str | None = None) -> dict[str, str]:
    """Return the values for markers: those of this machine, with its own Python or another version."""
    environment: dict[str, Any] = {**default_environment(), "extra": ""}
    if python:
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    return environment


def known_advisories(lock: Lock, url: str) -> dict[str, list[str]]:
    """Return the advisories by package (``name version``), for packages that have any.

    Raises OSError, ValueError or HTTPException.
    """
    pins = [pin for pins in lock.pins.values() for pin in pins]
    queries = [
        {"package": {"name": canonicalize_name(pin.requirement.name), "ecosystem": "PyPI"}, "version": pin.version}
        for pin in pins
    ]
    request = urllib.request.Request(  # noqa: S310 (the operator chooses the URL)
        url, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ADVISORIES_TIMEOUT_S) as reply:  # noqa: S310
        results = json.load(reply)
    try:
        # strict: a missing result would look like a package without advisories.
        found = [[str(each["id"]) for each in result.get("vulns", ())] for result in results["results"]]
        return {
            f"{pin.requirement.name} {pin.version}": sorted(ids) for pin, ids in zip(pins, found, strict=True) if ids
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the answer does not have the format of osv.dev") from error


def check_advisories(lock: Lock, project: Project, url: str, *, required: bool) -> tuple[list[str], str | None]:
    """Return the problems, and the reason if the advisories could not be checked.

    With ``required``, an unchecked advisory is a problem too.
    """
    answer: list[dict[str, list[str]] | str] = []

    def ask() -> None:
        try:
            answer.append(known_advisories(lock, url))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(str(error))

    # getaddrinfo(3) takes no time limit, but a daemon thread that hangs does not keep the program from ending.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ADVISORIES_TIMEOUT_S)
    outcome = answer[0] if answer else f"no answer within {ADVISORIES_TIMEOUT_S:g} s"
    if isinstance(outcome, str):
        return ["MULTIBINDER_REQUIRE names advisories, and they were not checked"] if required else [], outcome
    problems = []
    for package, ids in outcome.items():
        if unaccepted := [each for each in ids if each not in project.accepted]:
            problems.append(
                f"{package} has known vulnerabilities: {', '.join(unaccepted)}; install newer versions with "
                "'make lock UPGRADE=1', or give the reason why these do not matter in pyproject.toml's "
                "[tool.audit.accepted]"
            )
    return problems, None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description=__doc__)
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK", help="a file that pip installs with hashes")
    parser.add_argument("--project", type=Path, default=Path("pyproject.toml"), metavar="FILE")
    parser.add_argument(
        "--advisories", default=ADVISORIES, metavar="URL", help="the service to ask (default: %(default)s)"
    )
    arguments = parser.parse_args()
    lock, project = Lock(arguments.locks), Project(arguments.project)
    offline = [*check_lock(lock, project), *check_installed(lock, project), *check_consistency()]
    required = "advisories" in os.environ.get("MULTIBINDER_REQUIRE", "").replace(" ", "").split(",")
    problems, unknown = check_advisories(lock, project, arguments.advisories, required=required)
    problems = [*dict.fromkeys(offline), *problems]
    for problem in problems:
        print(f"audit: {problem}", file=sys.stderr)
    if offline:
        print("audit: 'make lock' makes the lock files from pyproject.toml; 'make' installs them", file=sys.stderr)
    if unknown:
        print(f"audit: advisories were not checked: {arguments.advisories}: {unknown}", file=sys.stderr)
    if not problems:
        files = sum(pin.hashes for pins in lock.pins.values() for pin in pins)
        checked = "" if unknown else ", no advisory"
        print(f"audit: {len(lock.pins)} packages locked by {files} hashes, all needed, all installed{checked}")
    return 1 if problems else 0


def _logical_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(file:line, text)`` for each line as pip reads it: a backslash continues it, `` #`` begins a comment."""
    joined, began = "", 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        began = began if joined else number
        joined += re.sub(r"(^|\s+)#.*", "", line)
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if joined.strip():
            yield f"{path}:{began}", joined
        joined = ""


if __name__ == "__main__":
    sys.exit(main())
