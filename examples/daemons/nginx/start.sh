#!/bin/sh
# start.sh COMMAND...: start nginx, and end when it is up. Then its parent is another process, which is what its own upgrade needs.
set -eu
pidfile=/run/nginx.pid
rm -f "$pidfile"
"$@" &
until [ -s "$pidfile" ]; do
    kill -0 $!
    sleep 0.1
done
