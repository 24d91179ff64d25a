"""Where two runs that should be equal part."""
