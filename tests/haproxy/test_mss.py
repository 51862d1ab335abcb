"""``mss`` on a bind line limits the segments of clients for as long as it stands in the configuration."""

from __future__ import annotations

import socket

from tests.haproxy.support import Haproxy, bind_tcp, config, get
from tests.support.waiting import PATIENCE_S

Address = tuple[str, int]

_TIMESTAMP_BYTES = 12


def segment_of_a_client(address: Address) -> int:
    """Return the largest segment that the listener admits to a new client."""
    with socket.create_connection(address, timeout=PATIENCE_S) as client:
        # The client counts what is left for data after the time stamps (RFC 7323).
        return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) + _TIMESTAMP_BYTES


def test_an_mss_that_was_taken_away_is_taken_off_at_a_reload(haproxy: Haproxy, host: str) -> None:
    kept, changed = (host, 8000), (host, 8001)
    haproxy.template.write_text(config(bind_tcp(kept) + " mss 1200", bind_tcp(changed) + " mss 1000"))
    haproxy.start()
    assert (segment_of_a_client(kept), segment_of_a_client(changed)) == (1200, 1000)
    haproxy.template.write_text(config(bind_tcp(kept) + " mss 1200", bind_tcp(changed)))
    haproxy.must_reload()
    assert segment_of_a_client(kept) == 1200
    assert segment_of_a_client(changed) > 10000
    assert get(changed) == "ok"
    haproxy.template.write_text(config(bind_tcp(kept), bind_tcp(changed) + " mss 900"))
    haproxy.must_reload()
    assert segment_of_a_client(kept) > 10000
    assert segment_of_a_client(changed) == 900


def test_an_mss_that_was_taken_away_while_haproxy_was_dead_is_taken_off_at_the_start(
    haproxy: Haproxy, host: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)) + " mss 1000"))
    haproxy.start()
    assert segment_of_a_client((host, 8000)) == 1000
    haproxy.kill()
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    assert get((host, 8000)) == "ok"
    assert segment_of_a_client((host, 8000)) > 10000
