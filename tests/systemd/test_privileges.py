"""The binder's service has one capability, and HAProxy's service may do all that a configuration can ask of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.haproxy.support import bind_tcp, config, get
from tests.support import can_connect, own_host, require_ipv6, wait_until
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import (
    BINDER,
    CONTROL,
    EXTRA_PORT,
    PORT,
    SOCKET_PATH,
    Instance,
    drop_in,
    example,
    listed,
    restarted,
)

DIRECTORY = "/run/multibinder"
STATE_FILE = f"{SOCKET_PATH}.state"
CAP_NET_BIND_SERVICE = 1 << 10  # linux/capability.h

#: The binder's unit as it was when it ran as root.
AS_ROOT = """[Service]
User=root
Group=root
AmbientCapabilities=
CapabilityBoundingSet=
CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_PTRACE CAP_SYS_RESOURCE
CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
SystemCallFilter=
SystemCallFilter=@system-service pidfd_getfd
"""


def status(machine: Machine, pid: int) -> dict[str, list[str]]:
    """Return the fields of proc_pid_status(5)."""
    lines = machine.must("cat", f"/proc/{pid}/status").splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def owner(machine: Machine, path: str) -> str:
    return machine.must("stat", "-c", "%U:%G %a", path).strip()


def bind(machine: Machine, host: str, port: int) -> str:
    """Ask the binder for a listener, and return the message if it refuses."""
    code = f"import multibinder; multibinder.bind({host!r}, {port}, owner='test', socket_path={SOCKET_PATH!r})"
    done = machine.run(f"{COMMANDS}/python", "-c", code)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


@contextlib.contextmanager
def nothing_runs(machine: Machine) -> Iterator[None]:
    """Remove everything of the binder before the block, as before its first start, and after it."""

    def clear() -> None:
        machine.run("systemctl", "stop", BINDER, CONTROL)
        machine.run("systemctl", "reset-failed")
        machine.must("rm", "-rf", DIRECTORY)

    clear()
    try:
        yield
    finally:
        machine.run("systemctl", "stop", "multibinder-haproxy@*.service")
        clear()


def test_the_binder_runs_as_its_own_user_with_one_capability_also_after_an_upgrade(binder: Machine) -> None:
    require_ipv6()
    user, group = (binder.must("id", flag, "multibinder").strip() for flag in ("-u", "-g"))
    for how in ("start", "reload", "restart"):
        binder.must("systemctl", how, BINDER)
        now = status(binder, binder.main_pid(BINDER))
        assert now["Uid"] == [user] * 4
        assert now["Gid"] == [group] * 4
        assert now["Groups"] in ([], [group])
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(now[name][0], 16) == CAP_NET_BIND_SERVICE, name
        assert (now["NoNewPrivs"], now["Seccomp"]) == (["1"], ["2"])
        assert bind(binder, "127.0.0.1", PORT) == ""
        assert bind(binder, "::1", PORT) == ""
        assert owner(binder, STATE_FILE) == "multibinder:multibinder 600"


def test_the_directory_belongs_to_the_binder_whichever_unit_made_it(machine: Machine) -> None:
    def assert_it_serves() -> None:
        assert owner(machine, DIRECTORY) == "multibinder:multibinder 755"
        assert owner(machine, SOCKET_PATH) == "multibinder:multibinder 660"
        assert owner(machine, STATE_FILE) == "multibinder:multibinder 600"
        assert listed(machine) == set()

    with nothing_runs(machine):
        machine.must("systemctl", "start", CONTROL)
        assert owner(machine, DIRECTORY) == "root:root 755"
        machine.must("systemctl", "start", BINDER)
        assert_it_serves()
        machine.must("systemctl", "stop", BINDER)
        machine.must("systemctl", "start", BINDER)
        assert_it_serves()
        machine.must("systemctl", "stop", BINDER, CONTROL)
        machine.must("systemctl", "start", CONTROL, BINDER)
        assert_it_serves()
    # Without its socket unit the binder makes the directory and the socket.
    with nothing_runs(machine), drop_in(machine, CONTROL, "[Unit]\nConditionPathExists=/nowhere\n"):
        machine.must("systemctl", "start", BINDER)
        assert machine.show(CONTROL, "ActiveState") == "inactive"
        assert_it_serves()


def test_sockets_that_only_haproxy_has_are_named_without_the_drop_in_and_recovered_with_it(
    make_instance: Callable[[str], Instance],
) -> None:
    web = make_instance("web")
    machine, life = web.machine, web.life()
    dead = machine.kill(BINDER)
    wait_until(lambda: restarted(machine, dead), "the binder is back", log=machine.journal)
    assert listed(machine) == web.configured
    # Before systemd 254 a stop empties the descriptor store.
    machine.must("systemctl", "stop", BINDER)
    machine.must("systemctl", "start", BINDER)
    machine.must("journalctl", "--sync")
    invocation = machine.show(BINDER, "InvocationID")
    [line] = [line for line in machine.journal(f"_SYSTEMD_INVOCATION_ID={invocation}").splitlines()
              if "event=cannot-recover" in line]  # fmt: skip
    assert f"address={web.host}:{PORT}" in line
    for missing in ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "pidfd_getfd", "ptrace.conf"):
        assert missing in line
    assert listed(machine) == set()
    assert get(web.address).startswith("ok")
    # The listeners that it has stay kept, and the record of the missing one stays too.
    other = own_host()
    assert bind(machine, other, PORT) == ""
    machine.must("systemctl", "restart", BINDER)
    assert listed(machine) == {(other, PORT)}
    with drop_in(machine, BINDER, example(machine, BINDER, "ptrace.conf")):
        machine.must("systemctl", "restart", BINDER)
        assert listed(machine) == {(other, PORT), web.address}
    machine.must("systemctl", "restart", BINDER)
    assert listed(machine) == {(other, PORT), web.address}
    assert web.life() == life


def test_the_holder_of_a_port_is_named_only_with_the_drop_in(binder: Machine) -> None:
    host = own_host()
    # PID 1 listens on this port.
    binder.must("systemd-run", "--unit=occupant", f"--socket-property=ListenStream={host}:{PORT}", "/bin/true")
    try:
        assert "address already in use, by a process that this user may not see" in bind(binder, host, PORT)
        with drop_in(binder, BINDER, example(binder, BINDER, "ptrace.conf")):
            binder.must("systemctl", "restart", BINDER)
            assert "address already in use, by systemd (pid 1)" in bind(binder, host, PORT)
    finally:
        binder.must("systemctl", "stop", "occupant.socket")


def test_unix_sockets_are_in_the_binders_directory_without_the_drop_in_and_elsewhere_with_it(binder: Machine) -> None:
    def ask(endpoint: str, **options: int) -> str:
        code = (
            "import multibinder, sys\n"
            "address = multibinder.Address.parse(sys.argv[2])\n"
            f"spec = multibinder.ListenerSpec(address, multibinder.Options(**{options!r}))\n"
            "with multibinder.Client(sys.argv[1]) as client:\n"
            "    for sock in client.bind([spec], owner='test'): sock.close()"
        )
        return binder.run(f"{COMMANDS}/python", "-c", code, SOCKET_PATH, endpoint).stderr

    def is_there(path: str) -> bool:
        return binder.run("test", "-S", path).returncode == 0

    own, elsewhere = f"{DIRECTORY}/app.sock", "/run/elsewhere/app.sock"
    binder.must("mkdir", "-p", "/run/elsewhere")
    try:
        assert ask(f"unix@{own}", mode=0o660) == ""
        assert owner(binder, own) == "multibinder:multibinder 660"
        # It cannot ask sock_diag(7) here, but knows the path by its second name.
        binder.must("rm", own)
        wait_until(lambda: is_there(own), "the path is back", log=binder.journal)
        assert "option user: operation not permitted" in ask(f"unix@{DIRECTORY}/b", user=0)
        for refusal in (ask(f"unix@{DIRECTORY}/b", user=0), ask(f"unix@{elsewhere}"), ask(f"uxdg@{elsewhere}")):
            assert "drop-in unix-paths.conf" in refusal
        with drop_in(binder, BINDER, example(binder, BINDER, "unix-paths.conf")):
            binder.must("systemctl", "restart", BINDER)
            assert ask(f"unix@{elsewhere}", mode=0o620, user=0, group=0) == ""
            assert owner(binder, elsewhere) == "root:root 620"
            binder.must("rm", own, elsewhere)
            wait_until(lambda: is_there(own) and is_there(elsewhere), "the paths are back", log=binder.journal)
        # The socket stays kept; the binder just cannot put its path back any more.
        binder.must("systemctl", "restart", BINDER)
        assert is_there(elsewhere)
        assert ask(f"unix@{elsewhere}", mode=0o620, user=0, group=0) == ""
    finally:
        for endpoint in (f"unix@{own}", f"unix@{elsewhere}"):
            code = (
                "import multibinder as m, sys\n"
                "m.Client(sys.argv[1]).release([m.Address.parse(sys.argv[2])], owner='test')"
            )
            binder.run(f"{COMMANDS}/python", "-c", code, SOCKET_PATH, endpoint)
        binder.must("rm", "-rf", "/run/elsewhere")


@pytest.mark.parametrize(
    ("address", "options", "missing", "name"),
    [
        ("127.0.0.1:8391", "mark=7", "SO_MARK needs CAP_NET_ADMIN or CAP_NET_RAW", "socket-options.conf"),
        ("127.0.0.1:8392", "transparent=True", "IP_TRANSPARENT needs CAP_NET_ADMIN", "socket-options.conf"),
        ("udp@127.0.0.1:8393", "rcvbuf=100_000_000", "net.core.rmem_max is", "socket-options.conf"),
        ("vsock@*:8394", "backlog=5", "does not allow AF_VSOCK", "vsock.conf"),
    ],
)
def test_what_the_unit_does_not_allow_is_refused_with_the_name_of_the_drop_in_that_allows_it(
    binder: Machine, address: str, options: str, missing: str, name: str
) -> None:
    def ask(call: str) -> str:
        code = f"import multibinder; multibinder.{call}, socket_path={SOCKET_PATH!r})"
        return binder.run(f"{COMMANDS}/python", "-c", code).stderr

    bind = f"bind({address!r}, {options}"
    refusal = ask(bind)
    assert missing in refusal
    assert f"(drop-in {name})" in refusal
    with drop_in(binder, BINDER, example(binder, BINDER, name)):
        binder.must("systemctl", "restart", BINDER)
        assert ask(bind) == ""
    # It is kept without the drop-in.
    binder.must("systemctl", "restart", BINDER)
    assert address in binder.must(f"{COMMANDS}/multibinder", "list", "--socket", SOCKET_PATH)
    assert ask(f"release({address!r}") == ""


def test_a_listener_is_made_in_another_namespace_with_the_drop_in_and_kept_without_it(binder: Machine) -> None:
    name = "mb-systemd-test"

    def ask(port: int, named: str = name) -> str:
        code = (
            "import multibinder, sys\n"
            "address, named = multibinder.TcpAddress('0.0.0.0', int(sys.argv[2])), sys.argv[3]\n"
            "with multibinder.Client(sys.argv[1]) as client:\n"
            "    for sock in client.bind([multibinder.ListenerSpec(address, netns=named)], owner='test'): sock.close()"
        )
        return binder.run(f"{COMMANDS}/python", "-c", code, SOCKET_PATH, str(port), named).stderr

    def listens(port: int) -> bool:
        return f":{port} " in binder.must("nsenter", f"--net=/run/netns/{name}", "ss", "-ltnH")

    binder.must("ip", "netns", "add", name)
    try:
        refusal = ask(PORT)
        assert "CAP_SYS_ADMIN" in refusal
        assert "netns.conf" in refusal
        refusal = ask(PORT, "1")
        assert "CAP_SYS_PTRACE" in refusal or refusal == ""  # PID 1 is in the binder's own namespace
        with drop_in(binder, BINDER, example(binder, BINDER, "netns.conf")):
            binder.must("systemctl", "restart", BINDER)
            assert ask(PORT) == ""
            assert listens(PORT)
            binder.must("systemctl", "reload", BINDER)
            assert ask(EXTRA_PORT) == ""
            # Namespaces of other sorts stay forbidden.
            pid = binder.main_pid(BINDER)
            assert status(binder, pid)["NoNewPrivs"] == ["1"]
        binder.must("systemctl", "restart", BINDER)
        for port in (PORT, EXTRA_PORT):
            assert ask(port) == ""
            assert listens(port)
    finally:
        binder.run("ip", "netns", "del", name)


def test_shards_become_fewer_without_a_loss_only_with_the_drop_in(binder: Machine) -> None:
    def resize(*counts: int) -> None:
        code = (
            "import multibinder, sys\n"
            "with multibinder.Client(sys.argv[1]) as client:\n"
            "    for count in sys.argv[3:]:\n"
            "        for sock in client.bind([sys.argv[2]], shards=int(count), owner='test'): sock.close()"
        )
        command = (f"{COMMANDS}/python", "-c", code, SOCKET_PATH, f"{host}:{PORT}", *map(str, counts))
        done = binder.run(*command)
        assert done.returncode == 0, done.stderr

    def drains() -> int:
        invocation = binder.show(BINDER, "InvocationID")
        return binder.journal(f"_SYSTEMD_INVOCATION_ID={invocation}").count("event=shard-drains")

    host = own_host()
    resize(2, 1)
    wait_until(lambda: drains() == 1, "the binder says that the clients of a shard cannot be moved")
    with drop_in(binder, BINDER, example(binder, BINDER, "shards.conf")):
        binder.must("systemctl", "restart", BINDER)
        resize(2, 1)
        assert listed(binder) == {(host, PORT)}
        assert drains() == 0
        assert status(binder, binder.main_pid(BINDER))["NoNewPrivs"] == ["1"]


@pytest.mark.parametrize("steps", [("restart",), ("reload", "restart"), ("stop", "start")], ids="-".join)
def test_a_binder_that_ran_as_root_keeps_its_listeners_when_it_changes_to_its_own_user(
    machine: Machine, steps: tuple[str, ...]
) -> None:
    with nothing_runs(machine):
        with (
            drop_in(machine, CONTROL, "[Socket]\nSocketUser=root\n"),
            drop_in(machine, BINDER, AS_ROOT),
        ):
            machine.must("systemctl", "start", CONTROL, BINDER)
            web = Instance(machine, "web").start()
            assert owner(machine, DIRECTORY) == "root:root 755"
            assert owner(machine, STATE_FILE) == "root:root 600"
        before, held = web.life(), web.configured
        for step in steps:
            # After a stop only HAProxy has the socket, so that the binder needs the state file that root wrote.
            ptrace = example(machine, BINDER, "ptrace.conf") if step == "start" else ""
            with drop_in(machine, BINDER, ptrace):
                machine.must("systemctl", step, BINDER)
        assert listed(machine) == held
        assert status(machine, machine.main_pid(BINDER))["Uid"] == [machine.must("id", "-u", "multibinder").strip()] * 4
        for path, mode in ((DIRECTORY, 755), (SOCKET_PATH, 660), (STATE_FILE, 600)):
            assert owner(machine, path) == f"multibinder:multibinder {mode}"
        assert f"{web.host}:{PORT}" in machine.must("cat", STATE_FILE)
        dead = machine.kill(BINDER)
        wait_until(lambda: restarted(machine, dead), "the binder is back", log=machine.journal)
        assert listed(machine) == held
        assert get(web.address).startswith("ok")
        assert web.life() == before


REAL = """global
    log /dev/log local0
    chroot /var/lib/haproxy
    user haproxy
    group haproxy
    stats socket {sockets}/admin.sock mode 660 level admin
    stats socket /var/lib/haproxy/own.sock user haproxy group haproxy mode 600
    ulimit-n 4096

defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 5s
    timeout server 5s

frontend plain
    bind {plain}
    http-request deny if {{ path_reg ^/private/[0-9]+$ }}
    http-request return status 200 content-type text/plain string "ok"

frontend tls
    bind {tls} ssl crt {certificate}
    http-request return status 200 content-type text/plain string "ok"
"""


@contextlib.contextmanager
def log_in_chroot(machine: Machine) -> Iterator[Callable[[], object]]:
    """Yield a function that mounts the journal's socket as /dev/log in HAProxy's chroot, as is usual."""
    path = "/var/lib/haproxy/dev/log"
    machine.must("install", "-D", "/dev/null", path)
    try:
        yield lambda: machine.must("mount", "--bind", "/run/systemd/journal/dev-log", path)
    finally:
        machine.run("umount", path)


@pytest.mark.parametrize("hardened", [False, True], ids=["unit", "hardening.conf"])
def test_an_instance_may_do_what_real_configurations_do(binder: Machine, hardened: bool) -> None:
    """The configuration has a chroot, another user, another user's certificate, stats sockets and a log."""
    web = Instance(binder, "hardened" if hardened else "real")
    sockets, certificate = ("/run", "/etc/certs/web.pem") if hardened else ("/tmp", "/var/lib/certs/web.pem")
    key_and_certificate = (
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=web -days 2 -keyout key -out cert && cat cert key"
    )
    binder.must(
        "sh", "-c", f"mkdir -p {Path(certificate).parent}; cd $(mktemp -d); {key_and_certificate} > {certificate}"
    )
    # Only its owner may read the file: root reads it with CAP_DAC_OVERRIDE.
    binder.must("chmod", "600", certificate)
    binder.must("chown", "nobody", certificate)
    web.configured = {web.address, (web.host, EXTRA_PORT)}
    plain, tls = (bind_tcp((web.host, port)) for port in (PORT, EXTRA_PORT))
    web.write(REAL.format(sockets=sockets, certificate=certificate, plain=plain, tls=tls))
    text = example(binder, "multibinder-haproxy@.service", "hardening.conf") if hardened else ""
    with drop_in(binder, "multibinder-haproxy@.service", text), log_in_chroot(binder) as mount_it:
        web.start()
        # HAProxy must see a mount that is made while it runs.
        mount_it()
        for how in ("reload", "restart", "reload"):
            binder.must("systemctl", how, web.unit)
            assert get(web.address).startswith("ok")
            for path in (f"{sockets}/admin.sock", "/var/lib/haproxy/own.sock"):
                assert binder.path(path).is_socket(), path
        assert listed(binder) == web.configured
        [worker] = web.workers()
        assert status(binder, worker)["Uid"] == [binder.must("id", "-u", "haproxy").strip()] * 4
        wait_until(
            lambda: "plain/<NOSRV>" in binder.journal("-u", web.unit),
            "the request is in the journal",
            log=binder.journal,
        )
        binder.must("systemctl", "stop", web.unit)
    assert not can_connect(web.address)
    assert listed(binder) == set()


def test_programs_that_haproxy_starts_may_be_setuid_and_write_where_they_like(binder: Machine) -> None:
    web = Instance(binder, "check")
    script, result = "/opt/external-check", "/etc/checked"
    binder.write(script, f"#!/bin/sh\ngrep NoNewPrivs /proc/self/status > {result}.new && mv {result}.new {result}\n")
    binder.must("chmod", "755", script)
    checked = f"""
backend servers
    option external-check
    external-check path /usr/bin:/bin
    external-check command {script}
    server one 127.0.0.1:9 check inter 200ms
"""
    web.write(
        config(
            bind_tcp(web.address),
            before="    external-check\n    insecure-fork-wanted\n    insecure-setuid-wanted\n",
            after=checked,
        )
    )
    web.start()
    said = wait_until(lambda: binder.run("cat", result).stdout, "the external check has run", log=binder.journal)
    assert said.split() == ["NoNewPrivs:", "0"]
