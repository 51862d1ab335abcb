"""A plain bind is given to the binder as if it were written with bind_tcp(); what is not certain is left as it is."""

from __future__ import annotations

import os

import msgspec
import pytest
from multibinder_haproxy.config.inputs import Inputs
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.taken import Taken
from multibinder_haproxy.config.taking import Taking, take
from multibinder_haproxy.invocation import Invocation

ALL = Taking(binds=True, stats=True)


def taken(text: str, environment: dict[str, str] | None = None, taking: Taking = ALL) -> Taken:
    return take(Config({"a.cfg": text}, [], inputs=Inputs()), taking, environment or {}, {})


def keys(text: str, environment: dict[str, str] | None = None) -> list[str]:
    return [slot.key for edit in taken(text, environment).edits for slot in edit.slots]


def rewritten(text: str, environment: dict[str, str] | None = None) -> str:
    return taken(text, environment).applied_to(Config({"a.cfg": text}, [])).files["a.cfg"]


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        (":80", ["0.0.0.0:80"]),
        ("*:80", ["0.0.0.0:80"]),
        ("127.0.0.1:80,:::81,[2001:db8::1]:82", ["127.0.0.1:80", "[::]:81", "[2001:db8::1]:82"]),
        ("ipv6@:80", ["[::]:80"]),
        ("tcp4@*:80", ["0.0.0.0:80"]),
        (":80-82", ["0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:82"]),
        (":80,", ["0.0.0.0:80"]),
        ("/run/a.sock", ["unix@/run/a.sock"]),
        ("unix@/run/a.sock", ["unix@/run/a.sock"]),
        ("abns@web", ["abns@web"]),
        ("mptcp@:80", ["mptcp@0.0.0.0:80"]),
        ("quic4@:443", ["quic4@0.0.0.0:443"]),
        ('"127.0.0.1:80"', ["127.0.0.1:80"]),
        ("127.0.0.1\\:80", []),
        ("127.0.0.1:80#comment", ["127.0.0.1:80"]),
        (":$PORT", ["0.0.0.0:8080"]),
        (":${PORT}", ["0.0.0.0:8080"]),
        ('":${PORT}"', ["0.0.0.0:8080"]),
        ('":${OTHER-81}"', ["0.0.0.0:81"]),
        ("fd@7", []),
        ("quic+fd@7", []),
        ("example.org:80", []),
        (":80-", []),
        (":0", []),
    ],
)
def test_an_address_is_read_as_haproxy_reads_it(bind: str, expected: list[str]) -> None:
    assert keys(f"listen a\n bind {bind} name x\n", {"PORT": "8080"}) == expected


def test_only_the_address_of_a_line_changes() -> None:
    text = "listen a\r\n\tbind   '127.0.0.1:80',:81  ssl crt /x name a # :82\r\n"
    expected = "listen a\r\n\tbind   fd@{127.0.0.1:80},fd@{0.0.0.0:81}  ssl crt /x name a # :82\r\n"
    assert rewritten(text) == expected


def test_settings_of_the_line_its_section_and_its_defaults_go_to_the_listener() -> None:
    text = (
        "global\n unix-bind prefix /run mode 660 uid 7\n"
        "defaults\n backlog 5\n"
        "listen a\n bind :::80 v6only interface lo backlog 9\n bind :81 transparent\n bind /a.sock gid 8 mode 600\n"
        "peers p\n default-bind interface lo\n bind :82\n"
    )
    slots = [slot for edit in taken(text).edits for slot in edit.slots]
    assert [(slot.key, slot.options) for slot in slots] == [
        ("[::]:80", {"backlog": 9, "v6only": True, "interface": "lo"}),
        ("0.0.0.0:81", {"backlog": 5, "transparent": True}),
        ("unix@/run/a.sock", {"backlog": 5, "mode": 0o600, "user": 7, "group": 8}),
        ("0.0.0.0:82", {"interface": "lo"}),
    ]


def test_shards_become_listeners_and_the_option_goes() -> None:
    head = "global\n nbthread 4\nlisten a\n"
    assert rewritten(f"{head} bind :80 shards 2 name x\n") == (
        f"{head} bind fd@{{0.0.0.0:80}},fd@{{0.0.0.0:80 shard 1}} name x\n"
    )


@pytest.mark.parametrize(
    ("options", "number"),
    [
        *(("", 1), ("shards 3", 3), ("shards 9", 4), ("shards by-thread", 4), ("shards by-group", 1)),
        *(("shards by-thread thread 1-2", 2), ("thread 1/2-3 shards 9", 2), ("thread 2 shards 2", 1)),
    ],
)
def test_there_are_no_more_shards_than_threads(options: str, number: int) -> None:
    assert len(keys(f"global\n nbthread 4\nlisten a\n bind :80 {options}\n")) == number


def test_an_address_that_is_bound_twice_has_a_listener_for_each() -> None:
    assert len(set(keys("listen a\n bind :80\nlisten b\n bind :80\n"))) == 2


def test_variables_change_as_the_global_section_says() -> None:
    text = (
        "global\n presetenv A 80\n setenv B 81\n unsetenv C\n presetenv D 83\n"
        'listen a\n bind :$A\n bind ":$B"\n bind ":${C-82}"\n bind :${D}\n'
    )
    expected = ["0.0.0.0:90", "0.0.0.0:81", "0.0.0.0:82", "0.0.0.0:83"]
    assert keys(text, {"A": "90", "B": "91", "C": "92"}) == expected


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (" bind example.org:80", "the name must be resolved"),
        (' bind "${HAPROXY_LOCALPEER}:80"', "a variable in it is known to HAProxy alone"),
        (" bind unix@a.sock", "the path is relative"),
    ],
)
def test_what_is_not_certain_is_left_and_said_once(lines: str, why: str) -> None:
    text = f"listen a\n{lines}\n bind :81\n"
    config = taken(text).applied_to(Config({"a.cfg": text}, []))
    assert config.files["a.cfg"] == text.replace(":81", "fd@{0.0.0.0:81}")
    [warning] = config.warnings
    assert why in warning
    assert "a.cfg:2" in warning


def test_the_sources_of_a_configuration_are_known_after_its_binds_are_taken() -> None:
    text = "listen a\n bind :80\n"
    config = Config({"a.cfg": text}, [])
    loaded = taken(text).applied_to(config)
    assert loaded.is_from(config)
    assert not loaded.same_as(config)
    assert not loaded.is_from(Config({"a.cfg": text.replace("80", "81")}, []))


def test_the_rest_of_a_list_is_taken() -> None:
    assert rewritten("listen a\n bind :80,example.org:81\n") == "listen a\n bind fd@{0.0.0.0:80},example.org:81\n"


def test_what_haproxy_inherits_is_left_without_a_word() -> None:
    assert taken("listen a\n bind fd@7,quic+fd@8,sockpair@9\n") == Taken([], [])


def test_an_instance_of_a_version_that_took_no_binds_takes_none_in_a_reload() -> None:
    """Its record says nothing of it, also where run would take them over today."""
    record = msgspec.to_builtins(Invocation("h", "/d", "web", "w", [], [], [], None, False, 1.0, "/"))
    del record["taking"]
    assert not msgspec.convert(record, Invocation).taking


@pytest.mark.parametrize(
    "text",
    [
        "listen a\n disabled\n bind :80\n",
        "defaults\n disabled\nfrontend a\n bind :80\n",
        "backend a\n bind :80\n",
        "listen a\n # bind :80\n",
        "global\n stats timeout 5s\n",
    ],
)
def test_what_haproxy_does_not_bind_is_not_taken(text: str) -> None:
    assert taken(text) == Taken([], [])


def test_a_bind_in_a_block_that_haproxy_does_not_read_is_not_taken() -> None:
    config = Config({"a.cfg": "listen a\n.if 0\n bind :80\n.else\n bind :81\n.endif\n"}, [])
    [edit] = take(config, ALL, {}, {"a.cfg": {2}}).edits
    assert edit.line == 5
    unknown = take(config, ALL, {}, None)
    assert unknown.edits == []
    assert len(unknown.left) == 2


def test_a_stats_socket_is_taken_only_if_that_is_asked_for() -> None:
    text = "global\n unix-bind prefix /x\n stats socket /run/a.sock level admin\n"
    assert taken(text, taking=Taking(binds=True)).edits == []
    [edit] = taken(text).edits
    assert edit.slots[0].options == {"mode": 0o755, "user": os.geteuid(), "group": os.getegid()}
    assert edit.slots[0].key == "unix@/run/a.sock"


@pytest.mark.parametrize(
    ("lines", "refused", "expected"),
    [
        (" bind :80,:81\n", ["0.0.0.0:80"], " bind :80,fd@{0.0.0.0:81}\n"),
        (" bind :80-81\n", ["0.0.0.0:81"], " bind :80-81\n"),
        (" bind :80,:81 shards 2\n", ["0.0.0.0:80"], " bind :80,:81 shards 2\n"),
        # HAProxy's own socket and one of the binder cannot share an address.
        (" bind :80\n bind :80 transparent\n", ["0.0.0.0:80 shard 1"], " bind :80\n bind :80 transparent\n"),
    ],
)
def test_what_is_refused_stays_as_it_is_with_the_reason(lines: str, refused: list[str], expected: str) -> None:
    text = f"listen a\n{lines}"
    granted = taken(text).without(dict.fromkeys(refused, "no right"))
    after = granted.applied_to(Config({"a.cfg": text}, []))
    assert after.files["a.cfg"] == f"listen a\n{expected}"
    assert "no right" in after.warnings[0]
    assert not {slot.key for slot in after.slots} & {*refused}
