"""The mail of a digest: its rows, what it says, and how large it may be. Who sends it is not decided here."""
