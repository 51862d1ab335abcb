"""A file of environment variables is read as systemd reads EnvironmentFile=."""

from __future__ import annotations

import ctypes
import glob
import random
from pathlib import Path

import pytest

from multibinder.launch.run.environment_file import EnvironmentFileError, parse, read
from tests.support.campaign import times


def nothing(sentence: str) -> None:
    pytest.fail(sentence)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("  A = x y  \n", {"A": "x y"}),
        ("# A=1\n; B=2\nC=3 # no comment", {"C": "3 # no comment"}),
        ("A=\"x y\"' z'\nB='$HOME \\n'", {"A": "x y z", "B": "$HOME \\n"}),
        ('A="two\nlines \\" \\$ \\x"', {"A": 'two\nlines " $ \\x'}),
        ("A=one\\\n two\nB=a\\ b\\\\", {"A": "one two", "B": "a b\\"}),
        ("A=1\nA=2\nB=\nC", {"A": "2", "B": ""}),
        ("# continued \\\nA=1\nB=2", {"B": "2"}),
        ("A='no end\nB=2", {"A": "no end\nB=2"}),
        ("A=x\r\nB=é\r\n", {"A": "x", "B": "é"}),
    ],
)
def test_the_grammar(text: str, expected: dict[str, str]) -> None:
    assert parse(text) == expected


def test_it_is_that_of_systemd_itself(tmp_path: Path) -> None:
    libraries = glob.glob("/usr/lib/*/systemd/libsystemd-shared-*.so")
    if not libraries:
        pytest.skip("there is no library of systemd")
    load, libc = ctypes.CDLL(libraries[0]).load_env_file_pairs, ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    path = tmp_path / "env"
    chosen = random.Random(20)

    def of_systemd() -> dict[str, str]:
        file = ctypes.c_void_p(libc.fopen(str(path).encode(), b"re"))
        found = ctypes.POINTER(ctypes.c_char_p)()
        try:
            assert load(file, None, ctypes.byref(found)) >= 0
        finally:
            libc.fclose(file)
        pairs: list[str] = []
        while found and (entry := found[len(pairs)]) is not None:
            pairs.append(entry.decode())
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    for _ in range(times(1500, 300_000)):
        text = "".join(chosen.choice("AB=='\"\\\\ \t\n\n\r#;$`xé") for _ in range(chosen.randrange(24)))
        text = f"A={text}" if chosen.random() < 0.7 else text
        path.write_text(text, newline="")
        assert parse(text) == of_systemd(), repr(text)


def test_a_name_that_no_variable_can_have_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("export A=1\n1B=2\nC-D=3\n_E1=4\n\x1b=5\n")
    said: list[str] = []
    assert read(str(path), said.append) == {"_E1": "4"}
    assert said[0] == f"the environment file {path}: 'export A' is left out: no variable can have this name"
    assert len(said) == 4
    assert "\x1b" not in "".join(said)


def test_a_file_that_may_be_missing(tmp_path: Path) -> None:
    assert read(f"-{tmp_path / 'none'}", nothing) == {}
    with pytest.raises(EnvironmentFileError, match="does not exist"):
        read(str(tmp_path / "none"), nothing)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"A=1\nB=\xff\n", "line 2: this is not UTF-8"),
        (b"A=1\n\nB=\0", "line 3: there is a NUL character"),
        (b"A" * (1 << 20) + b"AA", "has more than 1048576 bytes"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes(content)
    for name in (str(path), f"-{path}"):
        with pytest.raises(EnvironmentFileError, match=words):
            read(name, nothing)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFileError, match="cannot be read: Is a directory"):
        read(str(tmp_path), nothing)
