import sys

from lm.console import interrupts


def main():
    """Returns the exit code of the command line."""
    interrupts.leave_at_once()
    from lm import cli  # after it, as imports are most of the first second
    return cli.main()


if __name__ == '__main__':
    sys.exit(main())
