from __future__ import annotations

from pathlib import Path

import pytest
from multibinder_haproxy import plan
from multibinder_haproxy.arguments import join, parse
from multibinder_haproxy.dry_run import Message, Outcome, messages_of

from multibinder.launch.errors import UsageError


def mode(tmp_path: Path, *words: str) -> list[str]:
    return join(plan.mode(parse([*words, "-f", "web.cfg.j2"]), str(tmp_path)))


@pytest.mark.parametrize(
    ("words", "added"),
    [(["-Ws"], []), (["-W"], ["-db"]), (["-W", "-db"], []), (["-Ws", "-W"], [])],
)
def test_haproxy_stays_in_the_foreground(tmp_path: Path, words: list[str], added: list[str]) -> None:
    assert mode(tmp_path, *words) == added


@pytest.mark.parametrize("line", ["master-worker", "\tmaster-worker no-exit-on-failure"])
def test_master_worker_in_the_configuration_is_as_good_as_the_option(tmp_path: Path, line: str) -> None:
    (tmp_path / "web.cfg.j2").write_text(f"global\n{line}\n")
    assert mode(tmp_path) == ["-W", "-db"]


def test_without_it_the_missing_option_is_named(tmp_path: Path) -> None:
    (tmp_path / "web.cfg.j2").write_text("global\n # master-worker\n")
    with pytest.raises(UsageError, match="add -Ws"):
        mode(tmp_path)


def test_a_daemon_that_does_not_count_is_said_with_its_line() -> None:
    texts = {"web.cfg": "global\n  daemon  # as in the example\n"}
    (warning,) = plan.overruled(parse(["-W", "-db"]), texts)
    assert warning.startswith("web.cfg:2: 'daemon' would take HAProxy away")
    # With -Ws HAProxy itself ignores it, as it always did.
    assert plan.overruled(parse(["-Ws"]), texts) == []


def test_haproxys_messages_are_told_from_what_it_says_of_itself() -> None:
    output = """\
[NOTICE]   (10) : haproxy version is 2.6.12
[NOTICE]   (10) : path to executable is /usr/sbin/haproxy
[WARNING]  (10) : config : missing timeouts for frontend 'web'.
   | While not properly invalid.
[WARNING] 121/120000 (10) : as HAProxy 2.3 says it
[ALERT]    (10) : config : parsing [a:1]: unknown keyword 'x'.
Warnings were found.
Configuration file is valid
"""
    messages = messages_of(output)
    assert messages == [
        Message("WARNING", "missing timeouts for frontend 'web'.\n   | While not properly invalid."),
        Message("WARNING", "as HAProxy 2.3 says it"),
        Message("ALERT", "parsing [a:1]: unknown keyword 'x'."),
    ]
    assert [text.splitlines()[0] for text in Outcome(0, messages).warnings] == [
        "missing timeouts for frontend 'web'.",
        "as HAProxy 2.3 says it",
    ]


def test_a_loaders_complaint_is_a_message_too() -> None:
    assert Outcome(127, messages_of("haproxy: error while loading shared libraries: libcrypt.so.1\n")).text == (
        "haproxy: error while loading shared libraries: libcrypt.so.1"
    )
