"""Find the causes of lost clients on this host: read facts first, then check them without I/O."""
