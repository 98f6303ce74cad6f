"""The step of a datatrove pipeline, run by its own executor on real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import pair_rows
from datasets import Dataset, load_dataset

from legend_hf import Direction, LegendMarginFn, RowError, annotate, fit_direction

pytest.importorskip("datatrove")
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter

from legend_hf.scale import AnnotateStep

ROWS = 30


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    return fit_direction(pair_rows(), model=str(tiny_llama))


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_list(pair_rows([f"thing {i}" for i in range(ROWS)]))


def test_the_local_executor_gives_the_margins_of_map_and_knows_what_is_complete(direction, rows, tmp_path):
    for i in range(3):
        (tmp_path / "rows").mkdir(exist_ok=True)
        rows.shard(3, i).to_parquet(tmp_path / "rows" / f"{i}.parquet")

    def run() -> None:
        LocalPipelineExecutor(
            pipeline=[
                ParquetReader(str(tmp_path / "rows"), text_key="chosen"),
                AnnotateStep(direction, batch_size=7),
                ParquetWriter(str(tmp_path / "out"), expand_metadata=True),
            ],
            tasks=3, workers=1, logging_dir=str(tmp_path / "logs"),
        ).run()  # fmt: skip

    run()
    assert len(list((tmp_path / "logs" / "completions").iterdir())) == 3
    done = load_dataset("parquet", data_files=f"{tmp_path}/out/*.parquet", split="train").sort("prompt")
    whole = annotate(rows, direction).sort("prompt")
    assert done["prompt"][:] == whole["prompt"][:]
    assert np.allclose(done["margin"], whole["margin"], rtol=0, atol=1e-4 * np.std(whole["margin"]))
    assert done["margin_direction"][:] == whole["margin_direction"][:]
    stats = json.loads((tmp_path / "logs" / "stats.json").read_text())
    assert [step["stats"]["annotated"] for step in stats if "Margins" in step["name"]] == [ROWS]
    # The controls: rows out of their place are seen, and what is complete is not run again.
    assert not np.allclose(done["margin"][::-1], whole["margin"], atol=1e-4)
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    run()
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()} == before


def test_documents_keep_their_order_and_a_bad_one_is_named_or_marked(direction, rows):
    documents = [Document(text=row["chosen"], id=str(i), metadata={**row}) for i, row in enumerate(rows)]
    for document in documents:
        del document.metadata["chosen"]
    step = AnnotateStep(direction, batch_size=4)
    assert [document.id for document in step.run(documents)] == [str(i) for i in range(ROWS)]
    assert isinstance(documents[0].metadata["margin"], float)
    bad = [Document(text=" ", id="bad", metadata={"prompt": "p", "rejected": "r"})]
    with pytest.raises(RowError, match="row 0, column `chosen`"):
        list(AnnotateStep(direction).run(bad))
    (marked,) = AnnotateStep(LegendMarginFn(direction, on_error="skip")).run(bad)
    assert marked.metadata["margin_status"].startswith("column `chosen`")
    assert list(AnnotateStep(direction).run(None)) == []
    with pytest.raises(ValueError, match="`fn` is an int"):
        AnnotateStep(3)
