"""The mail of a digest: its rows, what it says, and how large it may be. The digest process sends it."""
