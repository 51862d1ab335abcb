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

#: sd-daemon(3): a line that starts with <N> has syslog priority N.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_BARE = re.compile(r"[^\s\"'=\\]+")


def log_to(path: str | None, log_format: str, level: int, *, required: bool = True) -> None:
    """Write events to stderr, or append them to a file, which is opened again if logrotate moves it.

    Raises ConfigurationError if the file cannot be opened. If it is not ``required``, events go to stderr until it can.
    """
    journal = path is None and _stderr_is_the_journal()
    # Both handlers flush after each line.
    handler: logging.Handler = (
        logging.StreamHandler(sys.stderr) if path is None else _file_handler(path, required=required)
    )
    handler.setFormatter(_Json() if log_format == "json" else _KeyValue(timestamps=not journal))
    if journal:
        handler.setFormatter(_Prioritized(handler.formatter))
    # If the disk behind stderr is full, the binder goes on, without a traceback for each lost line.
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


def _file_handler(path: str, *, required: bool) -> logging.Handler:
    # Imported only with --log-file: it imports pickle, queue and more, which takes 1 MB of memory.
    from logging.handlers import WatchedFileHandler

    class File(WatchedFileHandler):
        def _open(self) -> io.TextIOWrapper:
            return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=open_log)

        def emit(self, record: logging.LogRecord) -> None:
            try:
                super().emit(record)
            except OSError as error:
                # The file was moved away and cannot be opened again. The next event retries.
                self.stream = None
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"{self.format(record)} log_file_lost={_quoted(str(error.strerror))}\n")
                    sys.stderr.flush()

    if required:
        try_log_file(path)
    return File(path, encoding="utf-8", delay=not required)


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
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
