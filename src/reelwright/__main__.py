"""The command `reelwright`, and `python -m reelwright`."""

from reelwright.signals import interrupts_held


def main() -> None:
    """Run the command line; a Ctrl-C that comes while it is being imported waits until it says how it ends."""
    with interrupts_held():
        from reelwright.cli import main as run

        run()


if __name__ == "__main__":
    main()
