"""Each option that HAProxy ignores on a bind of ours is warned of, and no other word is."""

from __future__ import annotations

from pathlib import Path

import pytest
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer


def render(directory: Path, **files: str) -> Config:
    """Render ``a="…"`` as the template a.cfg.j2 to a.cfg."""
    for name, text in files.items():
        (directory / f"{name}.cfg.j2").write_text(text)
    return Renderer("web", {}, {}).render([(str(directory / f"{name}.cfg.j2"), f"{name}.cfg") for name in files])


def warnings_of(directory: Path, options: str, bind: str = "bind_tcp('::', 443)") -> list[str]:
    return render(directory, a=f"frontend web\n  bind {{{{ {bind} }}}} {options}\n").warnings


@pytest.mark.parametrize(
    ("options", "name", "remedy"),
    [
        ("ssl backlog 100 crt x", "backlog", "write bind_tcp(…, backlog=100) instead"),
        ("v6only", "v6only", "write bind_tcp(…, v6only=true) instead"),
        ("v4v6", "v4v6", "write bind_tcp(…, v6only=false) instead"),
        ("crt x interface eth0", "interface", "write bind_tcp(…, interface='eth0') instead"),
        ("transparent ssl", "transparent", "write bind_tcp(…, transparent=true) instead"),
        ("namespace blue", "namespace", "write bind_tcp(…, netns='blue') instead"),
        ("shards by-thread", "shards", "all threads share its one queue: write bind_tcp(…, shards='cpus') instead"),
        ("name 'a # b' \"inter\"face eth0", "interface", "write bind_tcp(…, interface='eth0') instead"),
        ('name "#" backlog "100"', "backlog", "write bind_tcp(…, backlog=100) instead"),
    ],
)
def test_an_option_that_haproxy_ignores_on_an_inherited_socket_is_warned_of(
    tmp_path: Path, options: str, name: str, remedy: str
) -> None:
    [warning] = warnings_of(tmp_path, options)
    assert warning == f"a.cfg:2: HAProxy ignores '{name}' on a socket that it inherits ([::]:443); {remedy}"


@pytest.mark.parametrize("option", ["interface", "backlog", "v6only", "v4v6", "namespace", "transparent", "shards"])
@pytest.mark.parametrize(
    "keyword", ["name", "crt", "id", "alpn", "ca-file", "crt-list", "proto", "default-crt", "label"]
)
def test_the_argument_of_another_option_is_not_an_option(tmp_path: Path, keyword: str, option: str) -> None:
    assert warnings_of(tmp_path, f"ssl {keyword} {option} mss 1400") == []


@pytest.mark.parametrize(
    ("options", "bind"),
    [
        ("ssl crt x mss 1400 tfo defer-accept tcp-ut 5s maxconn 10 nice 5 thread 1 id 3 accept-proxy", ""),
        ("ssl # interface eth0", ""),
        ("ssl#interface eth0", ""),
        ("'' interface eth0", ""),  # HAProxy stops at the empty word
        ("shards 1", ""),
        ("v6only", "bind_tcp('0.0.0.0', 443)"),
        ("v4v6", "bind_tcp('0.0.0.0', 443)"),
        ("v6only", "bind_tcp('::1', 443)"),
        ("v6only", "bind_tcp('::', 443, v6only=true)"),
        ("v4v6", "bind_tcp('::', 443, v6only=false)"),
        ("backlog 100", "bind_tcp('::', 443, backlog=100)"),
    ],
)
def test_what_haproxy_applies_or_what_changes_nothing_is_not_warned_of(tmp_path: Path, options: str, bind: str) -> None:
    assert warnings_of(tmp_path, options, bind or "bind_tcp('::', 443)") == []


def test_a_bind_that_is_not_ours_is_not_warned_of(tmp_path: Path) -> None:
    ours = "listen a\n bind {{ bind_tcp('::1', 80) }}\n bind :81 interface eth0 backlog 5\n"
    assert render(tmp_path, a=f"{ours}listen b\n backlog 7\n bind :82\n").warnings == []


def test_an_option_of_a_line_with_several_addresses_names_those_that_it_does_not_reach(tmp_path: Path) -> None:
    text = "listen a\n bind {{ bind_tcp('::', 80) }},{{ bind_tcp('127.0.0.1', 80) }},:81 v6only interface eth0\n"
    assert [warning.partition(";")[0] for warning in render(tmp_path, a=text).warnings] == [
        "a.cfg:2: HAProxy ignores 'v6only' on a socket that it inherits ([::]:80)",
        "a.cfg:2: HAProxy ignores 'interface' on a socket that it inherits ([::]:80, 127.0.0.1:80)",
    ]


def test_the_backlog_of_a_section_is_warned_of_once_for_all_binds_that_have_none(tmp_path: Path) -> None:
    text = (
        "frontend web\n bind {{ bind_tcp('::1', 80) }}\n backlog 10000\n bind {{ bind_tcp('::1', 81) }}\n"
        " bind {{ bind_tcp('::1', 82, backlog=5) }}\n bind {{ bind_tcp('::1', 83) }} backlog 6\n bind :84\n"
    )
    of_the_line, of_the_section = render(tmp_path, a=text).warnings
    assert of_the_line.startswith("a.cfg:6: HAProxy ignores 'backlog' on a socket that it inherits ([::1]:83); ")
    assert of_the_section == (
        "a.cfg:3: HAProxy ignores the backlog of 'frontend web' on a socket that it inherits ([::1]:80, [::1]:81); "
        "write bind_tcp(…, backlog=10000)"
    )


def test_the_backlog_of_defaults_is_warned_of_where_a_section_with_our_binds_inherits_it(tmp_path: Path) -> None:
    config = render(
        tmp_path,
        a="defaults big\n backlog 10000\ndefaults small\n backlog 5\ndefaults\n mode http\n",
        b=(
            "frontend none\n bind {{ bind_tcp('::1', 80) }}\nfrontend one from big\n bind {{ bind_tcp('::1', 81) }}\n"
            "defaults both from small\nlisten two from both\n bind {{ bind_tcp('::1', 82) }}\n"
            "listen three from small\n backlog 6\n bind {{ bind_tcp('::1', 83, backlog=6) }}\n"
        ),
    )
    assert [warning.partition("; ")[0] for warning in config.warnings] == [
        "a.cfg:2: HAProxy ignores the backlog of 'defaults big' on a socket that it inherits ([::1]:81)",
        "a.cfg:4: HAProxy ignores the backlog of 'defaults small' on a socket that it inherits ([::1]:82)",
    ]


def test_the_options_of_default_bind_apply_to_the_bind_of_its_peers_section(tmp_path: Path) -> None:
    bind = " bind {{ bind_tcp('::1', 1024) }}\n server me\n"
    ours = render(tmp_path, a=f"peers p\n default-bind ssl crt x interface eth0\n{bind}peers q\n default-bind v6only\n")
    assert [warning.partition(";")[0] for warning in ours.warnings] == [
        "a.cfg:2: HAProxy ignores 'interface' on a socket that it inherits ([::1]:1024)"
    ]


def test_a_stats_socket_of_ours_is_a_bind(tmp_path: Path) -> None:
    text = "global\n stats socket {{ bind_tcp('::1', 9999) }} level admin interface lo\n stats socket /x interface lo\n"
    assert [warning.partition(";")[0] for warning in render(tmp_path, a=text).warnings] == [
        "a.cfg:2: HAProxy ignores 'interface' on a socket that it inherits ([::1]:9999)"
    ]


FRONTEND = "listen web\n bind {{ bind_tcp('::1', 80) }}\n"


@pytest.mark.parametrize("options", ["level admin", "mode 600 level user level admin", "'level' \"admin\" user root"])
def test_a_cli_of_level_admin_is_a_note_that_says_what_to_use_instead_of_disable_frontend(
    tmp_path: Path, options: str
) -> None:
    config = render(tmp_path, a=f"global\n stats socket /x {options}\n{FRONTEND}")
    [note] = config.notes
    assert note.startswith("a.cfg:2: this CLI takes 'disable frontend'. ")
    assert "multibinder release --owner haproxy@NAME ADDRESS" in note
    assert config.warnings == []


@pytest.mark.parametrize(
    "text",
    [
        "global\n stats socket /x\n" + FRONTEND,
        "global\n stats socket /x level operator # level admin\n" + FRONTEND,
        "global\n stats socket /x name level user admin\n" + FRONTEND,
        "global\n stats socket /x level admin level user\n" + FRONTEND,
        "global\n stats socket {{ bind_tcp('::1', 80) }} level admin\nlisten web\n bind :81\n",
        "listen web\n bind {{ bind_tcp('::1', 80) }}\n stats socket /x level admin\n",
    ],
)
def test_a_cli_that_cannot_disable_a_frontend_with_our_binds_has_no_note(tmp_path: Path, text: str) -> None:
    assert render(tmp_path, a=text).notes == []
