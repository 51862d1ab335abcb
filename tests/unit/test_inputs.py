"""A later start that finds the same inputs and sources may take the text of an earlier rendering."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from multibinder_haproxy.config.inputs import Environment, Inputs
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.reexec.environment import digest

import multibinder

ENVIRONMENT = {"PORT": "80", "HOST": "a"}


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "web.cfg.j2"


def rendered(template: Path, text: str, environment: dict[str, str] = ENVIRONMENT, **variables: Any) -> Config:
    template.write_text(text)
    return Renderer("web", variables, environment).render([(str(template), "web.cfg")])


def inputs(template: Path, text: str, environment: dict[str, str] = ENVIRONMENT, **variables: Any) -> Inputs:
    return rendered(template, text, environment, **variables).inputs


@pytest.mark.parametrize(
    "text",
    [
        "bind {{ bind_tcp('0.0.0.0', 80) }}\n",
        "{{ name }} {% for i in range(3) %}{{ loop.index }}{% endfor %} {{ hosts | sort | join(' ') }}",
        "{% set all = namespace(text='') %}{% set all.text = 'x' %}{{ all.text }}",
        "{% macro line(what) %}{{ what | upper }}{% endmacro %}{{ line('x') }} {{ line.name }}",
        "{{ servers | map(attribute='host') | list }} {{ servers | groupby('host') }} {{ servers[0]._own }}",
        "{{ '%s' | format(1) }} {{ '{} {:.2f} {x!r:>5}'.format(1, 2.0, x=3) }}",
        "{{ day.year }} {{ day.isoformat() }}",
        "{{ {'a': 1}.items() | list }} {{ [1, 2] | tojson }} {{ 'a.b'.split('.') }}",
        "{% raw %}{{ cycler.__init__ }}{% endraw %}",
    ],
)
def test_a_template_that_depends_on_its_sources_alone_has_no_other_inputs(template: Path, text: str) -> None:
    variables: dict[str, Any] = {
        "hosts": ["b", "a"],
        "servers": [{"host": "a", "_own": 1}],
        "day": datetime.date(2026, 1, 2),
    }
    assert inputs(template, text, **variables) == Inputs(multibinder.__version__, volatile=False)


@pytest.mark.parametrize(
    ("text", "looked_for"),
    [
        ("{{ env.PORT }}", {"PORT": "80"}),
        ("{{ env['PORT'] }}", {"PORT": "80"}),
        ("{{ env.get('PORT') }} {{ env.get('NONE', 1) }}", {"PORT": "80", "NONE": None}),
        ("{{ 'PORT' in env }} {{ 'NONE' in env }}", {"PORT": "80", "NONE": None}),
        ("{% if env.NONE is defined %}x{% endif %}", {"NONE": None}),
        ("{{ env.NONE | default('x') }}", {"NONE": None}),
        ("{% if false %}{{ env.PORT }}{% endif %}", {}),
        ("{{ 'x{}'.format(env.PORT) }}", {"PORT": "80"}),
    ],
)
def test_the_variables_that_a_template_looks_for_are_inputs_be_they_set_or_not(
    template: Path, text: str, looked_for: dict[str, str | None]
) -> None:
    assert inputs(template, text) == Inputs(multibinder.__version__, volatile=False, environment=looked_for)


@pytest.mark.parametrize(
    "text",
    [
        "{% for name in env %}{{ name }}{% endfor %}",
        "{{ env | length }}",
        "{% if env %}x{% endif %}",
        "{{ env }}",
        "{{ env.items() | list }}",
        "{{ env.keys() | list }}",
        "{{ env.values() | list }}",
        "{{ env | dictsort }}",
        "{{ env | tojson }}",
        "{{ env | list }}",
        "{{ env | items | list }}",
        "{{ env | string }}",
        "{{ env | pprint }}",
        "{{ env | first }}",
        "{{ env.copy() }}",
        "{{ dict(env) }}",
        "{{ dict(**env) }}",
        "{{ '%(PORT)s' | format(**env) }}",
        "{{ env == {} }}",
        "{{ env != {} }}",
        "{{ env.pop('PORT') }}",
        "{{ env.setdefault('PORT', 1) }}",
        "{{ env.update(A='2') }}",
        "{{ env | xmlattr }}",
        "{{ env | urlencode }}",
    ],
)
def test_a_template_that_reads_the_whole_environment_depends_on_all_of_it(template: Path, text: str) -> None:
    found = inputs(template, text)
    assert found.whole_environment == digest(ENVIRONMENT)
    assert not found.volatile
    assert inputs(template, text, {**ENVIRONMENT, "NEW": "x"}).whole_environment != found.whole_environment


def test_each_method_of_a_dict_that_env_has_reports_what_it_reads() -> None:
    about_the_object = set(dir(object)) - {"__eq__", "__ne__", "__repr__"} | {"__class_getitem__", "fromkeys"}
    of_a_dict = {name for name in dir(dict) if callable(getattr(dict, name))} - about_the_object
    assert {name for name in of_a_dict if getattr(Environment, name) is getattr(dict, name)} == set()


def test_an_empty_environment_is_an_input(template: Path) -> None:
    """Python's json prints an empty dict without a call that could be noticed."""
    assert inputs(template, "{{ env | tojson }}", {}).whole_environment == digest({})


def test_the_digest_of_an_environment_tells_all_differences_but_the_order() -> None:
    assert digest({"A": "1", "B": "2"}) == digest({"B": "2", "A": "1"})
    different = [{}, {"A": ""}, {"A": "1"}, {"A": "1", "B": "2"}, {"A": "1B=2"}, {"A": os.fsdecode(b"\xff")}]
    assert len({digest(each) for each in different}) == len(different)


@pytest.mark.parametrize(
    "text",
    [
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ ''.__class__ }}",
        "{% set f = ''.__class__ %}{{ f }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ ['', ''] | map(attribute='__class__') | list }}",
        "{{ [''] | selectattr('__class__') | list }}",
        "{{ [''] | groupby('__class__.__name__') | list }}",
        "{{ [''] | map('attr', '__class__') | list }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{0[PORT]}'.format(env) }}",
        "{% set f = '{0.__class__}'.format %}{{ f('') }}",
        "{{ ('{0.__class__}' | attr('format'))('') }}",
        "{{ '{x.__class__}'.format_map({'x': ''}) }}",
        "{{ self._TemplateReference__context }}",
        "{{ [1, 2] | random }}",
        "{{ [[1, 2]] | map('random') | list }}",
        "{{ lipsum(n=1) }}",
        "{{ day.today() }}",
        "{{ day.strftime('%c') }}",
        "{{ cycler('a') }}",
        "{{ [1] | map('string') }}",
        "{% if false %}{{ ''.__class__ }}{% endif %}",
        "{% include 'part' %}",
        "{% from 'macros' import read %}{{ read() }}",
    ],
)
def test_a_template_that_could_read_anything_else_is_rendered_each_time(template: Path, text: str) -> None:
    (template.parent / "part").write_text("{{ ''.__class__ }}")
    (template.parent / "macros").write_text("{% macro read() %}{{ ''.__class__ }}{% endmacro %}")
    found = inputs(template, text, day=datetime.date(2026, 1, 2))
    assert found.volatile


def test_the_same_is_noticed_with_a_compiled_template_that_was_kept(template: Path, tmp_path: Path) -> None:
    """Jinja2 computes constant expressions when it compiles: the next rendering would not see them."""
    for text in ("{{ ''.__class__ }}", "{% set x = [''] | map(attribute='__class__') | list %}{{ x }}"):
        template.write_text(text)
        for _ in range(3):
            renderer = Renderer("web", {}, {}, compiled=str(tmp_path / "compiled"), keep_compiled=True)
            assert renderer.render([(str(template), "web.cfg")]).inputs.volatile


def test_an_environment_that_is_not_utf8_is_no_record(template: Path) -> None:
    found = inputs(template, "{% if env.PORT %}x{% endif %}", {"PORT": os.fsdecode(b"\xff")})
    assert found.volatile
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inputs) == found


def test_sources_that_cannot_be_recorded_make_it_volatile(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.cfg.j2"
    with open(path, "wb"):
        pass
    config = Renderer("web", {}, {}).render([(os.fsdecode(path), "web.cfg")])
    assert (config.inputs.volatile, config.sources.files) == (True, [])


def test_the_record_of_an_earlier_version_says_that_nothing_is_known() -> None:
    old = msgspec.json.decode(b'{"files":{},"slots":[]}', type=Config)
    assert (old.inputs.version, old.inputs.volatile) == ("", True)


def test_inputs_survive_json(template: Path) -> None:
    config = rendered(template, "{{ env.PORT }} {{ env.NONE is defined }} {{ env | length }}")
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config
