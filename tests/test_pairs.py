"""Choosing pairs: properties of REAL's subsets, oracles for few responses, and real datasets."""

from __future__ import annotations

import logging
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.directions.calibrate import Calibration
from legend_hf.directions.direction import Direction
from legend_hf.margins.annotate import annotate
from legend_hf.margins.columns import one_size
from legend_hf.preferences import pairs
from legend_hf.preferences.export import export_for
from legend_hf.preferences.pairs import Share, make_pairs, pick_pair, select_measured, select_pairs
from legend_hf.preferences.similarity import PairSimilarityFn, cosine, embedder_of
from legend_hf.reading.formats import RowError
from legend_hf.reading.reader import OpenReader, describe_model

seeds = st.integers(0, 2**32 - 1)
EMBEDDED = ["dissimilar", "similar", "centroid"]


def table(similarities, **columns):
    from datasets import Dataset

    return Dataset.from_dict(
        {"prompt": [f"p{i}" for i in range(len(similarities))], "pair_similarity": similarities, **columns}
    )


def kept(ds, **arguments):
    return [int(p[1:]) for p in select_pairs(ds, **arguments)["prompt"]]


# -- A share of the rows -------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=24), st.floats(0.01, 1), seeds)
def test_sizes_order_and_extremes(values, fraction, seed):
    ds = table(values)
    count = int(fraction * len(values) + 1e-9)
    for keep in ("dissimilar", "similar", "random"):
        rows = kept(ds, keep=keep, fraction=fraction, seed=seed)
        assert len(rows) == count
        assert rows == sorted(set(rows)), "in their order"
        assert rows == kept(ds, keep=keep, fraction=fraction, seed=seed), "again"
        rest = [v for i, v in enumerate(values) if i not in rows]
        inside = [values[i] for i in rows]
        if rest and inside and keep == "dissimilar":
            assert max(inside) <= min(rest)
        if rest and inside and keep == "similar":
            assert min(inside) >= max(rest)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=20))
def test_halves_share_no_row_whatever_the_ties(values):
    ds = table(values)
    easy, hard = kept(ds), kept(ds, keep="similar")
    assert not set(easy) & set(hard)
    if len(values) % 2 == 0:
        assert sorted(easy + hard) == list(range(len(values)))
    mean = np.mean(values)
    assert np.mean([values[i] for i in easy]) <= mean + 1e-12
    assert np.mean([values[i] for i in hard]) >= mean - 1e-12


def test_ties_fall_by_the_order_of_rows():
    ds = table(np.arange(400) % 2 / 2)
    assert kept(ds, fraction=0.25) == list(range(0, 200, 2))
    assert kept(ds, keep="similar", fraction=0.25) == list(range(201, 400, 2))


def test_halves_of_sorting_twice_share_rows():
    """The control: were both halves the first of a stable order, ties would be in both."""
    values = np.full(6, 0.5)
    easy, hard = np.argsort(values, kind="stable")[:3], np.argsort(-values, kind="stable")[:3]
    assert set(easy) & set(hard)


def test_random_rows_are_between_the_halves_and_follow_the_seed():
    values = np.random.default_rng(0).uniform(-1, 1, 60)
    ds = table(values)
    means = [values[kept(ds, keep="random", seed=seed)].mean() for seed in range(40)]
    easy, hard = values[kept(ds)].mean(), values[kept(ds, keep="similar")].mean()
    assert easy < min(means) <= max(means) < hard
    assert np.mean(means) == pytest.approx(values.mean(), abs=0.05)
    assert abs(np.mean(means) - easy) > 0.3, "the control"
    assert len(set(means)) > 30


def test_duplicates_never_enter_the_dissimilar_rows_unless_there_are_too_many():
    values = [1.0, 0.3, 1.0, 0.2, 0.9, 1.0, -0.1, 0.8]
    assert kept(table(values)) == [1, 3, 6, 7]
    assert 0 in kept(table([1.0, 1.0, 1.0, 0.2]))
    assert kept(table(values), keep="similar") == [0, 2, 4, 5]


def test_a_fraction_is_rounded_down_but_not_by_floating_point():
    ds = table(np.linspace(0, 1, 100))
    assert 0.29 * 100 < 29, "the control"
    assert len(select_pairs(ds, fraction=0.29)) == 29
    assert len(select_pairs(ds, fraction=1.0)) == 100
    few = select_pairs(table([0.1]), fraction=0.5)
    assert len(few) == 0
    assert few.column_names == ["prompt", "pair_similarity"]


def test_rows_that_were_not_read_never_enter(caplog):
    values = [0.0, 0.9, 0.0, 0.5, 0.7, 0.2]
    status = ["the response has no tokens", "ok", "too long", "ok", "ok", "ok"]
    ds = table(values, pair_similarity_status=status)
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        assert kept(ds) == [3, 5]
    assert "2 of 6 rows could not be read and are left out" in caplog.text
    assert "kept 2 of 6 rows (dissimilar by `pair_similarity`), dropped 4" in caplog.text
    assert kept(ds, keep="random", fraction=1.0) == kept(ds, keep="similar", fraction=1.0) == [1, 3, 4, 5]
    assert kept(ds.rename_column("pair_similarity_status", "margin_status")) == [3, 5]
    assert kept(table(values)) == [0, 2, 5], "the control: without a status those rows enter"


def test_what_is_missing_is_measured_and_what_became_of_the_rows_is_counted(tiny_llama):
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": "Why? ", "chosen": f"Because of {i}.", "rejected": "Never mind. " * i} for i in range(1, 7)]
    bare = Dataset.from_list([*rows, {"prompt": "And? ", "chosen": "", "rejected": "No."}])
    fn = PairSimilarityFn(tiny_llama, on_error="skip")
    known = annotate(bare.select(range(4)), fn).map(lambda row: {"pair_similarity": -row["pair_similarity"]})
    splits = DatasetDict({"bare": bare, "known": known, "none": bare.select([])})
    kept, shares = select_measured(splits, fn)
    assert {name: rows.to_list() for name, rows in kept.items()} == {
        "bare": select_pairs(annotate(bare, fn)).to_list(),
        "known": select_pairs(known).to_list(),  # as it was, not measured again
        "none": [],
    }
    assert [(share.kept, share.dropped, share.unread) for share in shares.values()] == [(3, 3, 1), (2, 2, 0), (0, 0, 0)]
    low, high = np.sort(known["pair_similarity"][:]).reshape(2, 2).mean(axis=1)
    assert shares["known"].kept_mean == pytest.approx(low)
    assert shares["known"].dropped_mean == pytest.approx(high)
    assert shares["none"].kept_mean is None
    # Random rows need no column, and get none; the others do.
    few, shares = select_measured(bare, keep="random", seed=3)
    assert few.features == bare.features
    drawn = select_pairs(bare.add_column("pair_similarity", [0.0] * 7), keep="random", seed=3)
    assert few.to_list() == drawn.remove_columns("pair_similarity").to_list()
    assert shares == {None: Share(3, 4, 0, None, None)}
    with pytest.raises(
        ValueError, match=r"no column `pair_similarity`; measure it with `PairSimilarityFn\(model=...\)`"
    ):
        select_measured(bare)


def test_other_columns_types_format_and_a_dataset_on_disk_stay(tmp_path):
    from datasets import ClassLabel, load_from_disk

    ds = table(np.linspace(1, 0, 6).astype(np.float32), label=[0, 1, 0, 1, 0, 1], more=[[i] for i in range(6)])
    ds = ds.cast_column("label", ClassLabel(names=["a", "b"]))
    ds.save_to_disk(tmp_path / "ds")
    loaded = load_from_disk(tmp_path / "ds").with_format("numpy")
    out = select_pairs(loaded)
    assert out.features == ds.features
    assert out.format["type"] == "numpy"
    assert out.with_format(None)["more"] == [[3], [4], [5]]


def test_every_split_keeps_its_share():
    from datasets import DatasetDict

    out = select_pairs(DatasetDict(train=table([0.4, 0.1, 0.3, 0.2]), test=table([0.9, 0.8])))
    assert isinstance(out, DatasetDict)
    assert {name: split["pair_similarity"][:] for name, split in out.items()} == {"train": [0.1, 0.2], "test": [0.8]}


def test_margins_of_ratings_that_all_clip_are_told(tiny_llama, caplog):
    from datasets import Dataset

    def direction(scale):
        vector, reader = np.eye(1, 32, dtype=np.float32)[0], describe_model(tiny_llama)
        return Direction(vector, reader, Calibration("unit", scale=scale))

    ratings = Dataset.from_dict(RATED | {"scores": [[1, 5, 3, 2], [4, 1, 2]]})
    with caplog.at_level(logging.WARNING):
        made = make_pairs(ratings, rule="best", direction=direction(0.5))
    assert set(made["margin"]) == {1.0}
    assert (
        "of the margins all 5 are of the size 1, so they tell few pairs from others: are these the raw" in caplog.text
    )
    # The controls: a scale that fits, and no direction.
    caplog.clear()
    make_pairs(ratings, rule="best", direction=direction(8.0))
    make_pairs(ratings, rule="best")
    assert "of the margins" not in caplog.text


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([1.0] * 4, "all 4 are of the size 1"),
        ([1, -1, 1, 0.5, -1], "4 of 5 are of the size 1"),
        ([0.0, 0.0, 0.0, 0.7], "3 of 4 are of the size 0"),
        ([1, 1, 0.5, 0.2], None),
        ([0.1, 0.2, 0.3], None),
        ([1.0], None),
        ([], None),
    ],
)
def test_margins_of_one_size(numbers, said):
    assert one_size(np.array(numbers, dtype=np.float32)) == said


@pytest.mark.parametrize("trainer", ["trl", "openrlhf", "ms-swift"])
def test_an_export_of_margins_of_one_size_says_so(trainer, caplog):
    from datasets import Dataset

    rows = {"prompt": ["A?"] * 5, "chosen": ["b"] * 5, "rejected": ["c"] * 5}
    for margins, said in (([1.0, 1.0, 1.0, -1.0, 0.5], True), ([0.1, 0.2, 0.3, 0.4, 0.5], False)):
        caplog.clear()
        notes = export_for(Dataset.from_dict(rows | {"margin": margins}), trainer=trainer).notes
        assert ("Of the margins 4 of 5 are of the size 1, so they tell few pairs from others." in notes) == said
        assert ("of the margins 4 of 5" in caplog.text) == said


# -- What speaks of each response ----------------------------------------------------------------------------


RATED = {
    "prompt": ["A?", "B?"],
    "responses": [["a0", "a1", "a2", "a3"], ["b0", "b1", "b2"]],
    "scores": [[0.1, 0.9, 0.5, 0.3], [0.7, 0.2, 0.4]],
}
SPEAK = {  # what each column is, and what a pair of the responses i (chosen) and j (rejected) keeps of it
    "models": ([["m0", "m1", "m2", "m3"], ["m0", "m1", "m2"]], lambda cell, i, j: [cell[i], cell[j]]),
    "notes": ([[{"by": f"n{i}"} for i in range(4)], [{"by": f"n{i}"} for i in range(3)]], lambda cell, i, j: [cell[i], cell[j]]),
    "raters": (
        [{"a": [1, 2, 3, 4], "b": ["x", "y", "z", "w"]}, {"a": [5, 6, 7], "b": ["u", "v", "w"]}],
        lambda cell, i, j: {key: [said[i], said[j]] for key, said in cell.items()},
    ),
    "choice_probs": ([[0.1, 0.4, 0.3, 0.2], [0.5, 0.2, 0.3]], lambda cell, i, j: [cell[i], cell[j]]),
    "ranking": ([[1, 2, 3, 0], [0, 2, 1]], None),
    "ranking_kind": ([[1, 2, 3, 0], [0, 2, 1]], None),
    "order_of_raters": ([[1, 2, 3, 0], [0, 2, 1]], None),
    "best_response": ([1, 0], None),
    "score_gap": ([0.5, 0.25], None),
    "worst_id": ([0, 1], None),
    "tags": ([["t0", "t1", "t2", "t3"], ["t0"]], lambda cell, i, j: cell),
    "best_year": ([1990, 2001], lambda cell, i, j: cell),
    "turns": ([4, 3], lambda cell, i, j: cell),
    "topic": (["tea", "rain"], lambda cell, i, j: cell),
}  # fmt: skip


@pytest.mark.parametrize("rule", ["best", "all", "random"])
@pytest.mark.parametrize("kind", ["a list", "dicts"])
def test_what_speaks_of_dropped_responses_is_re_indexed_or_dropped(rule, kind, caplog):
    from datasets import Dataset, DatasetDict

    given = RATED | {name: cells for name, (cells, _) in SPEAK.items()}
    if kind == "dicts":
        given["responses"] = [[{"response": text, "model": "m"} for text in row] for row in given["responses"]]
    ds = Dataset.from_dict(given)
    with caplog.at_level(logging.WARNING):
        made = make_pairs(DatasetDict(train=ds, none=ds.select([])), rule=rule)
    assert (
        "taken for lists with an entry for each response, of which a pair keeps two: `choice_probs`, `models`, `notes`, `raters`"
        in caplog.text
    )
    assert "left out, since they seem to name responses by their places: `order_of_raters`, `worst_id`" in caplog.text
    assert made["train"].features == made["none"].features
    assert len(made["train"])
    for row in made["train"]:
        number = RATED["prompt"].index(row["prompt"])
        for name, (cells, keeps) in SPEAK.items():
            if keeps is None:
                assert name not in row
            else:
                assert row[name] == keeps(cells[number], row["chosen_index"], row["rejected_index"]), name


def test_pairs_of_rungs_keep_the_scores_of_their_two():
    from datasets import Dataset

    from legend_hf.preferences.corrections import ladder_pairs

    ladders = Dataset.from_dict({
        "prompt": ["A?"], "responses": [["a", "b", "c"]], "scores": [[3.0, 2.0, 1.0]], "ranking": [[0, 1, 2]],
        "best_response": [0], "tags": [["t"]],
    })  # fmt: skip
    pairs = ladder_pairs(ladders)
    assert pairs["scores"][:] == [[3.0, 2.0], [3.0, 1.0], [2.0, 1.0]]
    assert pairs["tags"][:] == [["t"]] * 3
    assert {"ranking", "best_response", "responses"}.isdisjoint(pairs.column_names)


def test_misuse_of_select_pairs_is_refused():
    ds = table([0.1, 0.2])
    with pytest.raises(ValueError, match="`keep` is 'easy'; allowed are 'dissimilar', 'similar', 'random'"):
        select_pairs(ds, keep="easy")
    for fraction in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="`fraction` is .*; it must be above 0 and at most 1"):
            select_pairs(ds, fraction=fraction)
    with pytest.raises(
        ValueError, match=r"no column `pair_similarity`, but `prompt`; add it first: .*PairSimilarityFn"
    ):
        select_pairs(ds.remove_columns("pair_similarity"))
    with pytest.raises(ValueError, match="no column `margin`, but .*; name another"):
        select_pairs(ds, by="margin")
    with pytest.raises(
        ValueError, match="row 0, column `prompt`: given .* in a column of string; allowed is a finite number"
    ):
        select_pairs(ds, by="prompt")
    with pytest.raises(
        ValueError, match="row 1, column `pair_similarity`: given None in a column of .*; allowed is a finite number"
    ):
        select_pairs(table([0.1, None]))
    with pytest.raises(ValueError, match="`dataset` is an IterableDataset; allowed are `Dataset` and `DatasetDict`"):
        select_pairs(ds.to_iterable_dataset())


# -- Two of n embeddings -------------------------------------------------------------------------------------


def oracle(points, rule):
    """Straight from the definitions, with loops."""
    points = [p / np.linalg.norm(p) for p in points]
    every = list(combinations(range(len(points)), 2))
    if rule != "centroid":
        sign = 1 if rule == "dissimilar" else -1
        return min(every, key=lambda ij: sign * float(points[ij[0]] @ points[ij[1]]))
    best = None
    for labels in product([0, 1], repeat=len(points)):
        if len(set(labels)) == 2:
            clusters = [[i for i, label in enumerate(labels) if label == c] for c in (0, 1)]
            centres = [np.mean([points[i] for i in members], axis=0) for members in clusters]
            cost = sum(np.sum((points[i] - centres[label]) ** 2) for i, label in enumerate(labels))
            if best is None or cost < best[0] - 1e-12:
                best = cost, clusters, centres

    def nearest(c, among):
        # Rounded: the two of a cluster of two are equally near.
        return min(among, key=lambda i: round(float(np.sum((points[i] - best[2][c]) ** 2)), 10))

    found = [nearest(c, range(len(points))) for c in (0, 1)]
    if found[0] == found[1]:
        c = 1 if found[0] in best[1][0] else 0
        found[c] = nearest(c, best[1][c])
    return min(found), max(found)


@given(seeds, st.integers(2, 6), st.integers(2, 4), st.sampled_from(EMBEDDED))
def test_equals_the_oracle(seed, n, d, rule):
    points = np.random.default_rng(seed).standard_normal((n, d))
    assert pick_pair(points, rule) == oracle(points, rule)


def test_the_oracle_tells_rules_apart():
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((5, 3)) for _ in range(50)]
    found = {rule: [pick_pair(points, rule) for points in drawn] for rule in EMBEDDED}
    for one, other in combinations(EMBEDDED, 2):
        assert sum(a == b for a, b in zip(found[one], found[other], strict=True)) < 35


@given(seeds, st.integers(2, 20), st.sampled_from(EMBEDDED))
def test_choice_survives_scaling_and_rotation(seed, n, rule):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 4))
    before = points.copy()
    chosen = pick_pair(points, rule)
    assert 0 <= chosen[0] < chosen[1] < n
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    assert pick_pair(points * rng.uniform(0.01, 100, (n, 1)), rule) == chosen
    assert pick_pair(points @ rotation, rule) == chosen
    np.testing.assert_array_equal(points, before)


def test_choice_does_not_survive_a_shift():
    """The control of the test above."""
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((6, 4)) for _ in range(20)]
    for rule in EMBEDDED:
        assert any(pick_pair(points, rule) != pick_pair(points + 2, rule) for points in drawn)


@given(seeds, st.integers(3, 8))
def test_equal_responses_are_similar_and_never_dissimilar(seed, n):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 4))
    one, other = sorted(rng.choice(n, 2, replace=False).tolist())
    points[other] = points[one]
    assert pick_pair(points, "similar") == (one, other)
    assert pick_pair(points, "dissimilar") != (one, other)
    assert pick_pair(points, "centroid") != (one, other)
    same = np.repeat(points[:1], n, axis=0)
    for rule in EMBEDDED:
        i, j = pick_pair(same, rule)
        assert i < j


@given(seeds, st.integers(2, 8))
def test_similarities_of_the_rules_are_ordered(seed, n):
    points = np.random.default_rng(seed).standard_normal((n, 4))
    least, most = (cosine(points[[i]], points[[j]])[0] for i, j in (pick_pair(points, r) for r in EMBEDDED[:2]))
    mean = np.mean([cosine(points[[i]], points[[j]]) for i, j in combinations(range(n), 2)])
    assert least <= mean + 1e-12
    assert mean <= most + 1e-12


@pytest.mark.parametrize("n", [2, 5, 15])
def test_zero_embeddings_are_no_trouble(n):
    points = np.random.default_rng(0).standard_normal((n, 3))
    points[0] = 0
    with np.errstate(all="raise"):
        for rule in EMBEDDED:
            i, j = pick_pair(points, rule)
            assert 0 <= i < j < n
            assert pick_pair(np.zeros((n, 3)), rule)[0] < n


@settings(max_examples=25)
@given(seeds)
def test_lloyd_finds_what_trying_all_finds(seed):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((12, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    gram = points @ points.T
    one, other = np.triu_indices(12, 1)
    ends = pairs._lloyd(gram, int(np.argmin(gram[one, other])), seed)
    assert ends.any(axis=1).all()
    assert (~ends).any(axis=1).all()
    least = pairs._spread(gram, pairs._bipartitions(12)).min()
    found = pairs._spread(gram, ends).min()
    assert least - 1e-9 <= found <= least + 0.6, "a local optimum, near the least there is"
    first = pairs._spread(gram, pairs._bipartitions(12)[:1])[0]
    assert first > least, "the control: not every parting is an optimum"


def test_many_responses_in_two_heaps_give_one_of_each():
    rng = np.random.default_rng(3)
    heap = rng.permutation(np.repeat([0, 1], [12, 18]))
    points = np.eye(6)[heap] + 0.1 * rng.standard_normal((30, 6))
    i, j = pick_pair(points, "centroid")
    assert heap[i] != heap[j]
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    for place in (i, j):
        own = np.flatnonzero(heap == heap[place])
        assert place == own[np.argmin(((unit[own] - unit[own].mean(axis=0)) ** 2).sum(axis=1))]
    least = pick_pair(points, "similar")
    assert heap[least[0]] == heap[least[1]], "the control"


def test_one_response_nearest_to_both_centres_gives_two_responses():
    rng = np.random.default_rng(0)
    clashes = 0
    for _ in range(300):
        points = rng.standard_normal((8, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        side = rng.permutation(8) < rng.integers(1, 7)
        centres = [points[members].mean(axis=0) for members in (side, ~side)]
        nearest = [int(((points - centre) ** 2).sum(axis=1).round(10).argmin()) for centre in centres]
        i, j = pairs._nearest_to_centres(points @ points.T, side)
        assert i < j
        if nearest[0] == nearest[1]:
            clashes += 1
            assert nearest[0] in (i, j)
            assert side[i] != side[j]
        else:
            assert [i, j] == sorted(nearest)
    assert 10 < clashes < 200, "both cases were met"
    assert pick_pair(np.ones((4, 2)), "centroid") == (0, 1), "all equal: both centres are one point"


def test_misuse_of_pick_pair_is_refused():
    with pytest.raises(ValueError, match="given 1 embeddings; a pair needs at least 2"):
        pick_pair(np.ones((1, 3)), "similar")
    with pytest.raises(ValueError, match="`rule` is 'random'; allowed are 'dissimilar', 'similar', 'centroid'"):
        pick_pair(np.ones((3, 3)), "random")


# -- Pairs out of N responses --------------------------------------------------------------------------------

ROWS = [
    {"prompt": "Tea?", "responses": ["Tea is warm.", "Tea is warm!", "No idea, ask someone else", "12 34"], "scores": [0.5, 2.0, -1.0, 0.0]},
    {"prompt": "Rain?", "responses": ["Clouds.", "Clouds, it is said."], "scores": [1.0, 3.0]},
    {"prompt": "One?", "responses": ["Only this."], "scores": [1.0]},
    {"prompt": "Tie?", "responses": ["Red.", "Green.", "Blue."], "scores": [2.0, 2.0, 2.0]},
    {"prompt": "Soup?", "responses": ["Boil it.", "Boil it.", "Never mind the soup"], "scores": [1.0, 0.0, 1.0]},
]  # fmt: skip
NEW = ["chosen", "rejected", "chosen_score", "rejected_score", "margin_raw", "pair_similarity", "chosen_index", "rejected_index"]  # fmt: skip


@pytest.fixture
def ds():
    from datasets import Dataset

    return Dataset.from_list([{**row, "id": i} for i, row in enumerate(ROWS)])


def places(made):
    return [
        (row["prompt"], row["chosen_index"], row["rejected_index"])
        for row in made.select_columns(["prompt", "chosen_index", "rejected_index"])
    ]


@pytest.mark.parametrize("rule", EMBEDDED)
def test_embeddings_choose_and_scores_label(ds, tiny_llama, rule):
    made = make_pairs(ds, rule=rule, model=tiny_llama)
    assert made.column_names == ["prompt", *NEW, "id"]
    by_prompt = {row["prompt"]: row for row in ROWS}
    every = [
        {"prompt": r["prompt"], "chosen": r["responses"][i], "rejected": r["responses"][j], "ij": (i, j)}
        for r in ROWS
        for i, j in combinations(range(len(r["responses"])), 2)
    ]
    from datasets import Dataset

    alike = Dataset.from_list(every).map(PairSimilarityFn(tiny_llama), batched=True)["pair_similarity"][:]
    for row in made:
        source = by_prompt[row["prompt"]]
        i, j = row["chosen_index"], row["rejected_index"]
        assert (row["chosen"], row["rejected"]) == (source["responses"][i], source["responses"][j])
        assert (row["chosen_score"], row["rejected_score"]) == (source["scores"][i], source["scores"][j])
        assert row["margin_raw"] == row["chosen_score"] - row["rejected_score"] > 0
        own = {tuple(e["ij"]): s for e, s in zip(every, alike, strict=True) if e["prompt"] == row["prompt"]}
        assert row["pair_similarity"] == pytest.approx(own[tuple(sorted((i, j)))], abs=1e-6)
        if rule != "centroid":
            best = min(own.values()) if rule == "dissimilar" else max(own.values())
            assert row["pair_similarity"] == pytest.approx(best, abs=1e-6)
    prompts = made["prompt"][:]
    assert prompts[:2] == ["Tea?", "Rain?"]
    assert not {"One?", "Tie?"} & set(prompts)
    # With two responses every rule gives the one pair, the better response first, wherever it stands.
    assert places(made)[1] == ("Rain?", 1, 0)


def test_the_similar_pair_of_equal_responses(ds, tiny_llama):
    row = make_pairs(ds, rule="similar", model=tiny_llama)[2]
    assert (row["prompt"], row["pair_similarity"], row["chosen_index"], row["rejected_index"]) == ("Soup?", 1.0, 0, 1)


def test_an_embedder_says_the_rest_of_its_options(tiny_llama):
    from datasets import Dataset

    ds = Dataset.from_list(
        [{"prompt": "Tea?", "responses": ["Yes, black.", "No, never.", "Green"], "scores": [3, 2, 1]}]
    )
    whole, begun = embedder_of(tiny_llama), embedder_of(tiny_llama, max_length=2)
    expected = make_pairs(ds, rule="all", model=tiny_llama)
    assert make_pairs(ds, rule="all", model=whole)[:] == expected[:]
    assert make_pairs(ds, rule="all", model=begun)["pair_similarity"][:] != expected["pair_similarity"][:]


def test_prompts_do_not_matter(ds, tiny_llama):
    for rule in EMBEDDED:
        made = make_pairs(ds, rule=rule, model=tiny_llama)
        others = ds.map(lambda row: {"prompt": "Another matter, with soup and tea: " + row["prompt"] * 3})
        again = make_pairs(others, rule=rule, model=tiny_llama)
        assert made.remove_columns("prompt")[:] == again.remove_columns("prompt")[:]


def test_best_and_all(ds):
    best = make_pairs(ds, rule="best")
    assert best.column_names == ["prompt", *[c for c in NEW if c != "pair_similarity"], "id"]
    assert places(best) == [
        ("Tea?", 1, 2), ("Tea?", 1, 3), ("Tea?", 1, 0), ("Rain?", 1, 0), ("Soup?", 0, 1),
    ]  # fmt: skip
    every = make_pairs(ds, rule="all")
    tea = [place[1:] for place in places(every) if place[0] == "Tea?"]
    assert tea == [(1, 0), (0, 2), (0, 3), (1, 2), (1, 3), (3, 2)]
    assert [place[1:] for place in places(every) if place[0] == "Soup?"] == [(0, 1), (2, 1)]
    assert every["id"][:6] == [0] * 6


def test_random_follows_the_seed_and_not_the_neighbours(ds):
    def tea(dataset, seed):
        return next(place for place in places(make_pairs(dataset, rule="random", seed=seed)) if place[0] == "Tea?")

    drawn = [tea(ds, seed) for seed in range(30)]
    assert len(set(drawn)) == 6, "every pair comes up"
    assert drawn == [tea(ds, seed) for seed in range(30)]
    assert drawn == [tea(ds.select([0, 4]), seed) for seed in range(30)]
    alike = make_pairs(ds.select([0] * 20), rule="random")
    assert len(set(places(alike))) > 3, "each row is drawn for itself"
    for seed in range(10):
        assert ("Rain?", 1, 0) in places(make_pairs(ds, rule="random", seed=seed))


def test_what_is_dropped_is_counted(ds, caplog):
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        made = make_pairs(ds, rule="all")
    assert f"{len(made)} pairs of 3 of 5 prompts" in caplog.text
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "1 pairs with equal scores" in warning
    assert "1 prompts whose scores are all equal" in warning
    assert "1 prompts with fewer than two responses" in warning
    caplog.clear()
    make_pairs(ds.select([0, 1]), rule="all")
    assert not caplog.records, "the control: nothing dropped, no warning"


def test_model_only_adds_similarity_with_the_other_rules(ds, tiny_llama):
    plain, embedded = make_pairs(ds, rule="best"), make_pairs(ds, rule="best", model=tiny_llama)
    assert embedded.remove_columns("pair_similarity")[:] == plain[:]
    assert len(set(embedded["pair_similarity"][:])) > 2


def test_a_direction_scales_the_margin(ds, tiny_llama):
    from datasets import Value

    reader = describe_model(tiny_llama)
    direction = Direction(np.eye(1, 32, dtype=np.float32)[0], reader, Calibration("unit", scale=2.0))
    made = make_pairs(ds, rule="best", direction=direction)
    assert made.features["margin"] == made.features["margin_raw"] == Value("float32")
    raw = np.array(made["margin_raw"][:])
    np.testing.assert_array_equal(made["margin"][:], direction.calibration.apply(raw))
    assert (np.array(made["margin"][:]) != raw).any()
    assert "margin" not in make_pairs(ds, rule="best").column_names


def test_types_formats_files_and_splits(ds, tiny_llama, tmp_path):
    from datasets import ClassLabel, DatasetDict, Value, load_from_disk

    ds = ds.add_column("kind", [0, 1, 0, 1, 0]).cast_column("kind", ClassLabel(names=["a", "b"]))
    ds = ds.add_column("words", [["x"] * i for i in range(5)]).cast_column("id", Value("int16"))
    expected = make_pairs(ds, model=tiny_llama)
    assert {name: expected.features[name] for name in ("kind", "words", "id")} == {
        name: ds.features[name] for name in ("kind", "words", "id")
    }
    assert [expected.features[n].dtype for n in NEW] == ["string"] * 2 + ["float32"] * 4 + ["int64"] * 2
    ds.save_to_disk(tmp_path / "ds")
    loaded = load_from_disk(tmp_path / "ds")
    assert make_pairs(loaded, model=tiny_llama)[:] == expected[:]
    formatted = make_pairs(loaded.with_format("numpy"), model=tiny_llama)
    assert formatted.format["type"] == "numpy"
    assert formatted.with_format(None)[:] == expected[:]
    both = make_pairs(DatasetDict(train=ds, test=ds.select([1])), model=tiny_llama)
    assert isinstance(both, DatasetDict)
    assert both["train"][:] == expected[:]
    assert len(both["test"]) == 1


@pytest.mark.parametrize("rows", [[], [2, 3]], ids=["no rows", "no pairs"])
def test_no_pairs_keep_the_columns(ds, tiny_llama, rows):
    expected = make_pairs(ds, model=tiny_llama).features
    assert make_pairs(ds.select(rows), model=tiny_llama).features == expected


def test_message_lists_and_other_names(ds, tiny_llama):
    rows = [
        {
            "question": [{"role": "user", "content": row["prompt"]}],
            "outputs": [[{"role": "assistant", "content": text}] for text in row["responses"]],
            "votes": [int(2 * score) for score in row["scores"]],
        }
        for row in ROWS
    ]
    from datasets import Dataset

    names = {"prompt_column": "question", "responses_column": "outputs", "scores_column": "votes"}
    made = make_pairs(Dataset.from_list(rows), model=tiny_llama, **names)
    assert made.column_names == ["prompt", *NEW]
    plain = make_pairs(ds, model=tiny_llama)
    for row, other in zip(made, plain, strict=True):
        assert row["chosen"] == [{"role": "assistant", "content": other["chosen"]}]
        assert row["prompt"] == [{"role": "user", "content": other["prompt"]}]
        assert row["pair_similarity"] == pytest.approx(other["pair_similarity"], abs=1e-6)
        assert row["margin_raw"] == 2 * other["margin_raw"]
    # What comes out is a preference dataset that can be read.
    assert made.map(PairSimilarityFn(tiny_llama, overwrite=True), batched=True)["pair_similarity"][:] == pytest.approx(
        made["pair_similarity"][:], abs=1e-6
    )
    alone = make_pairs(Dataset.from_list(rows).remove_columns("question"), rule="best", responses_column="outputs", scores_column="votes")  # fmt: skip
    assert "prompt" not in alone.column_names


@pytest.mark.parametrize("lists", [False, True], ids=["list of dicts", "dict of lists"])
def test_entries_that_hold_a_response(ds, tiny_llama, lists):
    from datasets import Dataset, Features, List, Value

    entry = {"model": Value("string"), "response": Value("string")}
    shape = {name: List(feature) for name, feature in entry.items()} if lists else List(entry)

    def entries(texts):
        return (
            {"model": ["m"] * len(texts), "response": texts}
            if lists
            else [{"model": "m", "response": text} for text in texts]
        )

    held = Dataset.from_list(
        [{**row, "responses": entries(row["responses"])} for row in ROWS],
        features=Features({"prompt": Value("string"), "responses": shape, "scores": List(Value("float64"))}),
    )
    for rule in ("dissimilar", "best"):
        expected = make_pairs(ds.remove_columns("id"), rule=rule, model=tiny_llama)
        assert make_pairs(held, rule=rule, model=tiny_llama)[:] == expected[:]


def test_scores_of_the_score_transform(tiny_llama, caplog):
    from datasets import Dataset

    from legend_hf.margins.score_fn import LegendScoreFn

    direction = Direction(
        np.eye(1, 32, dtype=np.float32)[0], describe_model(tiny_llama), Calibration("raw"), model_path=str(tiny_llama)
    )
    rows = [{name: row[name] for name in ("prompt", "responses")} for row in ROWS]
    rows.insert(1, {"prompt": "Bad", "responses": ["Fine.", " "]})
    scored = Dataset.from_list(rows).map(LegendScoreFn(direction, on_error="skip"), batched=True)
    made = make_pairs(scored, rule="best", direction=direction)
    assert set(made["prompt"][:]) == {"Tea?", "Rain?", "Tie?", "Soup?"}
    assert "1 rows that were not scored" in caplog.text
    np.testing.assert_array_equal(made["margin"][:], made["margin_raw"][:])
    with pytest.raises(RowError, match=r"row 1, column `responses\[1\]`"):
        make_pairs(scored.remove_columns("scores_status"), rule="best")  # the control


BAD_SCORES = [
    ([1.0], "row 1, column `scores`: 1 scores for 2 responses in `responses`; give one finite number for each"),
    ([1.0, float("nan")], "row 1, column `scores`: score 1 is nan"),
    ([1.0, float("inf")], "score 1 is inf"),
    ([1.0, 1e300], "score 1 is 1e\\+300"),
    ([1.0, None], "score 1 is None"),
    (None, "given None"),
]


@pytest.mark.parametrize(("scores", "match"), BAD_SCORES)
def test_bad_scores_are_errors_before_anything_is_embedded(tiny_llama, monkeypatch, scores, match):
    from datasets import Dataset, DatasetDict

    monkeypatch.setattr(OpenReader, "read", lambda *_, **__: pytest.fail("embedded"))
    ds = Dataset.from_list([ROWS[0], {**ROWS[1], "scores": scores}])
    with pytest.raises(RowError, match=match):
        make_pairs(ds, model=tiny_llama)
    with pytest.raises(RowError, match=match) as caught:
        make_pairs(DatasetDict(train=ds.select([0]), test=ds), model=tiny_llama)
    assert caught.value.__notes__ == ["in split 'test'"]


def test_bad_rows_can_be_skipped(ds, tiny_llama, caplog):
    from datasets import Dataset

    bad = [
        {**ROWS[0], "prompt": "Bad scores", "scores": [1.0]},
        {**ROWS[1], "prompt": "Bad response", "responses": ["Fine.", " "]},
    ]
    mixed = Dataset.from_list([bad[0], ROWS[0], bad[1], ROWS[1]])
    with pytest.raises(RowError, match=r"row 2, column `responses\[1\]`: .* is empty or only whitespace"):
        make_pairs(mixed.select([1, 3, 2]), model=tiny_llama)
    made = make_pairs(mixed, model=tiny_llama, on_error="skip")
    assert places(made) == places(make_pairs(ds, model=tiny_llama))[:2]
    assert "2 rows that cannot be read" in caplog.text


def test_misuse_of_make_pairs_is_refused(ds, tiny_llama):
    with pytest.raises(ValueError, match="`rule` is 'easy'; allowed are 'dissimilar', 'similar', 'centroid'"):
        make_pairs(ds, rule="easy")
    for rule in EMBEDDED:
        with pytest.raises(ValueError, match=f'`rule="{rule}"` compares embeddings and needs `model`'):
            make_pairs(ds, rule=rule)
    with pytest.raises(ValueError, match="`on_error` is 'drop'"):
        make_pairs(ds, rule="best", on_error="drop")
    with pytest.raises(ValueError, match="`scores_column='votes'` names no column; .*a list of their scores"):
        make_pairs(ds, rule="best", scores_column="votes")
    with pytest.raises(ValueError, match="`responses_column='outputs'` names no column"):
        make_pairs(ds, rule="best", responses_column="outputs")
    with pytest.raises(ValueError, match="`prompt_column='question'` names no column"):
        make_pairs(ds, rule="best", prompt_column="question")
    with pytest.raises(ValueError, match="already has `chosen`; rename or remove"):
        make_pairs(ds.add_column("chosen", ["x"] * 5), rule="best")
    with pytest.raises(ValueError, match="already has `prompt`; rename or remove"):
        make_pairs(ds.add_column("question", ["x"] * 5), rule="best", prompt_column="question")
    with pytest.raises(ValueError, match="`prompt` is .*; allowed is a list column"):
        make_pairs(ds, rule="best", responses_column="prompt", prompt_column="id")
    with pytest.raises(ValueError, match="`dataset` is an IterableDataset; allowed are `Dataset` and `DatasetDict`"):
        make_pairs(ds.to_iterable_dataset(), rule="best")
    with pytest.raises(ValueError, match="`dataset` is a list; .*`Dataset.from_list"):
        make_pairs(ds.to_list(), rule="best")


def test_a_direction_may_be_given_by_its_folder(ds, tiny_llama, tmp_path, monkeypatch):
    reader = describe_model(str(tiny_llama))
    direction = Direction(np.eye(1, 32, dtype=np.float32)[0], reader, Calibration("unit", scale=2.0))
    direction.save_pretrained(tmp_path)
    loaded = make_pairs(ds, rule="best", direction=str(tmp_path), on_error="skip")
    assert loaded[:] == make_pairs(ds, rule="best", direction=direction, on_error="skip")[:]
    assert "margin" in loaded.column_names
    monkeypatch.setattr(pairs, "_read_rows", lambda *_, **__: pytest.fail("read rows first"))
    with pytest.raises((ValueError, OSError), match="nowhere"):
        make_pairs(ds, rule="best", direction=tmp_path / "nowhere")
