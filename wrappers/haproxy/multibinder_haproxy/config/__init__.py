"""Render the files that ``run`` was given to the text that HAProxy reads."""
