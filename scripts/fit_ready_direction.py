"""The ready direction of the real chat model, made anew: fitted on hh-rlhf alone, its card with what it is right on.

In: the folder that `scripts/real_llm` makes; a folder with `hh_harmless.jsonl` and `pku_saferlhf.jsonl`. Out: the
artifact in `real_direction`, or in `--output`. Hidden states are kept outside the repository, so that a fit that was
stopped goes on; those of PKU-SafeRLHF are those of `evaluate_direction.py`. PKU-SafeRLHF is only judged on.

    python scripts/fit_ready_direction.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import kept_states
import numpy as np
from cross_fitting import share
from evaluate_direction import DEMO
from evaluate_real import read_sets
from train_demo_annotator import opening, read_jsonl

from legend_hf import Direction, LegendMarginFn, fit_direction
from legend_hf.directions import resample
from legend_hf.directions.choose import right

log = logging.getLogger("fit_ready_direction")
MILD = (DEMO / "contrast_pairs.jsonl", DEMO / "preferences" / "explicit.jsonl")
SAID = """---
license: apache-2.0
---

# A ready direction for a real chat model: SmolLM2-135M-Instruct, dequantised from 4 bits

It belongs to exactly the weights that `scripts/real_llm` makes out of a package (Apache-2.0), dequantised from 4
bits, **not the Hub's model** of that name, which this direction refuses. `scripts/quickstart --real` annotates with it:

```python
from legend_hf import Direction, LegendMarginFn

direction = Direction.from_pretrained("scripts/demo/real_direction", model="the folder that scripts/real_llm prints")
ds = ds.map(LegendMarginFn(direction), batched=True)
```

Fitted on pairs of [hh-rlhf](https://huggingface.co/datasets/Anthropic/hh-rlhf) (harmless-base, MIT) alone: {pairs} of a
sample of {sample}. On others of them it is right {accuracy}, {rule} {length}.
On PKU-SafeRLHF, which it has not seen ({pku_pairs} pairs of other prompts), it is right on {pku},
{pku_rule} on {pku_length}.
On the {mild_rows} mild rows that ship beside it, which are nothing like them, it is right on {mild} %: enough to see
what a direction of a real model does, not to label data with that anyone relies on.
"""


def main() -> None:
    """Fit, judge, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the two .jsonl files")
    parser.add_argument(
        "--real", type=Path, help="folder of the real chat model; else where `scripts/real_llm` made it"
    )
    parser.add_argument("--kept", type=Path, default=kept_states.default_folder(), help="what was read of the model")
    parser.add_argument("--output", type=Path, default=DEMO / "real_direction", help="where it is written")
    parser.add_argument("--device", default="cpu", help="where to read")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("legend_hf", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.path.append(str(DEMO))
    from real_llm import default_folder

    given.real = given.real or default_folder()
    rows = read_jsonl(given.data / "hh_harmless.jsonl")
    direction = fit_direction(
        rows, model=str(given.real), device=given.device, dtype="float32", on_error="skip",
        pairs_source="Anthropic/hh-rlhf", store=given.kept,
    )  # fmt: skip
    figures = {"pairs": direction.facts.pairs, "sample": f"{len(rows):,}", **of_the_fit(direction)}
    figures |= on_pku(direction, {opening(row["prompt"]) for row in rows}, given) | on_mild_rows(direction, given)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "README.md").write_text(SAID.format(**figures), encoding="utf-8")
    direction.save_pretrained(given.output, overwrite=True)
    log.info("%s", json.dumps(figures, indent=2))


def of_the_fit(direction: Direction) -> dict[str, Any]:
    """What held-out pairs of the fit said."""
    facts = direction.facts
    assert facts.accuracy is not None
    assert facts.length_accuracy is not None
    return {
        "accuracy": percent(facts.accuracy, facts.accuracy_interval, " of the time"),
        "rule": f"the {facts.length_rule} response",
        "length": percent(facts.length_accuracy, facts.length_accuracy_interval),
    }


def on_pku(direction: Direction, fitted: set[str], given: argparse.Namespace) -> dict[str, Any]:
    """How often it is right on PKU-SafeRLHF, and length there."""
    none = {"hh_harmless": 0, "refuse_vs_comply": 0, "gptfuzz_labelled": 0}
    pairs = read_sets(given.real, given.data, given.kept, none, given.device)[0].pairs
    other = np.array([opening(row["prompt"]) not in fitted for row in pairs.rows])
    raw = pairs.differences[direction.reader.layer, other] @ direction.vector
    groups = resample.groups_of(pairs.groups[other].tolist())
    value, *ends = share(right(raw), groups)
    shorter, length, length_ends = resample.better_rule(right(-pairs.longer()[other]), groups)
    return {
        "pku_pairs": f"{int(other.sum()):,}",
        "pku": percent(value, ends),
        "pku_rule": f"the {'shorter' if shorter else 'longer'} response",
        "pku_length": percent(length, length_ends),
    }


def on_mild_rows(direction: Direction, given: argparse.Namespace) -> dict[str, Any]:
    """How often it is right on the rows that ship."""
    rows = [row for file in MILD for row in read_jsonl(file)]
    fn = LegendMarginFn(direction, device=given.device)
    raw = np.array(fn({key: [row[key] for row in rows] for key in ("prompt", "chosen", "rejected")})["margin_raw"])
    return {"mild_rows": len(rows), "mild": f"{100 * right(raw).mean():.0f}"}


def percent(value: float, ends: Any, said: str = "") -> str:
    """A share and its interval, in %."""
    return f"{100 * value:.1f} %{said}" + (" [{:.1f}, {:.1f}]".format(*(100 * x for x in ends)) if ends else "")


if __name__ == "__main__":
    main()
