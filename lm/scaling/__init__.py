"""How loss falls with size and data: the law of a sweep of sizes, what it predicts, and what to spend a budget on."""
