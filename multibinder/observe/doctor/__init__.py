"""What is wrong on this host for listeners that must not lose a client: facts are read, and checked without I/O."""
