"""The reader of configuration lines agrees with HAProxy's own, whatever the line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from multibinder_haproxy.config import lines
from multibinder_haproxy.config.lines import Unreadable

from tests.haproxy.support import HAPROXY
from tests.support import clean_environment, require, wait_until

#: HAProxy starts this for each line, as a program, with the words of the line as arguments.
_WRITE_WORDS = """
exec 2>/dev/null
file=$0.$1
shift
for word; do printf '%s\\0' "$word"; done >"$file.new" && mv "$file.new" "$file"
"""
_ENVIRONMENT = {"SET": "value", "TWO": "a  b", "HASH": "x # y", "QUOTE": "q'\"q", "EMPTY": ""}

_pieces = st.sampled_from(
    [
        *" \t\v\f\r#\\'\"$-.,:{}[]*@ax0n",
        *("  ", "\\ ", "\\#", "\\'", '\\"', "\\\\", "\\$", "\\n", "\\t", "\\x41", "\\x2c", "\\q", "\\x4", "é"),
        *('"$SET"', '"${SET}"', '"${TWO[*]}"', '"${NONE-other}"', '"${TWO}"', '"$HASH"', '"$QUOTE"', '"$NONE"'),
        *('"${HASH[*]}"', "$SET", "${SET}", "'$SET'", '""', "''", "' '", '" "', "bind", "fd@{0}"),
        *(
            '"${.LINE}"',
            '"$.SECTION"',
            '"${.FILE}"',
            '"${NONE[*]-a b}"',
            '"$1"',
            '"${SET"',
            '"${SET[+]}"',
            '"${SET:-x}"',
        ),
    ]
)
_lines = st.lists(_pieces, max_size=12).map("".join)


def version() -> list[int]:
    said = subprocess.run([HAPROXY, "-v"], capture_output=True, text=True, check=False).stdout
    return [int(number) for number in re.findall(r"\d+", said)[:2]]


@pytest.fixture(scope="module", autouse=True)
def haproxy_has_programs() -> None:
    reason = f"{HAPROXY} has no programs, which tell what words it read, or it is 2.4, which has no ${{X-default}}"
    require("haproxy-program", shutil.which(HAPROXY) and [2, 6] <= version() < [3, 3], reason)


def config_of(directory: Path, texts: Sequence[str]) -> str:
    """Return a configuration that has HAProxy start a program with the words of each text."""
    command = f"command /bin/sh {directory}/words"
    programs = [f"program p{number}\n  {command} {number} {text}" for number, text in enumerate(texts)]
    return "\n".join(["listen web", f"  bind {directory}/web.sock", "  timeout client 1s", *programs, ""])


def words_of_haproxy(directory: Path, config: str, programs: int) -> list[list[str]]:
    """Return the words that HAProxy reads in each text, up to an empty word."""
    (directory / "words").write_text(_WRITE_WORDS)
    (directory / "lines.cfg").write_bytes(config.encode())
    log = directory / "log"
    files = [directory / f"words.{number}" for number in range(programs)]
    with log.open("wb") as output:
        haproxy = subprocess.Popen(
            [HAPROXY, "-W", "-f", str(directory / "lines.cfg")],
            env=clean_environment(_ENVIRONMENT),
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(
            lambda: haproxy.poll() is not None or all(file.exists() for file in files),
            "every program has its words",
            log=lambda: log.read_text(errors="replace"),
        )
        assert haproxy.poll() is None, log.read_text(errors="replace")
    finally:
        haproxy.terminate()
        haproxy.wait()
    return [[word.decode() for word in file.read_bytes().split(b"\0")[:-1]] for file in files]


def is_readable(text: str) -> bool:
    try:
        lines.split(f"command {text}")
    except Unreadable:
        return False
    return True


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@example(texts=["a#b c", "'a#b' c", "a\\#b", "a\rb", "a \r b", '"a\\x00b" c', "'' b", "a '' b", '"${EMPTY}" b'])
@given(texts=st.lists(_lines, min_size=1, max_size=200))
def test_every_line_has_the_words_that_haproxy_reads_in_it(texts: list[str]) -> None:
    has_pseudo_variables = version() >= [2, 6]
    texts = [text for text in texts if is_readable(text) and (has_pseudo_variables or not re.search(r"\$\{?\.", text))]
    with tempfile.TemporaryDirectory(prefix="mb-") as directory:
        config = config_of(Path(directory), texts)
        theirs = words_of_haproxy(Path(directory), config, len(texts))
    found = lines.read(config, _ENVIRONMENT, file=f"{directory}/lines.cfg")
    ours = [line.arguments[3:] for line in found if line.keyword == "command"]
    assert list(zip(texts, theirs, strict=True)) == list(zip(texts, ours, strict=True))


@pytest.mark.parametrize(
    "text", ["'", '"', "a'b", "\"a'", "'a\r'", '"$1"', '"${SET"', '"${SET[+]}"', '"${SET:-x}"', "\\x4", '"${.X', '"$"']
)
def test_what_haproxy_refuses_to_read_is_unreadable(text: str, run_dir: Path) -> None:
    (run_dir / "line.cfg").write_text(f"global\ndescription {text}\n")
    done = subprocess.run(
        [HAPROXY, "-c", "-f", str(run_dir / "line.cfg")], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "parsing [" in done.stderr
    with pytest.raises(Unreadable):
        lines.split(text)
