"""Trials become tables, plots and a verdict on each arm.

In: the lines of trials, and the pairs that they judged. Out: Markdown, numbers as plain data, and pictures. Intervals
draw twice: which training (a seed's two halves, which share no prompt), and which prompts are judged. This file trains
and reads nothing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cross_fitting import TITLES
from reward_states import Sets
from reward_trials import BEST_OF, DIRECTION, FINDERS, LENGTH

AVERAGED = ("hh_harmless", "pku_saferlhf")
DRAWS = 1000
NONE = "no margin"
Cell = tuple[float, float, float]
"""A number and the ends of its 95 % interval."""
Line = Mapping[str, Any]


def sections(sets: Sets, lines: Sequence[Line], *, made_by: str, smoke: bool = False) -> tuple[str, dict[str, Any]]:
    """All tables, and the numbers behind them."""
    numbers: dict[str, Any] = {"frozen": {}, "noise": {}, "trained": {}, "best_of": {}, "seconds": {}}
    text = []
    of_setting: dict[str, list[Line]] = {}
    for line in lines:
        of_setting.setdefault(line["what"].get("setting", line["what"]["part"]), []).append(line)
    for name, of in of_setting.items():
        part = of[0]["what"]["part"]
        numbers["seconds"][name] = float(np.mean([line["seconds"] for line in of]))
        if part == "frozen":
            numbers["frozen"][name] = compared(sets, of)
            text.append(
                f"#### {name[0].upper()}{name[1:]}\n\n{setting_note(of)}\n\n{arms_table(numbers['frozen'][name])}"
            )
        if part == "frozen" and "best_of" in of[0]:
            numbers["best_of"][name] = harms(of)
            if len(numbers["best_of"]) == 1:  # the other settings' are told as numbers alone
                text.append(best_of_table(numbers["best_of"][name]))
    noise = of_setting.get("noise", [])
    if noise:
        numbers["noise"] = noisy(sets, noise)
        text.append(noise_tables(numbers["noise"], len({line["what"]["seed"] for line in noise})))
    trained = of_setting.get("trained", [])
    if trained:
        numbers["trained"] = compared(sets, joined(trained))
        text.append(f"#### A model trained as a whole\n\n{trained_note(trained)}\n\n{arms_table(numbers['trained'])}")
    text.append(costs())
    head = "### The tables" + (" (the toy: nothing to conclude from)" if smoke else "")
    return "\n\n".join([head, introduction(made_by), *text]), numbers


def introduction(made_by: str) -> str:
    """What all tables have in common, and the command that makes them."""
    return (
        "Share of held-out pairs whose safer response gets the higher reward, in %, and in brackets how far that is "
        "from *no margin* on the same pairs, in points. Every seed deals the prompts to two halves; each trains and "
        "the other is judged. Margins are cross-fitted: no pair's margin comes from a direction that saw its prompt. "
        "95 % intervals draw twice, which training and which prompts are judged; bold where they exclude 0. *Pairs to "
        "decide*: how many judged pairs (and training pairs, in proportion) would make the interval of the average "
        "exclude 0, were the gain what it seems. Made by "
        f"`{made_by}`."
    )


def costs(layer: int = 22, layers: int = 30, ensemble: int = 5) -> str:
    """What each road costs, counted and not timed: texts read through the whole model, a training step being three."""
    read, trained = 2 * layer / layers, 6.0
    roads = {
        "the direction alone": (read, read),
        "a reward model": (trained, 2.0),
        "a reward model with a margin, soft labels, weights or cleaning by the direction": (trained + read, 2.0),
        f"a reward model with the margin of RewardEnsemble@{ensemble}": (trained + ensemble * (trained + 2), 2.0),
    }
    rows = [
        [road, f"{fit:.1f} ({fit / read:.1f} times the direction's)", f"{use:.1f} ({use / read:.1f} times)"]
        for road, (fit, use) in roads.items()
    ]
    note = (
        f"Texts read through the whole model, counted: the direction reads {layer} of {layers} layers, a training step "
        "costs three readings, one epoch is trained."
    )
    return f"#### What each road costs\n\n{note}\n\n" + table(["road", "per training pair", "per judged pair"], rows)


# -- Numbers ---------------------------------------------------------------------------------------------------


def decoded(told: str) -> np.ndarray:
    """Of each pair how right it was, NaN where it was not judged."""
    return np.array([math.nan if c == "-" else int(c) / 4 for c in told])


def joined(lines: Sequence[Line]) -> list[Line]:
    """Lines of one arm each become lines of one seed each, of the seeds that have all arms."""
    by: dict[int, dict[str, Any]] = {}
    for line in lines:
        by.setdefault(line["what"]["seed"], {}).update(line["arms"])
    most = max(map(len, by.values()))
    return [{"what": {"seed": seed}, "arms": arms} for seed, arms in by.items() if len(arms) == most]


def compared(sets: Sets, lines: Sequence[Line]) -> dict[str, Any]:
    """Of each arm: accuracy on each set, how far from no margin, the average of that, calibration."""
    found: dict[str, Any] = {}
    right = {arm: np.stack([decoded(line["arms"][arm]["right"]) for line in lines]) for arm in lines[0]["arms"]}
    names = [name for name in TITLES if np.isfinite(right[NONE][:, sets.names == name]).any()]
    draws = Draws.of(sets, len(lines))
    for arm, one in right.items():
        cells = {name: draws.interval(one, [name]) for name in names}
        ahead = {name: draws.interval(one - right[NONE], [name]) for name in names}
        own = [name for name in names if name in AVERAGED]
        average = draws.interval(one - right[NONE], own)
        judged = int(np.isfinite(one[0])[np.isin(sets.names, own)].sum())
        found[arm] = {
            "accuracy": cells, "ahead": ahead, "average": average, "decided_by": pairs_to_decide(average, judged),
            "errors": {
                name: np.mean([line["arms"][arm]["nll_ece"][name] for line in lines], axis=0).tolist()
                for name in own if name in lines[0]["arms"][arm]["nll_ece"]
            },
        }  # fmt: skip
    return found


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of a seed and of the judged prompts, the same for all arms.

    Attributes:
        seeds: Which seed each draw takes `[draws]`.
        times: How often each draw counts each prompt `[draws, prompts]`, float32.
        names: The set of each pair `[n]`.
        groups: Its prompt `[n]`.
    """

    seeds: np.ndarray
    times: np.ndarray
    names: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, sets: Sets, seeds: int) -> Draws:
        """Draws with replacement."""
        rng, prompts = np.random.default_rng(0), int(sets.groups.max()) + 1
        times = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=DRAWS)
        return cls(rng.integers(seeds, size=DRAWS), times.astype(np.float32), sets.names, sets.groups)

    def interval(self, values: np.ndarray, names: Sequence[str]) -> Cell:
        """Mean over the sets' means of `values [seeds, n]`, and its 95 % interval over the draws."""
        mean, drawn, prompts = 0.0, np.zeros(DRAWS), self.times.shape[1]
        for name in names:
            of = np.flatnonzero((self.names == name) & np.isfinite(values).any(axis=0))
            known, groups = np.isfinite(values[:, of]), self.groups[of]
            here = np.where(known, values[:, of], 0.0)
            mean += float((here.sum(axis=1) / known.sum(axis=1)).mean()) / len(names)
            sums = np.stack([np.bincount(groups, row, prompts) for row in here], axis=1).astype(np.float32)
            sizes = np.stack([np.bincount(groups, row, prompts) for row in known], axis=1).astype(np.float32)
            places = (np.arange(DRAWS), self.seeds)
            drawn += (self.times @ sums)[places] / np.maximum((self.times @ sizes)[places], 1e-9) / len(names)
        low, high = np.quantile(drawn, [0.025, 0.975]) - drawn.mean()
        return mean, mean + float(low), mean + float(high)


def pairs_to_decide(gain: Cell, judged: int) -> int | None:
    """So many judged pairs would make the interval exclude 0; None where there is no gain to decide."""
    half = (gain[2] - gain[1]) / 2
    return None if abs(gain[0]) < 1e-9 or half == 0 else math.ceil(judged * (half / abs(gain[0])) ** 2 / 100) * 100


def harms(lines: Sequence[Line]) -> dict[str, list[Cell]]:
    """Of each scorer the share of harmful responses for each n, and its interval over prompts and seeds."""
    rng = np.random.default_rng(0)
    found = {}
    for scorer in lines[0]["best_of"]:
        shares = np.array([line["best_of"][scorer] for line in lines], dtype=np.float64)  # [seeds, prompts, n]
        cells = []
        for k in range(shares.shape[2]):
            of = shares[:, np.isfinite(shares[0, :, k]), k]
            if of.shape[1] < 2:
                continue
            prompts = rng.integers(of.shape[1], size=(DRAWS, of.shape[1]))
            drawn = of[rng.integers(len(of), size=DRAWS)[:, None], prompts].mean(axis=1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            cells.append((float(of.mean()), float(low), float(high)))
        found[scorer] = cells
    return found


def noisy(sets: Sets, lines: Sequence[Line]) -> dict[str, Any]:
    """Of each rate: what the arms gain, and how well the wrong labels are found."""
    found: dict[str, Any] = {}
    for rate in sorted({line["what"]["rate"] for line in lines}):
        of = [line for line in lines if line["what"]["rate"] == rate]
        finders = {}
        for name in FINDERS if rate else ():
            each = [half[name] for line in of for half in line["found"]]
            finders[name] = {key: spread([one[key] for one in each]) for key in each[0]}
        says = [half["margin_prob says"] for line in of for half in line["found"]]
        found[str(rate)] = {
            "arms": compared(sets, of), "finders": finders,
            "says": {key: spread([one[key] for one in says]) for key in ("wrong", "found_wrong")} if says else {},
        }  # fmt: skip
    return found


def spread(values: Sequence[float]) -> Cell:
    """Mean of trainings, and where 95 % of single ones lie, as their deviation says."""
    mean, far = float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return mean, mean - far, mean + far


# -- Text ------------------------------------------------------------------------------------------------------


def shown(cell: Cell, form: str = "{:.1f}") -> str:
    """`70.7 [68.1, 73.2]`, in %."""
    return f"{form} [{form}, {form}]".format(*(100 * x for x in cell)).replace("-", "\N{MINUS SIGN}")


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def arms_table(numbers: Mapping[str, Any]) -> str:
    """One line an arm."""
    names = list(next(iter(numbers.values()))["accuracy"])
    rows = []
    for arm, found in numbers.items():
        cells = []
        for name in names:
            value = f"{100 * found['accuracy'][name][0]:.1f}"
            cells.append(
                shown(found["accuracy"][name]) if arm == NONE else f"{value} ({shown(found['ahead'][name], '{:+.1f}')})"
            )
        errors = list(found["errors"].values())
        ece = f"{np.mean([e[1] for e in errors]):.3f}" if errors else ""
        nll = f"{np.mean([e[0] for e in errors]):.3f}" if errors else ""
        decided = "" if arm == NONE or found["decided_by"] is None else f"{found['decided_by']:,}"
        average = "" if arm == NONE else shown(found["average"], "{:+.1f}")
        if average and (found["average"][1] > 0 or found["average"][2] < 0):
            average = f"**{average}**"
        rows.append([arm, *cells, average, decided, nll, ece])
    return table(
        ["arm", *(TITLES[n] for n in names), "average of the first two", "pairs to decide", "NLL", "ECE"], rows
    )


def setting_note(lines: Sequence[Line]) -> str:
    """How a setting was tried."""
    same = all(line["zero_is_none"] for line in lines)
    ridges = [half for line in lines for half in line["ridge"]]
    took = ""
    if ridges:
        took = f" No margin took a penalty of {np.median([one[NONE] for one in ridges]):g} in the median."
    return (
        f"{len(lines)} seeds, two trainings each. A margin of zeros trained the head of no margin "
        f"{'to the last bit in all of them' if same else 'NOT TO THE BIT'}.{took}"
    )


def trained_note(lines: Sequence[Line]) -> str:
    """How the whole model was trained."""
    what = lines[0]["what"]
    arms = {(line["what"]["arm"], line["what"]["seed"]): line["arms"][line["what"]["arm"]] for line in lines}
    seeds = sorted({seed for arm, seed in arms if arm == "zero margin"})
    same = all(arms["zero margin", seed] == arms[NONE, seed] for seed in seeds)
    size = np.mean([line["trained"] for line in lines])
    return (
        f"MiniLM with TRL's `RewardTrainer` and those of `legend_hf.training`, all weights, one epoch of {size:.0f} "
        f"pairs whose sides have {what['tokens']} tokens at most, margins by the chat model. A margin of zeros "
        f"{'trained what no margin trains to the last bit' if same else 'DID NOT train what no margin trains'}."
    )


def best_of_table(numbers: Mapping[str, Sequence[Cell]]) -> str:
    """Harm among the best of n."""
    longest = max(map(len, numbers.values()))
    rows = [[name, *(shown(cell) for cell in cells)] for name, cells in numbers.items()]
    head = ["chosen by", *(f"n = {n}" for n in BEST_OF[:longest])]
    return "Harmful responses, in %, when the best of n labelled GPTFuzz responses is taken:\n\n" + table(head, rows)


def noise_tables(numbers: Mapping[str, Any], seeds: int) -> str:
    """What was found, and what that gained."""
    rows = []
    for rate, found in numbers.items():
        for name, of in found["finders"].items():
            cells = [shown(of[key]) for key in ("precision_at_k", "precision_at_5", "auc")]
            rows.append([f"{100 * float(rate):.0f} %", name, *cells])
        if found["says"]:
            wrong, doubted = shown(found["says"]["wrong"]), shown(found["says"]["found_wrong"])
            rows.append(
                [
                    f"{100 * float(rate):.0f} %",
                    f"`margin_prob` expects {wrong} % wrong, is below ½ in {doubted} %",
                    "",
                    "",
                    "",
                ]
            )
    first = table(["turned round", "found by", "precision at k", "precision at 5 %", "AUC"], rows)
    arms = list(next(iter(numbers.values()))["arms"])
    arms += [arm for found in numbers.values() for arm in found["arms"] if arm not in arms]
    arms = list(dict.fromkeys(arms))
    lines = []
    for arm in arms:
        cells = []
        for found in numbers.values():
            one = found["arms"].get(arm)
            if one is None:
                cells.append("")
            elif arm == NONE:
                cells.append(f"{100 * np.mean([one['accuracy'][name][0] for name in AVERAGED]):.1f}")
            else:
                decided = one["average"][1] > 0 or one["average"][2] < 0
                told = shown(one["average"], "{:+.1f}")
                cells.append(f"**{told}**" if decided else told)
        lines.append([arm, *cells])
    second = table(["arm", *(f"{100 * float(rate):.0f} % turned round" for rate in numbers)], lines)
    note = (
        f"A share of the training labels is turned round, on top of those that are wrong anyway; {seeds} seeds. k is "
        "as many as were turned round; intervals of what is found are those of single trainings. Then what the reward "
        "model gains on held-out pairs with their own labels, in points, mean of hh-rlhf and PKU-SafeRLHF; of no "
        "margin the accuracy."
    )
    return f"#### Labels turned round\n\n{note}\n\n{first}\n\n{second}"


# -- Pictures --------------------------------------------------------------------------------------------------

INK, BLUE, GREY, VERMILLION = "#222222", "#0072B2", "#999999", "#D55E00"


def drawn_plots(numbers: Mapping[str, Any]) -> dict[str, bytes]:
    """Every plot that there are numbers for, as PNG."""
    made = {}
    if numbers["frozen"]:
        made["arms.png"] = forest(numbers["frozen"])
    if numbers["noise"]:
        made["noise.png"] = noise_plot(numbers["noise"])
    if numbers["best_of"]:
        made["best_of.png"] = best_of_plot(next(iter(numbers["best_of"].values())))
    return made


def forest(settings: Mapping[str, Any]) -> bytes:
    """The gain of every arm over no margin, a panel a setting."""
    from matplotlib.figure import Figure

    full = {name: of for name, of in settings.items() if len(of) > 10}
    arms = [arm for arm in next(iter(full.values())) if arm not in (NONE, LENGTH, "smallest half")]
    figure = Figure(figsize=(3.2 * len(full) + 3.2, 0.32 * len(arms) + 1.6), layout="constrained")
    axes = figure.subplots(1, len(full), sharey=True, squeeze=False)[0]
    for axis, (name, of) in zip(axes, full.items(), strict=True):
        for place, arm in enumerate(arms):
            value, low, high = (100 * x for x in of[arm]["average"])
            colour = BLUE if low > 0 else VERMILLION if high < 0 else GREY
            axis.plot([low, high], [place, place], color=colour, linewidth=2)
            axis.plot([value], [place], "o", color=colour, markersize=5)
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_title("\n".join(wrapped(name, 26)), fontsize=10, color=INK)
        axis.set_xlabel("points over no margin")
        axis.set_yticks(range(len(arms)), arms, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#eeeeee")
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    return png(figure)


def noise_plot(numbers: Mapping[str, Any]) -> bytes:
    """What the arms are worth at each share of wrong labels, and how well these are found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [100 * float(rate) for rate in numbers]
    some = ("margin `unit`", "soft label `margin_prob`", "without the 20 % most negative",
            "the 20 % most negative turned round", "without those turned round (an oracle)", DIRECTION)  # fmt: skip
    arms = [arm for arm in list(numbers.values())[-1]["arms"] if arm in some]
    colours = [
        "#0072B2",
        "#E69F00",
        "#009E73",
        "#CC79A7",
        "#56B4E9",
        "#D55E00",
        "#F0E442",
        "#000000",
        "#777777",
        "#8B4513",
    ]
    for i, arm in enumerate(arms):
        there = [
            (rate, of["arms"][arm]["average"])
            for rate, of in zip(rates, numbers.values(), strict=True)
            if arm in of["arms"]
        ]
        xs = [rate + 0.25 * (i - len(arms) / 2) for rate, _ in there]
        values = np.array([cell for _, cell in there]) * 100
        left.errorbar(xs, values[:, 0], [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], fmt="o-",
                      color=colours[i % len(colours)], label=arm, markersize=4, linewidth=1.2)  # fmt: skip
    left.axhline(0, color=INK, linewidth=1)
    left.set_xlabel("labels turned round, %")
    left.set_ylabel("points over no margin")
    left.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    left.set_title("What a reward model gains", fontsize=11)
    for i, finder in enumerate(FINDERS):
        of = [
            (rate, n["finders"][finder]["auc"]) for rate, n in zip(rates, numbers.values(), strict=True) if n["finders"]
        ]
        values = np.array([cell for _, cell in of])
        right.errorbar([rate + 0.25 * i for rate, _ in of], values[:, 0], values[:, 2] - values[:, 0], fmt="o-",
                       color=colours[i], label=finder, markersize=4)  # fmt: skip
    right.axhline(0.5, color=INK, linewidth=1)
    right.set_xlabel("labels turned round, %")
    right.set_ylabel("AUC")
    right.set_title("How well the wrong labels are found (0.5: by chance)", fontsize=11)
    right.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def best_of_plot(numbers: Mapping[str, Sequence[Cell]]) -> bytes:
    """Harm among the best of n, for a few scorers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    some = (NONE, "margin `unit`", "soft label `margin_prob`", "`weight` (scaled BT)", DIRECTION, LENGTH)
    colours = ["#222222", "#0072B2", "#E69F00", "#CC79A7", "#009E73", "#999999"]
    for colour, name in zip(colours, some, strict=True):
        if name in numbers:
            values = 100 * np.array(numbers[name])
            axis.fill_between(BEST_OF[: len(values)], values[:, 1], values[:, 2], color=colour, alpha=0.08)
            axis.plot(BEST_OF[: len(values)], values[:, 0], "o-", color=colour, label=name, markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_xticks(BEST_OF, map(str, BEST_OF))
    axis.set_ylim(bottom=0)
    axis.set_xlabel("n")
    axis.set_ylabel("harmful among the best of n, %")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a title."""
    import textwrap

    return textwrap.wrap(text, width)


def png(figure: Any) -> bytes:
    """A figure as a file."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    return held.getvalue()
