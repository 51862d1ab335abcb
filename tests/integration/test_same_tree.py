"""A test run ends at once when the installed commands run other code than the tests import."""

from __future__ import annotations

from pathlib import Path

from tests.support import same_tree


def test_the_commands_of_this_environment_run_the_code_that_the_tests_import() -> None:
    assert same_tree.difference() is None


def test_a_command_of_another_checkout_is_named_with_its_code(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho /elsewhere/multibinder/__init__.py\necho /elsewhere/multibinder_haproxy.py\n")
    python.chmod(0o755)
    (tmp_path / "multibinder-haproxy").write_text(f"#!{python}\nimport sys\n")
    said = same_tree.difference(tmp_path)
    assert said is not None
    assert f"multibinder-haproxy ({python}) runs /elsewhere/multibinder/__init__.py and" in said


def test_an_environment_without_the_project_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named multibinder' >&2\nexit 1\n")
    python.chmod(0o755)
    (tmp_path / "multibinder").write_text(f"#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\nimport sys\n")
    said = same_tree.difference(tmp_path)
    assert said is not None
    assert "No module named multibinder" in said
