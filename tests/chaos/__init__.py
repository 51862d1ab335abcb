"""Chaos: a guarded binder and two HAProxy under load, while all that is around them fails at random."""
