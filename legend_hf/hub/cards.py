"""Facts become card text. In: plain mappings, and the README that is there. Out: the new README.

Pure: no network, no clock, no files but the templates in `dataset_cards/`. A card is YAML front matter, one
section between two HTML comments that is ours, and whatever people wrote around it, which stays byte for
byte. Every string in the facts may come from a stranger and is escaped. Knows no directions and no datasets,
only what is said about them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from legend_hf.hub import front_matter
from legend_hf.hub.concept import SAFETY, Concept, either
from legend_hf.hub.verdict import Verdict, verdict_on

logger = logging.getLogger(__name__)

Facts = Mapping[str, Any]

NOT_RECORDED = "not recorded"
LONGEST_SOURCE_CARD = 500_000
"""Characters of another repository's card that are taken over."""

_BEGIN = "<!-- legend_hf:begin -->"
_END = "<!-- legend_hf:end -->"
_NOTE = "<!-- Written by legend_hf: the next push replaces this section and keeps what is outside it. -->"
_MARKER = re.compile(r"[ \t]*<!--\s*/?legend_hf:.*?-->[ \t]*(?:\r?\n)?", re.DOTALL)
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
# Behind each of these a joiner goes: https:|//, www|., name|@host.
_ADDRESS = re.compile(
    r":(?=/)|\bwww(?=\.)|\b(?:mailto|xmpp)(?=:)|[\w.+;-](?=@[\w-]+\.)|(?<![^\s])(?=@\w)", re.IGNORECASE
)
_COMMIT = re.compile(r"[0-9a-f]{7,64}")

# Where several sources may each add their own; any other key of ours gives way to one that is there already.
_UNITED = ("tags", "annotations_creators", "source_datasets", "language")
_OURS = ("library_name", "base_model", "datasets", "dataset_info", "configs", "size_categories")
# What a source's front matter says of its own files, viewer and access, not of its texts.
_NOT_INHERITED = (
    "dataset_info",
    "configs",
    "config_names",
    "viewer",
    "size_categories",
    "source_datasets",
    "arxiv",
    # Said apart, because several may hold.
    "license",
    "license_name",
    "license_link",
)

# The Hub's word for a licence that nobody knows.
_UNKNOWN = "unknown"

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)

_READER = (
    ("model", "model"),
    ("revision", "commit of the model"),
    ("model_sha256", "sha256 of the model folder"),
    ("weights_sha256", "sha256 of the weight files"),
    ("tensors_sha256", "sha256 of the weights, in whatever files"),
    ("config_sha256", "sha256 of the model's config"),
    ("code_sha256", "sha256 of the model's own code"),
    ("model_type", "architecture"),
    ("tokenizer_sha256", "sha256 of the tokenizer"),
    ("chat_template_sha256", "sha256 of the chat template"),
    ("template", "template"),
    ("joiner", "between template and response"),
    ("fit_joiner", "the same while fitting, where it differs"),
    ("eos", "end-of-text token"),
    ("layer", "`layer`"),
    ("pooling", "pooling"),
    ("max_length", "longest text, in tokens"),
    ("dtype", "dtype of the model"),
    ("date", "date that chat templates print"),
    ("loading", "loaded from, or quantised by"),
)
_FIT = (
    ("estimator", "estimator"),
    ("pairs", "pairs"),
    ("prompts", "distinct prompts"),
    ("skipped", "pairs left out, unreadable"),
    ("pairs_source", "source of the pairs"),
    ("held_out", "held out"),
    ("seed", "seed"),
)


@dataclass(frozen=True)
class Licence:
    """What a card's front matter says of its licence.

    Attributes:
        ids: Of the Hub's list; empty when not stated.
        name: Of one that is not on that list.
        link: To its text.
    """

    ids: tuple[str, ...]
    name: str | None
    link: str | None

    @property
    def said(self) -> tuple[str, ...]:
        """All of it."""
        return tuple(part for part in (*self.ids, self.name, self.link) if part is not None)


def direction_card(facts: Facts, existing: str | None = None) -> str:
    """Writes the card of a direction.

    Args:
        facts: `repo_id` (None: not on the Hub), `library` (name and version), and the mappings `reader`,
            `calibration` and `facts` of the artifact's configuration. None anywhere: not recorded; in the calibration:
            not held.
        existing: The README that is there.

    Raises:
        KeyError: A fact is missing; a card with a hole is never written.
        ValueError: The README that is there has front matter or markers that cannot be understood.
    """
    from huggingface_hub import ModelCardData

    reader, fit = facts["reader"], facts["facts"]
    concept, found = Concept.of(fit), verdict_on(fit)
    metadata = ModelCardData(
        library_name="legend-hf",
        pipeline_tag="text-classification",
        base_model=_id_or_none(reader["model"]),
        datasets=[source] if (source := _dataset_id(fit["pairs_source"])) else None,
        tags=["legend", "direction", _tag(concept), "preference", "reward-model", "representation-engineering"],
    ).to_dict()
    published = reader["model"] is not None
    section = _fill(
        "direction.md",
        d_model=_number(reader["d_model"]),
        n_layers=_number(reader["n_layers"]),
        low=escaped(concept.low),
        high=escaped(concept.high),
        more=escaped(concept.more),
        model=model_name(reader),
        model_note="The model is downloaded when it is first needed."
        if published
        else "Its model was read from a folder and is not on the Hub: give the folder with `model=`.",
        program=_direction_program(facts),
        reader_table=as_table(("", ""), _reader_rows(reader)),
        facts_table=as_table(
            ("", ""),
            [(label, escaped(fit[key])) for key, label in _FIT]
            + [
                ("held-out accuracy", _share(fit["accuracy"], fit["accuracy_interval"])),
                ("length baseline", _length(fit)),
                *_transfer(fit),
                ("effect", _effect(fit)),
                ("versions", _versions(fit["versions"])),
                ("written by", escaped(facts["library"])),
            ],
        ),
        calibration=_calibration(facts["calibration"]),
        verdict="\n".join(
            f"- {line}" for line in (*verdict_lines(found), *(f"**Doubtful:** {doubt}" for doubt in found.doubts))
        ),
    )
    return _compose(
        existing, metadata, section, title=_title(facts["repo_id"], f"A direction of {escaped(concept.name)}")
    )


def dataset_card(facts: Facts, existing: str | None = None, source_cards: Mapping[str, str] | None = None) -> str:
    """Writes the card of an annotated dataset.

    Args:
        facts: `repo_id` (None: a folder), `library`, `sources` (mappings with `repo_id` and `revision` each),
            `metadata` (front matter that describes the files: `dataset_info` and `configs`, of
            the whole repository), and `configs`: config name to a mapping with `directions` (name, `""` for
            an only one, to what `direction_card` takes plus `revision`), `statistics` (one mapping per column
            and split) and `kept_splits` (splits of the config that stay as they are). Configs that are in the
            existing card and not here stay.
        existing: The README that is there.
        source_cards: The READMEs of the source datasets, by id: their licence, language and tags are inherited,
            their texts follow below, once.

    Raises:
        KeyError: A fact is missing.
        ValueError: The README that is there cannot be understood, or a kept split was annotated otherwise.
    """
    from huggingface_hub import DatasetCardData

    concepts = [Concept.of(d["facts"]) for config in facts["configs"].values() for d in config["directions"].values()]
    metadata = DatasetCardData(
        annotations_creators=["machine-generated"],
        source_datasets=[known for one in facts["sources"] if (known := _id_or_none(one["repo_id"]))] or None,
        size_categories=[_size(facts["metadata"]["dataset_info"])],
        tags=["legend", "margin", "preference", *dict.fromkeys(map(_tag, concepts)), "rlhf", "trl", "reward-model"],
        **facts["metadata"],
    ).to_dict()
    inherited: dict[str, Any] = {}
    appendices = []
    licences: dict[str, Licence] = {}
    for source in facts["sources"]:
        card = (source_cards or {}).get(source["repo_id"])
        if card is None:
            continue
        kept, appendix, licences[source["repo_id"]] = _inherit(source, card)
        inherited = _merge(inherited, kept)
        if card:
            appendices.append(appendix)
    configs = facts["metadata"]["configs"] or ()
    others = any(config["config_name"] not in facts["configs"] for config in configs) or any(
        config["kept_splits"] for config in facts["configs"].values()
    )
    old = _blocks(existing or "")
    blocks = {name: text for name, text in old.items() if name not in facts["configs"]}
    for name, config in facts["configs"].items():
        blocks[name] = _config_block(name, config, facts, old.get(name), licences)
    # Configurations that stay may be of another concept; their tables say of which.
    told = [text for block in blocks.values() for text in re.findall(r"\| Chosen ([^|]+?) \|", block)]
    more = either(word for text in told for word in text.split(" or "))
    section = _fill(
        "dataset.md",
        columns=_columns(facts["metadata"]["dataset_info"], more),
        more=more,
        holds="about safety holds" if SAFETY in concepts else "can hold",
        configs="\n\n".join(blocks[name] for name in sorted(blocks)),
    )
    return _compose(
        existing,
        metadata,
        section,
        title=_title(facts["repo_id"], "Preference pairs with margins"),
        inherited=inherited,
        licence=_licence(front_matter.as_written(front_matter.split(existing)[0]), licences, others=others),
        appendices=appendices,
    )


def file_metadata(text: str | None) -> dict[str, Any]:
    """What a README's front matter says of the files, `dataset_info` and `configs`, as `datasets` reads it.

    Raises:
        ValueError: It is not YAML, or not a mapping.
    """
    read = front_matter.as_python(front_matter.split(text)[0])
    return {key: read.get(key) for key in ("dataset_info", "configs")}


def described_configs(text: str | None) -> frozenset[str]:
    """The configurations that a README describes as annotated by this library."""
    return frozenset(_blocks(front_matter.split(text)[1]))


def verdict_lines(found: Verdict) -> list[str]:
    """Whether a direction is any good, a line each."""
    return [f"**{asked.capitalize()}:** {answer}." for asked, answer in found.lines]


def _doubtful(directions: Mapping[str, Facts]) -> str:
    """A paragraph on the directions of a configuration that are doubtful; nothing where none is."""
    found = {name: verdict_on(d["facts"]) for name, d in directions.items()}
    return "".join(
        f"\n\n**Doubtful:** the direction{f' {as_code(name)}' if name else ''} is {verdict.warning}."
        for name, verdict in found.items()
        if verdict.doubtful
    )


def _length(fit: Facts) -> str:
    """What length alone gets right, and by which rule."""
    rule = fit.get("length_rule")
    return _share(fit["length_accuracy"], fit["length_accuracy_interval"]) + (
        f", taking the {escaped(rule)} response" if rule else ""
    )


def _transfer(fit: Facts) -> list[tuple[str, str]]:
    """What it does on pairs of sources that it was not fitted on, where that was measured."""
    if fit.get("transfer_accuracy") is None:
        return []
    each = ", ".join(f"{escaped(name)} {100 * value:.1f} %" for name, value in fit["transfer_by_source"].items())
    return [("accuracy on a source left out", f"{_share(fit['transfer_accuracy'], fit['transfer_interval'])}: {each}")]


def _effect(fit: Facts) -> str:
    """How far the held-out raw margins lie above 0, in their own spread."""
    value, interval = fit.get("effect"), fit.get("effect_interval")
    if value is None:
        return NOT_RECORDED
    return f"{value:+.2f}" + (f" (95 % interval {interval[0]:+.2f} to {interval[1]:+.2f})" if interval else "")


def _licence(there: Facts, licences: Mapping[str, Licence], *, others: bool) -> dict[str, Any]:
    """What the front matter says of licences: all of them, where the rows are under several.

    Args:
        there: The front matter that is there.
        licences: Of the sources, by id.
        others: Whether rows stay that are not of these sources.

    Raises:
        ValueError: Two licences have names of their own, of which a card has room for one.
    """
    known = list(dict.fromkeys(name for licence in licences.values() for name in licence.ids or (_UNKNOWN,)))
    old = [str(name) for name in _listed(there.get("license") or [])]
    if set(known) <= {_UNKNOWN, *old} and not (others or len(licences) > 1):
        known = [name for name in known if name != _UNKNOWN]
    if not old and others:
        old = [_UNKNOWN]
    united: list[str] = []
    for name in (*old, *known):
        if name.lower() not in map(str.lower, united):
            united.append(name)
    if set(united) <= {_UNKNOWN} or not known:
        return {}
    changes: dict[str, Any] = {"license": united[0] if len(united) == 1 else united}
    names = {key: value for key in ("license_name", "license_link") if (value := there.get(key)) is not None}
    for repo_id, licence in licences.items():
        for key, value in (("license_name", licence.name), ("license_link", licence.link)):
            clash = names.get(key) not in (None, value) and (key == "license_name" or "other" in licence.ids)
            if value is not None and clash:
                raise ValueError(
                    f"`{key}` of the card is {names[key]!r} and that of the source `{repo_id}` is {value!r}; a card "
                    "has room for one, so push to another repository"
                )
            if value is not None and names.setdefault(key, value) == value:
                changes[key] = value
    return changes


def _config_block(name: str, config: Facts, facts: Facts, old: str | None, licences: Mapping[str, Licence]) -> str:
    assert re.fullmatch(r"[\w.-]+", name), name
    directions: Mapping[str, Facts] = config["directions"]
    provenance = as_table(
        ("Direction", "Commit", "Model", "Layer, pooling, template", "Calibration", "Held-out accuracy"),
        [
            (
                (f"{as_code(column)}: " if column else "") + repository_link(d["repo_id"], "", "not published"),
                as_code(d["revision"]) if d["revision"] is not None else NOT_RECORDED,
                model_name(d["reader"]),
                f"{escaped(d['reader']['layer'])}, {as_code(d['reader']['pooling'])}, "
                + _reader_value("template", d["reader"]["template"]),
                escaped(config["scales"][column]),
                _share(d["facts"]["accuracy"], d["facts"]["accuracy_interval"]),
            )
            for column, d in directions.items()
        ],
    )
    kept_rows: list[str] = []
    if old is not None and config["kept_splits"]:
        if provenance not in old.replace("\r\n", "\n"):
            raise ValueError(
                f"config `{name}` has splits {sorted(config['kept_splits'])} that were annotated with "
                "another direction; annotate all its splits with one direction and push them together as a "
                "`DatasetDict`, or choose another `config_name`"
            )
        starts = tuple(f"| {as_code(split)} |" for split in config["kept_splits"])
        kept_rows = [line for line in old.splitlines() if line.startswith(starts)]
    rows = [
        (
            as_code(row["split"]),
            as_code(row["column"]),
            _number(row["rows"]),
            _number(row["skipped"]),
            *(_number(row[key]) for key in ("mean", "sd", "q05", "q50", "q95")),
            _percent(row["positive"]),
        )
        for row in config["statistics"]
    ]
    chosen = f"Chosen {escaped(either(Concept.of(d['facts']).more for d in directions.values()))}"
    statistics = as_table(("Split", "Column", "Rows", "Skipped", "Mean", "SD", "5 %", "Median", "95 %", chosen), rows)
    text = _fill(
        "config.md",
        config=as_code(name),
        provenance=f"{provenance}{_doubtful(directions)}\n\nAnnotated with {escaped(facts['library'])}.",
        source="\n".join(_source_line(source, licences) for source in facts["sources"])
        or "The source dataset was not named.",
        statistics="\n".join([statistics, *kept_rows]),
        program=_dataset_program(config, facts["sources"]),
    )
    return f"<!-- legend_hf:config {name} -->\n{text.strip()}\n<!-- /legend_hf:config {name} -->"


def _source_line(source: Facts, licences: Mapping[str, Licence]) -> str:
    commit = as_code(source["revision"]) if source["revision"] else NOT_RECORDED
    licence = licences.get(source["repo_id"])
    said = "" if licence is None else f", licence {', '.join(map(as_code, licence.said)) or 'not stated'}"
    return f"Source: {repository_link(source['repo_id'], 'datasets/', NOT_RECORDED)}, commit {commit}{said}."


def _blocks(text: str) -> dict[str, str]:
    """The configs' parts of a section that was written before."""
    return {
        match[1]: match[0].replace("\r\n", "\n")
        for match in re.finditer(
            r"<!-- legend_hf:config (\S+) -->.*?<!-- /legend_hf:config \1 -->", _section(text), re.DOTALL
        )
    }


def _direction_program(facts: Facts) -> str:
    argument = json.dumps(_id_or_none(facts["repo_id"]) or "path/to/this/folder")
    if facts["reader"]["model"] is None:
        argument += ', model="path/to/its/model"'
    rows = (
        '"Anthropic/hh-rlhf", data_dir="harmless-base"' if Concept.of(facts["facts"]).is_safety else '"path/to/pairs"'
    )
    return (
        "from datasets import load_dataset\nfrom legend_hf import LegendMarginFn\n\n"
        f"ds = load_dataset({rows})\n"
        f'ds = ds.map(LegendMarginFn({argument}), batched=True)\nds["train"][0]["margin"]'
    )


def _dataset_program(facts: Facts, sources: Sequence[Facts]) -> str:
    directions: Mapping[str, Facts] = facts["directions"]
    loaded = facts.get("loaded") or {"arguments": {}, "unknown": ["how the rows were loaded"]}

    def load(name: str, d: Facts) -> str:
        known = _id_or_none(d["repo_id"])
        folder = '"path/to/the/direction' + (f"/{_literal(name)[1:]}" if name else '"')
        arguments = [folder if known is None else json.dumps(known)]
        if d["repo_id"] and _COMMIT.fullmatch(d["revision"] or ""):
            arguments.append(f'revision="{d["revision"]}"')
        if d["reader"]["model"] is None:
            arguments.append('model="path/to/its/model"')
        return f"Direction.from_pretrained({', '.join(arguments)})"

    source = sources[0] if len(sources) == 1 else None
    arguments = [json.dumps(_id_or_none(source["repo_id"] if source else None) or "path/to/the/source")]
    if source and _COMMIT.fullmatch(source["revision"] or ""):
        arguments.append(f'revision="{source["revision"]}"')
    # The splits that stay were loaded in their own way.
    named = ("name", "data_dir") if facts["kept_splits"] else ("name", "data_dir", "split")
    arguments += [f"{key}={_literal(str(loaded['arguments'][key]))}" for key in named if key in loaded["arguments"]]
    unknown = [*loaded["unknown"], *facts.get("unknown", ())]
    if source is None and sources:
        unknown.append("how the sources were put together")
    inert = (" ".join(re.sub(r"[^\w ,.`]+|`{2,}", " ", words).split()) for words in unknown)
    missing = "".join(f"# Not recorded: {words}.\n" for words in inert)
    options = {**(facts.get("options") or {}), "overwrite": True}
    given = "".join(f", {key}={_argument(value)}" for key, value in options.items())
    if list(directions) == [""]:
        made = f"direction = {load('', directions[''])}"
    else:
        lines = "".join(f"    {_literal(name)}: {load(name, d)},\n" for name, d in directions.items())
        made = f"direction = {{\n{lines}}}"
    return (
        "from datasets import load_dataset\nfrom legend_hf import Direction, LegendMarginFn, annotate\n\n"
        f"{made}\n{missing}ds = load_dataset({', '.join(arguments)})\n"
        f"ds = annotate(ds, LegendMarginFn(direction{given}))"
        + (f"\nds = ds.remove_columns({_argument(facts['dropped'])})" if facts.get("dropped") else "")
    )


def _argument(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return _literal(value) if isinstance(value, str) else repr(value)


def without_layout(text: str) -> str:
    """A card that no longer says where a dataset's files lie and what is in them."""
    there, body = front_matter.split(text)
    emptied: dict[str, Any] = {key: [] for key in ("configs", "dataset_info") if key in front_matter.as_written(there)}
    return f"---\n{front_matter.edited(there, emptied)}\n---\n{body}" if emptied else text


def united(existing: str | None, other: str | None) -> str | None:
    """A card with what people wrote into another one: its keys where there are none, its paragraphs where they lack.

    Args:
        existing: The card that stays as it is.
        other: The card whose text joins it; its generated section does not.
    """
    if existing is None or other is None:
        return other if existing is None else existing
    there, body = front_matter.split(existing)
    added, text = front_matter.split(other)
    begin, end = _bounds(text)
    if begin is not None:
        text = text[:begin] + "\n\n" + text[end:]
    known = body.replace("\r\n", "\n")
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n"))]
    lacking = [part for part in paragraphs if part and not part.startswith("# ") and part not in known]
    has = front_matter.as_written(there)
    keys = {
        key: value
        for key, value in front_matter.as_written(added).items()
        if key not in has and key not in (*_OURS, *_UNITED)
    }
    if not lacking and not keys:
        return existing
    joined = "\n\n".join([body.rstrip(), *lacking]) + "\n" if lacking else body
    return f"---\n{front_matter.edited(there, keys)}\n---\n{joined}"


def _compose(
    existing: str | None,
    metadata: Mapping[str, Any],
    section: str,
    *,
    title: str,
    inherited: Mapping[str, Any] | None = None,
    licence: Mapping[str, Any] | None = None,
    appendices: Sequence[tuple[str, str]] = (),
) -> str:
    """Puts front matter, section and what people wrote together.

    Args:
        existing: The README that is there.
        metadata: Our front matter.
        section: Our text.
        title: Heading of a README that is new.
        inherited: Front matter taken over where there is none.
        licence: Front matter that is set whatever there is.
        appendices: Markers and texts that go to the end, unless the marker is there already.
    """
    there, body = front_matter.split(existing)
    text = existing or ""
    newline = "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"
    front = _merge(_merge(front_matter.as_written(there), inherited or {}), metadata) | dict(licence or {})
    head = front_matter.edited(there, front, newline=newline)
    ours = f"{_BEGIN}\n{_NOTE}\n\n{section.strip()}\n\n{_END}".replace("\n", newline)
    begin, end = _bounds(body)
    if not body.strip():
        body = f"{newline}# {title}{newline * 2}{ours}{newline}"
    elif begin is None:
        body = f"{body.rstrip()}{newline * 2}{ours}{newline}"
    else:
        body = body[:begin] + ours + body[end:]
    for marker, words in appendices:
        if marker not in body:
            body = f"{body.rstrip()}{newline * 2}" + f"{marker}\n{words.strip()}\n".replace("\n", newline)
    return f"---{newline}{head}{newline}---{newline}{body}"


def _section(text: str) -> str:
    begin, end = _bounds(text)
    return text[begin:end] if begin is not None else ""


def _bounds(body: str) -> tuple[int, int] | tuple[None, None]:
    """Where our section begins and ends."""
    begins, ends = body.count(_BEGIN), body.count(_END)
    if begins == ends == 0:
        return None, None
    begin, end = body.find(_BEGIN), body.find(_END)
    if begins != 1 or ends != 1 or begin > end:
        raise ValueError(
            f"the README must have one `{_BEGIN}` and after it one `{_END}`, or neither; it has {begins} and {ends}: "
            "restore the line that is missing, or delete what is left of the section"
        )
    return begin, end + len(_END)


def _merge(there: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Adds front matter to front matter; what is there stays, but for keys that state our own facts."""
    merged = dict(there)
    for key, value in new.items():
        old = merged.get(key)
        if old is None or key in _OURS:
            merged[key] = value
        elif key in _UNITED and not set(_listed(value)) <= set(_listed(old)):
            merged[key] = list(dict.fromkeys([*_listed(old), *_listed(value)]))
    return merged


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _inherit(source: Facts, card: str) -> tuple[dict[str, Any], tuple[str, str], Licence]:
    """Front matter that a source's card passes on, its text with a marker of where it is from, and its licence."""
    try:
        head, body = front_matter.split(card)
        data = front_matter.as_written(head)
    except ValueError as error:
        # Somebody else's card: it cannot be corrected here, and its text can still be shown.
        logger.warning("took no licence, language or tags from the card of `%s`: %s", source["repo_id"], error)
        data, body = {}, card
    kept = {
        key: value
        for key, value in data.items()
        if isinstance(key, str) and key not in _NOT_INHERITED and not key.startswith("extra_gated") and _is_plain(value)
    }
    body = _MARKER.sub("", body).strip()
    if len(body) > LONGEST_SOURCE_CARD:
        body = body[:LONGEST_SOURCE_CARD] + "\n\n(The rest of this card was left out.)"
    revision = f", commit {as_code(source['revision'])}" if source["revision"] else ""
    heading = (
        f"## Card of the source\n\nFrom {repository_link(source['repo_id'], 'datasets/', NOT_RECORDED)}{revision}:\n\n"
    )
    name = re.sub(r"[^\w./-]", "", source["repo_id"])
    marker = f"<!-- legend_hf:source {name} -->"
    licence = Licence(
        tuple(str(each) for each in _listed(data.get("license") or []) if _is_plain(each)),
        *(str(v) if (v := data.get(key)) and _is_plain(v) else None for key in ("license_name", "license_link")),
    )
    return kept, (marker, heading + (body or "(It has no text.)")), licence


def _is_plain(value: Any) -> bool:
    """A short scalar or a list of them, as a licence or tags are. Nested YAML of a stranger is not taken."""
    if isinstance(value, list):
        return len(value) <= 200 and all(isinstance(item, str | int | float | bool) for item in value)
    return isinstance(value, str | int | float | bool) and len(str(value)) <= 1000


def _size(dataset_info: Any) -> str:
    infos = dataset_info if isinstance(dataset_info, list) else [dataset_info]
    rows = sum(split["num_examples"] for info in infos for split in info.get("splits") or ())
    return next((name for limit, name in _SIZES if rows < limit), "n>1B")


def _fill(name: str, **facts: str) -> str:
    return Template(_template(name)).substitute(facts)


@lru_cache
def _template(name: str) -> str:
    shipped = files("legend_hf").joinpath("dataset_cards", name)
    if shipped.is_file():
        return shipped.read_text(encoding="utf-8")
    # An editable install: the templates lie beside the package, not in it.
    return (Path(__file__).resolve().parents[2] / "dataset_cards" / name).read_text(encoding="utf-8")


def _title(repo_id: str | None, default: str) -> str:
    return escaped(repo_id.rpartition("/")[2]) if repo_id else default


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def model_name(reader: Facts) -> str:
    """The model of a reader, for a sentence."""
    loading = reader.get("loading")
    loaded = f", loaded with {as_code(loading_said(loading))}" if loading else ""
    if reader["model"] is None:
        return f"an unpublished model (sha256 {as_code(reader['model_sha256'])}){loaded}"
    commit = f" at {as_code(reader['revision'])}" if reader["revision"] is not None else ""
    return repository_link(reader["model"], "", NOT_RECORDED) + commit + loaded


def repository_link(repo_id: str | None, prefix: str, missing: str) -> str:
    """A link to a repository, or what to say where there is none."""
    if repo_id is None:
        return missing
    if not _REPO_ID.fullmatch(repo_id):
        return as_code(repo_id)
    return f"[`{repo_id}`](https://huggingface.co/{prefix}{repo_id})"


def _reader_rows(reader: Facts) -> list[tuple[str, str]]:
    """What is known of a reader; of how it is loaded only where that is said, since most are loaded as they are."""
    known = [(key, label) for key, label in _READER if key != "loading" or reader.get(key) is not None]
    return [(label, _reader_value(key, reader[key])) for key, label in known]


def loading_said(loading: Facts) -> str:
    """How a model is loaded, for a person to read: the GGUF file, or all of the quantisation."""
    parts = [loading.get("gguf_file"), loading.get("quantization_config")]
    return ", ".join(json.dumps(one, sort_keys=True) if isinstance(one, Mapping) else str(one) for one in parts if one)


def _reader_value(key: str, value: Any) -> str:
    if value is None:
        absent = {
            "chat_template_sha256": "none",
            "fit_joiner": "the same",
            "model_sha256": "none, it is on the Hub",
            "code_sha256": "none was run",
        }
        absent |= {"model": "not on the Hub", "revision": "none"}
        return absent.get(key, NOT_RECORDED)
    if key == "loading":
        return as_code(loading_said(value))
    if key in ("joiner", "fit_joiner") or (key == "template" and not re.fullmatch(r"\w+", value)):
        return as_code(json.dumps(value, ensure_ascii=False))
    return _number(value) if isinstance(value, int | float) else as_code(value)


def _calibration(calibration: Facts) -> str:
    kind, scale = calibration["kind"], calibration["scale"]
    bins, logit, link = (calibration.get(name) for name in ("bins", "logit", "link"))
    held = ["`raw`: the projection itself, in hidden-state units, as in the paper. Tens of units saturate a loss."]
    if scale is not None:
        held.append(
            f"`unit`: the raw projection divided by {_number(scale)}, the 95th percentile of its absolute value, and "
            "clipped to ±1."
        )
    if bins is not None:
        sizes = [f"{_number(bins['values'][0])} below {_number(bins['edges'][0])}"]
        sizes += [f"{_number(v)} from {_number(e)}" for e, v in zip(bins["edges"], bins["values"][1:], strict=True)]
        held.append(
            "`bins`, in the column `margin_bin`: the absolute value of the raw projection in a few sizes, with the "
            f"sign: {', '.join(sizes[:9])}{' and so on' if len(sizes) > 9 else ''}. The paper has a discrete margin "
            "too and does not publish its edges and values; these are this library's."
        )
    if logit is not None:
        held.append(
            f"`logit`: {_number(logit)} times the raw projection: the log-odds that the pair's label is right, by the "
            "Bradley-Terry model."
        )
    if link is not None:
        held.append(
            "`link`: the same log-odds as a smooth, strictly rising function of the raw projection, after LegendreTron."
        )
    if logit is not None or link is not None:
        held.append(
            f"In the column `margin_prob`: the probability of these log-odds, from the "
            f"`{'link' if link is not None else 'logit'}`. It holds for pairs like those of the fit, with labels like "
            "theirs."
        )
    lines = "\n".join(f"- {line}" for line in held)
    return (
        f"`margin` is {as_code(kind)} unless `scale=` asks for another. All that the artifact holds was fitted on "
        f"held-out pairs. Nothing has an offset, so swapping a pair mirrors it:\n\n{lines}"
    )


def _tag(concept: Concept) -> str:
    """A concept as a tag of the Hub."""
    return re.sub(r"[\W_]+", "-", concept.name[:100].lower()).strip("-")


def _columns(dataset_info: Any, more: str = "") -> str:
    """The table of columns, without those that no configuration has."""
    infos = dataset_info if isinstance(dataset_info, list) else [dataset_info]
    there = {str(feature["name"]) for info in infos for feature in info.get("features") or ()}

    def is_there(line: str) -> bool:
        named = re.findall(r"`(\w+)`", line.split("|")[1]) if line.startswith("| `") else []
        return not named or any(c == "margin" or c in there or any(t.startswith(f"{c}_") for t in there) for c in named)

    return "\n".join(line for line in _fill("columns.md", more=more).splitlines() if is_there(line))


def _versions(versions: Facts | None) -> str:
    if not versions:
        return NOT_RECORDED
    return ", ".join(f"{escaped(package)} {escaped(version)}" for package, version in sorted(versions.items()))


def _share(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return NOT_RECORDED
    return f"{value:.3f}" + (f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else "not a number"


def escaped(value: Any) -> str:
    """Any value as one line of inert text."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, float):
        return _number(value)
    return _inert(str(value), " .,:;/()%+=@'-")


def as_code(value: Any) -> str:
    """Any value as inline code."""
    if value is None:
        return NOT_RECORDED
    text = str(value)
    if (
        re.fullmatch(r"[\w./:@,+=%()-]+(?: [\w./:@,+=%()-]+)*", text, re.ASCII)
        and "--" not in text
        and len(text) <= 300
    ):
        return f"`{text}`"
    # Back-ticks cannot hold every text in a table, and Markdown is read inside of HTML tags: so both are
    # spelt out.
    return f"<code>{_inert(text, ' .,:;/()%+=@-')}</code>"


def _inert(text: str, safe: str) -> str:
    """One line in which nothing is markup: letters and digits as they are, the rest as numeric entities."""
    line = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text[:1000])
    line = " ".join(line.split())
    line = line if len(line) <= 300 else line[:300] + "…"
    out = [c if c.isalnum() or c in safe or c == "…" else f"&#{ord(c)};" for c in line]
    # Inside of a word, as in package names, an underscore is no markup.
    spelt = re.sub(r"(?<=[^\W_])&#95;(?=[^\W_])", "_", "".join(out))
    # GitHub's Markdown makes links of bare addresses, some readers of it after entities are decoded: so a joiner,
    # which has no width, parts what they go by.
    return _ADDRESS.sub(lambda match: f"{match[0]}&#8288;", spelt.replace("--", "-&#45;")) or "(empty)"


def _literal(text: str) -> str:
    """A Python string that holds no markup: what is not a plain character is escaped."""
    return re.sub(r"[^\w .\"\\-]", lambda m: f"\\u{ord(m[0]):04x}", json.dumps(text), flags=re.ASCII)


def _id_or_none(repo_id: str | None) -> str | None:
    return repo_id if repo_id is not None and _REPO_ID.fullmatch(repo_id) else None


def _dataset_id(source: str | None) -> str | None:
    """A dataset id, from a fact that may be one: `id`, or `id@revision`."""
    name = (source or "").partition("@")[0]
    return name if "/" in name and _REPO_ID.fullmatch(name) else None
