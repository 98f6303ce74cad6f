"""What the facts of a fit say of its direction: is it any good? One verdict, which every place repeats.

In: the facts of a fit, as plain data. Out: a `Verdict`, in plain text that holds nothing of a stranger's but numbers:
does it beat a coin, does it beat length, how sure is that, what is a good value, would more pairs help. A direction
that does not beat both is doubtful. This file knows no direction and no card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from legend_hf.hub.concept import Concept

Facts = Mapping[str, Any]
Interval = Sequence[float]

FEW_PROMPTS = 20
"""With fewer prompts a number is doubtful, whatever its interval says."""
GOOD_VALUES = (
    "on people's choices of the safer response (hh-rlhf, PKU-SafeRLHF) 65 to 75 %: one vector of a chat model of 135M "
    "parameters gets 69 %, a reward model of 774M fine-tuned on such pairs 74 %; on refusals against answers 95 % and "
    "more"
)
"""Measured, see `scripts/RESULTS.md`."""
NOT_KNOWN = "not known"
MOST_PROMPTS = 100_000  # beyond so many more prompts, a number of them means nothing
LITTLE = 0.015  # of an accuracy: what twice the prompts must promise to be worth collecting


@dataclass(frozen=True)
class Verdict:
    """Is a direction any good?

    Attributes:
        beats_coin: Whether its held-out accuracy is above one half beyond its interval; None: not known.
        beats_length: The same for the better one of two rules, to take the shorter response or the longer.
        doubts: All that makes it implausible, a sentence each. Empty where nothing is known at all: that is no fault.
        headline: The whole verdict in a few words.
        coin: What stands behind `beats_coin`.
        length: What stands behind `beats_length`.
        sure: How sure that is, from how many prompts, and how many more would settle what is open.
        good: What a good value is on such data.
        more: The learning curve: would more pairs help?
    """

    beats_coin: bool | None
    beats_length: bool | None
    doubts: tuple[str, ...]
    headline: str
    coin: str
    length: str
    sure: str
    good: str
    more: str

    @property
    def doubtful(self) -> bool:
        """Whether the direction is to be named so wherever it is used."""
        return bool(self.doubts)

    @property
    def warning(self) -> str:
        """What to say wherever a doubtful direction is used, behind "this direction is"."""
        figures = {"beats a coin": self.coin, "beats length": self.length}
        known = [f"{asked}? {said}" for asked, said in figures.items() if said != NOT_KNOWN]
        return self.headline + (f" ({'; '.join([*known, self.sure])})" if known else "")

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """All of it, a line each: what is asked, and the answer."""
        return (
            ("verdict", self.headline),
            ("beats a coin", self.coin),
            ("beats length", self.length),
            ("how sure", self.sure),
            ("good values", self.good),
            ("more pairs", self.more),
        )

    def __str__(self) -> str:
        """`lines`, to print."""
        return "\n".join(f"{asked}: {said}" for asked, said in self.lines)


def verdict_on(fit: Facts) -> Verdict:
    """Judges a direction by the facts of its fit, as `asdict(direction.facts)` gives them; keys may be missing."""
    doubts = tuple(_doubts(fit))
    concept, coin, length = Concept.of(fit), _beats_coin(fit), _beats_length(fit)
    return Verdict(
        beats_coin=coin,
        beats_length=length,
        doubts=doubts,
        headline=_headline(fit, coin, length, doubts),
        coin=_coin(fit, coin),
        length=_length(fit, length),
        sure=_sure(fit, coin, length),
        good=GOOD_VALUES if concept.is_safety else f"no figures for this concept; {GOOD_VALUES}",
        more=_more(fit),
    )


def settled(prompts: int, above: float, low: float | None, what: str) -> str:
    """How many more prompts would show that a number lies above 0, if it stays where it is.

    The width of an interval goes with one over the root of the number of prompts.

    Args:
        prompts: That it was measured on.
        above: The number.
        low: The lower end of its interval.
        what: It is a lead over.
    """
    if above <= 0 or low is None:
        return f"where it stands, no number of prompts would show that it beats {what}"
    more = max(math.ceil(prompts * (((above - low) / above) ** 2 - 1)), FEW_PROMPTS - prompts)
    if more > MOST_PROMPTS:
        return f"not even {_count(MOST_PROMPTS)} more prompts would show that it beats {what}"
    digits = max(10 ** (len(str(more)) - 2), 1)
    return f"about {_count(max(-(-more // digits) * digits, 1))} more such prompts would settle whether it beats {what}"


def _doubts(fit: Facts) -> Sequence[str]:
    found = []
    for key in ("pairs", "prompts"):
        if fit.get(key) is not None and fit[key] < 1:
            found.append(f"it was fitted on {fit[key]} {key}.")
    if fit.get("skipped") is not None and fit["skipped"] < 0:
        found.append(f"it skipped {fit['skipped']} pairs.")
    if not _are_shares(fit):
        return [*found, "its held-out accuracy is no share between 0 and 1."]
    accuracy, interval = fit.get("accuracy"), _interval(fit, "accuracy_interval")
    length = fit.get("length_accuracy")
    if accuracy is None and fit.get("pairs") is not None:
        found.append("its held-out accuracy is unknown.")
    if _outside(accuracy, interval):
        found.append("the interval of its held-out accuracy does not contain it.")
    if _outside(length, _interval(fit, "length_accuracy_interval")):
        found.append("the interval of the length baseline does not contain it.")
    if accuracy is None:
        return found
    prompts = fit.get("prompts")
    if prompts is not None and prompts < FEW_PROMPTS:
        found.append(f"it was measured on {prompts} distinct prompts, fewer than {FEW_PROMPTS}: too few to rely on.")
    if accuracy < 0.5:
        found.append("its held-out accuracy is under one half: it points the wrong way, or at nothing.")
    elif interval is not None and interval[0] <= 0.5:
        found.append("the interval of its held-out accuracy reaches down to chance.")
    transfer = _interval(fit, "transfer_interval")
    if transfer is not None and transfer[0] <= 0.5:
        found.append("on pairs of a source left out of the fit it cannot be told from chance.")
    if length is not None and accuracy <= length:
        found.append("on held-out pairs it does no better than the length of the responses.")
    elif length is not None and _beats_length(fit) is False:
        what = "of its gain over length reaches down to none" if _interval(fit, "gain_interval") else None
        found.append(f"the interval {what or 'of its held-out accuracy contains the length baseline'}.")
    return found


def _beats_coin(fit: Facts) -> bool | None:
    accuracy, interval = fit.get("accuracy"), _interval(fit, "accuracy_interval")
    if accuracy is None or not _are_shares(fit):
        return None
    return accuracy > 0.5 and (interval is None or interval[0] > 0.5)


def _beats_length(fit: Facts) -> bool | None:
    """By the gain on the same pairs where it was recorded, else by the interval of the accuracy."""
    accuracy, length = fit.get("accuracy"), fit.get("length_accuracy")
    if accuracy is None or length is None or not _are_shares(fit):
        return None
    interval, gain = _interval(fit, "accuracy_interval"), _interval(fit, "gain_interval")
    if gain is not None:
        return accuracy > length and gain[0] > 0
    return accuracy > length and (interval is None or interval[0] > length)


def _interval(fit: Facts, key: str) -> Interval | None:
    """An interval, where both of its ends are known."""
    ends = fit.get(key)
    return None if ends is None or None in ends else ends


def _are_shares(fit: Facts) -> bool:
    """Whether what is recorded can be true: shares between 0 and 1, a gain between -1 and 1."""
    shares = [fit.get(key) for key in ("accuracy", "length_accuracy")]
    for key in ("accuracy_interval", "length_accuracy_interval"):
        shares += fit.get(key) or ()
    gains = [fit.get("gain"), *(fit.get("gain_interval") or ())]
    return all(n is None or 0 <= n <= 1 for n in shares) and all(n is None or -1 <= n <= 1 for n in gains)


def _headline(fit: Facts, coin: bool | None, length: bool | None, doubts: Sequence[str]) -> str:
    if not doubts:
        if coin is None:
            return "not known: nothing is recorded of its fit"
        return "it beats a coin" + (" and length" if length else "")
    prompts = fit.get("prompts")
    if coin is not None and prompts is not None and prompts < FEW_PROMPTS:
        return f"doubtful: measured on {prompts} distinct prompts, too few to tell it from a coin or from length"
    if coin is False:
        return "doubtful: not to be told from a coin on pairs that it has not seen, so its margins are worthless"
    if length is False:
        return "doubtful: it beats a coin, but it is not shown to beat the length of the responses"
    return f"doubtful: {doubts[0].removesuffix('.')}"


def _coin(fit: Facts, beats: bool | None) -> str:
    if beats is None:
        return NOT_KNOWN
    right = _percent(fit["accuracy"], _interval(fit, "accuracy_interval"))
    return f"{_said(beats)}, right on {right} of held-out pairs, a coin on 50 %"


def _length(fit: Facts, beats: bool | None) -> str:
    if beats is None:
        return NOT_KNOWN
    rule = fit.get("length_rule")
    which = f"taking the {rule} response" if rule in ("shorter", "longer") else "the length of the responses"
    gain = fit["accuracy"] - fit["length_accuracy"] if fit.get("gain") is None else fit["gain"]
    return (
        f"{_said(beats)}, {_points(gain, _interval(fit, 'gain_interval'))} against {which}, which is right on "
        f"{_percent(fit['length_accuracy'])}"
    )


def _sure(fit: Facts, coin: bool | None, length: bool | None) -> str:
    prompts, interval = fit.get("prompts"), _interval(fit, "accuracy_interval")
    if coin is None or not isinstance(prompts, int) or prompts < 1:
        return NOT_KNOWN
    few = f", fewer than {FEW_PROMPTS}: too few to rely on" if prompts < FEW_PROMPTS else ""
    said = [f"95 % intervals from {_count(prompts)} distinct prompts{few}"]
    if coin is False:
        low = None if interval is None else interval[0] - 0.5
        said.append(settled(prompts, fit["accuracy"] - 0.5, low, "a coin"))
    if length is False:
        ahead, gain = fit["accuracy"] - fit["length_accuracy"], _interval(fit, "gain_interval")
        low = None if interval is None else interval[0] - fit["length_accuracy"]
        if gain is not None:
            ahead, low = fit["gain"], gain[0]
        said.append(settled(prompts, ahead, low, "length"))
    return "; ".join(said)


def _more(fit: Facts) -> str:
    curve = fit.get("curve")
    if not curve or len(curve) < 2:
        return "not measured"
    shares = ", ".join(f"{100 * at['share']:.0f}" for at in curve)
    right = ", ".join(f"{100 * at['accuracy']:.1f}" for at in curve)
    said = f"{shares} % of the prompts give {right} %, with layer and estimator as chosen by all of them"
    behind = curve[-2]["behind"]
    if behind is None:
        return said
    step = f"the last doubling {_points(curve[-1]['accuracy'] - curve[-2]['accuracy'], behind)}"
    would = "would help" if behind[0] > 0 else "would hardly help" if behind[1] < LITTLE else "no telling if they help"
    return f"{would}: {said}; {step}"


def _outside(value: float | None, interval: Interval | None) -> bool:
    """Whether an interval contradicts its value, but for rounding."""
    if value is None or interval is None:
        return False
    return not interval[0] - 1e-9 <= value <= interval[1] + 1e-9


def _said(beats: bool) -> str:
    return "yes" if beats else "no"


def _percent(value: float, interval: Interval | None = None) -> str:
    return f"{100 * value:.1f} %" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _points(value: float, interval: Interval | None = None) -> str:
    ends = f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]" if interval else ""
    return f"{100 * value:+.1f} points{ends}"


def _count(number: int) -> str:
    return f"{number:,}"
