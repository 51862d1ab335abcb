"""HAProxy on sockets that outlive it. Imports nothing: HAProxy's master starts this package in its wait mode too."""
