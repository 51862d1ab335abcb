"""Templates with literal calls are rendered without Jinja2, and compiled ones are kept: both give the same text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multibinder_haproxy.config import compiled as compiled_module
from multibinder_haproxy.config.bind_calls import BindCalls
from multibinder_haproxy.config.literal import newline_of, render_if_literal
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.errors import TemplateFailure

LOOP = "{% for port in range(80, 83) %}bind {{ bind_tcp('0.0.0.0', port) }}\n{% endfor %}"
#: Pieces of which templates are made: calls, and what surrounds them in a configuration or in Jinja2.
PIECES = [
    "bind ", "\n", "\r\n", " ", "#", "{", "}", "{{", "}}", "{%", "%}", "{#", "#}", "-", "'", '"', "\\", "ssl", "%ci",
    "bind_tcp", "(", ")", ",", "=", "80", "080", "'*'", "':80'", '"::"', "'80'", "'8000-8002'", "backlog=5",
    "raw", "v6only=true", "name='a'", "none", "é", "\f", "\u2028",
    "{{ bind_tcp('*', 80) }}", "{{bind_tcp(':81')}}", '{{ bind_tcp("::", 82, backlog=5) }}',
    "{{- bind_tcp('*', 83) -}}",
    "{{ bind_tcp('*', 84, v6only=none) }}", "{{ bind_tcp('::', 85, v6only=true, v6only=true) }}",
]  # fmt: skip


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "web.cfg.j2"


def with_jinja(text: str) -> str | None:
    """Return the text that Jinja2 gives, or None for an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, newline_sequence=newline_of(text)
    )
    try:
        return environment.from_string(text).render(**BindCalls().functions)
    except Exception:
        return None


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_a_template_with_literal_calls_gives_the_text_that_jinja2_gives(text: str) -> None:
    try:
        rendered = render_if_literal("web.cfg.j2", text, BindCalls().functions)
    except TemplateFailure:
        assert with_jinja(text) is None
    else:
        assert rendered is None or rendered == with_jinja(text)


@pytest.mark.parametrize(
    "text",
    [
        "global\n",
        "bind {{ bind_tcp('0.0.0.0', 80) }},{{bind_tcp('[::]:443')}} ssl }} {x}\r\n",
        "{{ bind_tcp ( \"::\" , '80' , backlog = 5 , v6only = true ) }}",
        "{{ bind_tcp('::',\n  80) }}",
        "{{ bind_unix('/run/a.sock', mode='660') }} {{ bind_tcp('*', 443, shards=4, netns='blue') }}",
        "{{ bind_udp('*', 514, rcvbuf=4194304) }} {{ bind_quic('::', 443) }}",
    ],
)
def test_a_template_with_literal_calls_needs_no_jinja2(text: str) -> None:
    rendered = render_if_literal("web.cfg.j2", text, BindCalls().functions)
    assert rendered is not None
    assert rendered == with_jinja(text)


@pytest.mark.parametrize(
    "text",
    ["{{ name }}", "{{- bind_tcp('*', 80) }}", "{% raw %}x{% endraw %}", "{# x #}", "{{{ bind_tcp('*', 80) }}", "{{"],
)
def test_any_other_template_is_left_to_jinja2(text: str) -> None:
    assert render_if_literal("web.cfg.j2", text, BindCalls().functions) is None


def test_an_error_in_a_literal_call_names_its_line(template: Path) -> None:
    template.write_text("a\r\nb {{ bind_tcp('*', 80) }}\n{{ bind_tcp('localhost',\n 80) }}\n")
    with pytest.raises(TemplateFailure) as raised:
        Renderer("web", {}, {}).render([(str(template), "web.cfg")])
    assert str(raised.value).startswith(f"{template}:3: bind_tcp('localhost', 80): host 'localhost' is a name")


def test_neither_erb_nor_literal_calls_import_jinja2(tmp_path: Path) -> None:
    files = {
        "a.cfg.j2": "bind {{ bind_tcp('*', 80) }}\n",
        "b.cfg.erb": "bind <%= bind_tcp '::1', 81 %>\n",
        "c.cfg": "global\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    pairs = [(str(tmp_path / name), name) for name in files]
    code = (
        "import sys; from multibinder_haproxy.config.renderer import Renderer; "
        f"print(len(Renderer('web', {{}}, {{}}).render({pairs!r}).slots), 'jinja2' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "2 False\n"


# -- compiled templates ------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    directory = tmp_path / "instance"
    directory.mkdir(mode=0o700)
    return directory / "compiled-templates"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the templates that Jinja2 compiled."""
    names: list[str] = []
    compile_template = jinja2.Environment.compile

    def noticed(self: jinja2.Environment, source: Any, name: str, *arguments: Any) -> Any:
        names.append(name)
        return compile_template(self, source, name, *arguments)

    monkeypatch.setattr(jinja2.Environment, "compile", noticed)
    return names


def render(template: Path, kept: Path | None, *, keep: bool = True, sandbox: bool = False, **variables: Any) -> Config:
    renderer = Renderer("web", variables, {}, sandbox=sandbox, compiled=str(kept) if kept else None, keep_compiled=keep)
    return renderer.render([(str(template), "web.cfg")])


def test_a_compiled_template_is_kept_and_gives_the_same(template: Path, kept: Path, compilations: list[str]) -> None:
    template.write_text(LOOP + "{% include 'part' %}")
    (template.parent / "part").write_text("{{ text }}")
    first = render(template, kept, text="x")
    again = render(template, kept, text="x")
    assert compilations == ["web.cfg.j2", "part"]
    assert again == first
    assert kept.stat().st_mode & 0o777 == 0o600
    assert render(template, kept, text="y").files["web.cfg"] == first.files["web.cfg"].replace("x", "y")


@pytest.mark.parametrize("change", ["text", "included", "sandbox", "path"])
def test_another_text_path_or_mode_is_compiled_again(
    template: Path, kept: Path, compilations: list[str], change: str
) -> None:
    template.write_text(LOOP + "{% include 'part' %}")
    part = template.parent / "part"
    part.write_text("{{ 1 }}")
    render(template, kept)
    del compilations[:]
    if change == "text":
        template.write_text("{{ 2 }}")
    elif change == "included":
        part.write_text("{{ 2 }}")
    elif change == "path":
        template = template.rename(template.with_name("other.cfg.j2"))
    render(template, kept, sandbox=change == "sandbox")
    assert compilations == {"text": [template.name], "included": ["part"], "path": [template.name]}.get(
        change, [template.name, "part"]
    )


def test_an_error_in_a_compiled_template_that_was_kept_names_its_line(template: Path, kept: Path) -> None:
    template.write_text("{% if port %}\n{{ bind_tcp('0.0.0.0', port) }}\n{% endif %}")
    render(template, kept, port=80)
    with pytest.raises(TemplateFailure, match=r"web\.cfg\.j2:2: .*the port 'x' is no number"):
        render(template, kept, port="x")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other version", "fifo", "link", "directory"])
def test_damaged_code_is_never_loaded(template: Path, kept: Path, compilations: list[str], damage: str) -> None:
    template.write_text(LOOP)
    expected = render(template, kept)
    content = kept.read_bytes()
    kept.unlink()
    if damage == "fifo":
        os.mkfifo(kept)
    elif damage == "link":
        (kept.parent / "real").write_bytes(content)
        kept.symlink_to(kept.parent / "real")
    elif damage == "directory":
        kept.mkdir()
    else:
        kept.write_bytes({
            "cut": content[:-20],
            "flipped": content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
            "empty": b"",
            "other version": content.replace(b"multibinder", b"multibindex"),
        }[damage])  # fmt: skip
    del compilations[:]
    assert render(template, kept) == expected
    assert compilations == [template.name]


@pytest.mark.parametrize(
    ("what", "mode"), [("file", 0o620), ("file", 0o602), ("directory", 0o770), ("directory", 0o707)]
)
def test_code_that_another_user_could_have_written_is_never_loaded(
    template: Path, kept: Path, compilations: list[str], what: str, mode: int
) -> None:
    template.write_text(LOOP)
    render(template, kept)
    (kept if what == "file" else kept.parent).chmod(mode)
    del compilations[:]
    render(template, kept, keep=False)
    assert compilations == [template.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_code_of_another_user_is_never_loaded(template: Path, kept: Path, compilations: list[str], what: str) -> None:
    template.write_text(LOOP)
    render(template, kept)
    os.chown(kept if what == "file" else kept.parent, 65534, 65534)
    del compilations[:]
    render(template, kept, keep=False)
    assert compilations == [template.name]


def test_code_that_no_rendering_uses_any_more_is_not_kept(template: Path, kept: Path) -> None:
    template.write_text("{{ 1 }}" * 2000)
    render(template, kept)
    large = kept.stat().st_size
    template.write_text("{{ 1 }}")
    render(template, kept)
    assert kept.stat().st_size < large / 2


def test_a_place_where_nothing_can_be_written_costs_nothing_but_time(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template.write_text(LOOP)
    expected = render(template, None)
    assert render(template, tmp_path / "missing" / "compiled-templates") == expected

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled_module, "replace", full)
    assert render(template, tmp_path / "compiled-templates") == expected


def test_without_leave_to_keep_nothing_is_written(template: Path, kept: Path) -> None:
    template.write_text(LOOP)
    render(template, kept, keep=False)
    assert list(kept.parent.iterdir()) == []
