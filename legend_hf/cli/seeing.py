"""Looking at what a direction reads: `trace`.

In: arguments. Out: a page for a browser. This file knows neither how margins are made nor how a page is.
"""

from __future__ import annotations

from legend_hf.cli.annotating import OF_DIRECTION, ROAD
from legend_hf.cli.door import Call, command
from legend_hf.cli.options import Place, Reading, Rows
from legend_hf.cli.screen import say


@command("reports.gallery.gallery", under=ROAD, renamed=OF_DIRECTION)
def trace(gallery: Call, dataset: Rows, direction: Reading, *, output: Place) -> None:
    """Show rows of an annotated dataset token by token, in a page for a browser.

    The rows whose margins contradict their labels most, unless others are asked for.

    Example: trace annotated you/direction --rows most-negative --output page.html

    Options:
        rows: most-negative, most-positive, random, or numbers such as 1,5,9.
        output: File for the page, .html.
    """
    from legend_hf.tracing.page import check_page

    check_page(output.output, reads=[dataset.source, *direction.reads], overwrite=output.overwrite)
    made = gallery(dataset.one("dataset"), direction=direction.one())
    made.save(output.output, overwrite=output.overwrite)
    say(f"{len(made.pairs)} rows; saved {output.output}, open it in a browser")
