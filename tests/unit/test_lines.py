"""Lines have the words, sections and blocks that HAProxy sees. tests/haproxy/test_lines.py asks HAProxy itself."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multibinder_haproxy.config import lines
from multibinder_haproxy.config.lines import Line, Unreadable, Word


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("  bind :80\tssl  ", ["bind", ":80", "ssl"]),
        ("bind :80 # a comment", ["bind", ":80"]),
        ("bind :80#backlog 5", ["bind", ":80"]),
        ("bind :80 name 'a # b' ssl", ["bind", ":80", "name", "a # b", "ssl"]),
        ('bind :80 name "a # b"# c', ["bind", ":80", "name", "a # b"]),
        ("bind :80 name a\\#b\\ c", ["bind", ":80", "name", "a#b c"]),
        ("b'in'\"d\" ':80'", ["bind", ":80"]),
        ("name '\\n$X' \"\\n\" \\x41", ["name", "\\n$X", "\n", "A"]),
        ("bind '' :80", ["bind", "", ":80"]),
        ("bind :80\r", ["bind", ":80"]),
        ("bind :80 \r ssl", ["bind", ":80", "ssl"]),
        ("bind :80\rssl", ["bind", ":80"]),
        ("bind\v:80\fssl", ["bind", ":80", "ssl"]),
        ("bind\u00a0:80\u2028ssl", ["bind\u00a0:80\u2028ssl"]),
        ("[scope]", []),
        ("", []),
    ],
)
def test_a_line_is_split_into_words_as_haproxy_does_it(line: str, words: list[str]) -> None:
    assert lines.split(line) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('bind "$ADDRESS"', ["bind", "10.0.0.1:80"]),
        ('bind "${ADDRESS}" $ADDRESS', ["bind", "10.0.0.1:80", "$ADDRESS"]),
        ('bind "${NONE-:80}" "${NONE}"', ["bind", ":80", ""]),
        ('bind :80 "${OPTIONS[*]}"', ["bind", ":80", "ssl", "crt", "x"]),
        ('bind :80 "${OPTIONS}"', ["bind", ":80", "ssl crt  x"]),
        ('bind "\\$ADDRESS"', ["bind", "$ADDRESS"]),
    ],
)
def test_variables_are_expanded_in_double_quotes(line: str, words: list[str]) -> None:
    assert lines.split(line, {"ADDRESS": "10.0.0.1:80", "OPTIONS": "ssl crt  x"}.get) == words


@pytest.mark.parametrize("line", ["a 'b", 'a "b', 'a "$1"', 'a "${B"', "a \\x4"])
def test_a_line_that_haproxy_refuses_is_unreadable(line: str) -> None:
    with pytest.raises(Unreadable):
        lines.split(line)


def test_a_word_knows_where_it_stands_with_its_quotes() -> None:
    line = " bind  'a b',\"c\" ssl# x"
    assert [line[word.start : word.end] for word in lines.split(line)] == ["bind", "'a b',\"c\"", "ssl"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=8), max_size=8))
def test_words_that_a_shell_quotes_are_read_back(words: list[str]) -> None:
    # A shell quotes with '…', and a single quote as '"'"'; HAProxy reads both in the same way.
    quoted = [shlex.quote(word) for word in words]
    found = lines.split(" ".join(["x", *quoted]))
    assert found == ["x", *words]
    assert all(isinstance(word, Word) for word in found)


@given(st.text(st.sampled_from(" \t\v\f\r\n\0#\\'\"$-.,:{}[]*@ax0n")))
def test_any_line_has_words_in_order_that_do_not_overlap_or_is_unreadable(line: str) -> None:
    try:
        words = lines.split(line, {"a": "b"}.get)
    except Unreadable:
        return
    ends = [0] + [word.end for word in words]
    assert all(end <= word.start < word.end for end, word in zip(ends, words, strict=False))


def numbers(found: list[Line]) -> list[int]:
    return [line.number for line in found]


def test_a_line_belongs_to_the_last_section_whatever_its_indentation() -> None:
    text = "x\n  global\nfrontend_x\n\nlisten web\n\tbind :80\n'peers' p\n# global\nbind :81\n"
    found = [(line.number, line.section, line.begins_section) for line in lines.read(text)]
    assert found == [
        (1, "", False),
        (2, "global", True),
        (3, "global", False),
        (5, "listen", True),
        (6, "listen", False),
        (7, "peers", True),
        (9, "peers", False),
    ]


CONDITIONAL = """a
.if 1
b
.if 2
c
.else
d
.endif
e
.elif 3
f
.endif
g
"""


def test_a_line_names_the_blocks_that_it_depends_on() -> None:
    found = {line.keyword: line.blocks for line in lines.read(CONDITIONAL)}
    assert found == {"a": (), "b": (2,), "c": (2, 4), "d": (2, 6), "e": (2,), "f": (10,), "g": ()}


@pytest.mark.parametrize(
    ("unread", "keywords"), [({2}, "afg"), ({4}, "abdefg"), ({4, 6}, "abefg"), ({10}, "abcdeg"), ({2, 10}, "ag")]
)
def test_a_block_that_haproxy_does_not_read_has_no_lines(unread: set[int], keywords: str) -> None:
    found = [line.keyword for line in lines.read(CONDITIONAL, is_read=lambda block: block not in unread)]
    assert "".join(found) == keywords


def test_a_section_in_a_block_that_is_not_read_does_not_begin() -> None:
    found = list(lines.read("frontend a\n.if 0\nbackend b\n.endif\nbind :80\n", is_read=lambda block: False))
    assert [(line.keyword, line.section) for line in found] == [("frontend", "frontend"), ("bind", "frontend")]


def test_only_a_newline_ends_a_line() -> None:
    assert numbers(list(lines.read("a\r\nb\u2028c\x0bd\x85e\n\nf"))) == [1, 2, 4]


def test_the_arguments_end_at_an_empty_word() -> None:
    [line] = lines.read("bind :80 '' interface eth0")
    assert line.arguments == [":80"]
