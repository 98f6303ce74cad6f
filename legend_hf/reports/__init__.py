"""Columns are judged: is a direction, are its margins, is a dataset any good? Makes no columns and changes none."""
