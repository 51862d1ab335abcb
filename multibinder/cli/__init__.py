"""The command lines. Only these modules print or exit."""
