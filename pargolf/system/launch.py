"""What torchrun told this process, without importing PyTorch."""

import os


def rank() -> int:
    """This process's number among all; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True on the one rank that writes files and prints."""
    return rank() == 0
