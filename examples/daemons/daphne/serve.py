"""daphne with an end that loses no client: its command drops every client at SIGTERM."""

import signal
import sys

from app import app
from daphne.server import Server  # the first import of daphne installs the reactor
from twisted.internet import defer, reactor, task

FINISHES_S = 30  # no request takes longer


class PatientServer(Server):
    port = None

    def listen_success(self, port) -> None:
        super().listen_success(port)
        self.port = port

    async def stop(self) -> None:
        """Accept no more clients, finish those that were accepted, and end."""
        await self.port.stopListening()
        await task.deferLater(reactor, 0.1)  # those that were accepted send their requests
        for _ in range(FINISHES_S * 10):
            if all("disconnected" in details for details in self.connections.values()):
                break
            await task.deferLater(reactor, 0.1)
        reactor.stop()


server = PatientServer(app, endpoints=[f"fd:fileno={sys.argv[1]}"], signal_handlers=False)
signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(defer.ensureDeferred, server.stop()))
server.ready_callable = lambda: print("ready", flush=True)
server.run()
