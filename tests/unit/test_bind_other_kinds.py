"""bind_unix(), bind_udp(), bind_quic() and shards in a template: what they render, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from multibinder_haproxy.config.bind_calls import BindCalls
from multibinder_haproxy.config.renderer import Renderer

from multibinder import AddressError
from multibinder.launch.direct.slots import slot_of


@pytest.mark.parametrize(
    ("call", "rendered"),
    [
        (lambda it: it.bind_unix("/run/a.sock"), "fd@{unix@/run/a.sock}"),
        (lambda it: it.bind_unix("unix@/run/a.sock", mode="660"), "fd@{unix@/run/a.sock}"),
        (lambda it: it.bind_udp("0.0.0.0", 514), "fd@{udp@0.0.0.0:514}"),
        (lambda it: it.bind_udp("udp6@[::]:514"), "fd@{udp@[::]:514}"),
        (lambda it: it.bind_quic("*", 443), "quic+fd@{quic4@0.0.0.0:443}"),
        (lambda it: it.bind_quic("quic6@:443"), "quic+fd@{quic6@[::]:443}"),
        (lambda it: it.bind_tcp("*", 443, shards=2), "fd@{0.0.0.0:443},fd@{0.0.0.0:443 shard 1}"),
        (lambda it: it.bind_tcp("*", 443, shards="1"), "fd@{0.0.0.0:443}"),
        (lambda it: it.bind_tcp("*", "80-81", shards=2, netns="blue"), (
            "fd@{0.0.0.0:80 netns blue},fd@{0.0.0.0:80 shard 1 netns blue},"
            "fd@{0.0.0.0:81 netns blue},fd@{0.0.0.0:81 shard 1 netns blue}"
        )),
    ],
)  # fmt: skip
def test_a_call_becomes_a_placeholder_for_each_listener(call: Callable[[BindCalls], str], rendered: str) -> None:
    calls = BindCalls()
    assert call(calls) == rendered
    assert [f"fd@{{{slot.key}}}" for slot in calls.slots] == [
        part.removeprefix("quic+") for part in rendered.split(",")
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda it: it.bind_unix("run/a.sock"), "bind_unix('run/a.sock'): a path is absolute"),
        (lambda it: it.bind_unix("/run/a.sock", 660), "give one path, and options by their names"),
        (lambda it: it.bind_unix("/run/a b.sock"), "HAProxy reads ' ' of a path as something else"),
        (lambda it: it.bind_unix("/run/a.sock", mode=660), "the mode is the number 660: write it as HAProxy has it"),
        (lambda it: it.bind_unix("/run/a.sock", user="no-such-name"), "this host has no such user"),
        (lambda it: it.bind_unix("/run/a.sock", shards=2), "a listener of the kind unix has no shards"),
        (lambda it: it.bind_unix("/run/a.sock", v6only=True), "bind_unix() has no option v6only; it has backlog, name"),
        (lambda it: it.bind_unix("/run/../a.sock"), "bind_unix('/run/../a.sock'): "),
        (lambda it: it.bind_udp("localhost", 53), "bind_udp('localhost', 53): host 'localhost' is a name"),
        (lambda it: it.bind_udp("0.0.0.0", 53, backlog=5), "bind_udp() has no option backlog; it has "),
        (lambda it: it.bind_udp("0.0.0.0"), "the port is missing: write bind_udp('0.0.0.0', 80)"),
        (lambda it: it.bind_quic("ipv4@::1", 443), "is no IPv4 address"),
        (lambda it: it.bind_tcp("0.0.0.0", 443, shards="many"), "shards is the text 'many': write a number, or shards"),
        (lambda it: it.bind_tcp("0.0.0.0", 443, shards=True), "shards is true: write a number"),
        (lambda it: it.bind_tcp("0.0.0.0", 443, shards=0), "shards 0 is out of range"),
        (lambda it: it.bind_tcp("0.0.0.0", 0, shards=2), "shards are on one port"),
        (lambda it: it.bind_tcp("0.0.0.0", 80, netns=5), "netns is the number 5: write a name or a path"),
        (lambda it: it.bind_tcp("0.0.0.0", 80, netns="a b"), "has characters that a template cannot carry"),
    ],
)
def test_a_call_that_cannot_work_says_why(call: Callable[[BindCalls], str], says: str) -> None:
    with pytest.raises(AddressError) as raised:
        call(BindCalls())
    assert says in str(raised.value)
    assert "bind_tcp" in says or "bind_tcp" not in str(raised.value) or "bind_tcp(" in str(raised.value)[:9]


TEXT = """frontend web
  bind {bind_unix} accept-proxy
  bind {bind_quic} ssl crt x
  bind {bind_tcp} ssl
log-forward logs
  dgram-bind {bind_udp}
backend none
  # {unread}
"""


def rendered(tmp_path: Any, suffix: str, calls: dict[str, str]) -> Any:
    template = tmp_path / f"web.cfg{suffix}"
    template.write_text(TEXT.format(**calls))
    return Renderer("web", {}, {}).render([(str(template), "web.cfg")])


JINJA = {
    "bind_unix": "{{ bind_unix('/run/a.sock', mode='660', user='root') }}",
    "bind_quic": "{{ bind_quic('::', 443) }}",
    "bind_tcp": "{{ bind_tcp('::', 443, v6only=true, shards=2) }}",
    "bind_udp": "{{ bind_udp('*', 514, rcvbuf=1048576) }}",
    "unread": "{{ bind_udp('*', 5) }}",
}
ERB = {
    "bind_unix": "<%= bind_unix('/run/a.sock', mode: '660', user: 'root') %>",
    "bind_quic": "<%= bind_quic '::', 443 %>",
    "bind_tcp": "<%= bind_tcp('::', 443, v6only: true, shards: 2) %>",
    "bind_udp": "<%= bind_udp '*', 514, rcvbuf: 1048576 %>",
    "unread": "<%= bind_udp('*', 5) %>",
}


@pytest.mark.parametrize(("suffix", "calls"), [(".j2", JINJA), (".erb", ERB), (".j2", {**JINJA, "unread": "{{ 1 }}"})])
def test_every_language_of_templates_has_them_and_haproxy_gets_descriptors(
    tmp_path: Any, suffix: str, calls: dict[str, str]
) -> None:
    config = rendered(tmp_path, suffix, calls)
    assert [slot.key for slot in config.slots] == [
        "unix@/run/a.sock", "quic6@[::]:443", "[::]:443", "[::]:443 shard 1", "udp@0.0.0.0:514",
    ]  # fmt: skip
    numbers = {slot.key: 10 + index for index, slot in enumerate(config.slots)}
    filled = config.fill(numbers)["web.cfg"].decode()
    assert [line.split()[1] for line in filled.splitlines() if "bind " in line] == [
        "fd@10", "quic+fd@11", "fd@12,fd@13", "fd@14",
    ]  # fmt: skip
    assert "fd@{" not in filled


def test_without_a_binder_haproxy_gets_its_own_words(tmp_path: Any) -> None:
    plain = rendered(tmp_path, ".j2", JINJA).plain()["web.cfg"].decode()
    assert "bind unix@/run/a.sock uid 0 mode 660 accept-proxy" in plain
    assert "bind quic6@[::]:443 ssl" in plain
    assert "bind [::]:443,[::]:443 v6only ssl" in plain
    assert "dgram-bind udp@0.0.0.0:514" in plain
    assert "# udp@0.0.0.0:5\n" in plain


@pytest.mark.parametrize("key", ["unix@/run/a.sock", "udp@[::]:514", "quic4@0.0.0.0:443"])
def test_a_key_names_its_endpoint(key: str) -> None:
    assert slot_of(f"{key} shard 3 netns blue (web)") == {"endpoint": key}
