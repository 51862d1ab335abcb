"""How an event of the binder becomes a line: ``key=value`` or JSON, with the journal's priority where it is read."""

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
from multibinder.kernel.files import open_log

#: sd-daemon(3): a line that starts with <N> has syslog priority N.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_BARE = re.compile(r"[^\s\"'=\\]+")


def log_to(path: str | None, log_format: str, level: int) -> None:
    """Events go to stderr, or to the end of a file, which may be moved away at any time (logrotate)."""
    journal = path is None and _stderr_is_the_journal()
    # Both flush after each line.
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if path is None else _file_handler(path)
    handler.setFormatter(_Json() if log_format == "json" else _KeyValue(timestamps=not journal))
    if journal:
        handler.setFormatter(_Prioritized(handler.formatter))
    # A full disk behind stderr must not stop the binder, nor fill what is left with tracebacks.
    logging.raiseExceptions = False
    events.logger.addHandler(handler)
    events.logger.setLevel(level)
    events.logger.propagate = False


def _file_handler(path: str) -> logging.Handler:
    from logging.handlers import WatchedFileHandler  # imports pickle, queue and more: 1 MB that few need

    class File(WatchedFileHandler):
        def _open(self) -> io.TextIOWrapper:
            return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=open_log)

        def emit(self, record: logging.LogRecord) -> None:
            try:
                super().emit(record)
            except OSError as error:
                # It cannot be opened again after it was moved away. The next line tries it anew.
                self.stream = None
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"{self.format(record)} log_file_lost={_quoted(str(error.strerror))}\n")
                    sys.stderr.flush()

    try:
        return File(path, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--log-file {path}: {(error.strerror or str(error)).lower()}") from error


class _KeyValue(logging.Formatter):
    def __init__(self, timestamps: bool) -> None:
        super().__init__()
        self._timestamps = timestamps

    def format(self, record: logging.LogRecord) -> str:
        pairs = {"level": record.levelname.lower(), "event": record.getMessage(), **_fields(record)}
        if self._timestamps:
            pairs = {"time": _time(record), **pairs}
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        return _json({**head, **_fields(record)})


class _Prioritized(logging.Formatter):
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
    """With nothing in it that a terminal obeys, or a reader takes for the end of a line: clients choose their names."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value, default=str)


def _quoted(value: str) -> str:
    return value if _BARE.fullmatch(value) and value.isprintable() else _json(value)


def _stderr_is_the_journal() -> bool:
    """systemd.exec(5): $JOURNAL_STREAM is the device and inode of the stream, as it was when the unit started."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
