from __future__ import annotations

import pytest
from multibinder_haproxy.config.default_path import ConfigFile, relocate

ETC = ConfigFile("/etc/haproxy", "web.cfg")


def moved(text: str, directory: str = "/etc/haproxy") -> str:
    return relocate([ConfigFile(directory, "web.cfg")], {"web.cfg": text})[0]["web.cfg"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("config", 'origin "/etc/haproxy"'),
        ("parent", 'origin "/etc/haproxy/.."'),
        ('"config"  # beside it', 'origin "/etc/haproxy"  # beside it'),
        ("current", "current"),
        ("origin /srv", "origin /srv"),
        ("configs", "configs"),
    ],
)
def test_paths_beside_the_file_become_paths_beside_the_template(before: str, after: str) -> None:
    assert moved(f"global\n\tdefault-path {before}\n") == f"global\n\tdefault-path {after}\n"


def test_other_lines_stay_as_they_are() -> None:
    text = "global\n # default-path config\n description default-path config\n"
    assert moved(text) == text


def test_a_directory_of_any_name_is_read_as_it_is_named() -> None:
    assert moved("global\n default-path config\n", "/a b/'$X\"\\é#") == (
        'global\n default-path origin "/a\\x20b/\\x27\\x24X\\x22\\x5c\\xc3\\xa9\\x23"\n'
    )


def test_the_files_after_it_are_each_in_their_own_place() -> None:
    files = [
        ConfigFile("/etc/haproxy", "web.cfg"),
        ConfigFile("/etc/haproxy", "more.cfg"),
        ConfigFile("/srv", "srv.cfg"),
        ConfigFile("/opt", None, "backend b\n"),
        ConfigFile("/etc", "late.cfg"),
        ConfigFile("/usr", "last.cfg"),
    ]
    texts = {
        "web.cfg": "global\n default-path config\n",
        "more.cfg": "backend x\n",
        "srv.cfg": "backend y\n",
        "late.cfg": "backend z\n",
        "last.cfg": "backend last\n",
    }
    result, warnings = relocate(files, texts)
    assert not warnings
    assert result == {
        "web.cfg": 'global\n default-path origin "/etc/haproxy"\n',
        "more.cfg": 'backend x\nglobal\n    default-path origin "/srv"\n',
        "srv.cfg": "backend y\nglobal\n    default-path config\n",
        # HAProxy reads the user's own file before it, which has no room for it.
        "late.cfg": 'global\n    default-path origin "/etc"\nbackend z\nglobal\n    default-path origin "/usr"\n',
        "last.cfg": "backend last\n",
    }


def test_a_file_that_is_not_rendered_sets_it_for_a_template() -> None:
    files = [ConfigFile("/opt", None, "global\n default-path config\n"), ETC]
    assert relocate(files, {"web.cfg": "backend z\n"})[0] == {
        "web.cfg": 'global\n    default-path origin "/etc/haproxy"\nbackend z\n'
    }


def test_a_directive_under_a_condition_is_named_if_files_elsewhere_depend_on_it() -> None:
    text = "global\n .if defined(X)\n default-path config\n .endif\n"
    result, warnings = relocate([ETC, ConfigFile("/srv", "srv.cfg")], {"web.cfg": text, "srv.cfg": ""})
    assert result["web.cfg"].startswith('global\n .if defined(X)\n default-path origin "/etc/haproxy"\n .endif\n')
    (warning,) = warnings
    assert warning.startswith("web.cfg:3: whether this counts for srv.cfg depends on a condition")
    assert relocate([ETC], {"web.cfg": text})[1] == []
