"""Rows as Arrow tables, in which workers, streams and clusters pass them on.

In: a table, and a transform. Out: the transform's columns as a table, made of the rows as `map` would show them. This
file knows neither processes nor files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

    from legend_hf.margins.transform import Transform


def rows_of(table: pa.Table, features: Features | None = None) -> Any:
    """The rows of a table as `map` passes them: by column, each decoded when it is asked for.

    Args:
        table: As it is stored.
        features: Their types; None takes those that the table itself carries.
    """
    from datasets import Features
    from datasets.formatting import get_formatter

    known = features or Features.from_arrow_schema(table.schema)
    return get_formatter(None, features=known, lazy=True).format_batch(table)


def made_of(fn: Transform, table: pa.Table, *, rank: int | None = None, features: Features | None = None) -> pa.Table:
    """The columns alone that a transform makes of a table.

    Raises:
        ValueError: As the transform itself; so for `RowError`.
    """
    import pyarrow as pa

    made = fn(rows_of(table, features), rank)
    fields = fn.types.arrow_schema
    return pa.table([pa.array(made[f.name], type=f.type) for f in fields], schema=fields)


def to_bytes(table: pa.Table) -> bytes:
    """A table for another process."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_bytes(content: bytes) -> pa.Table:
    """The table that `to_bytes` wrote."""
    import pyarrow as pa

    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()
