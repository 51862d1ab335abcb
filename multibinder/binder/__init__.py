"""What the daemon is: the listener store, the control socket, the server, and their assembly."""
