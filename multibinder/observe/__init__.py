"""What the kernel says of listening sockets. Reads only; works without the binder."""
