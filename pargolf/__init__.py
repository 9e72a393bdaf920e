"""pargolf: the best language model in a fixed number of bytes."""

__version__ = "0.1.0"
