#!/bin/sh
# Replace nginx by today's binary, in its own way (SIGUSR2). It ignores that signal as long as the process runs that
# started it: nginx-upgrade.service has a shell for that, which ends.
set -eu
pidfile=/run/nginx.pid
old=$(cat "$pidfile")
kill -USR2 "$old"
tries=100
until new=$(cat "$pidfile" 2>/dev/null) && [ -n "$new" ] && [ "$new" != "$old" ]; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "no new nginx has started; the old one, pid $old, serves on" >&2; exit 1; }
    sleep 0.1
done
kill -QUIT "$old"
