"""Files, repositories and cards: what goes out to the world and comes in. Knows no tensors and no rows."""
