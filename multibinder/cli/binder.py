"""The name of ``binder_main`` up to version 0.1.0: a running binder of that version executes it to upgrade itself."""

from multibinder.cli.binder_main import main, rehearse

__all__ = ["main", "rehearse"]

if __name__ == "__main__":
    main()
