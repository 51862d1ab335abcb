from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import msgspec
import pytest
from multibinder_haproxy.config import sources
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.config.sources import NotRegularFile, SourceRecorder, Sources
from multibinder_haproxy.errors import TemplateFailure

from multibinder.kernel.files import bind_socket

SUFFIXES = [".cfg", ".cfg.j2"]


def recorded(*files: Path, directory: Path | None = None) -> Sources:
    recorder = SourceRecorder()
    for file in files:
        recorder.record_file(str(file))
    if directory is not None:
        for path in recorder.record_directory(str(directory), SUFFIXES):
            recorder.record_file(path)
    return recorder.sources()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.cfg"
    path.write_text("global\n")
    return path


def test_a_file_that_was_edited_replaced_or_removed_has_changed(file: Path) -> None:
    before = recorded(file)
    assert sources.changed(before) == []
    file.write_text("defaults\n")
    assert sources.changed(before) == [str(file)]
    file.unlink()
    assert sources.changed(before) == [str(file)]
    file.mkdir()
    assert sources.changed(before) == [str(file)]
    file.rmdir()
    file.write_text("global\n")
    assert sources.changed(before) == []


def test_an_edit_that_keeps_size_and_time_is_found_by_the_inode(file: Path) -> None:
    before = recorded(file)
    times = file.stat()
    draft = file.with_suffix(".new")
    draft.write_text("GLOBAL\n")
    os.utime(draft, ns=(times.st_atime_ns, times.st_mtime_ns))
    draft.rename(file)
    assert sources.changed(before) == [str(file)]


def test_a_touched_file_has_not_changed(file: Path) -> None:
    before = recorded(file)
    os.utime(file, (1, 1))
    assert sources.changed(before) == []


def test_a_file_added_to_or_removed_from_a_directory_has_changed_unless_haproxy_does_not_read_it(
    tmp_path: Path,
) -> None:
    for name in ("a.cfg", "b.cfg.j2"):
        (tmp_path / name).write_text(name)
    before = recorded(directory=tmp_path)
    assert [Path(each.path).name for each in before.files] == before.directories[0].files == ["a.cfg", "b.cfg.j2"]
    for name in (".a.cfg.swp", ".hidden.cfg", "b.cfg.j2~", "README"):
        (tmp_path / name).write_text("")
    assert sources.changed(before) == []
    (tmp_path / "c.cfg").write_text("")
    (tmp_path / "a.cfg").unlink()
    assert sources.changed(before) == [str(tmp_path / "a.cfg"), str(tmp_path / "c.cfg")]


def test_a_directory_that_is_gone_has_changed_with_all_its_files(tmp_path: Path) -> None:
    directory = tmp_path / "conf.d"
    directory.mkdir()
    (directory / "a.cfg").write_text("")
    before = recorded(directory=directory)
    directory.rename(tmp_path / "elsewhere")
    assert sources.changed(before) == [str(directory / "a.cfg")]


def test_an_optional_file_of_a_template_has_changed_when_it_appears(tmp_path: Path) -> None:
    template = tmp_path / "web.cfg.j2"
    template.write_text("{% include 'local.inc' ignore missing %}{% import 'macros.j2' as m %}{{ m.greeting() }}")
    (tmp_path / "macros.j2").write_text("{% macro greeting() %}hello{% endmacro %}")
    config = Renderer("web", {}, {}).render([(str(template), "web.cfg")])
    assert [Path(each.path).name for each in config.sources.files] == ["web.cfg.j2", "local.inc", "macros.j2"]
    assert sources.changed(config.sources) == []
    (tmp_path / "local.inc").write_text("")
    assert sources.changed(config.sources) == [str(tmp_path / "local.inc")]


def test_a_change_while_a_file_is_read_is_never_missed(file: Path) -> None:
    """A file is recorded before it is read, and the first record counts. The content is never older than that."""
    recorder = SourceRecorder()
    recorder.record_file(str(file))
    file.write_text("in between\n")
    recorder.record_file(str(file))
    assert sources.changed(recorder.sources()) == [str(file)]


def test_a_pipe_is_not_read_and_not_recorded(tmp_path: Path) -> None:
    """A shell can give ``-f /dev/fd/63``, a pipe that can be read only once."""
    pipe = tmp_path / "pipe.cfg"
    os.mkfifo(pipe)
    assert recorded(pipe) == Sources()


def test_without_a_record_a_change_is_unknown() -> None:
    assert sources.changed(Sources()) is None


def test_a_file_name_that_is_not_utf_8_is_left_out(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.cfg", "wb"):
        pass
    found = recorded(tmp_path / os.fsdecode(b"\xff.cfg"), directory=tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Sources) == Sources()


def test_a_record_survives_json(file: Path) -> None:
    before = recorded(file, directory=file.parent)
    assert msgspec.json.decode(msgspec.json.encode(before), type=Sources) == before


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "socket"])
def test_what_is_not_a_regular_file_is_refused_without_waiting_for_another_process(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "part"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            bind_socket(sock, str(path), 0o600)
    recorder = SourceRecorder()
    with pytest.raises(NotRegularFile):
        recorder.read_file(str(path))
    assert not recorder.is_complete
    template = tmp_path / "web.cfg.j2"
    template.write_text("\n{% include 'part' ignore missing %}")
    with pytest.raises(TemplateFailure, match=rf"{template}:2: cannot read {path}: it is not a regular file"):
        Renderer("web", {}, {}).render([(str(template), "web.cfg")])


def test_a_fifo_that_takes_a_files_place_after_the_look_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user may write in the directory, and rename(2) at any moment."""
    path, fifo = tmp_path / "part", tmp_path / "fifo"
    path.write_text("")
    os.mkfifo(fifo)
    look = os.stat

    def swapped(looked_at: str) -> os.stat_result:
        status = look(looked_at)
        fifo.rename(path)
        return status

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", swapped)
        with pytest.raises(NotRegularFile):
            sources.read_regular_file(str(path))


def test_the_digest_is_of_the_content_that_was_rendered(tmp_path: Path) -> None:
    template = tmp_path / "web.cfg.j2"
    template.write_text("{% include 'part' %}")
    (tmp_path / "part").write_text("x")
    config = Renderer("web", {}, {}).render([(str(template), "web.cfg")])
    content = {"web.cfg.j2": b"{% include 'part' %}", "part": b"x"}
    for source in config.sources.files:
        assert source.digest == hashlib.blake2b(content[Path(source.path).name], digest_size=16).hexdigest()
    assert len(config.sources.files) == 2


def test_a_file_that_cannot_even_be_looked_at_leaves_the_record_incomplete(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    recorder = SourceRecorder()
    assert recorder.record_file(str(loop)) == b""
    assert (recorder.is_complete, recorder.sources().files) == (False, [])


def test_a_line_that_is_not_utf8_is_named_also_in_an_included_file(tmp_path: Path) -> None:
    template = tmp_path / "web.cfg.j2"
    template.write_text("{% include 'part' %}")
    (tmp_path / "part").write_bytes(b"\n# caf\xe9\n")
    with pytest.raises(TemplateFailure, match=rf"{tmp_path}/part:2: not UTF-8: .* at byte 6; convert the file"):
        Renderer("web", {}, {}).render([(str(template), "web.cfg")])
