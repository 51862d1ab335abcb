"""The daemon: the listener store, the control socket, the server, and their assembly."""
