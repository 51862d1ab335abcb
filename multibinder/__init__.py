"""Get listeners that outlive your process from a multibinder daemon, the binder.

    import multibinder
    listener = multibinder.bind("127.0.0.1", 8000, owner="hello")
    while True:
        connection, peer = listener.accept()
        ...

The binder keeps the port open while your program restarts; clients wait in the kernel's accept queue. The environment
variable MULTIBINDER_SOCK says where the binder is.

    bind        the listener of one address
    bind_many   those of several, all or none
    release     close the port for good
    sync        the listeners of an owner are exactly these: bind them, release the others
    Client      all that a binder can be asked, over one connection

What they return and take (``help(multibinder.SharedListener)``, and so on):

    SharedListener              the socket: that of the socket module, made safe to share with other processes
    PeerAddress                 the address of a client, from ``SharedListener.accept``
    DatagramListener            the same for datagrams: ``bind("udp@127.0.0.1:53").recvfrom(4096)``
    Address, TcpAddress         an address: ``Address.parse("[::]:443")``, ``TcpAddress.of("::", 443)``
    ListenerSpec, Options       an address with options, a shard and a network namespace
    BindTarget, ReleaseTarget   what names a listener: one of the above, or ``("127.0.0.1", 8000)``
    Released, Moved, Upgrade, Hello, ListenerStatus, BinderStatus, ListenerHealth, ...   the answers to a Client

What they raise:

    MultibinderError
        ConfigurationError      no control socket is configured
        ArgumentError           an argument that the call does not take (also a ValueError)
            AddressError        an address, an option or a label that cannot be
        BinderUnavailable       no binder answers at the control socket (also a ConnectionError)
            BinderTimeout       it did not answer in time (also a TimeoutError)
        RequestError            the binder refused: ``code``, ``data``
            BindError           an address cannot be bound: ``errno``, ``address``, ``listener`` in the way
            NotAllowed          a policy, or the label of another user, forbids it
            LimitReached        a limit of this user or of the binder is reached: ``limit``
        ListenerReleased        from ``accept()``: the port was closed for good (also an OSError)
        ProtocolError           LocalProtocolError: misuse; RemoteProtocolError: the other end is no binder

docs/reference/library.md has each name with its contract, docs/errors.md each message with its remedy.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multibinder.api import *  # noqa: F403

__version__ = "0.1.0"

# What help(multibinder) describes in full: with every class, it has 2,800 lines, most of them inherited from socket and
# from exceptions. Each name of multibinder.api is public.
__all__ = ["Client", "bind", "bind_many", "release", "sync"]  # noqa: F405


if not TYPE_CHECKING:

    def __getattr__(name):
        """Import the API at its first use (PEP 562)."""
        # 'multibinder exec' and HAProxy's re-exec need modules of this package, and are three times as fast without.
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # 'from multibinder import api' would ask this function for the name first.
        import multibinder.api as api

        globals().update({each: value for each, value in vars(api).items() if not each.startswith("_")})
        try:
            return globals()[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__():
        __getattr__("Client")
        return sorted(globals())
