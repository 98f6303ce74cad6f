"""Publishing annotated datasets, with the real clients against the loopback Hub."""

from __future__ import annotations

import functools
import logging
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from loopback_hub import OTHER_TOKEN, READ_TOKEN, LoopbackHub

from legend_hf import publish
from legend_hf.directions.calibrate import Calibration
from legend_hf.directions.direction import Direction, Facts
from legend_hf.hub import parquet, transfer
from legend_hf.publish import push_annotated, save_annotated
from legend_hf.reading.reader import Reader

COLUMNS = ("margin", "margin_raw", "chosen_score", "rejected_score")
DIRECTION = Direction(
    vector=np.eye(8, dtype=np.float32)[0],
    reader=Reader(
        model="user/model",
        revision="a" * 40,
        model_sha256=None,
        model_type="llama",
        d_model=8,
        n_layers=2,
        tokenizer_sha256="b" * 64,
        chat_template_sha256=None,
        template="dialogue",
        joiner="",
        fit_joiner=None,
        eos="none",
        layer=2,
        pooling="mean",
        max_length=2048,
        dtype="float32",
    ),
    calibration=Calibration("unit", 2.0),
    facts=Facts(estimator="mean_difference", pairs=100, accuracy=0.7, accuracy_interval=(0.65, 0.75)),
    repo_id="user/direction",
    revision="c" * 40,
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.01)


@pytest.fixture
def repo_id(hub: LoopbackHub) -> str:
    return f"user/d{uuid.uuid4().hex[:12]}"


def annotated(rows: int, seed: int = 0, suffix: str = "", direction: Direction = DIRECTION, **extra: Any):
    """A dataset such as `annotate` makes."""
    from datasets import Dataset, Features, Value

    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(size=(2, rows)).astype(np.float32) * 3
    raw = chosen.astype(np.float64) - rejected
    numbers = dict(
        zip(COLUMNS, (direction.calibration.apply(raw), raw.astype(np.float32), chosen, rejected), strict=True)
    )
    texts = {
        "chosen": [f"chosen {seed}.{i}" for i in range(rows)],
        "rejected": [f"rejected {seed}.{i}" for i in range(rows)],
    }
    features = {**{k: Value("string") for k in texts}, **{f"{k}{suffix}": Value("float32") for k in COLUMNS}}
    columns = {**texts, **{f"{k}{suffix}": v for k, v in numbers.items()}}
    for name, (feature, values) in extra.items():
        features[name], columns[name] = feature, values
    return Dataset.from_dict(columns, features=Features(features))


def three_splits(seed: int = 0):
    from datasets import DatasetDict

    sizes = {"train": 40, "validation": 7, "test": 5}
    return DatasetDict({split: annotated(n, seed + i) for i, (split, n) in enumerate(sizes.items())})


push = functools.partial(push_annotated, direction=DIRECTION)


def stored(hub: LoopbackHub, repo_id: str) -> dict[str, bytes]:
    repo = hub.store.repos[("datasets", *repo_id.split("/"))]
    tree = repo.resolve("main").tree
    return {path: hub.store.blobs.read(e["sha"]) for path, e in tree.items() if path != ".gitattributes"}


def commits(hub: LoopbackHub, repo_id: str) -> int:
    repo = hub.store.repos[("datasets", *repo_id.split("/"))]
    return len(repo.history(repo.resolve("main")))


def readme(hub: LoopbackHub, repo_id: str) -> str:
    return stored(hub, repo_id)["README.md"].decode()


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def edit_readme(repo_id: str, change: Any) -> None:
    transfer.Repository(repo_id, "dataset").commit({}, readme=change, commit_message="by hand")


def assert_same(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    for split in expected:
        assert found[split].features == expected[split].features
        assert found[split][:] == expected[split][:]


# ---------------------------------------------------------------- what arrives


def test_every_split_comes_back_as_it_went(hub: LoopbackHub, repo_id: str):
    from datasets import load_dataset

    data = three_splits()
    info = push(data, repo_id)
    assert commits(hub, repo_id) == 2  # the Hub's own, and one with data and card together
    assert info.oid == hub.store.repos[("datasets", *repo_id.split("/"))].refs["refs/heads/main"]
    assert hub.store.repos[("datasets", *repo_id.split("/"))].private is True
    assert_same(load_dataset(repo_id), data)
    streamed = load_dataset(repo_id, streaming=True)
    assert {split: list(rows) for split, rows in streamed.items()} == {s: list(r) for s, r in data.items()}
    assert streamed["test"].features == data["test"].features


def test_the_card_says_what_the_numbers_are(hub: LoopbackHub, repo_id: str):
    data = three_splits()
    push(data, repo_id)
    card = readme(hub, repo_id)
    metadata = front(card)
    assert metadata["annotations_creators"] == ["machine-generated"]
    assert metadata["size_categories"] == ["n<1K"]
    assert [s["num_examples"] for s in metadata["dataset_info"]["splits"]] == [40, 7, 5]
    for split, rows in data.items():
        margin = np.array(rows["margin"][:], dtype=np.float64)
        line = next(line for line in card.splitlines() if line.startswith(f"| `{split}` | `margin` |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        expected = [len(margin), 0, margin.mean(), margin.std(), *np.quantile(margin, [0.05, 0.5, 0.95])]
        assert [float(c) for c in cells[2:9]] == pytest.approx([float(f"{e:.4g}") for e in expected])
        assert cells[9] == f"{100 * (margin > 0).mean():.1f} %"
    assert "`user/direction`" in card
    assert "c" * 40 in card
    assert "unit, scale 2" in card


def test_the_card_counts_the_safer_side_before_anything_is_made_of_the_margin(hub: LoopbackHub, repo_id: str):
    from datasets import DatasetDict

    rows = annotated(200, seed=3)
    zeroed = rows.map(lambda row: {"margin": max(row["margin"], 0.0)}, features=rows.features)
    shown = []
    for name, split in (("plain", rows), ("zeroed", zeroed)):
        push(DatasetDict(train=split), f"{repo_id}-{name}")
        (line,) = (at for at in readme(hub, f"{repo_id}-{name}").splitlines() if at.startswith("| `train` | `margin`"))
        shown.append(line.split("|")[1:-1])
    share = f" {100 * (np.array(rows['margin_raw'][:]) > 0).mean():.1f} % "
    assert [cells[-1] for cells in shown] == [share, share]
    assert shown[0][4] != shown[1][4], "the control: the mean is that of the margins themselves"


def test_a_second_push_changes_nothing_and_a_changed_one_does(hub: LoopbackHub, repo_id: str):
    first = push(three_splits(), repo_id)
    before = stored(hub, repo_id)
    hub.log(clear=True)
    assert push(three_splits(), repo_id).oid == first.oid
    assert commits(hub, repo_id) == 2
    assert not hub.log("/up/|preupload|/commit/main")
    assert push(three_splits(seed=5), repo_id).oid != first.oid
    assert commits(hub, repo_id) == 3
    assert stored(hub, repo_id) != before


def test_the_same_rows_in_other_batches_change_nothing(hub: LoopbackHub, repo_id: str):
    from datasets import Dataset, DatasetDict, concatenate_datasets

    whole = annotated(200)
    push(DatasetDict(train=whole), repo_id)
    pieces = concatenate_datasets([whole.select(range(i, i + 20)) for i in range(0, 200, 20)])
    shuffled = whole.shuffle(seed=1)
    order = np.argsort(shuffled._indices.column(0).to_numpy())
    for same in (
        pieces,
        shuffled.select(order),
        Dataset.from_dict(whole[:], features=whole.features),
        whole.with_format("torch"),
    ):
        push(DatasetDict(train=same), repo_id)
    assert commits(hub, repo_id) == 2


def test_what_people_wrote_and_added_stays(hub: LoopbackHub, repo_id: str):
    push(three_splits(), repo_id)
    edit_readme(repo_id, lambda old: old.replace("---\n\n# ", "---\n\nBefore.\r\n# ") + "\nAfter.\n")
    transfer.Repository(repo_id, "dataset").commit({"notes.txt": b"mine"}, commit_message="x")
    edit_readme(
        repo_id, lambda old: old.replace("annotations_creators:", "license: cc-by-4.0\nannotations_creators:", 1)
    )
    before = readme(hub, repo_id)
    push(three_splits(seed=5), repo_id)
    after = readme(hub, repo_id)
    assert after != before
    assert "---\n\nBefore.\r\n# " in after
    assert after.endswith("\nAfter.\n")
    assert front(after)["license"] == "cc-by-4.0"
    assert stored(hub, repo_id)["notes.txt"] == b"mine"


def test_front_matter_that_yaml_changes_survives_a_push(hub: LoopbackHub, repo_id: str):
    from datasets import load_dataset

    head = "language: 'no'\nversion: 1.10   # the second\nlength: 1:30:00\ntags: [mine]\nlicense: mit\n"
    transfer.Repository(repo_id, "dataset").commit(
        {"README.md": f"---\n{head}---\n# Mine\n".encode()}, commit_message="by hand"
    )
    push(three_splits(), repo_id)
    card = readme(hub, repo_id)
    assert card.startswith("---\n" + head.partition("tags")[0])
    assert front(card)["tags"][0] == "mine"
    assert "\nlicense: mit\n" in card
    assert_same(load_dataset(repo_id), three_splits())
    push(three_splits(), f"{repo_id}-b", source=repo_id)  # inherited, it is a word for every reader
    assert front(readme(hub, f"{repo_id}-b"))["language"] == "no"
    assert_same(load_dataset(f"{repo_id}-b"), three_splits())


def test_a_second_configuration_under_another_licence_says_both(hub: LoopbackHub, repo_id: str, source: str):
    push(three_splits(), repo_id, source=source)
    assert front(readme(hub, repo_id))["license"] == "mit"
    edit_readme(source, lambda old: old.replace("license: mit", "license: cc-by-nc-4.0"))
    push(three_splits(seed=3), repo_id, source=source, config_name="second")
    card = readme(hub, repo_id)
    assert front(card)["license"] == ["mit", "cc-by-nc-4.0"]
    assert ["licence `mit`" in part for part in card.split("### How ")[1:]] == [True, False]


def test_several_configs_in_one_push_and_one_by_one(hub: LoopbackHub, repo_id: str):
    from datasets import load_dataset

    data = {"harmless": three_splits(), "helpful": three_splits(seed=9)}
    push(data, repo_id)
    assert commits(hub, repo_id) == 2
    for name in data:
        assert_same(load_dataset(repo_id, name), data[name])
    push(three_splits(seed=20), repo_id, config_name="third")
    assert_same(load_dataset(repo_id, "third"), three_splits(seed=20))
    for name in data:
        assert_same(load_dataset(repo_id, name), data[name])
    card = readme(hub, repo_id)
    assert [c["config_name"] for c in front(card)["configs"]] == ["harmless", "helpful", "third"]
    assert all(f"### How `{name}` was annotated" in card for name in ("harmless", "helpful", "third"))
    push(data, repo_id)
    assert commits(hub, repo_id) == 3


def test_a_single_split_leaves_the_others_alone(hub: LoopbackHub, repo_id: str):
    from datasets import load_dataset

    data = three_splits()
    push(data, repo_id)
    new = annotated(9, seed=30)
    push(load_named(new, "test"), repo_id)
    data["test"] = new
    assert_same(load_dataset(repo_id), data)
    card = readme(hub, repo_id)
    assert {s["name"]: s["num_examples"] for s in front(card)["dataset_info"]["splits"]} == {
        "train": 40,
        "validation": 7,
        "test": 9,
    }
    rows = [line for line in card.splitlines() if line.startswith(("| `train`", "| `validation`", "| `test`"))]
    assert len(rows) == 3
    push(load_named(new, "test"), repo_id)
    assert commits(hub, repo_id) == 3


def load_named(rows: Any, split: str) -> Any:
    """The rows as `load_dataset(..., split=split)` would name them."""
    from datasets import Dataset, NamedSplit

    return Dataset.from_dict(rows[:], features=rows.features, split=NamedSplit(split))


def test_a_single_split_with_other_columns_is_refused(hub: LoopbackHub, repo_id: str):
    from datasets import Value

    push(three_splits(), repo_id)
    before = stored(hub, repo_id)
    wider = load_named(annotated(9, extra=(Value("string"), ["x"] * 9)), "test")
    with pytest.raises(
        ValueError, match=r"config `default` has other splits there \(train, validation\), and their columns"
    ):
        push(wider, repo_id)
    assert stored(hub, repo_id) == before
    other = replace(DIRECTION, revision="d" * 40)
    with pytest.raises(ValueError, match="annotated with another direction; annotate all its splits with one"):
        push_annotated(load_named(annotated(9), "test"), repo_id, direction=other)
    assert stored(hub, repo_id) == before
    push(wider, repo_id, config_name="wider")  # the remedy


@pytest.mark.parametrize(("split", "name"), [(None, "train"), ("test", "test"), ("test[:10]", "test")])
def test_a_dataset_without_a_dict_is_one_split(hub: LoopbackHub, repo_id: str, split: str | None, name: str):
    from datasets import load_dataset

    rows = annotated(6) if split is None else load_named(annotated(6), split)
    push(rows, repo_id)
    assert list(load_dataset(repo_id)) == [name]


def test_columns_that_were_added_by_hand_on_the_hub_do_not_linger(hub: LoopbackHub, repo_id: str):
    """A dataset that was pushed bare, then annotated: the card's columns are those of the data."""
    from datasets import load_dataset

    bare = three_splits().remove_columns(list(COLUMNS))
    bare.push_to_hub(repo_id)
    push(three_splits(), repo_id)
    assert_same(load_dataset(repo_id), three_splits())


def test_a_repository_that_datasets_wrote_again_is_still_ours(hub: LoopbackHub, repo_id: str):
    push(three_splits(), repo_id)
    three_splits(seed=4).push_to_hub(repo_id)
    before = readme(hub, repo_id)
    push(three_splits(seed=4), repo_id)
    assert "legend_hf:begin" in before
    assert front(readme(hub, repo_id))["configs"] == front(before)["configs"]


def test_many_shards_and_then_few(hub: LoopbackHub, repo_id: str, monkeypatch: pytest.MonkeyPatch):
    from datasets import load_dataset

    data = three_splits()
    monkeypatch.setattr(parquet, "SHARD_BYTES", 500)
    push(data, repo_id)
    many = [path for path in stored(hub, repo_id) if path.endswith(".parquet")]
    assert len(many) > 5
    assert_same(load_dataset(repo_id), data)
    monkeypatch.undo()
    push(data, repo_id)
    assert sorted(p for p in stored(hub, repo_id) if p.endswith(".parquet")) == [
        f"data/{split}-00000-of-00001.parquet" for split in sorted(data)
    ]
    assert_same(load_dataset(repo_id), data)


def test_files_that_a_column_points_to_travel_along(hub: LoopbackHub, repo_id: str, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    from datasets import DatasetDict, Image, load_dataset

    image.new("RGB", (2, 2), "red").save(tmp_path / "red.png")
    rows = annotated(2, picture=(Image(), [str(tmp_path / "red.png")] * 2))
    push(DatasetDict(train=rows), repo_id)
    (tmp_path / "red.png").unlink()
    assert load_dataset(repo_id, split="train")[1]["picture"].size == (2, 2)


def test_several_directions(hub: LoopbackHub, repo_id: str):
    from datasets import DatasetDict, concatenate_datasets

    other = replace(DIRECTION, calibration=Calibration("raw", 1.0), repo_id="user/other", revision="d" * 40)
    harm = annotated(10, suffix="_harm")
    honest = annotated(10, seed=3, suffix="_honest", direction=other).remove_columns(["chosen", "rejected"])
    data = DatasetDict(train=concatenate_datasets([harm, honest], axis=1))
    push_annotated(data, repo_id, direction={"harm": DIRECTION, "honest": other})
    card = readme(hub, repo_id)
    assert "| `harm`: [`user/direction`]" in card
    assert "| `honest`: [`user/other`]" in card
    assert "| `train` | `margin_harm` | 10 |" in card
    assert "| `train` | `margin_honest` | 10 |" in card
    with pytest.raises(ValueError, match="has no column `margin`; annotate it first"):
        push_annotated(data, repo_id, direction=DIRECTION)


def test_skipped_rows_are_counted_and_do_not_count(hub: LoopbackHub, repo_id: str):
    from datasets import DatasetDict, Value

    status = ["ok"] * 8 + ["`chosen` is empty", "`prompt` is empty"]
    rows = annotated(10, margin_status=(Value("string"), status))
    zeroed = rows.map(lambda r: {c: r[c] * (r["margin_status"] == "ok") for c in COLUMNS}, features=rows.features)
    push(DatasetDict(train=zeroed), repo_id)
    mean = np.mean(np.array(rows["margin"][:8], dtype=np.float64))
    assert f"| `train` | `margin` | 10 | 2 | {mean:.4g} |" in readme(hub, repo_id)


def test_a_raw_scale_is_said(hub: LoopbackHub, repo_id: str):
    from datasets import DatasetDict

    rows = annotated(10, direction=replace(DIRECTION, calibration=Calibration("raw", 1.0)))
    push(DatasetDict(train=rows, test=rows), repo_id)
    assert "| raw | 0.700" in readme(hub, repo_id)
    with pytest.raises(ValueError, match="is raw in one split and calibrated in another"):
        push(DatasetDict(train=rows, test=annotated(10)), repo_id)


def test_empty_splits_are_left_out_because_they_cannot_be_loaded(hub: LoopbackHub, repo_id: str, caplog):
    from datasets import DatasetDict, load_dataset

    data = three_splits()
    data["empty"] = annotated(0)
    with caplog.at_level(logging.WARNING):
        push(data, repo_id)
    assert "left out split `empty` of config `default`: it has no rows" in caplog.text
    assert_same(load_dataset(repo_id), three_splits())
    with pytest.raises(ValueError, match="config `default` has no rows"):
        push(DatasetDict(train=annotated(0)), repo_id)
    data.push_to_hub(f"{repo_id}-bare")  # the control: what `datasets` itself makes of one
    with pytest.raises(ValueError, match="no data"):
        load_dataset(f"{repo_id}-bare")


# ---------------------------------------------------------------- what is refused, before any upload


def broken(kind: str) -> Any:
    from datasets import DatasetDict, Value

    data = three_splits()
    if kind == "streaming":
        return data["train"].to_iterable_dataset()
    if kind == "streaming dict":
        from datasets import IterableDatasetDict

        return IterableDatasetDict(train=data["train"].to_iterable_dataset())
    if kind == "plain dict":
        return dict(data)
    if kind == "list":
        return [1]
    if kind == "nothing":
        return {}
    if kind == "bare":
        return data.remove_columns(list(COLUMNS))
    if kind == "one split bare":
        return DatasetDict(data, test=data["test"].remove_columns(["margin"]))
    if kind == "float64":
        return data.cast_column("margin", Value("float64"))
    value = {"nan": float("nan"), "inf": float("inf"), "null": None}[kind]
    test = data["test"].map(
        lambda r, i: {"margin_raw": value if i == 3 else r["margin_raw"]},
        with_indices=True,
        features=data["test"].features,
    )
    return DatasetDict(data, test=test)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("streaming", TypeError, "streaming dataset cannot be pushed .*Dataset.from_generator"),
        ("streaming dict", TypeError, "streaming dataset cannot be pushed"),
        ("plain dict", TypeError, "maps 'train' to a Dataset; where the keys are splits, make it a `DatasetDict`"),
        ("list", TypeError, "`dataset` is list; give a `Dataset`"),
        ("nothing", TypeError, "`dataset` is empty"),
        ("bare", ValueError, "config `default`, split `train` has no column `margin`; annotate it first.*`chosen`"),
        ("one split bare", ValueError, "splits of config `default` differ in `margin`; annotate all"),
        ("float64", ValueError, "`margin` is Value.'float64'.*, not float32.*cast_column"),
        ("nan", ValueError, "split `test`: `margin_raw` is not a finite number in 1 rows, the first is row 3"),
        ("inf", ValueError, "not a finite number in 1 rows, the first is row 3"),
        ("null", ValueError, "not a finite number in 1 rows, the first is row 3"),
    ],
)
def test_bad_data_is_refused_before_the_hub_is_asked(
    hub: LoopbackHub, repo_id: str, tmp_path, kind: str, error, message: str
):
    data = broken(kind)
    hub.log(clear=True)
    with pytest.raises(error, match=message):
        push(data, repo_id)
    with pytest.raises(error, match=message):
        save_annotated(data, tmp_path / "x", direction=DIRECTION)
    assert hub.log() == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["data", "a/b", "..", "a b", "-->", ""])
def test_a_config_name_that_cannot_be_is_refused(hub: LoopbackHub, repo_id: str, name: str):
    with pytest.raises(ValueError, match="give letters, digits and `-_.`"):
        push(three_splits(), repo_id, config_name=name)
    with pytest.raises(ValueError, match="cannot be one"):
        push({name: three_splits()}, repo_id)


def test_another_direction_than_the_margins_are_of_is_refused(hub: LoopbackHub, repo_id: str):
    other = replace(DIRECTION, calibration=Calibration("unit", 3.0))
    with pytest.raises(
        ValueError, match="`margin` is not what this direction makes of `margin_raw`; give the direction"
    ):
        push_annotated(three_splits(), repo_id, direction=other)
    with pytest.raises(TypeError, match="`direction` is a str; give the `Direction`"):
        push_annotated(three_splits(), repo_id, direction="user/direction")
    push_annotated(three_splits().remove_columns(["margin_raw"]), repo_id, direction=other)


@pytest.mark.parametrize("token", [READ_TOKEN, OTHER_TOKEN, "hf_wrong_token", None])
def test_no_right_to_write_is_said_before_any_upload(hub: LoopbackHub, repo_id: str, token: str | None, monkeypatch):
    push(three_splits(), repo_id)
    before = stored(hub, repo_id)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    hub.log(clear=True)
    with pytest.raises(PermissionError, match="log in with `hf auth login`"):
        push(three_splits(seed=3), repo_id, token=token)
    assert stored(hub, repo_id) == before
    assert not hub.log("preupload|/up/|/commit/|repos/create") or token == OTHER_TOKEN
    assert not hub.log("preupload|/up/|/commit/")


# ---------------------------------------------------------------- the source


SOURCE_CARD = "---\nlicense: mit\nlanguage: en\ntags:\n- human-feedback\n---\n# Their dataset\n\nTheir words.\n"


@pytest.fixture
def source(hub: LoopbackHub) -> str:
    """A public source dataset with a licence and a text."""
    name = f"user/source-{uuid.uuid4().hex[:8]}"
    three_splits().remove_columns(list(COLUMNS)).push_to_hub(name, private=False)
    edit_readme(
        name,
        lambda old: (
            SOURCE_CARD[: -len("# Their dataset\n\nTheir words.\n") - 4] + old[4:] + "# Their dataset\n\nTheir words.\n"
        ),
    )
    return name


def from_source(source: str) -> Any:
    """The source, loaded from the Hub and annotated with `map`, so that its rows still lie in the cache."""
    from datasets import load_dataset

    def annotate(batch: Any) -> dict[str, np.ndarray]:
        rows = annotated(len(batch["chosen"]))
        return {name: np.array(rows[name][:], dtype=np.float32) for name in COLUMNS}

    return load_dataset(source).map(annotate, batched=True)


def test_the_sources_licence_and_card_survive(hub: LoopbackHub, repo_id: str, source: str):
    push(three_splits(), repo_id, source=source)
    card = readme(hub, repo_id)
    metadata = front(card)
    assert (metadata["license"], metadata["language"]) == ("mit", "en")
    assert "human-feedback" in metadata["tags"]
    assert metadata["source_datasets"] == [source]
    assert card.index("legend_hf:end") < card.index("Their words.")
    assert f"[`{source}`]" in card
    edit_readme(source, lambda old: old + "More words.\n")
    push(three_splits(), repo_id, source=source)
    assert commits(hub, repo_id) == 2
    push(three_splits(seed=3), repo_id, source=source)
    assert readme(hub, repo_id).count("Their words.") == 1


def test_a_source_that_was_loaded_from_the_hub_is_found(hub: LoopbackHub, repo_id: str, source: str):
    loaded = hub.store.repos[("datasets", *source.split("/"))].refs["refs/heads/main"]
    data = from_source(source)
    edit_readme(source, lambda old: old + "More words.\n")
    push(data, repo_id)
    card = readme(hub, repo_id)
    assert f'load_dataset("{source}", revision="{loaded}")' in card
    assert front(card)["license"] == "mit"
    assert "Their words." in card
    assert "More words." not in card  # as it was when it was loaded
    push(three_splits(), f"{repo_id}-b")  # the control: nothing says where these rows are from
    assert "license" not in front(readme(hub, f"{repo_id}-b"))


def test_the_source_is_not_overwritten_unless_told(hub: LoopbackHub, source: str):
    from datasets import load_dataset

    before = stored(hub, source)
    data = from_source(source)
    for attempt in (
        lambda: push(three_splits(), source, source=source),
        lambda: push(three_splits(), source.split("/")[1], source=source),
        lambda: push(data, source),
    ):
        with pytest.raises(
            ValueError, match="is the dataset that was annotated; push to another repository, or pass `allow_source"
        ):
            attempt()
    assert stored(hub, source) == before
    push(data, source, allow_source=True)
    card = readme(hub, source)
    assert card.count("Their words.") == 1
    assert front(card)["license"] == "mit"
    assert_same(load_dataset(source), data)


def test_a_moved_source_is_still_the_source(hub: LoopbackHub, source: str):
    from huggingface_hub import HfApi

    HfApi().move_repo(source, f"{source}-new", repo_type="dataset")
    with pytest.raises(ValueError, match=f"`{source}-new` is the dataset that was annotated"):
        push(three_splits(), f"{source}-new", source=source)
    with pytest.raises(ValueError, match=f"`{source}-new` is the dataset that was annotated"):
        push(three_splits(), source, source=f"{source}-new")


@pytest.mark.parametrize("hidden", ["private", "gated"])
@pytest.mark.parametrize("named", [True, False])
def test_what_the_source_hides_is_not_made_public(
    hub: LoopbackHub, repo_id: str, source: str, hidden: str, named: bool
):
    repo = hub.store.repos[("datasets", *source.split("/"))]
    data, given = (three_splits(), source) if named else (from_source(source), None)
    setattr(repo, hidden, "manual" if hidden == "gated" else True)
    hub.log(clear=True)
    with pytest.raises(
        ValueError, match=f"source `{source}` is private or gated and `{repo_id}` would be public; push to a private"
    ):
        push(data, repo_id, source=given, private=False)
    assert not hub.log("repos/create|preupload|/up/")
    transfer.Repository(f"{repo_id}-public", "dataset").commit({"a": b"a"}, private=False, commit_message="x")
    with pytest.raises(ValueError, match=f"`{repo_id}-public` is public"):
        push(data, f"{repo_id}-public", source=given)
    push(data, repo_id, source=given)
    assert hub.store.repos[("datasets", *repo_id.split("/"))].private is True
    repo.private, repo.gated = False, False
    push(data, f"{repo_id}-b", source=given, private=False)  # the control
    assert hub.store.repos[("datasets", *f"{repo_id}-b".split("/"))].private is False


def test_a_source_that_does_not_exist_is_refused(hub: LoopbackHub, repo_id: str):
    with pytest.raises(
        ValueError, match="`source` is 'user/never', which the Hub does not have, or which this token may not"
    ):
        push(three_splits(), repo_id, source="user/never")


def test_a_config_does_not_go_where_another_keeps_its_files(hub: LoopbackHub, repo_id: str):
    push(three_splits(), repo_id, config_name="mine")
    edit_readme(repo_id, lambda old: old.replace("config_name: mine", "config_name: theirs"))
    before = stored(hub, repo_id)
    with pytest.raises(
        ValueError, match="config `theirs` keeps files in `mine/`, where config `mine` would go; choose another"
    ):
        push(three_splits(seed=4), repo_id, config_name="mine")
    assert stored(hub, repo_id) == before


# ---------------------------------------------------------------- faults


FAULTS: dict[str, dict[str, Any]] = {
    "503": {"action": "status", "status": 503},
    "429": {"action": "status", "status": 429, "retry_after": 1},
    "412": {"action": "status", "status": 412},
    "drop": {"action": "drop"},
    "lose": {"action": "lose"},
    "cut": {"action": "cut", "after": 1},
    "reset": {"action": "reset", "after": 0},
    "slow": {"action": "slow", "rate": 5000},
}


@pytest.mark.parametrize("what", ["direction", "dataset"])
@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[] if f in ("412", "503") else pytest.mark.slow) for f in FAULTS]
)
def test_every_step_of_a_push_survives_a_fault(hub: LoopbackHub, repo_id: str, fault: str, what: str):
    """The first request of each kind is spoilt, all in one push; then a second push over what is there."""
    kinds = (
        ["/commit/main"]
        if fault == "412"
        else [r"^/api/(models|datasets)/user/\w+$", "/tree/", "/commit/main", "/lfs/", "/up/"]
    )
    if fault in ("503", "429"):
        kinds = ["/commit/main", r"^/api/(models|datasets)/user/\w+$", "repos/create", "/up/"]

    def go(seed: int) -> None:
        for path in kinds:
            hub.faults.add(path=path, count=1, **FAULTS[fault])
        if what == "dataset":
            push(three_splits(seed), repo_id)
        else:
            replace(DIRECTION, facts=Facts(seed=seed)).push_to_hub(repo_id)

    def now() -> dict[str, bytes]:
        repo = hub.store.repos[("datasets" if what == "dataset" else "models", *repo_id.split("/"))]
        counts.append(len(repo.history(repo.resolve("main"))))
        return {p: hub.store.blobs.read(e["sha"]) for p, e in repo.resolve("main").tree.items()}

    counts: list[int] = []
    go(0)
    assert all(rule["hits"] for rule in hub.faults.list())
    first = now()
    go(0)
    assert now() == first
    hub.faults.clear()
    go(7)
    assert now() != first
    assert counts == [2, 2, 3], "a commit too many, or none"
    if what == "dataset":
        from datasets import load_dataset

        hub.faults.clear()
        assert_same(load_dataset(repo_id), three_splits(7))
    else:
        assert Direction.from_pretrained(repo_id).facts == Facts(seed=7)


@pytest.mark.parametrize("what", ["direction", "dataset"])
def test_a_fault_that_stays_leaves_the_repository_as_it_was(hub: LoopbackHub, repo_id: str, what: str, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    kind = "datasets" if what == "dataset" else "models"
    go = (
        (lambda seed: push(three_splits(seed), repo_id))
        if what == "dataset"
        else (lambda seed: replace(DIRECTION, facts=Facts(seed=seed)).push_to_hub(repo_id))
    )
    go(0)
    head = hub.store.repos[(kind, *repo_id.split("/"))].refs["refs/heads/main"]
    hub.faults.add(path="/commit/main", action="drop", count=-1)
    with pytest.raises(ConnectionError, match="cannot push to .* 2 times in a row; try again later, what has arrived"):
        go(1)
    assert hub.store.repos[(kind, *repo_id.split("/"))].refs["refs/heads/main"] == head
    hub.faults.clear()
    go(1)
    assert hub.store.repos[(kind, *repo_id.split("/"))].refs["refs/heads/main"] != head


def test_a_commit_in_between_is_kept(hub: LoopbackHub, repo_id: str, monkeypatch: pytest.MonkeyPatch):
    push(three_splits(), repo_id)
    real, done = publish.readme_of, []

    def card(*args: Any, **named: Any) -> str:
        if not done:
            done.append(True)
            edit_readme(repo_id, lambda old: old + "Theirs.\n")
            three_splits(seed=50).push_to_hub(repo_id, config_name="theirs")
        return real(*args, **named)

    monkeypatch.setattr(publish, "readme_of", card)
    push(three_splits(seed=3), repo_id)
    from datasets import load_dataset

    assert readme(hub, repo_id).endswith("Theirs.\n")
    assert_same(load_dataset(repo_id, "theirs"), three_splits(seed=50))
    assert_same(load_dataset(repo_id, "default"), three_splits(seed=3))


def test_two_pushing_to_one_repository_lose_nothing(hub: LoopbackHub, repo_id: str, monkeypatch: pytest.MonkeyPatch):
    from datasets import load_dataset

    monkeypatch.setattr(transfer, "ATTEMPTS", 20)
    failures: list[BaseException] = []
    data = {f"c{i}": three_splits(seed=10 * i) for i in range(3)}

    def go(name: str) -> None:
        try:
            push(data[name], repo_id, config_name=name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=go, args=(name,)) for name in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert commits(hub, repo_id) == 1 + len(data)
    for name, expected in data.items():
        assert_same(load_dataset(repo_id, name), expected)
        assert readme(hub, repo_id).count(f"### How `{name}` was annotated") == 1


# ---------------------------------------------------------------- folders


def test_a_folder_holds_what_a_push_would(hub: LoopbackHub, repo_id: str, tmp_path: Path):
    from datasets import load_dataset

    data = three_splits()
    save_annotated(data, tmp_path / "out", direction=DIRECTION)
    assert_same(load_dataset(str(tmp_path / "out")), data)
    push(data, repo_id)
    pushed = stored(hub, repo_id)
    saved = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert saved.pop("legend_hf.json"), "what the folder knows of itself, and a repository need not"
    assert saved.keys() == pushed.keys()
    assert {k: v for k, v in saved.items() if k != "README.md"} == {k: v for k, v in pushed.items() if k != "README.md"}
    assert b"How `default` was annotated" in saved["README.md"]


def test_a_folder_is_written_again_over_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from datasets import load_dataset

    def contents() -> dict[str, bytes]:
        return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    monkeypatch.setattr(parquet, "SHARD_BYTES", 500)
    save_annotated(three_splits(), tmp_path, direction=DIRECTION)
    monkeypatch.undo()
    (tmp_path / "README.md").write_bytes((tmp_path / "README.md").read_bytes() + b"Mine.\r\n")
    (tmp_path / "notes.txt").write_text("mine")
    save_annotated(three_splits(), tmp_path, direction=DIRECTION)
    first = contents()
    assert first["notes.txt"] == b"mine"
    assert first["README.md"].endswith(b"Mine.\r\n")
    assert sum(name.endswith(".parquet") for name in first) == 3
    save_annotated(three_splits(), tmp_path, direction=DIRECTION)
    assert contents() == first
    save_annotated({"b": three_splits(seed=4)}, tmp_path, direction=DIRECTION)
    assert_same(load_dataset(str(tmp_path), "default"), three_splits())
    assert_same(load_dataset(str(tmp_path), "b"), three_splits(seed=4))


def test_a_folder_is_saved_even_when_the_sources_card_cannot_be_had(
    hub: LoopbackHub, source: str, tmp_path: Path, monkeypatch, caplog
):
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    save_annotated(three_splits(), tmp_path / "a", direction=DIRECTION, source=source)
    assert "Their words." in (tmp_path / "a" / "README.md").read_text()
    hub.faults.add(path="/api/", action="drop", count=-1)
    with caplog.at_level(logging.WARNING):
        save_annotated(three_splits(), tmp_path / "b", direction=DIRECTION, source=source)
    assert f"left the card of `{source}` out: " in caplog.text
    assert f"[`{source}`]" in (tmp_path / "b" / "README.md").read_text()
