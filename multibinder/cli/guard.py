"""The name of ``guard_main`` up to version 0.1.0: a running guard of that version executes it to upgrade itself."""

from multibinder.cli.guard_main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
