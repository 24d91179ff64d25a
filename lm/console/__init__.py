"""The command and its terminal: standard streams, and interrupts."""
