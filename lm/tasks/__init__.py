"""Tasks: what models are scored on beside the text that they predict."""
