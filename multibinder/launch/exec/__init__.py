"""Become a program with listeners of the binder, in its own PID. Standard library alone: its start-up time counts."""
