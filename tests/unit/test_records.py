"""The records keep what the sockets do not know. From a damaged file, all intact records are read."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder.binder import records
from multibinder.binder.records import Journal, Record
from tests.support import descriptors_unchanged, require

FIRST = Record(
    "127.0.0.1:80", 1, inode=11, claims={"haproxy@web": 2, "": 1}, name="web", backlog=100, handoffs=3, created=1.5
)
SECOND = Record("[::1]:443", 2**63 + 1, inode=12, claims={'with "quotes"\n': 1}, name="ünïcode", created=2.25)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def written(path: str, *lines: Record) -> bytes:
    Journal(lines, path).close()
    return Path(path).read_bytes()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_written_and_appended_records_are_read_from_the_memfd_and_the_file(path: str) -> None:
    with descriptors_unchanged():
        journal = Journal([FIRST], path)
        journal.append([SECOND])
        assert (
            records.read_file(path).records
            == records.read(journal.memfd).records
            == {FIRST.cookie: FIRST, SECOND.cookie: SECOND}
        )
        assert journal.size == os.fstat(journal.memfd).st_size == os.stat(path).st_size
        journal.close()


def test_no_other_user_can_read_the_records(path: str) -> None:
    written(path, FIRST)
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_link_at_the_path_of_the_draft_is_not_followed(path: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    os.symlink(precious, f"{path}.{os.getpid()}.new")
    Journal([FIRST], path).close()
    assert precious.read_text() == "precious"


def test_the_later_record_of_a_socket_wins(path: str) -> None:
    later = Record(FIRST.address, FIRST.cookie, claims={"other": 1})
    written(path, FIRST, SECOND, later)
    assert records.read_file(path).records == {FIRST.cookie: later, SECOND.cookie: SECOND}


def test_a_released_socket_is_recorded_as_released(path: str) -> None:
    journal = Journal([FIRST, SECOND], path)
    journal.append([Record(FIRST.address, FIRST.cookie, released=True)])
    journal.close()
    assert {cookie for cookie, record in records.read_file(path).records.items() if record.released} == {FIRST.cookie}


def test_a_file_that_is_cut_anywhere_gives_its_whole_records(path: str) -> None:
    text = written(path, FIRST, SECOND)
    whole = {FIRST.cookie: FIRST, SECOND.cookie: SECOND}
    for length in range(len(text)):
        Path(path).write_bytes(text[:length])
        found = records.read_file(path).records
        assert found.items() <= whole.items()
        assert len(found) >= text[:length].count(b"\n") - 1


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\n", b"\0" * 4096, bytes(range(256)) * 40, b"[" * 100_000, b"[]\n{}\n", b'{"multibinder": 1}', b"null\n"],
    ids=lambda rubbish: repr(rubbish[:20]),
)
def test_a_file_of_rubbish_is_reported(path: str, rubbish: bytes, caplog: pytest.LogCaptureFixture) -> None:
    Path(path).write_bytes(rubbish)
    assert records.read_file(path).records == {}
    assert said(caplog) == ["records-unreadable"]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b'{"address": 1, "cookie": 1}',
        b'{"address": "x", "cookie": "y"}',
        b"\0" * 99,
    ],
    ids=lambda rubbish: repr(rubbish[:20]),
)
def test_rubbish_between_records_loses_no_other_record(
    path: str, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    header, first, second = written(path, FIRST, SECOND).splitlines()
    Path(path).write_bytes(b"\n".join([header, first, rubbish, second]) + b"\n")
    assert records.read_file(path).records == {FIRST.cookie: FIRST, SECOND.cookie: SECOND}
    assert said(caplog) == ["records-damaged"]


def test_fields_that_a_newer_version_adds_are_skipped(path: str, caplog: pytest.LogCaptureFixture) -> None:
    text = written(path, FIRST).replace(b'"multibinder":1', b'"multibinder":9,"more":[]')
    Path(path).write_bytes(text.replace(b'"address":', b'"tomorrow":{"a":1},"address":'))
    assert records.read_file(path).records == {FIRST.cookie: FIRST}
    assert said(caplog) == []


def test_records_of_another_boot_are_not_believed(path: str, caplog: pytest.LogCaptureFixture) -> None:
    text = written(path, FIRST).replace(records.boot_id().encode(), b"00000000-0000-0000-0000-000000000000")
    Path(path).write_bytes(text)
    with caplog.at_level(logging.INFO, "multibinder"):
        assert records.read_file(path).records == {}
    assert said(caplog) == ["records-outdated"]


def test_no_file_is_no_records(path: str, caplog: pytest.LogCaptureFixture) -> None:
    assert records.read_file(path).records == {}
    assert said(caplog) == []


def test_a_file_that_cannot_be_read_is_no_records(path: str, caplog: pytest.LogCaptureFixture) -> None:
    os.mkdir(path)
    assert records.read_file(path).records == {}
    assert said(caplog) == ["state-file-unreadable"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one page."""
    require("root", os.geteuid() == 0, "mounting a small file system needs root")
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(directory)], capture_output=True, check=False
    )
    require("mount", mounted.returncode == 0, f"cannot mount a tmpfs here: {mounted.stderr!r}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_on_a_full_disk_the_file_is_lost_and_the_journal_stays(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = [Record(f"127.0.0.1:{port}", port, inode=port) for port in range(1, 201)]
    with descriptors_unchanged():
        journal = Journal(many[:1], str(small_disk / "state"))
        for record in many[1:]:
            journal.append([record])
        assert said(caplog) == ["state-file-lost"]
        assert records.read(journal.memfd).records == {record.cookie: record for record in many}
        kept = records.read_file(str(small_disk / "state")).records
        assert 10 < len(kept) < 200
        journal.close()


def test_on_a_disk_that_is_full_from_the_start_the_file_is_missing_and_no_draft_is_left(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (small_disk / "ballast").write_bytes(bytes(4096))
    with descriptors_unchanged():
        journal = Journal([FIRST], str(small_disk / "state"))
        journal.append([SECOND])
        assert said(caplog) == ["state-file-lost"]
        assert len(records.read(journal.memfd).records) == 2
        journal.close()
    assert [entry.name for entry in small_disk.iterdir()] == ["ballast"]


def test_in_a_removed_directory_the_file_is_lost_and_the_journal_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal([FIRST], str(tmp_path / "gone" / "state"))
    assert len(records.read(journal.memfd).records) == 1
    assert said(caplog) == ["state-file-lost"]
    journal.close()
