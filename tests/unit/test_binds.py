"""Only slots in text that HAProxy reads as a bind are asked from the binder; the others are plain text, and said."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from multibinder_haproxy.config import binds
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer


def render(directory: Path, **files: str) -> Config:
    """Render ``a="…"`` as the template a.cfg.j2 to a.cfg. ``<80>`` in a text is a bind_tcp() of that port."""
    for name, text in files.items():
        calls = re.sub(r"<(\d+)>", r"{{ bind_tcp('127.0.0.1', \1) }}", text)
        (directory / f"{name}.cfg.j2").write_text(calls)
    return Renderer("web", {}, {}).render([(str(directory / f"{name}.cfg.j2"), f"{name}.cfg") for name in files])


def decided(config: Config, printed: str) -> Config:
    """Return the configuration after HAProxy was asked, and has printed this."""
    unread = binds.unread_blocks(config, printed)
    return config if unread is None else binds.decided(config, unread)


def ports(config: Config) -> list[int]:
    return [slot.port for slot in config.slots]


def unused(config: Config) -> list[tuple[str, int, str]]:
    return [(each.key.rpartition(":")[2], each.line, each.why) for each in config.unused]


@pytest.mark.parametrize(
    "text",
    [
        "frontend web\n bind <80>\n",
        "listen web\n\tbind <80> ssl\n",
        "peers p\n bind <80>\n server me\n",
        "log-forward l\n bind <80>\n",
        "global\n stats socket <80> level admin\n",
        "listen web\n bind 127.0.0.1:81,<80>,:82\n",
        "listen web\n 'bind' \"<80>\" # comment\n",
        "bind <80>\n",  # HAProxy refuses it, and says why
    ],
)
def test_a_slot_in_text_that_haproxy_reads_as_a_bind_is_asked_for(tmp_path: Path, text: str) -> None:
    config = render(tmp_path, a=text)
    assert (ports(config), config.unused, config.warnings) == ([80], [], [])
    assert config.files["a.cfg"] == text.replace("<80>", "fd@{127.0.0.1:80}")
    [place] = config.places
    assert text.split("\n")[place.line - 1].count("<80>") == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("backend b\n bind <80>\n", "HAProxy reads no bind there, but 'bind'"),
        ("userlist u\n bind <80>\n", "HAProxy reads no bind there, but 'bind'"),
        ("listen web\n acl here dst <80>\n", "HAProxy reads no bind there, but 'acl'"),
        ("listen web\n bind :81 name <80>\n", "HAProxy reads no bind there, but 'bind'"),
        ("frontend web\n stats socket <80>\n", "HAProxy reads no bind there, but 'stats'"),
        ("peers p\n peer me <80>\n", "HAProxy reads no bind there, but 'peer'"),
        ("log-forward l\n dgram-bind <80>\n", "HAProxy reads no bind there, but 'dgram-bind'"),
        ("listen web\n 'bind <80>\n", "HAProxy cannot read the line (unmatched quote)"),
        ("listen off\n disabled\n bind <80>\n", "its listen off is disabled"),
        ("listen off\n bind <80>\n disabled\n", "its listen off is disabled"),
        ("listen off\n enabled\n bind <80>\n disabled\n", "its listen off is disabled"),
        ("defaults\n disabled\nlisten off\n bind <80>\n", "its listen off is disabled"),
        ("defaults d\n disabled\ndefaults e from d\nlisten off from e\n bind <80>\n", "its listen off is disabled"),
        ("peers p\n disabled\n bind <80>\n", "its peers p is disabled"),
    ],
)
def test_a_slot_that_haproxy_does_not_accept_on_is_not_asked_for_and_said(tmp_path: Path, text: str, why: str) -> None:
    config = render(tmp_path, a=f"{text}listen other\n bind <90>\n enabled\n")
    line = text[: text.index("<80>")].count("\n") + 1
    assert (ports(config), unused(config)) == ([90], [("80", line, why)])
    assert config.warnings == [f"a.cfg:{line}: 127.0.0.1:80 is not bound: {why}"]
    assert config.files["a.cfg"].startswith(text.replace("<80>", "127.0.0.1:80"))


@pytest.mark.parametrize("text", ["# bind <80>\n", "bind 127.0.0.1:81# <80>\n", "bind 127.0.0.1:81 # <80> x\n"])
def test_a_slot_in_a_comment_is_a_note_for_check_and_no_warning(tmp_path: Path, text: str) -> None:
    config = render(tmp_path, a=f"listen web\n{text}")
    assert (ports(config), config.warnings) == ([], [])
    assert config.notes == ["a.cfg:2: 127.0.0.1:80 is not bound: it is in a comment"]
    assert [each.why for each in config.unused] == ["it is in a comment"]


@pytest.mark.parametrize(
    "text",
    [
        "defaults\n disabled\nlisten on\n enabled\n bind <80>\n",
        "defaults d\n disabled\ndefaults e\n mode http\nlisten on\n bind <80>\n",
        "defaults\n disabled\ndefaults\nlisten on\n bind <80>\n",
        "listen off\n disabled\nlisten on\n bind <80>\n",
        "backend off\n disabled\nlisten on\n bind <80>\n",
        "defaults d\n disabled\ndefaults\nlisten off from d\nlisten on\n bind <80>\n",
        "listen on\n bind <80>\n server s :1 disabled\n # disabled\n",
    ],
)
def test_a_proxy_that_is_not_disabled_is_bound(tmp_path: Path, text: str) -> None:
    assert ports(render(tmp_path, a=text)) == [80]


def test_defaults_apply_to_the_files_after_them(tmp_path: Path) -> None:
    assert ports(render(tmp_path, a="defaults\n disabled\n", b="listen off\n bind <80>\n")) == []
    assert ports(render(tmp_path, b="listen on\n bind <80>\n", a="defaults\n disabled\n")) == [80]


def test_a_bind_that_is_only_in_a_variable_of_the_template_is_no_slot(tmp_path: Path) -> None:
    config = render(tmp_path, a="{% set unused = bind_tcp('127.0.0.1', 81) %}listen web\n bind <80>\n{# <82> #}")
    assert (ports(config), config.unused) == ([80], [])


def test_a_slot_that_is_used_somewhere_is_not_reported_where_it_is_not(tmp_path: Path) -> None:
    text = "listen off\n disabled\n bind <80> ssl\nlisten on\n # <80>\n bind <80>\n"
    config = render(tmp_path, a=text)
    assert (ports(config), config.unused, config.warnings, config.notes) == ([80], [], [], [])
    assert config.fill({"127.0.0.1:80": 7})["a.cfg"].decode() == (
        "listen off\n disabled\n bind 127.0.0.1:80 ssl\nlisten on\n # 127.0.0.1:80\n bind fd@7\n"
    )
    assert [place.line for place in config.places] == [6]


def test_a_name_with_a_space_in_the_key_is_found(tmp_path: Path) -> None:
    text = (
        "listen on\n bind {{ bind_tcp('::1', 0, name='a') }}\nlisten off\n disabled\n bind {{ bind_tcp('::1', 0) }}\n"
    )
    config = render(tmp_path, a=text)
    assert [slot.key for slot in config.slots] == ["[::1]:0 (a)"]
    assert config.files["a.cfg"] == "listen on\n bind fd@{[::1]:0 (a)}\nlisten off\n disabled\n bind [::1]:1\n"


def test_what_is_taken_out_does_not_change_the_digest(tmp_path: Path) -> None:
    config = render(tmp_path, a="listen on\n bind <80>\n # <81>\n")
    assert config.same_as(render(tmp_path, a="listen on\n bind <80>\n # <81>\n"))
    assert not config.same_as(render(tmp_path, a="listen on\n bind <80>\n # <82>\n"))


CONDITIONAL = """listen web
 bind <80>
.if defined(A)
 bind <81>
.elif defined(B)
 bind <82>
.else
 bind <83>
.endif
"""


def read_by_haproxy(config: Config, *lines: int) -> str:
    """Return what HAProxy prints about the probe of a single file if it reads the blocks that begin in these lines."""
    probe = binds.probe(config)
    assert probe is not None
    notices = re.findall(r'^\.notice "(.*)"$', probe["a.cfg"].decode(), re.MULTILINE)
    read = [notice for notice in notices if int(notice.split()[-1]) in (0, *lines)]
    return "".join(f"[NOTICE] (1) : config : parsing [/tmp/a.cfg:7]: '{notice}'.\n" for notice in read)


def test_a_block_counts_as_read_until_haproxy_was_asked(tmp_path: Path) -> None:
    config = render(tmp_path, a=CONDITIONAL)
    assert (ports(config), config.conditional, config.warnings) == ([80, 81, 82, 83], True, [])


def test_the_slots_of_blocks_that_haproxy_does_not_read_are_taken_out(tmp_path: Path) -> None:
    config = render(tmp_path, a=CONDITIONAL)
    judged = decided(config, read_by_haproxy(config, 5))
    assert ports(judged) == [80, 82]
    assert judged.warnings == [
        "a.cfg:4: 127.0.0.1:81 is not bound: HAProxy does not read the block that begins in line 3",
        "a.cfg:8: 127.0.0.1:83 is not bound: HAProxy does not read the block that begins in line 7",
    ]
    assert judged.same_as(config)
    assert b"bind 127.0.0.1:81\n" in judged.fill({"127.0.0.1:80": 3, "127.0.0.1:82": 4})["a.cfg"]


def test_a_probe_that_haproxy_did_not_read_to_its_end_decides_nothing(tmp_path: Path) -> None:
    config = render(tmp_path, a=CONDITIONAL)
    assert decided(config, "[ALERT] (1) : parsing [a.cfg:1]: 'stop'.") == config


def test_a_probe_has_the_lines_of_the_configuration_and_plain_binds(tmp_path: Path) -> None:
    config = render(tmp_path, a=CONDITIONAL)
    probe = binds.probe(config)
    assert probe is not None
    without_notices = re.sub(rb'^\.notice ".*"\n', b"", probe["a.cfg"], flags=re.MULTILINE)
    assert without_notices == config.plain()["a.cfg"]


@pytest.mark.parametrize(
    "text",
    [
        "global\n.if 1\n maxconn 5\n.endif\nlisten web\n bind <80>\n",
        "listen web\n bind <80>\n.if 1\n bind :81\n.endif\n",
        "listen web\n bind <80>\n# .if 1\n# .endif\n",
    ],
)
def test_haproxy_is_not_asked_where_no_condition_is_about_a_bind_of_ours(tmp_path: Path, text: str) -> None:
    config = render(tmp_path, a=text)
    assert binds.probe(config) is None
    assert not config.conditional


@pytest.mark.parametrize(
    ("text", "read", "unread"),
    [
        ("listen web\n.if 1\n disabled\n.endif\n bind <80>\n", [], [80]),
        ("defaults\n.if 1\n disabled\n.endif\nlisten web\n bind <80>\n", [], [80]),
        (".if 1\nbackend b\n.else\nlisten b\n.endif\n bind <80>\n", [], [80]),
        (".if 1\nlisten b\n.else\nbackend b\n.endif\n bind <80>\n", [80], []),
        ("defaults\n.if 1\ndefaults\n disabled\n.endif\nlisten web\n bind <80>\n", [], [80]),
    ],
)
def test_a_condition_around_a_section_or_disabled_decides_about_its_binds(
    tmp_path: Path, text: str, read: list[int], unread: list[int]
) -> None:
    config = render(tmp_path, a=text)
    assert ports(config) == [80]
    block = text[: text.index(".if")].count("\n") + 1
    assert ports(decided(config, read_by_haproxy(config, block))) == read
    otherwise = text.count("\n", 0, text.index(".else")) + 1 if ".else" in text else 0
    assert ports(decided(config, read_by_haproxy(config, otherwise))) == unread


def test_warnings_about_a_block_that_is_not_read_go_and_other_warnings_stay(tmp_path: Path) -> None:
    text = "listen a\n bind <80> interface lo\n.if 0\n bind <81> interface lo\n.endif\n"
    config = render(tmp_path, a=text)
    assert [warning[:8] for warning in config.warnings] == ["a.cfg:2:", "a.cfg:4:"]
    judged = decided(config, read_by_haproxy(config))
    assert [warning.partition(": ")[2][:15] for warning in judged.warnings] == ["HAProxy ignores", "127.0.0.1:81 is"]


def test_a_record_of_a_decided_configuration_is_read_back(tmp_path: Path) -> None:
    config = render(tmp_path, a=CONDITIONAL)
    judged = decided(config, read_by_haproxy(config, 3))
    assert msgspec.json.decode(msgspec.json.encode(judged), type=Config) == judged
