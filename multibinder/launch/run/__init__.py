"""``multibinder run``: stay beside a command, and replace it by a new copy of itself without losing a client.

The process lives for months in little memory. It imports at its start all that it may ever need, and neither click nor
asyncio.
"""
