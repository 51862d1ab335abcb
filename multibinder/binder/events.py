"""One line of log for each event: a name and fields. How a line looks is the command line's business."""

from __future__ import annotations

import logging

logger = logging.getLogger("multibinder")


def debug(name: str, **fields: object) -> None:
    _emit(logging.DEBUG, name, fields)


def info(name: str, **fields: object) -> None:
    _emit(logging.INFO, name, fields)


def warning(name: str, **fields: object) -> None:
    _emit(logging.WARNING, name, fields)


def error(name: str, **fields: object) -> None:
    _emit(logging.ERROR, name, fields)


def _emit(level: int, name: str, fields: dict[str, object]) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})
