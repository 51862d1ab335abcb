"""Refresh the status in a terminal or a pipe: ``multibinder status --watch``."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from multibinder import BinderTimeout, BinderUnavailable, Client, RemoteProtocolError
from multibinder.cli.say import say
from multibinder.cli.status_report import Report, report_of
from multibinder.cli.status_table import Line, table
from multibinder.cli.status_text import COLOURS, lines_of, remarks, summary, wants_colour
from multibinder.cli.wording import clock

#: The number of lengths of each queue that are kept.
_HISTORY = 16


class LiveStatus:
    """The reports of one ``--watch`` so far. Rich renders it at the size of the terminal, the worst listeners first."""

    def __init__(self, socket_path: str | None) -> None:
        self._socket_path = socket_path
        self._client: Client | None = None
        self._report: Report | None = None
        self._asked_at = 0.0
        self._rates: dict[int, float] = {}
        self._histories: dict[int, deque[int]] = {}
        self._silent_since: float | None = None
        self._why = ""

    @property
    def report(self) -> Report | None:
        """The latest report; None while the binder does not answer."""
        return None if self._silent_since else self._report

    @property
    def silence(self) -> str:
        """A sentence with the time and the reason of the missing answer; empty while the binder answers."""
        return f"No answer since {clock(self._silent_since)}: {self._why}" if self._silent_since else ""

    def refresh(self) -> None:
        """Ask the binder. If it stops answering, note that and keep the latest report.

        Raises MultibinderError if it has never answered.
        """
        try:
            if self._client is None:
                self._client = Client(self._socket_path)
            asked_at = time.monotonic()
            report = report_of(self._client)
        except (BinderUnavailable, BinderTimeout, RemoteProtocolError) as error:
            self.close()
            if self._report is None:
                raise
            self._silent_since = self._silent_since or time.time()
            self._why = str(error)
            return
        self._silent_since = None
        self._update(report, asked_at)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _update(self, report: Report, asked_at: float) -> None:
        if self._report is not None:
            before = {row.cookie: row.drops for row in self._report.listeners if row.drops is not None}
            passed_s = asked_at - self._asked_at
            self._rates = {
                row.cookie: (row.drops - before[row.cookie]) % 2**32 / passed_s
                for row in report.listeners
                if row.cookie in before and row.drops is not None
            }
        self._histories = {
            row.cookie: self._histories.get(row.cookie) or deque(maxlen=_HISTORY) for row in report.listeners
        }
        for row in report.listeners:
            self._histories[row.cookie].append(row.queue or 0)
        self._report, self._asked_at = report, asked_at

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        assert self._report is not None  # noqa: S101 (the first refresh set it, or raised)
        height = options.height or console.size.height
        utf8 = options.encoding.lower().startswith("utf")
        head, blocks = table(self._report, options.max_width, self._rates, self._histories, ascii_only=not utf8)
        top = [Text(f"{clock(self._report.at)}  {summary(self._report)}", overflow="ellipsis", no_wrap=True)]
        if self._silent_since:
            top.append(Text(self.silence, style="bold red", overflow="ellipsis", no_wrap=True))
        else:
            top += [Text(each, style="magenta", overflow="ellipsis", no_wrap=True) for each in remarks(self._report)]
        top = [*top[: max(1, height - 4)], Text(head.text, style="bold", overflow="crop", no_wrap=True)]
        room = height - len(top)
        if sum(map(len, blocks)) > room:
            shown, used = 0, 1  # the last line has the number of those left out
            while shown < len(blocks) and used + len(blocks[shown]) <= room:
                used += len(blocks[shown])
                shown += 1
            left_out = f"{len(blocks) - shown:,} more not shown, none in a worse state: 'multibinder status' shows all"
        else:
            shown, left_out = len(blocks), ""
        yield from top
        for line in [line for block in blocks[:shown] for line in block]:
            yield _text(line)
        if left_out:
            yield Text(left_out, style="italic", overflow="ellipsis", no_wrap=True)


def _text(line: Line) -> Text:
    text = Text(line.text, overflow="crop", no_wrap=True)
    if line.state in COLOURS:
        text.stylize(f"bold {COLOURS[line.state]}", 0, len(line.state))
    return text


def watch_status(socket_path: str | None, interval_s: float) -> None:
    """Show the status until SIGINT or SIGTERM, and restore the terminal then. A pipe gets one table after the other."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    live = LiveStatus(socket_path)
    try:
        live.refresh()
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            console = Console(no_color=not wants_colour(), highlight=False)
            with Live(live, console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as screen:
                _repeat(live, interval_s, screen.refresh)
        else:
            _repeat(live, interval_s, lambda: _print(live))
    except KeyboardInterrupt:
        pass
    finally:
        live.close()


def _repeat(live: LiveStatus, interval_s: float, show: Callable[[], None]) -> None:
    while True:
        show()
        time.sleep(interval_s)
        live.refresh()


def _print(live: LiveStatus) -> None:
    lines = lines_of(report, 80, colour=False) if (report := live.report) else [live.silence]
    say("\n".join([*lines, ""]))
