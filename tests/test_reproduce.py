"""The comparison of `scripts/reproduce.py`: heads with the trainers' loss, margins that leak nothing, every arm run."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def parts():
    """The files beside the script, by name."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        names = ("reward_heads", "reward_arms", "reward_trials", "reproduce_tables", "reproduce")
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(SCRIPTS))


def test_a_head_is_the_minimum_of_the_trainers_own_loss(parts):
    import torch

    from legend_hf.training.soft import pair_losses

    heads, rng = parts["reward_heads"], np.random.default_rng(0)
    x = rng.standard_normal((60, 5)) + 0.3
    scale = np.sqrt((x**2).mean(axis=0))
    margin, p, weight = rng.standard_normal(60), rng.random(60), rng.random(60)
    one = heads.plain(60)
    arms = {
        "margin": heads.Treatment(margin, one.target, one.weight),
        "margin_prob": heads.Treatment(None, p, one.weight),
        "weight": heads.Treatment(None, one.target, weight),
    }
    found = heads.fit_heads(x, list(arms.values()), 0.3)
    for i, use in enumerate(arms):
        head = torch.tensor(found[:, i] * scale, requires_grad=True)
        ahead = torch.tensor(x / scale) @ head - (torch.tensor(margin) if use == "margin" else 0)
        numbers = {"margin": one.weight, "margin_prob": p, "weight": weight}[use]
        losses = pair_losses(ahead, torch.tensor(numbers), "weight" if use == "margin" else use)
        (losses.mean() + 0.15 * (head**2).sum()).backward()
        assert float(head.grad.norm()) < 1e-4
    # The control: the arms' minima are not one.
    assert min(np.abs(found[:, i] - found[:, j]).max() for i, j in itertools.combinations(range(3), 2)) > 1e-2


def test_cross_fitted_margins_of_coin_flips_know_nothing(parts):
    from legend_hf.directions.estimators import whitened

    x = np.random.default_rng(0).standard_normal((600, 40))
    raw = parts["reward_arms"].cross_fitted(x, np.arange(600) // 2, 0)
    assert abs((raw > 0).mean() - 0.5) < 0.06
    assert (x @ whitened(x) > 0).mean() > 0.58  # the control: the pairs' own direction would


def test_best_of_n_is_the_mean_over_all_draws(parts):
    trials = parts["reward_trials"]
    harm, scores = np.array([1.0, 0.0, 1.0, 0.0, 1.0]), np.array([0.3, 0.9, 0.1, 0.5, 0.7])
    for n in (1, 2, 4):
        drawn = [harm[max(some, key=lambda i: scores[i])] for some in itertools.combinations(range(5), n)]
        order = np.argsort(-scores)
        assert trials.chance_of_best(5, n) @ harm[order] == pytest.approx(np.mean(drawn))
        assert trials.chance_of_best(5, n).sum() == pytest.approx(1)


def test_intervals_hold_what_nothing_gains_and_see_what_a_gain_is(parts):
    from types import SimpleNamespace

    rng = np.random.default_rng(0)
    sets = SimpleNamespace(names=np.array(["hh_harmless"] * 300), groups=np.arange(300) // 2)
    draws = parts["reproduce_tables"].Draws.of(sets, 6)
    held = 0
    for _ in range(40):
        by_prompt = np.repeat(rng.choice([-1.0, 0, 0, 1.0], size=150), 2)
        _, low, high = draws.interval(np.stack([by_prompt] * 6), ["hh_harmless"])
        held += low <= 0 <= high
    assert held >= 34
    assert draws.interval(np.full((6, 300), 0.2) + rng.normal(0, 0.1, (6, 300)), ["hh_harmless"])[1] > 0.15


def test_a_stopped_run_goes_on_behind_its_last_whole_line(parts, tmp_path):
    lines = parts["reproduce"].Lines(tmp_path / "t.jsonl")
    lines.add({"part": "a", "seed": 0}, {"x": 1})
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write('{"what": {"part": "a", "se')
    again = parts["reproduce"].Lines(tmp_path / "t.jsonl")
    assert [again.have({"part": "a", "seed": seed}) for seed in (0, 1)] == [True, False]
    again.add({"part": "a", "seed": 1}, {"x": 2})
    assert [line["x"] for line in again.of([{"part": "a", "seed": seed} for seed in (0, 1)])] == [1, 2]
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_smoke_run_executes_every_arm_and_its_controls_behave(parts, tmp_path):
    command = [
        sys.executable,
        str(SCRIPTS / "reproduce.py"),
        "--smoke",
        "--output",
        str(tmp_path),
        "--kept",
        str(tmp_path / "kept"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    frozen = [line for line in lines if line["what"]["part"] == "frozen"]
    settings = {line["what"]["setting"] for line in frozen}
    assert settings == {setting.name for setting in parts["reproduce"].SETTINGS}
    assert all(line["zero_is_none"] for line in frozen)
    for line in frozen:
        assert line["arms"]["no margin"] == line["arms"].get("zero margin", line["arms"]["no margin"])
    assert set(frozen[0]["arms"]) >= set(parts["reward_arms"].ARMS)
    trained = {
        line["what"]["arm"]: line["arms"][line["what"]["arm"]] for line in lines if line["what"]["part"] == "trained"
    }
    assert set(trained) == set(parts["reward_arms"].ARMS)
    assert trained["zero margin"] == trained["no margin"]
    assert {line["what"]["rate"] for line in lines if line["what"]["part"] == "noise"} == set(parts["reproduce"].RATES)
    for name in ("results.md", "results.json", "arms.png", "noise.png", "best_of.png"):
        assert (tmp_path / name).stat().st_size > 500
