"""What an experiment takes on hardware that is not here: memory, FLOPs, bytes, time and money, and the best layout."""
