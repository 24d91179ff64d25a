"""Runs compared as experiments: which differences are real, and one page that shows it."""
