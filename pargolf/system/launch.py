"""What torchrun and the system gave this process, without importing PyTorch."""

import os

_has_the_word = False


def cores() -> int:
    """Cores that this process may use: a scheduler may have given it a few of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank() -> int:
    """This process's number among all; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True on the one rank that writes files and prints."""
    return rank() == 0


def take_the_word() -> None:
    """Have this rank, whatever its number, say why the run has failed."""
    global _has_the_word
    _has_the_word = True


def speaks() -> bool:
    """True on the rank that says why the run has failed: the first one, or the one that took the word."""
    return _has_the_word or is_main()
