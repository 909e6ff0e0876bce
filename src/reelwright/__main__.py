"""`python -m reelwright` is the command `reelwright`."""

from reelwright.cli import main

if __name__ == "__main__":
    main()
