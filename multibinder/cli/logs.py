"""Write the binder's events as lines of ``key=value`` or JSON, with syslog priorities if stderr is the journal."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
import re
import sys

from multibinder import ConfigurationError
from multibinder.binder import events
from multibinder.cli.wording import reason_of
from multibinder.kernel.files import open_log
from multibinder.kernel.line_writer import LineWriter

_STDERR = 2
#: sd-daemon(3): a line that starts with <N> has syslog priority N.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_BARE = re.compile(r"[^\s\"'=\\]+")


def log_to(path: str | None, log_format: str, level: int, *, required: bool = True) -> None:
    """Write events to stderr, or append them to a file, which is opened again if logrotate moves it.

    Raises ConfigurationError if the file cannot be opened. If it is not ``required``, events go to stderr until it can.
    """
    if path is not None and required:
        try_log_file(path)
    journal = path is None and _stderr_is_the_journal()
    stderr = LineWriter(_STDERR)
    handler = _Lines(stderr) if path is None else _File(stderr, path)
    handler.setFormatter(_Json() if log_format == "json" else _KeyValue(timestamps=not journal))
    if journal:
        handler.setFormatter(_Prioritized(handler.formatter))
    # Tracebacks and the message of sys.exit() are written here. No reader of stderr may stop them, either.
    sys.stderr = _Stderr(stderr)
    logging.raiseExceptions = False
    events.logger.addHandler(handler)
    events.logger.setLevel(level)
    events.logger.propagate = False


def try_log_file(path: str) -> None:
    """Raise ConfigurationError if the log file cannot be opened now."""
    try:
        os.close(open_log(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    except OSError as error:
        raise ConfigurationError(f"--log-file {path}: {reason_of(error)}") from error


class _Lines(logging.Handler):
    """Write records as lines, and never wait for their reader. Say how many were lost as soon as one can be written."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    @property
    def is_behind(self) -> bool:
        """Return whether lines wait for the reader, or were lost and their number was not written yet."""
        return _is_behind(self._writer)

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        self._writer.write(self._line(record))

    def flush(self) -> None:
        self._writer.flush()
        _tell_lost(self._writer)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")


class _File(_Lines):
    """Append records to a file, which is opened again if it was moved; to stderr while it cannot be opened."""

    def __init__(self, stderr: LineWriter, path: str) -> None:
        super().__init__(stderr)
        self._path = path
        self._file: tuple[int, LineWriter] | None = None

    @property
    def is_behind(self) -> bool:
        return super().is_behind or (self._file is not None and _is_behind(self._file[1]))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            file = self._open()
        except OSError as error:
            # The next event tries again.
            line = f"{self.format(record)} log_file_lost={_quoted(str(error.strerror))}\n"
            self._writer.write(line.encode(errors="backslashreplace"))
        else:
            _tell_lost(file)
            file.write(self._line(record))

    def flush(self) -> None:
        super().flush()
        if self._file is not None:
            self._file[1].flush()
            _tell_lost(self._file[1])

    def _open(self) -> LineWriter:
        if self._file is not None:
            number, writer = self._file
            if _is_open_at(self._path, number):
                return writer
            self._file = None
            with contextlib.suppress(OSError):
                os.close(number)
        number = open_log(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._file = number, LineWriter(number)
        return self._file[1]


class _Stderr(io.TextIOBase):
    """sys.stderr of a process that must not wait for the reader of its stderr."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def write(self, text: str) -> int:
        self._writer.write(text.encode(errors="backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        return _STDERR


def _is_behind(writer: LineWriter) -> bool:
    return writer.is_waiting or writer.lost > 0


def _tell_lost(writer: LineWriter) -> None:
    if not writer.lost or writer.is_waiting:
        return
    count, since = writer.lost, writer.lost_since
    writer.lost = 0
    moment = datetime.datetime.fromtimestamp(since, datetime.UTC).isoformat(timespec="milliseconds")
    events.warning("log-lost", count=count, since=moment.replace("+00:00", "Z"), why="the log could not be written")
    if writer.lost:
        writer.lost, writer.lost_since = count, since  # this line could not be written, either


def _is_open_at(path: str, number: int) -> bool:
    try:
        there, here = os.stat(path), os.fstat(number)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


class _KeyValue(logging.Formatter):
    """Format a record as ``time=… level=info event=bound address=127.0.0.1:80``."""

    def __init__(self, timestamps: bool) -> None:
        super().__init__()
        self._timestamps = timestamps

    def format(self, record: logging.LogRecord) -> str:
        pairs = {"level": record.levelname.lower(), "event": record.getMessage(), **_fields(record)}
        if self._timestamps:
            pairs = {"time": _time(record), **pairs}
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())


class _Json(logging.Formatter):
    """Format a record as one JSON object with the same pairs."""

    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        return _json({**head, **_fields(record)})


class _Prioritized(logging.Formatter):
    """Put the syslog priority before the line of another formatter."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{self._inner.format(record)}"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: object) -> str:
    """Return the value as JSON with every unprintable character escaped.

    Clients choose their labels, which must neither control a terminal nor end a log line.
    """
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value, default=str)


def _quoted(value: str) -> str:
    return value if _BARE.fullmatch(value) and value.isprintable() else _json(value)


def _stderr_is_the_journal() -> bool:
    """Return whether stderr is the stream that $JOURNAL_STREAM names by device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(_STDERR)
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
