#!/bin/sh
# unbound, on a machine that looks as if systemd had started it: elsewhere unbound takes no socket (sd_booted(3)).
set -eu
if [ "${1-}" = --hidden ]; then
    shift
    mkdir -p /run/systemd
    mount -t tmpfs none /run/systemd
    mkdir /run/systemd/system
elif ! [ -d /run/systemd/system ]; then
    exec unshare --mount -- "$0" --hidden "$@"
fi
exec /usr/sbin/unbound "$@"
