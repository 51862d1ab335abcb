"""Say why a process of ours cannot start. It imports next to nothing, for a start that cannot import the rest."""

from __future__ import annotations

from multibinder.kernel.raised import told


def shortage(error: Exception) -> str:
    """Return the sentence about an error that no part of a start expects, such as a lack of descriptors or memory."""
    fields = told(error)
    return f"multibinder: the system refused what a start needs: {fields['error']} (at {fields['at']})"
