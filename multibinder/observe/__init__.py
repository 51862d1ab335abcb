"""Read the state of listening sockets from the kernel. Nothing here writes, or needs the binder."""
