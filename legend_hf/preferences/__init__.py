"""What margins are for: preference pairs chosen, ordered and corrected by them. Knows no models and no publishing."""
