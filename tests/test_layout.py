"""Nothing that could be loaded before a push is lost by it: the real `datasets`, before and after, over many layouts."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub
from test_publish import annotated, load_named, push, three_splits

from legend_hf.hub import transfer
from legend_hf.hub.layout import layout_of
from legend_hf.publish import save_annotated


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.01)


def parquet(seed: int) -> bytes:
    buffer = io.BytesIO()
    annotated(3, seed).to_parquet(buffer)
    return buffer.getvalue()


def csv(seed: int) -> bytes:
    return f"chosen,rejected\na{seed},b\nc,d\n".encode()


def jsonl(seed: int) -> bytes:
    return (json.dumps({"chosen": f"a{seed}", "rejected": "b"}) + "\n").encode()


def card(text: str) -> bytes:
    return f"---\nconfigs:\n{text}---\n# Theirs\n".encode()


def named(name: str, *splits: str, folder: str = "") -> str:
    """One configuration of a card, with one file a split."""
    lines = "".join(f"  - split: {split}\n    path: {folder or name}/{split}.parquet\n" for split in splits)
    return f"- config_name: {name}\n  data_files:\n{lines}"


LAYOUTS: dict[str, dict[str, bytes]] = {
    "no card, data folder as pushed": {
        f"data/{split}-00000-of-00001.parquet": parquet(i) for i, split in enumerate(["train", "test"])
    },
    "no card, one split": {"data/train-00000-of-00001.parquet": parquet(1)},
    "no card, shards": {f"data/train-0000{i}-of-00002.parquet": parquet(i) for i in range(2)},
    "no card, files at the root": {"train.parquet": parquet(1), "test.parquet": parquet(2)},
    "no card, any file": {"pairs.parquet": parquet(1), "LICENSE.txt": b"words"},
    "no card, a directory for each split": {"train/a.parquet": parquet(1), "validation/b.parquet": parquet(2)},
    "no card, a directory for each subset": {"one/train.parquet": parquet(1), "two/train.parquet": parquet(2)},
    "a card without configs": {"README.md": b"---\nlicense: mit\n---\n", "train.parquet": parquet(1)},
    "odd names": {"we[i]rd/train-*.parquet": parquet(1), "we[i]rd/test.parquet": parquet(2)},
    "configs": {
        "README.md": card(named("one", "train", "test") + named("two", "train")),
        "one/train.parquet": parquet(1),
        "one/test.parquet": parquet(2),
        "two/train.parquet": parquet(3),
    },
    "one config of another name": {"README.md": card(named("one", "train")), "one/train.parquet": parquet(1)},
    "a default of another name": {
        "README.md": card(named("one", "train") + named("two", "train") + "  default: true\n"),
        "one/train.parquet": parquet(1),
        "two/train.parquet": parquet(2),
    },
    "a directory for each config": {
        "README.md": card("- config_name: one\n  data_dir: one\n- config_name: two\n  data_dir: two\n"),
        "one/train.parquet": parquet(1),
        "one/test.parquet": parquet(2),
        "two/anything.parquet": parquet(3),
    },
    "a pattern that takes in all": {
        "README.md": card('- config_name: all_of_it\n  data_files: "**/*.parquet"\n' + named("two", "train")),
        "a/train.parquet": parquet(1),
        "two/train.parquet": parquet(2),
    },
    "CSV at the root": {"train.csv": csv(1), "test.csv": csv(2)},
    "CSV in a data folder": {"data/train.csv": csv(1), "data/test.csv": csv(2)},
    "JSON lines": {"pairs.jsonl": jsonl(1)},
    "JSON lines, configs": {
        "README.md": card('- config_name: one\n  data_files: "one/*.jsonl"\n'),
        "one/a.jsonl": jsonl(1),
    },
    "nothing": {"README.md": b"# Theirs\n"},
}
PUSHES: dict[str, dict[str, Any]] = {
    "another": {"config_name": "zebra"},
    "an earlier one": {"config_name": "aardvark"},
    "a split of it": {"config_name": "zebra", "split": "test"},
    "the default": {},
    "a split of the default": {"split": "validation"},
}


def loaded(place: str) -> dict[Any, Any]:
    """All that can be loaded from a place: configuration and split to rows; None is what no name gives."""
    from datasets import get_dataset_config_names, load_dataset

    found: dict[Any, Any] = {}
    try:
        names = get_dataset_config_names(place)
    except Exception:
        return {}
    for name in (None, *names):
        try:
            splits = load_dataset(place, name)
        except ValueError as error:
            if "Config name is missing" not in str(error):
                raise
            continue
        found |= {(name, split): rows[:] for split, rows in splits.items()}
    return found


def pushed(way: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    options = dict(way)
    split = options.pop("split", None)
    return (load_named(annotated(5, seed=77), split) if split else three_splits(seed=70)), options


@pytest.mark.parametrize(
    ("way", "where"),
    [
        pytest.param(way, where, marks=[] if (way, where) == ("another", "hub") else pytest.mark.slow)
        for way in PUSHES
        for where in ("hub", "folder")
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_that_could_be_loaded_still_can_be(hub: LoopbackHub, tmp_path: Path, layout: str, way: str, where: str):
    """Or the push is refused, and nothing is changed at all."""
    files = LAYOUTS[layout]
    if where == "hub":
        place = f"user/l{uuid.uuid4().hex[:12]}"
        transfer.Repository(place, "dataset").commit(files, commit_message="by hand")
    else:
        # The cache of `datasets` goes by a folder's last name.
        place = str(tmp_path / f"l{uuid.uuid4().hex[:12]}")
        for name, content in files.items():
            Path(place, name).parent.mkdir(parents=True, exist_ok=True)
            Path(place, name).write_bytes(content)
    before = loaded(place)
    assert bool(before) == (layout != "nothing")
    data, options = pushed(PUSHES[way])
    written = options.get("config_name", "default")
    refused = None
    try:
        if where == "hub":
            push(data, place, **options)
        else:
            save_annotated(data, place, direction=push.keywords["direction"], overwrite=True, **options)
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        assert "choose another" in refused
        assert loaded(place) == before
        # Beside Parquet files there is room for another configuration.
        assert layout.startswith(("CSV", "JSON")) or written == "default"
        return
    after = loaded(place)
    expected = {(written, split): rows[:] for split, rows in (data if isinstance(data, dict) else {"": data}).items()}
    for (name, split), rows in expected.items():
        assert after[name, split or PUSHES[way]["split"]] == rows
    mine = {(written, split) for split in (data if isinstance(data, dict) else [PUSHES[way]["split"]])}
    for key, rows in before.items():
        if key in mine or (None in key and written == "default"):
            continue
        assert after[key] == rows, key


def test_the_check_sees_what_datasets_own_push_loses(hub: LoopbackHub):
    """The control: files at the root are no configuration any longer, once a card names another."""
    place = f"user/l{uuid.uuid4().hex[:12]}"
    transfer.Repository(place, "dataset").commit(LAYOUTS["no card, files at the root"], commit_message="by hand")
    before = loaded(place)
    three_splits().push_to_hub(place, config_name="zebra")
    assert not before.items() <= loaded(place).items()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_what_datasets_finds(hub: LoopbackHub, layout: str):
    """Over empty files of the same names, without looking into any."""
    place = f"user/l{uuid.uuid4().hex[:12]}"
    transfer.Repository(place, "dataset").commit(LAYOUTS[layout], commit_message="by hand")
    readme = LAYOUTS[layout].get("README.md")
    found = layout_of([*LAYOUTS[layout], "../outside.parquet", "/tmp/outside.parquet"], readme and readme.decode())
    real = loaded(place)
    assert {(name, split) for name, splits in found.files.items() for split in splits} == {k for k in real if k[0]}
    assert {split for name, split in real if name is None} == set(found.files.get(found.default or "", ()))


def test_what_lies_in_archives_is_left_alone():
    with pytest.raises(ValueError, match="lies in archives, .* choose another place"):
        layout_of(["data.zip"], None)
