"""``python -m portal``: the program ``quarantine``."""

import atexit
import gc


def main() -> None:
    """Run the command line.

    The imports make 70,000 objects that stay until the end. Searching them for cycles took a fourth of the processor
    time of a short command: while they are made, and when Python ends, which `gc.freeze` spares.
    """
    gc.set_threshold(100_000)
    from portal.cli import main as command_line

    atexit.register(gc.freeze)
    command_line()


if __name__ == "__main__":
    main()
