"""A row becomes vectors; what they mean is not known here.

A `Reader` says how a text becomes one vector: model, template, layer, pooling. `describe_model` makes one.
A `RowError` names the row and the column that cannot be read, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.reading.formats import RowError as RowError
    from legend_hf.reading.reader import Reader as Reader
    from legend_hf.reading.reader import describe_model as describe_model

__all__ = hand_on(__name__, {"Reader": "reader", "RowError": "formats", "describe_model": "reader"})
