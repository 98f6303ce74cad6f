"""The version, which every stage may name and which names none of them."""

__version__ = "0.1.0"
