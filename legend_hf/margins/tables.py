"""Rows as Arrow tables, in which workers, streams and clusters pass them on.

In: a table, and a transform. Out: the transform's columns as a table, made of the rows as `map` would show them. This
file knows neither processes nor files.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from legend_hf.margins.ahead import one_ahead
from legend_hf.reading.formats import RowError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

    from legend_hf.margins.transform import Transform

AT_ONCE = 128
"""Rows of a batch, where nobody says how many."""


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


def made_of(
    fn: Transform,
    table: pa.Table,
    *,
    rank: int | None = None,
    features: Features | None = None,
    batch_size: int = AT_ONCE,
) -> pa.Table:
    """The columns alone that a transform makes of a table, whose next batch is made ready while one is read.

    Raises:
        ValueError: As the transform itself; so for `RowError`, whose row is counted from the table's first.
    """
    import pyarrow as pa

    made = [fn.types.arrow_schema.empty_table()]
    batches = ((first, rows_of(table.slice(first, batch_size), features)) for first in range(0, len(table), batch_size))
    with closing(one_ahead(batches, lambda batch: fn.prepare(batch[1], rank))) as ahead:
        for (first, some), prepared in ahead:
            try:
                made.append(table_of(fn, fn.finish(some, prepared, rank)))
            except RowError as refusal:
                raise RowError(first + refusal.row, refusal.column, refusal.reason) from None
    return pa.concat_tables(made)


def table_of(fn: Transform, made: Any) -> pa.Table:
    """The columns that a transform made, as a table."""
    import pyarrow as pa

    fields = fn.types.arrow_schema
    return pa.table([pa.array(made[f.name], type=f.type) for f in fields], schema=fields)


def joined(fn: Transform, table: pa.Table, made: pa.Table, features: Features) -> pa.Table:
    """A table with the columns that a transform made of it, of the types that `datasets` gives them.

    Args:
        fn: The transform.
        table: With the columns of `features`, and maybe others.
        made: Its columns, row by row.
        features: Of the table.
    """
    import pyarrow as pa
    from datasets.table import table_cast

    after = fn.features(features)
    assert after is not None  # those of the table are known
    columns = {name: (made if name in made.column_names else table).column(name) for name in after}
    return table_cast(pa.table(columns), after.arrow_schema)
