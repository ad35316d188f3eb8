"""The verbs of the command line, one file each. What they print is headrace/cli.py's contract."""
