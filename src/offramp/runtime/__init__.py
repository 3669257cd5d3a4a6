"""Runtime: segments executed fast, so that saved arithmetic is saved time."""
