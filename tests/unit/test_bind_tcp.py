"""bind_tcp() takes what people write, or says what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from multibinder_haproxy.config.bind_calls import BindCalls
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.errors import TemplateFailure

from multibinder import AddressError


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "web.cfg.j2"


def rendered(path: Path, text: str, **variables: Any) -> str:
    path.write_text(text)
    return Renderer("web", variables, {"PORT": " 80\n"}).render([(str(path), "web.cfg")]).files["web.cfg"]


def failure(path: Path, text: str, **variables: Any) -> str:
    with pytest.raises(TemplateFailure) as raised:
        rendered(path, text, **variables)
    return str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("0.0.0.0", 80), "0.0.0.0:80"),
        (("0.0.0.0", "80"), "0.0.0.0:80"),
        ((" 0.0.0.0 ", " 80\n"), "0.0.0.0:80"),
        (("*", 80), "0.0.0.0:80"),
        (("", 80), "0.0.0.0:80"),
        ((":80",), "0.0.0.0:80"),
        (("*:80",), "0.0.0.0:80"),
        (("127.0.0.1:80",), "127.0.0.1:80"),
        (("::", 443), "[::]:443"),
        (("[::]", 443), "[::]:443"),
        (("[::]:443",), "[::]:443"),
        ((":::443",), "[::]:443"),
        (("2001:db8::1:443",), "[2001:db8::1]:443"),
        (("0:0::1", 80), "[::1]:80"),
        (("::ffff:192.0.2.1", 80), "[::ffff:192.0.2.1]:80"),
        (("ipv4@192.0.2.1", 80), "192.0.2.1:80"),
        (("ipv4@:80",), "0.0.0.0:80"),
        (("tcp@*:80",), "0.0.0.0:80"),
        (("tcp@[::1]:80",), "[::1]:80"),
        (("ipv6@:80",), "[::]:80"),
        (("ipv6@*", 80), "[::]:80"),
        (("tcp6@[::1]", 80), "[::1]:80"),
        (("0.0.0.0", 0), "0.0.0.0:0"),
    ],
)
def test_an_address_as_haproxy_reads_it_is_one_listener(arguments: tuple[Any, ...], key: str) -> None:
    binds = BindCalls()
    assert binds.bind_tcp(*arguments) == f"fd@{{{key}}}"
    [slot] = binds.slots
    assert slot.key == str(slot.spec) == key


@pytest.mark.parametrize(
    "arguments", [("127.0.0.1", "8000-8002"), ("127.0.0.1:8000-8002",), ("127.0.0.1", "8000 - 8002")]
)
def test_a_range_is_one_listener_for_each_port_in_one_bind_line(arguments: tuple[str, ...]) -> None:
    binds = BindCalls()
    assert binds.bind_tcp(*arguments) == "fd@{127.0.0.1:8000},fd@{127.0.0.1:8001},fd@{127.0.0.1:8002}"
    assert [slot.port for slot in binds.slots] == [8000, 8001, 8002]


def test_options_may_be_texts_where_numbers_are_meant_and_none_where_nothing_is_meant() -> None:
    binds = BindCalls()
    binds.bind_tcp("::", 80, backlog="100", v6only=None, name=None)
    binds.bind_tcp(host="::", port=81, v6only=True)
    assert [(slot.backlog, slot.v6only) for slot in binds.slots] == [(100, None), (None, True)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "bind_tcp(): the address and the port are missing: write bind_tcp('0.0.0.0', 80)"),
        ((80,), "bind_tcp(80): the address is missing: write bind_tcp('0.0.0.0', 80)"),
        (("80",), "bind_tcp('80'): the address is missing: write bind_tcp('0.0.0.0', 80)"),
        (("8000-8010",), "the address is missing: write bind_tcp('0.0.0.0', '8000-8010')"),
        (("0.0.0.0",), "bind_tcp('0.0.0.0'): the port is missing: write bind_tcp('0.0.0.0', 80)"),
        (("[::]",), "the port is missing: write bind_tcp('[::]', 80)"),
        (("0.0.0.0:",), "the port '' is no number"),
        (("::80",), "write the brackets around an IPv6 address, and the port behind them"),
        (("fe80::1",), "write the brackets around an IPv6 address"),
        (("0.0.0.0:80", 80), "the address has a port already: write bind_tcp('0.0.0.0', 80)"),
        ((":80", 80), "the address has a port already: write bind_tcp('*', 80)"),
        (("[::1]:80", 80), "the address has a port already: write bind_tcp('[::1]', 80)"),
        (("0.0.0.0", 80, 100), "options by their names: write bind_tcp('0.0.0.0', 80, backlog=1000)"),
        (("0.0.0.0", 80, "ssl", "crt"), "options by their names"),
        ((80, "0.0.0.0"), "the address comes first: write bind_tcp('0.0.0.0', 80)"),
        ((None, 80), "bind_tcp(none, 80): the address is none: write it in quotes"),
        ((True, 80), "the address is true: write it in quotes"),
        ((0.0, 80), "the address is the number 0.0: write it in quotes"),
        ((["0.0.0.0"], 80), "the address is a list: write it in quotes"),
        (({"host": 1}, 80), "the address is a mapping: write it in quotes"),
        (("0.0.0.0", None), "bind_tcp('0.0.0.0', none): the port is none: write a number"),
        (("0.0.0.0", False), "the port is false: write a number"),
        (("0.0.0.0", 80.0), "the port is the number 80.0: write a number"),
        (("0.0.0.0", [80]), "the port is a list: write a number"),
        (("0.0.0.0", "http"), "the port 'http' is no number"),
        (("0.0.0.0", ""), "the port '' is no number"),
        (("0.0.0.0", -10), "a range of ports stands in quotes, as in bind_tcp('0.0.0.0', '8000-8010')"),
        (("0.0.0.0", 70000), "port 70000 is out of range"),
        (("0.0.0.0", "9" * 5000), "is out of range"),
        (("0.0.0.0", "80-70000"), "port 70000 is out of range"),
        (("0.0.0.0", "8010-8000"), "the range of ports ends before it begins: write '8000-8010'"),
        (("localhost", 80), "host 'localhost' is a name: give a numeric address"),
        (("localhost:80",), "host 'localhost' is a name: give a numeric address"),
        (("1.2.3", 80), "host '1.2.3' is not a valid IP address"),
        (("fe80::1%eth0", 80), "has an IPv6 scope"),
        (("ipv4@::1", 80), "'::1' is no IPv4 address: leave the prefix out"),
        (("ipv6@192.0.2.1", 80), "'192.0.2.1' is no IPv6 address"),
        (("/run/x.sock",), "that is no TCP address: write bind_unix('/run/x.sock')"),
        (("unix@/run/x.sock", 0), "that is no TCP address: write bind_unix('unix@/run/x.sock')"),
        (("abns@x",), "that is no TCP address: write bind_unix('abns@x')"),
        (("mptcp@:80",), "that is no TCP address: write bind_mptcp('mptcp@:80')"),
        (("rhttp@x",), "so that HAProxy binds it: bind rhttp@x"),
        (("udp@:53",), "that is no TCP address: write bind_udp('udp@:53')"),
        (("quic4@:443",), "that is no TCP address: write bind_quic('quic4@:443')"),
        (("${HOST}:80",), "write env.NAME, without quotes"),
        (("0.0.0.0:80,:::80",), "write one call for each address"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_work_says_in_the_operators_terms_what_to_write(
    arguments: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(AddressError) as raised:
        BindCalls().bind_tcp(*arguments)
    assert str(raised.value).startswith("bind_tcp(")
    assert says in str(raised.value)
    assert not any(word in str(raised.value) for word in ("`", "TypeError", "None", "True", "False", "NoneType"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"maxconn": 5},
            "bind_tcp() has no option maxconn; it has backlog, v6only, name, freebind, transparent, interface, mark, ",
        ),
        ({"mss": 1400}, "HAProxy sets mss by itself, at each load: write 'mss …' behind the call"),
        ({"fastopen": 20}, "HAProxy sets fastopen by itself, at each load: write 'tfo …' behind the call"),
        ({"interface": 5}, "the interface is the number 5: write a text, as in interface='eth0'"),
        ({"transparent": "yes"}, "transparent is the text 'yes': write transparent=true or transparent=false"),
        ({"backlog": "many"}, "the backlog is the text 'many': write a number"),
        ({"backlog": True}, "the backlog is true: write a number"),
        ({"backlog": 0}, "backlog 0 is out of range"),
        ({"v6only": "true"}, "v6only is the text 'true': write v6only=true or v6only=false"),
        ({"v6only": 1}, "v6only is the number 1: write v6only=true"),
        ({"v6only": True}, "v6only has a meaning for IPv6 addresses only"),
        ({"name": 5}, "the name is the number 5: write a text"),
        ({"name": "a b"}, "name 'a b' is not usable"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(AddressError) as raised:
        BindCalls().bind_tcp("0.0.0.0", 80, **options)
    assert says in str(raised.value)


def test_one_name_for_a_range_is_refused() -> None:
    with pytest.raises(AddressError, match="a name is for one listener, and a range is several: leave the name out"):
        BindCalls().bind_tcp("0.0.0.0", "80-81", name="web")


@pytest.mark.parametrize(
    ("call", "write"),
    [
        ("bind_tcp(0.0.0.0, 80)", "bind_tcp('0.0.0.0', 80)"),
        ("bind_tcp(127.0.0.1, port)", "bind_tcp('127.0.0.1', port)"),
        ("bind_tcp(127.0.0.1:80)", "bind_tcp('127.0.0.1:80')"),
        ("bind_tcp(*, 80)", "bind_tcp('*', 80)"),
        ("bind_tcp(:80)", "bind_tcp(':80')"),
        ("bind_tcp(::, 80)", "bind_tcp('::', 80)"),
        ("bind_tcp([::], 443)", "bind_tcp('[::]', 443)"),
        ("bind_tcp(2001:db8::1, 443)", "bind_tcp('2001:db8::1', 443)"),
    ],
)
def test_forgotten_quotes_are_named_with_the_line(template: Path, call: str, write: str) -> None:
    text = f"frontend web\n  bind {{{{ {call} }}}} ssl\n  bind {{{{ bind_tcp('::', 1) }}}}\n"
    assert failure(template, text, port=1) == f"{template}:2: an address stands in quotes: write {write}"


@pytest.mark.parametrize(
    "call",
    [
        "bind_tcp '0.0.0.0', 80",
        "bind_tcp('0.0.0.0', 80",
        "bind_tcp('0.0.0.0, 80)",
        "bind_tcp(‘0.0.0.0’, 80)",  # noqa: RUF001 (as a word processor writes it)
        "bind_tcp('0.0.0.0' 80)",
        "bind_tcp('0.0.0.0'; 80)",
        "bind_tcp('0.0.0.0', 080)",
        "bind_tcp",
    ],
)
def test_a_call_that_is_not_jinja2_is_shown_as_it_should_be(template: Path, call: str) -> None:
    said = failure(template, f"frontend web\n  bind {{{{ {call} }}}}\n  bind {{{{ bind_tcp('::', 1) }}}}\n")
    assert said.startswith(f"{template}:2: ")
    assert "write {{ bind_tcp('0.0.0.0', 80) }}" in said or said.endswith("write bind_tcp('0.0.0.0', 80)")


def test_an_undefined_name_is_named(template: Path) -> None:
    assert failure(template, "\n{{ bind_tcp(host, 80) }}") == f"{template}:2: 'host' is undefined"
    assert (
        failure(template, "\n{{ bind_tcp('::', 80, backlog=none_such) }}") == f"{template}:2: 'none_such' is undefined"
    )


def test_a_port_from_the_environment_is_a_text(template: Path) -> None:
    text = "frontend web\n  bind {{ bind_tcp('0.0.0.0', env.PORT) }}\n"
    assert rendered(template, text) == "frontend web\n  bind fd@{0.0.0.0:80}\n"


def test_an_option_that_is_given_twice_is_named_with_the_line_of_the_template(template: Path) -> None:
    said = failure(template, "a\nb\n{{ bind_tcp('::', 80, backlog=1, backlog=2) }}")
    assert said == f"{template}:3: keyword argument repeated: backlog"


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("haproxy.cfg", "bind {{ bind_tcp('::', 80) }}", "rename the file to haproxy.cfg.j2, and name it so after -f"),
        ("haproxy.cfg", "  bind   <%= bind_tcp('::', 80) %> ssl", "rename the file to haproxy.cfg.erb"),
        ("haproxy.cfg", "bind bind_tcp('::', 80)", "and write {{ bind_tcp('0.0.0.0', 80) }}"),
        ("haproxy.cfg.j2", "bind bind_tcp('::', 80)", "in a Jinja2 file write {{ bind_tcp('0.0.0.0', 80) }}"),
        ("haproxy.cfg.j2", "bind { bind_tcp('::', 80) }", "in a Jinja2 file write {{ bind_tcp('0.0.0.0', 80) }}"),
        ("haproxy.cfg.j2", "bind ${bind_tcp('::', 80)}", "in a Jinja2 file write"),
        ("haproxy.cfg.j2", "bind <%= bind_tcp('::', 80) %>", "or rename the file to .erb"),
        ("haproxy.cfg.erb", "bind {{ bind_tcp('::', 80) }}", "in an ERB file write <%= bind_tcp('0.0.0.0', 80) %>"),
        ("haproxy.cfg.mb", "bind bind_tcp('::', 80)", "in a Jinja2 file write"),
    ],
)  # fmt: skip
def test_a_call_that_no_rendering_would_run_is_found(tmp_path: Path, name: str, line: str, says: str) -> None:
    path = tmp_path / name
    said = failure(path, f"global\nfrontend web\n{line}\n")
    assert said.startswith(f"{path}:3: ")
    assert says in said


@pytest.mark.parametrize("line", ["# bind {{ bind_tcp('::', 80) }}", "bind :80 name bind_tcp", "bind :80 # bind_tcp()"])
def test_a_file_that_only_speaks_of_bind_tcp_is_copied(tmp_path: Path, line: str) -> None:
    assert rendered(tmp_path / "haproxy.cfg", line) == line
