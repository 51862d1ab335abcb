"""What the errors of accept(2) mean for a server."""

from __future__ import annotations

import errno

#: The connection failed before it was accepted. It is gone from the queue, and the next one can be accepted. Linux
#: passes errors of the network on through accept(2) (section "Error handling"); EPERM is a firewall's refusal.
CLIENT_IS_GONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)

#: The socket does not listen, and will not again: it was released, or shut down.
NOT_LISTENING = frozenset({errno.EINVAL, errno.EBADF})

#: After any other error (EMFILE, ENFILE, ENOBUFS, ENOMEM) the client is still in the queue, and poll(2) reports it
#: at once again. A server waits so long, in seconds, as asyncio does (asyncio.constants.ACCEPT_RETRY_DELAY).
RETRY_DELAY_S = 1.0

#: A listening socket is never writable. One that is writable, or hung up, does not listen: it was released, or another
#: holder shut it down, and the binder repairs it. If accept() does not say which, a server looks again after this time.
LOOK_AGAIN_S = 0.05

#: A server accepts at most so many clients before it looks after those that it has, and leaves others to other copies.
AT_ONCE = 32
