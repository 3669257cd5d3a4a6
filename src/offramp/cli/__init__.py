"""The command line: one file per command; heavy rooms are imported when a command runs."""
