"""Plain configurations of many shapes: what HAProxy listens on by itself, and when its binds are taken over.

Each runs in a network namespace of its own, so that every address is free.
"""
