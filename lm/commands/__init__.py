"""One file a verb: its function `main` is what `lm <verb>` runs."""
