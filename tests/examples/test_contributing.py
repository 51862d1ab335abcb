"""The examples of CONTRIBUTING.md work when they are applied to a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
#: A file in backquotes and, after it and no other file, a block.
_BLOCK = re.compile(r"`((?:multibinder|docs)/[\w/-]+\.\w+)`|^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    path: str
    kind: str
    text: str


def examples(section: str) -> Iterator[Example]:
    """Return the blocks of a section, each with the file that is named before it."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    path = ""
    for found in _BLOCK.finditer(text):
        path = found[1] or path
        if found[2]:
            yield Example(path, found[2], found[3])


def apply(tree: Path, example: Example) -> None:
    """Write the new file, or apply the diff. The lines that a diff quotes must occur exactly once."""
    file = tree / example.path
    if example.kind == "python":
        assert not file.exists(), example.path
        file.write_text(example.text)
        return
    lines = example.text.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] != "+")
    new = "".join(line[1:] for line in lines if line[0] != "-")
    assert file.read_text().count(old) == 1, f"CONTRIBUTING.md quotes what {example.path} does not have:\n{old}"
    file.write_text(file.read_text().replace(old, new))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the files that the examples change, and of those that test them."""
    for name in ("multibinder", "wrappers", "tests", "docs", "examples", "systemd", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(tree: Path, *arguments: str) -> str:
    """Run Python with the copy instead of this tree, and return what it printed."""
    path = os.pathsep.join([str(tree), str(tree / "wrappers" / "haproxy")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert str(ROOT / "multibinder") not in done.stdout
    return done.stdout


def run_tests(tree: Path, *arguments: str) -> None:
    run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


def applied(tree: Path, section: str) -> None:
    found = list(examples(section))
    assert found
    for example in found:
        apply(tree, example)


def test_the_kind_is_found_by_its_addresses_and_its_sockets(tree: Path) -> None:
    applied(tree, "Add a kind of socket")
    code = (
        "import errno, multibinder\n"
        "from multibinder import Options\n"
        "from multibinder.wire import kinds\n"
        "from multibinder.wire.addresses import Address\n"
        "address = Address.parse('udplite@127.0.0.1:0')\n"
        "kind = kinds.of_address(address)\n"
        "print(kind.name, address)\n"
        "try:\n"
        "    with kind.open(address, Options()) as sock:\n"
        "        kind.make_ready(sock, None)\n"
        "        print(kinds.of_socket(sock).name, kind.is_ready(sock), str(kinds.address_of(sock))[:17])\n"
        "        bound = kind.address_of(sock)\n"
        "        try:\n"
        "            sock.shutdown(2)\n"
        "        except OSError:\n"
        "            pass\n"
        "        with kind.repair(sock, bound, Options()).replacement as new:\n"
        "            assert kind.is_ready(new) and kind.address_of(new) == bound\n"
        "        assert kind.colliding_inodes(bound)\n"
        "except OSError as error:\n"
        "    print('not here', errno.errorcode[error.errno])\n"  # a kernel without UDP-Lite
        "plain = Address.parse('udp@127.0.0.1:0')\n"
        "with kinds.of_address(plain).open(plain, Options()) as sock:\n"
        "    print(kinds.of_socket(sock).name)\n"
    )
    looked_up, opened, plain = run(tree, "-c", code).splitlines()
    assert looked_up == "udplite udplite@127.0.0.1:0"
    assert opened in ("udplite True udplite@127.0.0.1", "not here EPROTONOSUPPORT", "not here ESOCKTNOSUPPORT")
    assert plain == "udp"
    run_tests(tree, "tests/unit/test_kinds.py")


def test_the_check_is_found_by_the_doctor(tree: Path) -> None:
    applied(tree, "Add a check to the doctor")
    code = (
        "from multibinder.observe.doctor.checks import diagnose\n"
        "from multibinder.observe.doctor.facts import Binder, Facts\n"
        "print(*(finding.check for finding in diagnose(Facts('1', binder=Binder(1, '1', ())))))\n"
        "print('and', *(finding.check for finding in diagnose(Facts('1'))))\n"
    )
    with_binder, without = run(tree, "-c", code).splitlines()
    assert "no-listeners" in with_binder.split()
    assert "no-listeners" not in without.split()
    run(
        tree,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/doctor/test_checks.py",
        "tests/unit/test_imports.py",
    )


def test_the_style_is_used_and_documented(tree: Path) -> None:
    applied(tree, "Add a style of exec")
    code = (
        "import os\n"
        "from multibinder.launch.styles import draft\n"
        "from multibinder.launch.styles.passed import Passed\n"
        "web, admin = (Passed({'host': '::1', 'port': 80 + n}, name, -1) for n, name in enumerate(['web', 'admin']))\n"
        "made = draft.prepare(['true'], {'LISTENERS': 'stale', 'LISTENERS_PARENT': '1'}, [web, admin], ['pairs'])\n"
        "print(made.environment, made.parent_pid)\n"
        "try:\n"
        "    draft.prepare(['true'], {}, [Passed(web.slot, '', -1)], ['pairs'])\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    told, refused = run(tree, "-c", code).splitlines()
    assert told == "{'LISTENERS': 'web=3 admin=4'} ('LISTENERS_PARENT',)"
    assert refused.startswith("the style pairs needs a name")
    assert "pairs" in run(tree, "-m", "multibinder", "exec", "--help")
    run_tests(tree, "tests/unit/test_styles.py", "tests/unit/test_imports.py")
    page = tree / "docs" / "how-to" / "exec.md"
    page.write_text(re.sub(r"^\| programs that want pairs.*\n", "", page.read_text(), flags=re.MULTILINE))
    with pytest.raises(AssertionError, match="pairs"):
        run_tests(tree, "tests/unit/test_styles.py", "-k", "documented")


def test_the_metric_is_exposed_and_documented(tree: Path) -> None:
    applied(tree, "Add a metric")
    run_tests(tree, "tests/unit/test_metrics.py", "-k", "documented")
    page = tree / "docs" / "metrics.md"
    page.write_text(re.sub(r"^\| `multibinder_owners`.*\n", "", page.read_text(), flags=re.MULTILINE))
    with pytest.raises(AssertionError, match="multibinder_owners"):
        run_tests(tree, "tests/unit/test_metrics.py", "-k", "documented")
