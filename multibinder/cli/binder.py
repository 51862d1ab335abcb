"""Redirect to ``binder_main``: a running binder of version 0.1.0 executes this name to upgrade itself."""

from multibinder.cli.binder_main import main, rehearse

__all__ = ["main", "rehearse"]

if __name__ == "__main__":
    main()
