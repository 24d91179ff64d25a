"""The command as a process: its standard streams, and interrupts while it imports."""
