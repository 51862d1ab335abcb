"""Redirect to ``guard_main``: a running guard of version 0.1.0 executes this name to upgrade itself."""

from multibinder.cli.guard_main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
