"""Where rows came from, by the traces that the real `datasets` leaves; and that nothing private is shown by a push."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_hub import LoopbackHub
from test_publish import COLUMNS, annotated, front, push, readme

from legend_hf.hub import transfer
from legend_hf.hub.source import find_sources, spelled, traces_of
from legend_hf.publish import save_annotated

CARD = "---\nlicense: cc-by-nc-4.0\n---\n# Theirs\n"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.01)


def repository(hub: LoopbackHub, repo_id: str) -> Any:
    return hub.store.repos[("datasets", *repo_id.split("/"))]


@pytest.fixture
def private(hub: LoopbackHub) -> str:
    """A private dataset, with capital letters in its name."""
    return upload(f"user/MyPRIVATEData_v2.{uuid.uuid4().hex[:6]}", True)


@pytest.fixture
def public(hub: LoopbackHub) -> str:
    return upload(f"user/OpenData-{uuid.uuid4().hex[:6]}", False)


def upload(name: str, hidden: bool) -> str:
    from datasets import DatasetDict

    # A Hub of this machine gives equal contents of one second equal commits, so no two may be equal.
    bare = annotated(6, seed=uuid.uuid4().int % 2**32).select_columns(["chosen", "rejected"])
    DatasetDict(train=bare, test=bare.select([0, 1])).push_to_hub(name, private=hidden)
    words = CARD[CARD.index("license") :].partition("---\n")
    transfer.Repository(name, "dataset").commit(
        {}, readme=lambda old: (old or "").replace("---\n", "---\n" + words[0], 1) + words[2], commit_message="by hand"
    )
    return name


def margins(batch: Any) -> dict[str, np.ndarray]:
    rows = annotated(len(batch["chosen"]))
    return {name: np.array(rows[name][:], dtype=np.float32) for name in COLUMNS}


def mapped(rows: Any, **options: Any) -> Any:
    return rows.map(margins, batched=True, **options)


def load(name: str, **options: Any) -> Any:
    from datasets import load_dataset

    return load_dataset(name, **{"split": "train", **options})


def own(rows: int = 4) -> Any:
    return annotated(rows, seed=5).select_columns(["chosen", "rejected"])


def on_disk(rows: Any, folder: Path) -> Any:
    from datasets import load_from_disk

    rows.save_to_disk(folder)
    return load_from_disk(folder)


def joined(*parts: Any, interleave: bool = False) -> Any:
    from datasets import concatenate_datasets, interleave_datasets

    return interleave_datasets(list(parts)) if interleave else concatenate_datasets(list(parts))


def side_by_side(a: str, b: str) -> Any:
    from datasets import concatenate_datasets

    return concatenate_datasets([load(a).remove_columns("rejected"), load(b).remove_columns("chosen")], axis=1)


def by_split(train: Any, test: Any) -> Any:
    from datasets import DatasetDict

    return DatasetDict(train=train, test=test)


def generated(name: str) -> Any:
    from datasets import Dataset

    stream = load(name, streaming=True)
    return Dataset.from_generator(lambda: iter(stream), features=stream.features)


def snapshot(name: str) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, repo_type="dataset")


def with_checksums(rows: Any, name: str) -> Any:
    """As older versions of `datasets` kept the files that rows were read from."""
    commit = transfer.Repository(name, "dataset").describe().commit
    rows.info.download_checksums = {f"hf://datasets/{name}@{commit}/{FILE}": {"num_bytes": 1, "checksum": None}}
    return rows


FILE = "data/train-00000-of-00001.parquet"
WAYS: dict[str, Callable[[str, str, Path], Any]] = {
    "mapped": lambda s, o, _: mapped(load(s)),
    "whole": lambda s, o, _: mapped(load(s, split=None)),
    "filtered": lambda s, o, _: mapped(load(s)).filter(lambda row: row["margin"] < 9),
    "selected": lambda s, o, _: mapped(load(s)).select([1, 2]).shuffle(seed=1).flatten_indices(),
    "renamed and split": lambda s, o, _: mapped(load(s)).train_test_split(2, seed=0),
    "in memory": lambda s, o, _: mapped(load(s, keep_in_memory=True), keep_in_memory=True),
    "another cache": lambda s, o, folder: mapped(load(s, cache_dir=str(folder / "cache"))),
    "saved and loaded": lambda s, o, folder: on_disk(mapped(load(s)), folder / "saved"),
    "put together": lambda s, o, _: joined(mapped(load(o)), mapped(load(s))),
    "put together, then mapped": lambda s, o, _: mapped(joined(load(o), load(s))),
    "interleaved, then mapped": lambda s, o, _: mapped(joined(load(o), load(s), interleave=True)),
    "put together, then saved": lambda s, o, folder: on_disk(mapped(joined(load(o), load(s))), folder / "saved"),
    "after rows of one's own": lambda s, o, _: joined(mapped(own()), mapped(load(s))),
    "side by side": lambda s, o, _: mapped(side_by_side(o, s)),
    "one split": lambda s, o, _: by_split(mapped(load(o)), mapped(load(s))),
    "one configuration": lambda s, o, _: {
        "a": by_split(mapped(load(o)), mapped(load(o))),
        "b": by_split(mapped(load(s)), mapped(load(s))),
    },
    "streamed": lambda s, o, _: mapped(generated(s)),
    "a file of the Hub": lambda s, o, _: mapped(load("parquet", data_files=f"hf://datasets/{s}/{FILE}")),
    "files of it": lambda s, o, _: mapped(load(s, data_files={"train": FILE})),
    "with checksums": lambda s, o, folder: on_disk(with_checksums(mapped(load(s)), s), folder / "saved"),
    "a snapshot": lambda s, o, _: mapped(load(snapshot(s))),
    "a snapshot in memory": lambda s, o, _: mapped(load(snapshot(s)), keep_in_memory=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_makes_private_rows_public(hub: LoopbackHub, private: str, public: str, tmp_path: Path, way: str):
    """Found, or not to be found, the rows of a private dataset are not made public; those of a public one may be."""
    target = f"user/d{uuid.uuid4().hex[:12]}"
    data = WAYS[way](private, public, tmp_path)
    hub.log(clear=True)
    with pytest.raises(ValueError, match=rf"the source `{private}` is private or gated|`source=\"user/name\"`"):
        push(data, target, private=False)
    with pytest.raises(ValueError, match=f"the source `{private}` is private or gated"):
        push(data, target, private=False, source=[public, private])
    assert not hub.log("repos/create|preupload|/up/")
    push(data, target)
    assert repository(hub, target).private is True
    # The control: with the same source open, naming all of them is enough.
    repository(hub, private).private = False
    push(data, f"{target}-b", private=False, source=[public, private])
    assert repository(hub, f"{target}-b").private is False


@pytest.mark.parametrize(
    "way",
    ["mapped", "whole", "put together", "one split", "files of it", "with checksums", "another cache",
     "a snapshot", "a snapshot in memory"],
)  # fmt: skip
def test_sources_are_found_by_their_real_names(hub: LoopbackHub, private: str, public: str, tmp_path: Path, way: str):
    """Then licence and card are inherited as well, and a source that is named does not hide another."""
    data = WAYS[way](private, public, tmp_path)
    target = f"user/d{uuid.uuid4().hex[:12]}"
    with pytest.raises(ValueError, match=f"the source `{private}` is private or gated"):
        push(data, target, private=False, source=public)
    with pytest.raises(ValueError, match=f"the source `{private}` is private or gated"):
        push(data, target, private=False, source=[])
    push(data, target)
    card = readme(hub, target)
    assert front(card)["license"] == "cc-by-nc-4.0"
    assert f"[`{private}`]" in card
    assert "# Theirs" in card
    with pytest.raises(ValueError, match=f"`{private}` is the dataset that was annotated"):
        push(data, private)
    save_annotated(data, tmp_path / "out", direction=push.keywords["direction"])
    assert f"[`{private}`]" in (tmp_path / "out" / "README.md").read_text()


def test_names_are_found_without_the_hubs_cache(hub: LoopbackHub, private: str, monkeypatch, tmp_path: Path):
    """What remains is the spelling of the cache, in which two datasets may look alike: the commit tells."""
    from huggingface_hub import constants

    data = mapped(load(private))
    upload(spelled(private), False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    sources, lost = find_sources(traces_of([data]), None)
    assert [source.repo_id for source in sources] == [private]
    assert lost == ()


@pytest.mark.parametrize("fate", ["deleted", "rewritten"])
def test_a_source_that_is_gone_is_not_made_public(hub: LoopbackHub, private: str, public: str, fate: str):
    data = mapped(load(private))
    target = f"user/d{uuid.uuid4().hex[:12]}"
    hub.store.repos.pop(("datasets", *private.split("/")))
    if fate == "rewritten":
        annotated(3).push_to_hub(private, private=True)
    for source in (None, public):
        with pytest.raises(ValueError, match="cannot be found out which dataset of the Hub"):
            push(data, target, private=False, source=source)
    if fate == "rewritten":
        repository(hub, private).private = False
        push(data, target, private=False, source=private)
    push(data, f"{target}-b")


@pytest.mark.parametrize(
    "make",
    [
        own,
        lambda: joined(own(), own()),
        lambda: own().map(lambda row: {"chosen": row["chosen"] + "."}, num_proc=2),
        lambda: joined(own(), own(), interleave=True).shuffle(seed=0).flatten_indices(),
    ],
)
def test_rows_made_in_memory_may_be_public(hub: LoopbackHub, make: Callable[[], Any]):
    target = f"user/d{uuid.uuid4().hex[:12]}"
    data = mapped(make())
    assert traces_of([data]) == ()
    push(data, target, private=False)
    assert repository(hub, target).private is False


def test_rows_of_ones_own_files_may_be_public_by_ones_word(hub: LoopbackHub, tmp_path: Path):
    target = f"user/d{uuid.uuid4().hex[:12]}"
    own().to_json(tmp_path / "own.jsonl")
    data = mapped(load("json", data_files=str(tmp_path / "own.jsonl")))
    with pytest.raises(ValueError, match=r"what the loader `json` read.*`source=\[\]`"):
        push(data, target, private=False)
    push(data, target, private=False, source=[])
    assert repository(hub, target).private is False
    with pytest.raises(ValueError, match="`source` is 3|`source` is"):
        push(data, target, source=[""])


def test_what_is_private_does_not_go_where_others_are_let_in(hub: LoopbackHub, private: str, public: str):
    """A gated repository is not public, and is no place for what a private one keeps."""
    repository(hub, public).gated = "auto"
    with pytest.raises(ValueError, match=f"`{private}` is private or gated and `{public}` is gated, which lets others"):
        push(mapped(load(private)), public, config_name="b")
    repository(hub, private).private, repository(hub, private).gated = False, "auto"
    push(mapped(load(private)), public, config_name="b")  # the control: both let others in


def test_a_copy_with_the_same_commits_does_not_stand_for_the_source(tmp_path, monkeypatch):
    """Which of two repositories with one commit is in the Hub's cache first must not decide whose rows they are."""
    from huggingface_hub import constants

    from legend_hf.hub import source

    commit = "a" * 40
    for name in ("aaa--copy", "user--MyData", "zzz--copy"):
        (tmp_path / f"datasets--{name}" / "snapshots" / commit).mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(source, "list_datasets", lambda namespace, token: ())
    found = list(source._candidates(source.Trace("rows", "user/my_data", commit), None))
    assert found[:3] == ["user/MyData", "aaa/copy", "zzz/copy"]
