"""The shapes, as people write their configurations. ``@DIR@`` is the directory of a run."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

HEAD = """global
    maxconn 300
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
"""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A configuration. ``files`` are written to the directory of the run, and are the values of ``-f`` unless
    ``arguments`` names others. ``left`` is the number of binds that are left to HAProxy. ``prepare`` are commands.
    ``quiet``: no clients come meanwhile (plain HAProxy 2.6 itself gets stuck when clients of log-forward send nothing).
    ``answers_vary``: the kernel chooses between listeners that answer differently.
    """

    name: str
    files: dict[str, str | bytes]
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    take_stats: bool = False
    take_binds: bool = False
    left: int = 0
    prepare: tuple[str, ...] = ()
    answers_vary: bool = False
    quiet: bool = False


def answering(*binds: str, name: str = "web", more: str = "") -> str:
    """Return a frontend with these binds that answers with its name, and with the number of the bind (so_id)."""
    lines = "".join(f"    bind {bind}\n" for bind in binds)
    answer = f"    http-request return status 200 content-type text/plain lf-string {name}-%[so_id]\n"
    return f"frontend {name}\n{lines}{more}{answer}"


def one(name: str, text: str, **options: Any) -> Shape:
    return Shape(name, {"haproxy.cfg": text}, **options)


_ADDRESSES = {
    "ipv4": ["127.0.0.1:8000"],
    "any": ["*:8000"],
    "no-host": [":8000"],
    "all-zero": ["0.0.0.0:8000"],
    "ipv6-any": [":::8000"],
    "ipv6-brackets": ["[::1]:8000"],
    "ipv6-mapped-written-long": ["[0:0:0:0:0:0:0:1]:8000"],
    "ipv4-prefix": ["ipv4@127.0.0.1:8000"],
    "ipv6-prefix-any": ["ipv6@:8000"],
    "tcp-prefixes": ["tcp@127.0.0.1:8000", "tcp4@127.0.0.1:8001", "tcp6@[::1]:8002", "tcp6@*:8003"],
    "comma-list": ["127.0.0.1:8000,127.0.0.2:8000,[::1]:8000"],
    "comma-at-the-end": ["127.0.0.1:8000,"],
    "range": ["127.0.0.1:8000-8007"],
    "range-of-all": [":8000-8002,127.0.0.1:9000-9001"],
    "unix": ["unix@@DIR@/web.sock mode 666"],
    "unix-without-prefix": ["@DIR@/web.sock user root group root mode 600"],
    "unix-default-mode": ["@DIR@/web.sock"],
    "uxst": ["uxst@@DIR@/web.sock uid 0 gid 0 mode 660"],
    "abstract": ["abns@web-corpus"],
    "several-kinds": ["127.0.0.1:8000", "@DIR@/web.sock mode 600", "abns@web-corpus"],
    "list-of-kinds": ["127.0.0.1:8000,unix@@DIR@/web.sock,abns@web-corpus mode 600"],
    "single-quotes": ["'127.0.0.1:8000'"],
    "double-quotes": ['"127.0.0.1:8000"'],
    "half-quotes": ["127.0.0.1:'8000'"],
    "escaped": ["127.0.0.1\\x3a8000"],
    "comment-in-the-word": ["127.0.0.1:8000#,127.0.0.1:8001"],
    "comment-after": ["127.0.0.1:8000 # 127.0.0.1:8001"],
    "v6only": [":::8000 v6only", "0.0.0.0:8000"],
    "v4v6": [":::8000 v4v6"],
    "v6only-and-v4v6": [":::8000 v4v6 v6only"],
    "specific-beside-any": ["*:8000", "127.0.0.1:8000"],
    "both-families-on-one-port": ["0.0.0.0:8000", ":::8000"],
    "interface": ["127.0.0.1:8000 interface lo", ":::8001 interface lo"],
    "transparent": ["192.0.2.7:8000 transparent", "127.0.0.1:8001 transparent"],
    "mss": ["127.0.0.1:8000 mss 1400"],
    "defer-accept": ["127.0.0.1:8000 defer-accept"],
    "tfo": ["127.0.0.1:8000 tfo"],
    "tcp-ut": ["127.0.0.1:8000 tcp-ut 10s"],
    "many-options": ["127.0.0.1:8000 name a id 7 maxconn 50 nice 3 mss 1300 tfo defer-accept backlog 77 tcp-ut 5s"],
    "backlog": ["127.0.0.1:8000 backlog 321"],
    "shards": ["127.0.0.1:8000 shards 3"],
    "shards-by-thread": ["127.0.0.1:8000 shards by-thread"],
    "shards-of-a-list": ["127.0.0.1:8000,127.0.0.1:8001 shards 2"],
    "thread-sets": ["127.0.0.1:8000 thread 1", "127.0.0.1:8000 thread 2"],
    "accept-proxy": ["127.0.0.1:8000 accept-proxy", "127.0.0.1:8001"],
    "options-before-a-comment": ["127.0.0.1:8000 name a# b"],
    "tabs-and-spaces": ["\t 127.0.0.1:8000   name\ta"],
}


def _addresses() -> list[Shape]:
    return [
        one(name, HEAD.replace("maxconn 300", "maxconn 300\n    nbthread 2") + answering(*binds))
        for name, binds in _ADDRESSES.items()
    ]


_VARIABLES = [
    one("variable", HEAD + answering("127.0.0.1:$PORT"), environment={"PORT": "8000"}),
    one("variable-in-braces", HEAD + answering("${HOST}:${PORT}"), environment={"HOST": "127.0.0.1", "PORT": "8000"}),
    one("variable-in-quotes", HEAD + answering('"${HOST}:${PORT}"'), environment={"HOST": "127.0.0.1", "PORT": "8000"}),
    one("variable-default", HEAD + answering('"127.0.0.1:${PORT-8000}"')),
    one(
        "variable-list", HEAD + answering('"${ADDRESSES}"'), environment={"ADDRESSES": "127.0.0.1:8000,127.0.0.1:8001"}
    ),
    one("variable-is-empty", HEAD + answering("${HOST}:8000")),
    one("setenv", HEAD.replace("defaults", "    setenv PORT 8000\ndefaults", 1) + answering("127.0.0.1:$PORT")),
    one(
        "presetenv",
        HEAD.replace("defaults", "    presetenv PORT 8000\n    presetenv MORE 8001\ndefaults", 1)
        + answering("127.0.0.1:$PORT", "127.0.0.1:$MORE"),
        environment={"MORE": "8002"},
    ),
    one(
        "unsetenv-resetenv",
        HEAD.replace("defaults", "    unsetenv A\n    resetenv PATH HOME B\ndefaults", 1)
        + answering('"127.0.0.1:${A-8000}"', '"127.0.0.1:${B-8001}"', '"127.0.0.1:${C-8002}"'),
        environment={"A": "9000", "B": "9001", "C": "9002"},
    ),
    one("local-peer-name", HEAD + answering("127.0.0.1:8000") + "# ${HAPROXY_LOCALPEER}\n"),
]

_SECTIONS = [
    one("listen", HEAD + answering("127.0.0.1:8000").replace("frontend", "listen")),
    one("two-frontends", HEAD + answering("127.0.0.1:8000") + answering("127.0.0.1:8001", name="api")),
    one(
        "stats-page",
        HEAD
        + answering("127.0.0.1:8000")
        + "listen stats\n    bind 127.0.0.1:8404\n    stats enable\n    stats uri /s\n",
    ),
    one(
        "disabled",
        HEAD + answering("127.0.0.1:8000") + answering("127.0.0.1:8001", name="off", more="    disabled\n"),
    ),
    one(
        "disabled-in-defaults",
        HEAD
        + answering("127.0.0.1:8000")
        + "defaults off\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n    disabled\n"
        + answering("127.0.0.1:8001", name="off").replace("frontend off", "frontend off from off"),
    ),
    one("backlog-in-defaults", HEAD + "    backlog 55\n" + answering("127.0.0.1:8000", "127.0.0.1:8001 backlog 66")),
    one("backlog-in-frontend", HEAD + answering("127.0.0.1:8000", more="    backlog 44\n")),
    one(
        "backend-and-servers",
        HEAD
        + answering("127.0.0.1:8001", name="server")
        + "frontend web\n    bind 127.0.0.1:8000\n    default_backend pool\n"
        + "backend pool\n    balance roundrobin\n    server one 127.0.0.1:8001\n    server two 127.0.0.1:8001 backup\n",
    ),
    one(
        "tcp-mode",
        HEAD
        + answering("127.0.0.1:8001", name="server")
        + "listen relay\n    mode tcp\n    bind 127.0.0.1:8000\n    server one 127.0.0.1:8001\n",
    ),
    one(
        "peers",
        HEAD
        + answering("127.0.0.1:8000")
        + "peers here\n    bind 127.0.0.1:8100\n    server me\n    server other 127.0.0.1:8101\n",
        arguments=("-L", "me", "-f", "haproxy.cfg"),
    ),
    one(
        "peers-default-bind",
        HEAD
        + answering("127.0.0.1:8000")
        + "peers here\n    default-bind interface lo\n    bind 127.0.0.1:8100 mss 1200\n    server me\n",
        arguments=("-L", "me", "-f", "haproxy.cfg"),
    ),
    one(
        "local-peer",
        HEAD + answering("127.0.0.1:8000") + "peers here\n    peer me 127.0.0.1:8100\n    peer you 127.0.0.1:8101\n",
        arguments=("-L", "me", "-f", "haproxy.cfg"),
    ),
    one(
        "log-forward",
        HEAD
        + answering("127.0.0.1:8000")
        + "log-forward syslog\n    maxconn 250\n    timeout client 100\n    bind 127.0.0.1:8514\n    dgram-bind 127.0.0.1:8514\n"
        + "    log stdout format raw local0\n",
        quiet=True,
    ),
    one(
        "unix-bind",
        HEAD.replace("defaults", "    unix-bind prefix @DIR@ mode 640 user root group root\ndefaults", 1)
        + answering("/web.sock", "/other.sock mode 666"),
    ),
    one(
        "stats-socket-taken",
        HEAD.replace("defaults", "    stats socket @DIR@/admin.sock mode 600 level admin\ndefaults", 1)
        + answering("127.0.0.1:8000"),
        take_stats=True,
    ),
    one(
        "stats-socket-on-tcp-taken",
        HEAD.replace("defaults", "    stats socket ipv4@127.0.0.1:9999 level admin\ndefaults", 1)
        + answering("127.0.0.1:8000"),
        take_stats=True,
    ),
    one(
        "stats-socket-left-alone",
        HEAD.replace("defaults", "    stats socket @DIR@/admin.sock mode 600 level admin\ndefaults", 1)
        + answering("127.0.0.1:8000"),
    ),
    one(
        "namespace",
        HEAD + answering("127.0.0.1:8000 namespace corpus", "127.0.0.1:8001"),
        prepare=("ip netns add corpus", "ip netns exec corpus ip link set lo up"),
    ),
    one("name-of-this-host", HEAD + answering("localhost:8000", "127.0.0.1:8001"), left=1),
    one(
        "same-address-twice",
        HEAD + answering("127.0.0.1:8000") + answering("127.0.0.1:8000", name="again"),
        answers_vary=True,
    ),
    one(
        "program",
        HEAD + answering("127.0.0.1:8000") + "program sleeper\n    command sleep 300\n    no option start-on-reload\n",
    ),
    one(
        "ssl",
        HEAD.replace("defaults", "    ssl-default-bind-options ssl-min-ver TLSv1.2\ndefaults", 1)
        + answering("127.0.0.1:8000", "127.0.0.1:8443 ssl crt @DIR@/site.pem alpn h2,http/1.1"),
    ),
]

_CONDITIONS = [
    one(
        "if-false",
        HEAD
        + ".if defined(NOWHERE)\n"
        + answering("127.0.0.1:8001", name="no")
        + ".endif\n"
        + answering("127.0.0.1:8000"),
    ),
    one(
        "if-else",
        HEAD
        + "frontend web\n.if version_atleast(99.0)\n    bind 127.0.0.1:8001\n.elif feature(OPENSSL)\n    bind 127.0.0.1:8000\n"
        + ".else\n    bind 127.0.0.1:8002\n.endif\n    http-request return status 200 content-type text/plain string web\n",
    ),
    one(
        "if-nested",
        HEAD
        + "frontend web\n.if version_atleast(2.4)\n.if streq($MODE,dev)\n    bind 127.0.0.1:8001\n.else\n    bind 127.0.0.1:8000\n"
        + ".endif\n.else\n    bind 127.0.0.1:8002\n.endif\n"
        + "    http-request return status 200 content-type text/plain string web\n",
        environment={"MODE": "prod"},
    ),
    one(
        "if-about-setenv",
        "global\n    maxconn 300\n.if !defined(PORT)\n    setenv PORT 8000\n.endif\n"
        + HEAD.partition("maxconn 300\n")[2]
        + answering("127.0.0.1:$PORT"),
    ),
    one(
        "if-about-disabled",
        HEAD
        + answering("127.0.0.1:8000")
        + answering("127.0.0.1:8001", name="b", more=".if 1\n    disabled\n.endif\n"),
    ),
]

_FILES = [
    Shape("crlf", {"haproxy.cfg": (HEAD + answering("127.0.0.1:8000 name a", "@DIR@/web.sock")).replace("\n", "\r\n")}),
    Shape("latin-1", {"haproxy.cfg": ("# caf\xe9\n" + HEAD + answering("127.0.0.1:8000")).encode("latin-1")}),
    Shape("utf-8", {"haproxy.cfg": "# café ☃\n" + HEAD + answering("127.0.0.1:8000")}),
    Shape("long-lines", {"haproxy.cfg": HEAD + answering(",".join(f"127.0.0.1:{port}" for port in range(8000, 8060)))}),
    Shape(
        "several-files",
        {"a.cfg": HEAD, "b.cfg": answering("127.0.0.1:8000"), "c.cfg": answering("127.0.0.1:8001", name="c")},
    ),
    Shape(
        "a-directory",
        {"conf.d/10-head.cfg": HEAD, "conf.d/20-web.cfg": answering("127.0.0.1:8000"), "conf.d/ignored.txt": "x y z\n"},
        arguments=("-f", "conf.d"),
    ),
    Shape(
        "a-file-and-a-directory",
        {"head.cfg": HEAD, "conf.d/web.cfg": answering("127.0.0.1:8000")},
        arguments=("-f", "head.cfg", "-f", "conf.d"),
    ),
    Shape(
        "a-template-beside",
        {
            "a.cfg": HEAD,
            "b.cfg": answering("127.0.0.1:8000"),
            "c.cfg.j2": answering("{{ bind_tcp('127.0.0.1', 8001) }}", name="c"),
        },
        take_binds=True,
    ),
    Shape(
        "default-path",
        {
            "sub/haproxy.cfg": HEAD.replace("maxconn 300", "maxconn 300\n    default-path config")
            + answering("127.0.0.1:8000").replace("lf-string web-%[so_id]", "file answer.txt"),
            "sub/answer.txt": "web",
        },
        arguments=("-f", "sub/haproxy.cfg"),
    ),
    Shape("files-after-dashes", {"haproxy.cfg": HEAD + answering("127.0.0.1:8000")}, arguments=("--", "haproxy.cfg")),
    Shape(
        "daemon-keyword",
        {"haproxy.cfg": HEAD.replace("maxconn 300", "maxconn 300\n    daemon") + answering("127.0.0.1:8000")},
    ),
]

SHAPES: dict[str, Shape] = {
    shape.name: shape for shape in itertools.chain(_addresses(), _VARIABLES, _SECTIONS, _CONDITIONS, _FILES)
}
