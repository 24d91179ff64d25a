"""The tokenizer that came with a checkpoint."""
