"""The daemons in Python."""

from __future__ import annotations

from tests.daemons.row import Row
from tests.daemons.udp_load import Echo

ROWS = (
    Row("asyncio", "asyncio", ready="ready"),
    Row("socketserver", "socketserver", ready="ready"),
    Row("a UDP server", "udp", ready="ready", question=Echo()),
)
