"""The error of a unit that cannot be taken over, or given back."""

from __future__ import annotations

from multibinder.launch.errors import LaunchError


class TakeoverError(LaunchError):
    """The unit cannot be taken over or given back; the message says why, what is now, and what to do."""
