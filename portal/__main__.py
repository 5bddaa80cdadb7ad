"""``python -m portal``: the program ``quarantine``."""

from portal.cli import main

if __name__ == "__main__":
    main()
