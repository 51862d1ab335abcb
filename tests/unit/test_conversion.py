"""'convert' writes a template that gives what taking over the plain file gives, and the file but for its addresses."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from multibinder_haproxy import plain_file
from multibinder_haproxy.config.conversion import convert
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.config.taking import Taking, take
from multibinder_haproxy.errors import TemplateFailure
from multibinder_haproxy.plain_file import PlainFile

from multibinder.launch.errors import UsageError

ALL = Taking(binds=True, stats=True)
ENVIRONMENT = {"PORT": "8080", "HOST": "127.0.0.1", "LIST": ":85,:86", "low": "87", "items": "88"}


def converted(text: str, environment: Mapping[str, str] = ENVIRONMENT) -> tuple[str, list[str]]:
    """Return the template of a file, and what is left; the template is rendered, and compared."""
    config = Renderer("x", {}, environment, taking=ALL, contents={"a.cfg": text.encode()}).render([("a.cfg", "a.cfg")])
    conversion = convert(config, ALL, environment, {}, lambda: True)
    rendered = Renderer("x", {}, environment, contents={"a.cfg.j2": conversion.text.encode()}).render(
        [("a.cfg.j2", "a.cfg")]
    )
    expected = conversion.taken.applied_to(config)
    assert rendered.files == expected.files
    assert {slot.key: slot for slot in rendered.slots} == {slot.key: slot for slot in expected.slots}
    whole = take(config, ALL, environment, {}).applied_to(config)
    if len(conversion.taken.left) == len(take(config, ALL, environment, {}).left):
        assert rendered.files == whole.files
    assert put_back(rendered, text) == text
    return conversion.text, conversion.taken.left


def put_back(rendered: Config, text: str) -> str:
    """Return a rendered text with the user's words in the place of ours; options that went away count as ours."""
    lines = []
    for mine, theirs in zip(rendered.files["a.cfg"].split("\n"), text.split("\n"), strict=True):
        lines.append(theirs if "fd@{" in mine else mine)
    return "\n".join(lines)


def bind(line: str, environment: Mapping[str, str] = ENVIRONMENT) -> str:
    text, _ = converted(f"listen a\n bind {line}\n", environment)
    return text.removeprefix("listen a\n bind ").removesuffix("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (":80", "{{ bind_tcp('0.0.0.0', 80) }}"),
        (":::443 v4v6 ssl", "{{ bind_tcp('::', 443, v6only=false) }} v4v6 ssl"),
        ("'127.0.0.1:80',*:81-83 # x", "{{ bind_tcp('127.0.0.1', 80) }},{{ bind_tcp('0.0.0.0', '81-83') }} # x"),
        (":80 shards 2 name x", "{{ bind_tcp('0.0.0.0', 80, shards=2) }} name x"),
        (":80 shards by-thread", "{{ bind_tcp('0.0.0.0', 80, shards='cpus') }}"),
        ("mptcp@:80 backlog 7", "{{ bind_mptcp('0.0.0.0', 80, backlog=7) }} backlog 7"),
        ("quic4@:443 ssl", "{{ bind_quic('0.0.0.0', 443) }} ssl"),
        ("abns@web", "{{ bind_unix('abns@web') }}"),
        ("/run/a.sock mode 600 uid 7 gid 8",
         "{{ bind_unix('/run/a.sock', mode='600', user=7, group=8) }} mode 600 uid 7 gid 8"),
        (":80 interface lo", "{{ bind_tcp('0.0.0.0', 80, interface='lo') }} interface lo"),
        (":80 transparent", "{{ bind_tcp('0.0.0.0', 80, transparent=true) }} transparent"),
        (":80 namespace blue", "{{ bind_tcp('0.0.0.0', 80, netns='blue') }} namespace blue"),
        (":$PORT", "{{ bind_tcp(':' ~ env.PORT) }}"),
        ('"${HOST}:${PORT}"', "{{ bind_tcp(env.HOST ~ ':' ~ env.PORT) }}"),
        ('":${PORT-81}"', "{{ bind_tcp(':' ~ env.get('PORT', '81')) }}"),
        ('":${OTHER-81}"', "{{ bind_tcp(':' ~ env.get('OTHER', '81')) }}"),
        (":$low,:${items}", "{{ bind_tcp(':' ~ env['low']) }},{{ bind_tcp(':' ~ env['items']) }}"),
        ('":81,${HOST}:82"', "{{ bind_tcp('0.0.0.0', 81) }},{{ bind_tcp(env.HOST ~ ':82') }}"),
    ],
)  # fmt: skip
def test_an_address_becomes_a_call_with_its_settings(line: str, expected: str) -> None:
    assert bind(line) == expected


def test_the_datagrams_of_a_log_forward_section_have_bind_udp() -> None:
    text, _ = converted("log-forward l\n dgram-bind :514\n dgram-bind uxdg@/run/log mode 600 uid 1 gid 1\n")
    assert "dgram-bind {{ bind_udp('0.0.0.0', 514) }}\n" in text
    assert "{{ bind_unix('uxdg@/run/log', mode='600', user=1, group=1) }} mode" in text


def test_an_address_that_is_bound_twice_keeps_a_listener_for_each() -> None:
    text, _ = converted("listen a\n bind :80\nlisten b\n bind :79-80\n")
    assert "bind {{ bind_tcp('0.0.0.0', 79) }},{{ bind_tcp('0.0.0.0', 80, shard=1) }}\n" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("global\n setenv PORT 81\nlisten a\n bind :$PORT\n", "is not known in a template"),
        ("global\n setenv PORT 8080\nlisten a\n bind :$PORT\n", "is not known in a template"),
        ("global\n resetenv PORT HOST\nlisten a\n bind :$PORT\n", "is not known in a template"),
        ('listen a\n bind :80 interface "$HOST"\n', "its settings have variables"),
        ('listen a\n backlog "$PORT"\n bind :80\n', "its settings have variables"),
        ("global\n unix-bind user nobody-has-it\nlisten a\n bind /run/a\n", "means nothing here"),
        ('defaults\n backlog "$PORT"\nlisten a\n bind :$PORT\n', "its settings have variables"),
        ('listen a\n bind "$LIST"\n', "is not known in a template"),
        ('listen a\n bind ":"\'80\'"$HOST"\n', "its port is no number"),
        ("listen a\n bind example.org:80\n", "the name must be resolved"),
        ('listen a\n bind :79,"":$PORT\n', "is not known in a template"),
    ],
)
def test_a_value_of_today_is_never_written_without_a_word(text: str, why: str) -> None:
    template, left = converted(text)
    assert template == text
    assert why in left[0]


def test_a_shard_whose_first_one_is_left_to_haproxy_is_left_as_well() -> None:
    text = "global\n setenv PORT 80\nlisten a\n bind :$PORT\n bind :80\n bind :81\n"
    template, left = converted(text)
    assert template == text.replace("bind :81", "bind {{ bind_tcp('0.0.0.0', 81) }}")
    assert len(left) == 2


def test_the_template_follows_a_variable() -> None:
    template, _ = converted('listen a\n bind "${HOST}:${PORT-81}"\n')
    for environment, expected in (({"HOST": "::1", "PORT": "90"}, "[::1]:90"), ({"HOST": "*"}, "0.0.0.0:81")):
        if environment["HOST"] == "::1":
            environment["HOST"] = "[::1]"
        config = Renderer("x", {}, environment, contents={"a.j2": template.encode()}).render([("a.j2", "a.cfg")])
        assert [slot.key for slot in config.slots] == [expected]


#: What lines of a configuration are made of, with all that Jinja2 has for itself.
_WORDS = st.sampled_from(
    ["{{", "{%", "{#", "}}", "%}", "#}", "{", "}",
     "{%- endraw -%}", "{% raw %}", "\\", '"', "'", "\f", "\u2028", "\x85",
     "\ufeff", "\t", "é", "-", "%[src]", "\r", "acl x", "log-format", "\0", "{{{", "\x0b"]
)  # fmt: skip
_ADDRESSES = st.sampled_from(
    [":80", "*:81", ":80-82", ":::443", "[::1]:444", "mptcp@:85", "abns@a", "/run/a", "unix@/run/b", "fd@7", "a.b:80",
     "udp@:53", "quic6@:443", "tcp6@:86", ":$PORT", '"${HOST}:80"', '":${X-88}"', "':89'", "$LIST", "", ":0", "1.2.3.4"]
)  # fmt: skip
_OPTIONS = st.sampled_from(
    ["", " v6only", " v4v6", " shards 2", " backlog 9", " interface lo", " ssl crt {{x}}", " # :80 {{", " name {%",
     " transparent", " namespace n", " mode 600", ' backlog "$PORT"', " shards by-thread", '" {#', " mss 500"]
)  # fmt: skip
_BINDS = st.builds(
    lambda gap, addresses, options: f"{gap}bind{gap or ' '}{','.join(addresses)}{''.join(options)}",
    st.sampled_from([" ", "\t", "  "]), st.lists(_ADDRESSES, min_size=1, max_size=3), st.lists(_OPTIONS, max_size=2),
)  # fmt: skip
_LINES = st.one_of(
    _BINDS,
    _BINDS,
    st.lists(_WORDS, max_size=5).map("".join),
    st.sampled_from(["listen a", "frontend b", "peers p", "log-forward l", "global", "defaults", " setenv PORT 99",
                     " unix-bind prefix /tmp mode 600", " stats socket /run/s {{", " backlog 7", " disabled",
                     ' backlog "$PORT"', " unix-bind user nobody-has-it",
                     " dgram-bind :514", " default-bind interface lo", "backend c"]),
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_LINES, max_size=8), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\n"]))
@example(["log-format {\r{% {", "\r"], "\n", "")
@example(["log-format {{ {%- endraw %} {"], "\r\n", "\n")
def test_any_file_comes_back_from_its_template(lines: list[str], newline: str, end: str) -> None:
    converted(newline.join(["listen first", *lines]) + end)


class TestAFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "haproxy.cfg"
        path.write_bytes(b"\xef\xbb\xbf# x\r\nlisten a\r\n bind :80 # {{ \xc3\xa9\r\n mode http")
        path.chmod(0o640)
        return path

    def read(self, file: Path) -> PlainFile:
        return PlainFile.read(str(file), {}, stats=False, haproxy=None)

    def test_every_byte_but_the_address_is_kept(self, file: Path) -> None:
        content, left = self.read(file).template()
        assert content == (
            b"\xef\xbb\xbf# x\r\nlisten a\r\n"
            b" bind {{ bind_tcp('0.0.0.0', 80) }} # {% raw %}{{ \xc3\xa9{% endraw %}\r\n mode http"
        )
        assert left == []

    def test_a_file_that_is_not_utf_8_is_refused_before_anything_is_written(self, file: Path) -> None:
        file.write_bytes(b"listen a\n # M\xfcller\n bind :80\n")
        with pytest.raises(TemplateFailure, match=r"haproxy.cfg:2: not UTF-8"):
            self.read(file).template()

    def test_a_template_that_does_not_give_the_same_is_not_written(self, file: Path) -> None:
        # The text in the comment is what the listener of the template is, too.
        file.write_bytes(b"listen a\n bind :80 # fd@{0.0.0.0:80}\n")
        with pytest.raises(TemplateFailure, match="none is written"):
            self.read(file).template()

    def test_it_is_written_with_the_mode_of_the_source_and_never_over_a_file(self, file: Path) -> None:
        source, target = self.read(file), file.with_name("web.cfg.j2")
        before = os.umask(0)
        try:
            plain_file.write(str(target), b"1", source, force=False)
        finally:
            os.umask(before)
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        with pytest.raises(UsageError, match="--force"):
            plain_file.write(str(target), b"2", source, force=False)
        assert target.read_bytes() == b"1"
        plain_file.write(str(target), b"2", source, force=True)
        assert target.read_bytes() == b"2"
        assert sorted(os.listdir(file.parent)) == ["haproxy.cfg", "web.cfg.j2"]

    def test_its_name_is_that_of_a_template(self, file: Path) -> None:
        with pytest.raises(UsageError, match=r"ends in \.j2"):
            plain_file.write(str(file.with_name("web.cfg")), b"", self.read(file), force=True)

    def test_the_difference_is_a_unified_diff(self, file: Path) -> None:
        plain = self.read(file)
        assert b"".join(plain.difference(plain.taken())) == (
            f"--- {file}\n+++ {file} (taken over)\n@@ -1,4 +1,4 @@\n".encode()
            + b" \xef\xbb\xbf# x\r\n listen a\r\n"
            + b"- bind :80 # {{ \xc3\xa9\r\n+ bind fd@{0.0.0.0:80} # {{ \xc3\xa9\r\n  mode http\n"
            + b"\\ No newline at end of file\n"
        )
