"""The encoding of templates: UTF-8."""

from __future__ import annotations

from multibinder_haproxy.errors import TemplateFailure


def decode_template(path: str, content: bytes) -> str:
    """Return the text of a template. Raises TemplateFailure."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TemplateFailure(
            f"{path}:{line}: not UTF-8: {error.reason} at byte {error.start}; convert the file, as in "
            f"'iconv -f latin1 -t utf-8'"
        ) from error
