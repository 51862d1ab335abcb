"""``multibinder run``: stay beside a command, and replace it by a new copy of itself without losing a client.

The process lives for months in little memory. It imports at its start all that it may ever need, and neither click nor
asyncio.
"""

import sys

_OPTIONAL = "typing_extensions"
if "msgspec" not in sys.modules and _OPTIONAL not in sys.modules:
    # msgspec takes names from this module if it is installed, which imports inspect and ast: 1.3 MB.
    sys.modules[_OPTIONAL] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[_OPTIONAL]
