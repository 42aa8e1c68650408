"""The network that was learned, as plain modules."""
