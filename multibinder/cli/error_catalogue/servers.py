"""What ``multibinder.asyncio`` and ``multibinder.threading`` raise and log."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

SERVERS = Section(
    "Servers of multibinder.asyncio and multibinder.threading",
    "Raised by the calls, or logged by the loggers of these names.",
    (
        entry(
            "no listener was given",
            "… is no listener: give what multibinder.bind() returns",
            cause="the argument `listeners`: one listener or several are wanted",
            remedy="give what `multibinder.bind` or `bind_many` returned",
        ),
        entry(
            "… has no streams, which this server serves",
            cause="a listener of datagrams, or of packets in sequence, was given to a server of streams",
            remedy="`recvfrom()`, `accept()`, or asyncio's `create_datagram_endpoint(sock=…)`",
        ),
        entry(
            "the accept() of a listener that SSLContext.wrap_socket() made waits for each client's handshake",
            cause="one client that does not finish its TLS handshake would hold up the server",
            remedy="`start_server(…, ssl=context)`; with threads, wrap the socket in an override of `get_request()`, "
            "with `do_handshake_on_connect=False`",
        ),
        entry(
            "ssl_handshake_timeout and ssl_shutdown_timeout have a meaning only with ssl",
            cause="a timeout of TLS was given without a context",
            remedy="give `ssl=` too",
        ),
        entry(
            "…: not released: owner '…' has no claim, but … has",
            cause="`retire(owner=…)` with another label than `bind` had; the server goes on",
            remedy="give the label of `bind`; `multibinder list` shows it",
            fragment="has no claim, but",
        ),
        entry(
            "this server leaves a listener: …",
            cause="the listener was released at the binder; a server without a listener stops by itself",
            remedy="none, if the port was to be closed; else start the server again",
        ),
        entry(
            "… client(s) are not finished, and are cancelled",
            "… client(s) are not finished, and are cut off",
            cause="`drain` seconds after the stop, these clients still had no end",
            remedy="give a longer `drain`, or limit how long a handler waits for its client",
            fragment="are not finished, and are",
        ),
        entry(
            "… goes on in spite of its cancellation, and keeps the process from ending",
            cause="a handler catches CancelledError and does not end, or a thread of `asyncio.to_thread` runs on",
            remedy="let CancelledError through in the handler; a second SIGTERM ends the process at once",
        ),
        entry(
            "a handler goes on although its client was cut off",
            cause="a handler waits for something else than its client; its thread ends with the process",
            remedy="limit that wait",
        ),
        entry(
            "accept() failed, and is tried again in … s: …",
            "socket.accept() failed",
            "socket.accept() out of system resource",
            cause="the process or the machine has no descriptor or memory left; clients wait in the kernel's queue",
            remedy="raise the limit of open files (`LimitNOFILE=`), or close connections that are idle",
            fragment="accept() failed, and is tried again in",
        ),
    ),
)
