"""Twisted: the reactor adopts the descriptor. At SIGTERM it stops at once, unless the shutdown is made to wait."""

import os
import socket
import sys

from twisted.internet import reactor, task
from twisted.internet.defer import ensureDeferred
from twisted.protocols.policies import WrappingFactory
from twisted.web import resource, server

import multibinder


class Answer(resource.Resource):
    isLeaf = True

    def render_GET(self, request):
        task.deferLater(reactor, 0.01, self.finish, request)
        return server.NOT_DONE_YET

    def finish(self, request):
        request.write(b"%d\n" % os.getpid())
        request.finish()


listener = multibinder.bind("127.0.0.1", int(sys.argv[1]), blocking=False)
clients = WrappingFactory(server.Site(Answer()))
port = reactor.adoptStreamPort(listener.fileno(), socket.AF_INET, clients)


async def stop():
    await port.stopListening()
    if sys.argv[2:] != ["as-it-is"]:
        while clients.protocols:
            await task.deferLater(reactor, 0.02)


reactor.addSystemEventTrigger("before", "shutdown", lambda: ensureDeferred(stop()))
print("ready", flush=True)
reactor.run()
