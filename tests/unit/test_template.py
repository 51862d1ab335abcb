from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.config.template_files import templates_in
from multibinder_haproxy.config.variables import read_variables
from multibinder_haproxy.errors import TemplateFailure


def render(
    path: Path, text: str, environment: dict[str, str] | None = None, *, sandbox: bool = False, **variables: Any
) -> Config:
    path.write_text(text)
    return Renderer("web", variables, environment or {}, sandbox=sandbox).render([(str(path), path.stem)])


def failure(path: Path, text: str, *, sandbox: bool = False, **variables: Any) -> str:
    with pytest.raises(TemplateFailure) as raised:
        render(path, text, sandbox=sandbox, **variables)
    return str(raised.value)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "web.cfg.j2"


@pytest.fixture
def erb(tmp_path: Path) -> Path:
    return tmp_path / "web.cfg.erb"


def test_a_bind_becomes_a_slot_and_the_slot_a_descriptor(template: Path) -> None:
    config = render(template, "bind {{ bind_tcp('0.0.0.0', 443) }} ssl\nbind {{ bind_tcp('::', 443, v6only=true) }}\n")
    assert config.files == {"web.cfg": "bind fd@{0.0.0.0:443} ssl\nbind fd@{[::]:443}\n"}
    assert config.fill({"0.0.0.0:443": 7, "[::]:443": 8}) == {"web.cfg": b"bind fd@7 ssl\nbind fd@8\n"}
    assert config.plain() == {"web.cfg": b"bind 0.0.0.0:443 ssl\nbind [::]:443 v6only\n"}


def test_without_a_binder_the_options_of_several_addresses_follow_the_last(template: Path) -> None:
    ours = "{{ bind_tcp('::1', 80, backlog=5) }},:81,{{ bind_tcp('::1', 82, v6only=true, name='a') }}"
    config = render(template, f"bind {ours} ssl\nbind \"{{{{ bind_tcp('::1', 83, backlog=6) }}}}\"\n")
    assert config.plain()["web.cfg"] == b'bind [::1]:80,:81,[::1]:82 backlog 5 v6only ssl\nbind "[::1]:83" backlog 6\n'


def test_text_that_only_looks_like_a_slot_is_left_alone(template: Path) -> None:
    config = render(template, "# fd@{whatever}\nbind {{ bind_tcp('0.0.0.0', 80) }}\n")
    assert config.fill({"0.0.0.0:80": 3}) == {"web.cfg": b"# fd@{whatever}\nbind fd@3\n"}


def test_a_slot_without_a_descriptor_is_an_error_and_not_a_wrong_number(template: Path) -> None:
    with pytest.raises(KeyError):
        render(template, "bind {{ bind_tcp('0.0.0.0', 80) }}").fill({})


def test_the_same_address_written_twice_is_one_slot(template: Path) -> None:
    config = render(template, "bind {{ bind_tcp('0:0::1', 80) }}\nbind {{ bind_tcp('::1', '80') }}")
    assert [slot.key for slot in config.slots] == ["[::1]:80"]


def test_the_same_address_with_conflicting_options_is_refused_with_both(template: Path) -> None:
    said = failure(template, "{{ bind_tcp('0.0.0.0', 80, backlog=5) }}\n{{ bind_tcp('0.0.0.0', 80, backlog=6) }}\n")
    assert said.startswith(f"{template}:2: bind_tcp('0.0.0.0', 80): this address has different options elsewhere: ")
    assert "backlog=5, and here backlog=6" in said


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("\n\n{{ missing }}", 3, "'missing' is undefined"),
        ("\n{% if %}", 2, "Expected an expression"),
        ("{{ bind_tcp('0.0.0.0', no_such_port) }}", 1, "'no_such_port' is undefined"),
        ("{{ env.MISSING }}", 1, "environment object' has no attribute 'MISSING'"),
        ("{{ bind_tcp('example.org', 80) }}", 1, "host 'example.org' is a name: give a numeric address"),
        ("{{ bind_tcp('0.0.0.0', 70000) }}", 1, "port 70000 is out of range"),
        ("{{ bind_tcp('fe80::1%eth0', 80) }}", 1, "has an IPv6 scope, which is not supported"),
        ("{{ bind_tcp('0.0.0.0', 80, backlog='many') }}", 1, "the backlog is the text 'many': write a number"),
        ("{{ bind_tcp('0.0.0.0', 80, tls=true) }}", 1, "bind_tcp() has no option tls; it has backlog, v6only, name, "),
        ("{{ bind_tcp('0.0.0.0', 80, v6only=true) }}", 1, "v6only has a meaning for IPv6 addresses only"),
        ("{{ bind_tcp('0.0.0.0') }}", 1, "the port is missing: write bind_tcp('0.0.0.0', 80)"),
        ("{% include 'nowhere.cfg' %}", 1, "nowhere.cfg"),
        ("{{ 1 / 0 }}", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_template_error_names_file_and_line(template: Path, text: str, line: int, message: str) -> None:
    said = failure(template, text)
    assert said.startswith(f"{template}:{line}: ")
    assert message in said


def test_an_error_in_an_included_file_names_that_file(template: Path) -> None:
    included = template.parent / "part.cfg"
    included.write_text("\n{{ missing }}\n")
    assert failure(template, "{% include 'part.cfg' %}") == f"{included}:2: 'missing' is undefined"


def test_a_template_that_is_missing_or_not_utf8_is_named(template: Path) -> None:
    template.write_bytes(b"# caf\xe9\n")
    with pytest.raises(TemplateFailure, match=r"web\.cfg\.j2:1: not UTF-8: .* at byte 5; convert the file"):
        Renderer("web", {}, {}).render([(str(template), "web.cfg")])
    template.unlink()
    with pytest.raises(TemplateFailure, match="cannot read it: No such file"):
        Renderer("web", {}, {}).render([(str(template), "web.cfg")])


def test_an_erb_file_with_only_binds_works_unchanged(erb: Path) -> None:
    text = (
        "# {{ not ours }} {% either %} <%%= either %>\n"
        "bind <%= bind_tcp('0.0.0.0', 80) %>,<%=bind_tcp(\"::\",443)%>,<%= bind_tcp '0.0.0.0', \"81\" %>\r\n"
        "<%# a comment %>x\n"
    )
    assert render(erb, text).files["web.cfg"] == (
        "# {{ not ours }} {% either %} <%= either %>\nbind fd@{0.0.0.0:80},fd@{[::]:443},fd@{0.0.0.0:81}\nx\n"
    )


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("\n<% if true %>x<% end %>", 2, "{% if … %}"),
        ("<%= ENV['PORT'] %>", 1, "write {{ env.PORT }}"),
        ("<%= bind_tcp :host, 80 %>", 1, "a numeric host in quotes"),
        ('<%= bind_tcp "#{host}", 80 %>', 1, "a numeric host in quotes"),
        ("<%= bind_tcp('0.0.0.0', port) %>", 1, "a number"),
        ("\n\n<%= `hostname` %>", 3, "in Jinja2's terms"),
        ("<%- x -%>", 1, "rename the file to .j2"),
    ],
)
def test_other_ruby_in_an_erb_file_is_an_error_that_says_how_to_convert_it(
    erb: Path, text: str, line: int, hint: str
) -> None:
    said = failure(erb, text)
    assert said.startswith(f"{erb}:{line}: Ruby is not run here: ")
    assert hint in said


def test_an_mb_file_may_be_either(tmp_path: Path) -> None:
    path = tmp_path / "web.cfg.mb"
    assert render(path, "bind <%= bind_tcp('0.0.0.0', 80) %>").files["web.cfg"] == "bind fd@{0.0.0.0:80}"
    assert render(path, "bind {{ bind_tcp('0.0.0.0', 80) }}").files["web.cfg"] == "bind fd@{0.0.0.0:80}"


def test_variables_come_from_toml_and_json_and_the_later_file_wins(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("port = 80\nlist = [1, 2]\n")
    (tmp_path / "b.json").write_text('{"port": 81}')
    assert read_variables([str(tmp_path / "a.toml"), str(tmp_path / "b.json")]) == {"port": 81, "list": [1, 2]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.toml", "port =", "not valid TOML"),
        ("v.json", "[1]", "the variables must be an object at the top, not a list"),
        ("v.json", "{", "not valid JSON"),
        ("v.json", '{"env": 1}', "env is the wrapper's own; rename it"),
    ],
)
def test_invalid_files_of_variables_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TemplateFailure, match=message):
        read_variables([str(tmp_path / name)])


def test_a_template_runs_any_python_and_in_the_sandbox_none(template: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    escape = f"global\n{{{{ cycler.__init__.__globals__.os.mkdir('{proof}') }}}}\n"
    said = failure(template, escape, sandbox=True)
    assert said.startswith(f"{template}:2: the sandbox refuses this: access to attribute '__init__' of 'type' object")
    assert "start without --sandbox" in said
    assert not proof.exists()
    render(template, escape)
    assert proof.is_dir()


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ bind_tcp.__self__ }}",
        "{{ bind_tcp.__func__.__globals__ }}",
        "{{ bind_tcp.__globals__['os'] }}",
        "{{ env.__class__ }}",
        "{{ env['__class__'].mro() }}",
        "{{ (env | attr('__class__')).mro() }}",
        "{{ '{0.__class__}'.format(env) }}",
        "{{ ('{0.__class__}' | attr('format'))(env) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(env) }}",
        "{{ self._TemplateReference__context.__class__ }}",
        "{{ env.update(A='2') }}",
        "{{ env.clear() }}",
        "{{ hosts.append('mallory') }}",
        "{{ range(1000000) | list }}",
    ],
)
def test_the_sandbox_refuses_access_to_python_and_changes_of_its_arguments(template: Path, text: str) -> None:
    hosts = ["a"]
    said = failure(template, f"\n{text}\n", sandbox=True, hosts=hosts)
    assert said.startswith(f"{template}:2: ")
    assert "sandbox" in said or "has no attribute" in said or "is undefined" in said
    assert hosts == ["a"]


def test_an_escape_in_an_included_file_is_refused_there(template: Path) -> None:
    (template.parent / "part.j2").write_text("\n\n{{ ''.__class__.mro() }}\n")
    said = failure(template, "{% include 'part.j2' %}", sandbox=True)
    assert said.startswith(f"{template.parent}/part.j2:3: the sandbox refuses this: ")


def test_the_sandbox_changes_nothing_for_a_template_that_only_writes_a_configuration(template: Path) -> None:
    (template.parent / "macros.j2").write_text("{% macro line(what) %}server {{ what }}{% endmacro %}")
    (template.parent / "part.j2").write_text("# {{ name }}\n")
    text = (
        "{% from 'macros.j2' import line %}{% include 'part.j2' %}"
        "bind {{ bind_tcp('0.0.0.0', env.PORT, backlog=5) }}\n"
        "{% set list = namespace(all='') %}{% for host in hosts | sort %}{% set list.all = list.all ~ host %}"
        "{{ line(host.upper()) }} {{ '%s:%d' | format(host, loop.index) }} {{ '{}'.format(host) }}\n"
        "{% endfor %}{{ list.all }}"
    )
    plain = render(template, text, {"PORT": "80"}, hosts=["b", "a"])
    assert plain.files == {"web.cfg": "# web\nbind fd@{0.0.0.0:80}\nserver A a:1 a\nserver B b:2 b\nab"}
    boxed = render(template, text, {"PORT": "80"}, sandbox=True, hosts=["b", "a"])
    assert (boxed.files, boxed.slots, boxed.warnings) == (plain.files, plain.slots, plain.warnings)


def test_the_sandbox_applies_to_erb_files_too(erb: Path) -> None:
    text = "bind <%= bind_tcp('0.0.0.0', 80) %>"
    boxed, plain = render(erb, text, sandbox=True), render(erb, text)
    assert (boxed.files, boxed.slots) == (plain.files, plain.slots)


def test_a_file_that_is_no_template_is_copied_byte_by_byte_and_its_record_is_json(tmp_path: Path) -> None:
    content = b"# M\xfcller\r\n\x00\x0b{{ not ours }} fd@{0.0.0.0:80}\n"
    (tmp_path / "global.cfg").write_bytes(content)
    config = Renderer("web", {}, {}).render([(str(tmp_path / "global.cfg"), "global.cfg")])
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config).fill({}) == {"global.cfg": content}
    assert config.plain() == {"global.cfg": content}


def test_the_digest_tells_configurations_apart_by_their_files_and_the_options_of_their_slots(template: Path) -> None:
    one, same, other_text, other_options = (
        render(template, text)
        for text in (
            "bind {{ bind_tcp('::1', 80) }}\n",
            "bind {{ bind_tcp('0::1', '80') }}\n",
            "bind {{ bind_tcp('::1', 80) }} ssl\n",
            "bind {{ bind_tcp('::1', 80, backlog=5) }}\n",
        )
    )
    assert one.same_as(same)
    assert not one.same_as(None)
    assert len({each.digest() for each in (one, other_text, other_options)}) == 3


def test_two_sources_of_one_directory_that_become_the_same_file_are_refused_with_both(tmp_path: Path) -> None:
    for name in ("web.cfg.j2", "web.cfg.mb", "other.cfg"):
        (tmp_path / name).write_text("global\n")
    with pytest.raises(TemplateFailure) as raised:
        Renderer("web", {}, {}).render([(path, f"conf.d/{name}") for path, name in templates_in(str(tmp_path))])
    first, second = tmp_path / "web.cfg.j2", tmp_path / "web.cfg.mb"
    assert str(raised.value) == (f"{first} and {second} would both become conf.d/web.cfg: rename or remove one of them")
