"""`python -m pargolf`, the form torchrun needs."""

from pargolf.cli import main

if __name__ == "__main__":
    main()
