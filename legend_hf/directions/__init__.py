"""Vectors become a direction: fit → calibrate → direction (the artifact). Knows no columns."""
