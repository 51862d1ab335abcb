"""The audit of the project's dependencies finds each way in which a lock file can be wrong."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.audit import Lock, Project, check_advisories, check_installed, check_lock

ROOT = Path(__file__).parents[2]
HASH = f"--hash=sha256:{'0' * 64}"
CLICK = importlib.metadata.version("click")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, "click>=8.1")


def make_project(directory: Path, *dependencies: str, accepted: str = "") -> Project:
    path = directory / "pyproject.toml"
    classifiers = json.dumps([f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)])
    path.write_text(
        f'[build-system]\nrequires = []\n[project]\nname = "it"\nclassifiers = {classifiers}\n'
        f"dependencies = {json.dumps(dependencies)}\n[tool.audit.accepted]\n{accepted}\n"
    )
    return Project(path)


def make_lock(directory: Path, text: str) -> Lock:
    path = directory / "a.lock"
    path.write_text(text)
    return Lock([path])


def problems(directory: Path, project: Project, text: str) -> str:
    return "\n".join(check_lock(make_lock(directory, text), project))


def test_the_lock_files_of_this_project_are_as_they_must_be() -> None:
    lock = Lock(sorted(ROOT.glob("requirements-*.lock")))
    assert [*check_lock(lock, Project(ROOT / "pyproject.toml"))] == []
    text = "".join(path.read_text() for path in ROOT.glob("requirements-*.lock"))
    assert "://" not in text
    assert " /" not in text, "a lock file must not contain a path of the machine that made it"


def test_a_lock_file_with_pins_and_hashes_is_accepted(tmp_path: Path, project: Project) -> None:
    assert problems(tmp_path, project, f"# made\nclick==8.1.0 \\\n    {HASH} \\\n    {HASH}\n    # via it\n") == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("click==8.1.0\n", "a.lock:1: click has no sha256 hash"),
        ("click==8.1.0 --hash=md5:00\n", "is not a pinned package"),
        (f"click>=8.1.0 {HASH}\n", "a.lock:1: 'click>=8.1.0' does not pin one version with =="),
        (f"click==8.* {HASH}\n", "does not pin one version"),
        (f"click {HASH}\n", "does not pin one version"),
        (f"click @ https://192.0.2.1/click.whl {HASH}\n", "does not pin one version"),
        (f"--extra-index-url https://192.0.2.1/\nclick==8.1.0 {HASH}\n", "a.lock:1: '--extra-index-url"),
        (f"-e .\nclick==8.1.0 {HASH}\n", "(an option, a URL or a path?)"),
        ("", "click is in no lock file, but pyproject.toml needs it with Python 3.11"),
        (
            f"click==8.1.0 ; python_version < '3.13' {HASH}\n",
            "click is in no lock file, but pyproject.toml needs it with Python 3.13",
        ),
        (f"click==8.0.0 {HASH}\n", "a.lock:1: click is locked to 8.0.0, but pyproject.toml needs click>=8.1"),
        (f"click==8.1.0 {HASH}\nclick==8.2.0 {HASH}\n", "pinned twice: 8.1.0 in "),
        (f"click==8.1.0 {HASH}\nleft-pad==1.0 {HASH}\n", "a.lock:2: nothing needs left-pad any more"),
    ],
)
def test_a_wrong_lock_file_is_refused_with_its_error(tmp_path: Path, project: Project, text: str, problem: str) -> None:
    assert problem in problems(tmp_path, project, text)


def test_the_dependencies_of_a_dependency_must_be_locked_as_well(tmp_path: Path) -> None:
    project = make_project(tmp_path, "jinja2>=3")
    found = problems(tmp_path, project, f"jinja2=={importlib.metadata.version('jinja2')} {HASH}\n")
    assert "MarkupSafe is in no lock file, but jinja2 needs it" in found


def test_an_environment_that_has_another_version_or_more_is_noticed(tmp_path: Path, project: Project) -> None:
    found = [*check_installed(make_lock(tmp_path, f"click==0.1 {HASH}\nleft-pad==1.0 {HASH}\n"), project)]
    assert f"{tmp_path}/a.lock:1: click is locked to 0.1, but {CLICK} is installed" in found
    assert f"{tmp_path}/a.lock:2: left-pad is locked to 1.0, but nothing is installed" in found
    assert f"msgspec {importlib.metadata.version('msgspec')} is installed, but in no lock file" in found


class Advisories(http.server.ThreadingHTTPServer):
    """Answer as osv.dev does: each question with its advisories, none by default, or all with ``body``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.known: dict[str, list[str]] = {}
        self.body: bytes | None = None
        self.status = 200
        self.hangs = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/querybatch"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Advisories

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        names = [(query["package"]["ecosystem"], query["package"]["name"], query["version"]) for query in asked]
        results = [
            {"vulns": [{"id": each} for each in self.server.known[name]]} if name in self.server.known else {}
            for ecosystem, name, version in names
            if (ecosystem, version) == ("PyPI", "8.1.0")
        ]
        if self.server.hangs:
            self.rfile.read(1)  # until the client closes the connection
            return
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps({"results": results}).encode() if self.server.body is None else self.server.body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    with Advisories() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return make_lock(tmp_path, f"click==8.1.0 {HASH}\n")


def test_a_package_without_advisories_is_no_problem(lock: Lock, project: Project, advisories: Advisories) -> None:
    assert check_advisories(lock, project, advisories.url, required=True) == ([], None)


def test_a_known_vulnerability_is_a_problem_unless_it_is_accepted_with_a_reason(
    tmp_path: Path, lock: Lock, project: Project, advisories: Advisories
) -> None:
    advisories.known = {"click": ["PYSEC-2", "GHSA-1"]}
    found, unknown = check_advisories(lock, project, advisories.url, required=False)
    assert (len(found), unknown) == (1, None)
    assert found[0].startswith("click 8.1.0 has known vulnerabilities: GHSA-1, PYSEC-2; ")
    project = make_project(tmp_path, "click>=8.1", accepted='GHSA-1 = "needs a terminal"')
    found, _ = check_advisories(lock, project, advisories.url, required=False)
    assert "vulnerabilities: PYSEC-2; " in found[0]


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, None), (503, None), (200, b"<html>"), (200, b"{}"), (200, b'{"results": []}'), (200, b"")],
)
def test_an_invalid_answer_of_the_service_does_not_count_as_no_advisories(
    lock: Lock, project: Project, advisories: Advisories, status: int, body: bytes | None
) -> None:
    advisories.status, advisories.body = status, body
    found, unknown = check_advisories(lock, project, advisories.url, required=False)
    assert found == []
    assert unknown
    found, _ = check_advisories(lock, project, advisories.url, required=True)
    assert found == ["MULTIBINDER_REQUIRE names advisories, and they were not checked"]


def test_a_service_that_never_answers_costs_only_a_few_seconds(
    lock: Lock, project: Project, advisories: Advisories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.audit.ADVISORIES_TIMEOUT_S", 0.2)
    advisories.hangs = True
    found, unknown = check_advisories(lock, project, advisories.url, required=False)
    assert found == []
    assert unknown in ("timed out", "no answer within 0.2 s")
