"""Checks against closed forms, exact laws and hand-derived cases: `spindle validate`."""
