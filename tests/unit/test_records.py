"""The records keep what the sockets do not know. From a damaged file, all intact records are read."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder.binder import records
from multibinder.binder.record_lines import RecordLines, new_journal
from multibinder.binder.records import FORMAT, Header, Record, boot_id
from multibinder.binder.state_file import StateFile
from tests.support import descriptors_unchanged, require

FIRST = Record(
    "127.0.0.1:80", 1, inode=11, claims={"haproxy@web": 2, "": 1}, name="web", backlog=100, handoffs=3, created=1.5
)
SECOND = Record("[::1]:443", 2**63 + 1, inode=12, claims={"a.b/c+d:107": 1}, name="x" * 128, created=2.25)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def written(path: str, *lines: Record) -> bytes:
    text = content(*lines)
    Path(path).write_bytes(text)
    os.chmod(path, 0o600)
    return text


def content(*lines: Record) -> bytes:
    return records.encode([Header(FORMAT, boot_id()), *lines])


def state_file(path: str, held: list[Record]) -> StateFile:
    """Return a state file that was written, with the records of ``held``."""
    file = StateFile(path, lambda: content(*held))
    file.write_anew()
    return file


def without_checksums(text: bytes) -> bytes:
    """Return the lines as 0.1.0 writes them."""
    return re.sub(rb',"crc":"[0-9a-f]{8}"', b"", text)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_written_and_appended_records_are_read_from_the_memfd_and_the_file(path: str) -> None:
    with descriptors_unchanged():
        journal = new_journal(content(FIRST))
        file = state_file(path, [FIRST])
        journal.append(records.encode([SECOND]))
        file.append(records.encode([SECOND]), ())
        assert (
            records.read_file(path).records
            == records.read(journal.descriptor).records
            == {FIRST.cookie: FIRST, SECOND.cookie: SECOND}
        )
        assert journal.size == os.fstat(journal.descriptor).st_size == os.stat(path).st_size
        journal.close()
        file.close()


def test_no_other_user_can_read_the_records(path: str) -> None:
    state_file(path, [FIRST]).close()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_link_at_the_path_of_the_draft_is_not_followed(path: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    os.symlink(precious, f"{path}.{os.getpid()}.new")
    state_file(path, [FIRST]).close()
    assert precious.read_text() == "precious"


def test_the_later_record_of_a_socket_wins(path: str) -> None:
    later = Record(FIRST.address, FIRST.cookie, claims={"other": 1})
    written(path, FIRST, SECOND, later)
    assert records.read_file(path).records == {FIRST.cookie: later, SECOND.cookie: SECOND}


def test_a_released_socket_is_recorded_as_released(path: str) -> None:
    written(path, FIRST, SECOND, Record(FIRST.address, FIRST.cookie, released=True))
    assert {cookie for cookie, record in records.read_file(path).records.items() if record.released} == {FIRST.cookie}


def test_a_file_that_is_cut_anywhere_gives_its_whole_records(path: str) -> None:
    text = written(path, FIRST, SECOND)
    whole = {FIRST.cookie: FIRST, SECOND.cookie: SECOND}
    for length in range(len(text)):
        Path(path).write_bytes(text[:length])
        found = records.read_file(path).records
        assert all(record in (whole[cookie], Record("", cookie, record.inode)) for cookie, record in found.items())
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
        b'{"address":"127.0.0.1:80","cookie":-1}',
        b'{"address":"127.0.0.1:80","cookie":18446744073709551616}',
        b'{"address":"127.0.0.1:80","cookie":5,"inode":-1}',
        b'{"address":"127.0.0.1:99999","cookie":5}',
        b'{"address":"tomorrow","cookie":5}',
        b'{"address":"127.0.0.1:80","cookie":5,"backlog":0}',
        b'{"address":"127.0.0.1:80","cookie":5,"backlog":2147483648}',
        b'{"address":"127.0.0.1:80","cookie":5,"name":"a b"}',
        b'{"address":"127.0.0.1:80","cookie":5,"handoffs":-1}',
        b'{"address":"127.0.0.1:80","cookie":5,"handoffs":9223372036854775808}',
        b'{"address":"127.0.0.1:80","cookie":5,"created":1e400}',
        b'{"address":"127.0.0.1:80","cookie":5,"created":-1}',
        b'{"address":"127.0.0.1:80","cookie":5,"claims":{"a b:0":1}}',
        b'{"address":"127.0.0.1:80","cookie":5,"claims":{"a:0":-1}}',
        b'{"address":"127.0.0.1:80","cookie":5,"claims":{"a:%s":1}}' % (b"9" * 5000),
        b'{"address":"127.0.0.1:80","cookie":5,"claims":{"a:4294967296":1}}',
        b'{"address":"127.0.0.1:80","cookie":1,"inode":13}',
        b'{"address":"127.0.0.1:80","cookie":5,"crc":"00000000"}',
        b'{"address":"' + b"x" * 1_000_000 + b'","cookie":5}',
        b"\0" * 99,
    ],
    ids=lambda rubbish: repr(rubbish[-40:]),
)
def test_rubbish_between_records_loses_no_other_record(
    path: str, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    header, first, second = written(path, FIRST, SECOND).splitlines()
    Path(path).write_bytes(b"\n".join([header, first, rubbish, second]) + b"\n")
    assert records.read_file(path).records == {FIRST.cookie: FIRST, SECOND.cookie: SECOND}
    assert said(caplog) == ["records-damaged"]


def test_fields_that_a_newer_version_adds_are_skipped(path: str, caplog: pytest.LogCaptureFixture) -> None:
    text = without_checksums(written(path, FIRST)).replace(b'"multibinder":1', b'"multibinder":9,"more":[]')
    Path(path).write_bytes(text.replace(b'"address":', b'"tomorrow":{"a":1},"address":'))
    assert records.read_file(path).records == {FIRST.cookie: FIRST}
    assert said(caplog) == []


def test_records_of_another_boot_are_not_believed(path: str, caplog: pytest.LogCaptureFixture) -> None:
    text = without_checksums(written(path, FIRST)).replace(boot_id().encode(), b"00000000-0000-0000-0000-000000000000")
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
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_records_without_checksums_are_read(path: str) -> None:
    Path(path).write_bytes(without_checksums(written(path, FIRST, SECOND)))
    assert records.read_file(path).records == {FIRST.cookie: FIRST, SECOND.cookie: SECOND}


def test_no_flipped_bit_loses_a_socket_revives_one_or_changes_what_is_believed(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever bit is flipped: an intact record is believed, and of a damaged one nothing but cookie and inode."""
    gone = Record("127.0.0.1:81", 3, inode=13, claims={"gone:0": 1}, created=3.5)
    text = written(path, FIRST, gone, Record(gone.address, 3, inode=13, released=True), Record(
        SECOND.address, 2, inode=12, claims=SECOND.claims, name="second"))  # fmt: skip
    with open(path, "rb") as file:
        whole = records.read(file.fileno()).records
    first_line = text.index(b"\n")
    memfd = os.memfd_create("journal")
    for position in range(len(text)):
        for bit in range(8):
            damaged = bytearray(text)
            damaged[position] ^= 1 << bit
            os.pwrite(memfd, damaged, 0)
            found = records.read(memfd).records
            where = (position, bit, bytes(damaged[max(0, position - 20) : position + 20]))
            wrong = [
                record for cookie, record in found.items()
                if not record.released
                and record not in (whole.get(cookie), gone, Record("", cookie, record.inode))
            ]  # fmt: skip
            assert not wrong, where
            assert position <= first_line or len(whole.keys() - found.keys()) <= 2, where
            assert not found.get(1, FIRST).released, where
            assert not found.get(2, SECOND).released, where
    os.close(memfd)


def test_a_journal_in_memory_is_believed_line_by_line_if_its_first_line_is_damaged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = new_journal(b"\0" + content(FIRST, SECOND))
    recorded = records.read(journal.descriptor)
    journal.close()
    assert recorded == records.Recorded(None, {FIRST.cookie: FIRST, SECOND.cookie: SECOND})
    assert said(caplog) == ["records-unreadable"]


def many() -> list[Record]:
    return [Record(f"127.0.0.1:{port}", port, inode=port, claims={"web:0": 1}) for port in range(1, 201)]


def released(record: Record) -> Record:
    return Record(record.address, record.cookie, inode=record.inode, released=True)


def test_on_a_full_disk_a_released_listener_is_marked_in_the_lines_that_are_there(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(small_disk / "state")
    held: list[Record] = []
    with descriptors_unchanged():
        file = state_file(path, held)
        for record in many():
            held.append(record)
            file.append(records.encode([record]), ())
        assert said(caplog) == ["state-file-lost"]
        before = records.read_file(path).records
        assert 10 < len(before) < 200
        held = held[1:]
        file.append(records.encode([released(many()[0])]), [released(many()[0])])
        assert records.read_file(path).records[1].released
        assert records.read_file(path).records.keys() == before.keys()
        assert said(caplog) == ["state-file-lost"]
        file.close()


def test_a_state_file_that_fell_behind_is_written_again_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(small_disk / "state")
    held = many()[:3]
    (small_disk / "ballast").write_bytes(bytes(4096))
    with descriptors_unchanged(), caplog.at_level(logging.INFO, "multibinder"):
        file = state_file(path, held)
        file.append(records.encode([FIRST]), ())
        file.check()
        assert said(caplog) == ["state-file-lost"]
        assert [entry.name for entry in small_disk.iterdir()] == ["ballast"]  # no draft is left
        (small_disk / "ballast").unlink()
        file.check()
        assert said(caplog) == ["state-file-lost", "state-file-written"]
        assert len(records.read_file(path).records) == 3
        file.close()


def test_releases_are_marked_in_the_file_of_an_earlier_binder_while_the_disk_is_full(small_disk: Path) -> None:
    path = str(small_disk / "state")
    state_file(path, many()[:20]).close()
    (small_disk / "ballast").touch()
    file = state_file(path, many()[:200])  # has no room
    file.append(b"", [released(many()[7])])
    assert [cookie for cookie, record in records.read_file(path).records.items() if record.released] == [8]
    file.close()


def test_a_file_in_which_a_release_cannot_be_marked_is_removed(path: str, caplog: pytest.LogCaptureFixture) -> None:
    short = b'{"address":"127.0.0.1:80","cookie":1}\n'
    Path(path).write_bytes(content() + short)
    lines = RecordLines(os.open(path, os.O_RDWR))
    with pytest.raises(ValueError, match="no room"):
        lines.mark_released([released(FIRST)])
    lines.close()
    os.mkdir(f"{path}.{os.getpid()}.new")  # the draft cannot be written
    os.chmod(path, 0o600)
    file = state_file(path, [])
    file.append(b"", [released(FIRST)])
    assert said(caplog) == ["state-file-lost", "state-file-removed"]
    assert not os.path.exists(path)
    file.close()


def test_a_state_file_that_was_removed_is_written_again(path: str, caplog: pytest.LogCaptureFixture) -> None:
    file = state_file(path, [FIRST])
    os.unlink(path)
    with caplog.at_level(logging.WARNING, "multibinder"):
        file.check()
    assert records.read_file(path).records == {FIRST.cookie: FIRST}
    assert said(caplog) == ["state-file-gone"]
    file.close()


def test_in_a_removed_directory_the_file_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state_file(str(tmp_path / "gone" / "state"), [FIRST]).close()
    assert said(caplog) == ["state-file-lost"]
