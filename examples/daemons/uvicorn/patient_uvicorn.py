"""What uvicorn takes as ``--http patient_uvicorn:Protocol``: accepted clients may send their requests after SIGTERM."""

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class Protocol(AutoHTTPProtocol):
    def shutdown(self) -> None:
        """Close an idle connection a moment later: its request may be on its way."""
        self.loop.call_later(0.1, self.close_if_idle)

    def close_if_idle(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()
