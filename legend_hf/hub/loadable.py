"""The README of a dataset of which some configurations are new: all that could be loaded there still can be.

In: what stands there, its README and the names of its files, and what was written. Out: the new README, or a refusal
where something would be lost. `layout` says what can be loaded, `cards` finds the words. This file reads no rows and
writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from legend_hf._version import __version__
from legend_hf.hub import cards
from legend_hf.hub.layout import Layout, changed, check_same, data_files, layout_of
from legend_hf.hub.parquet import Config, Written, folder_of
from legend_hf.hub.source import Source


@dataclass(frozen=True)
class Place:
    """What stands where a dataset will be written.

    Attributes:
        repo_id: The repository; None for a folder.
        readme: Its README.
        files: The paths of its files.
        gone: Those of them that new files take the place of.
        layout: What can be loaded there.
    """

    repo_id: str | None
    readme: str | None
    files: Collection[str]
    gone: frozenset[str]
    layout: Layout


def place_of(repo_id: str | None, readme: str | None, files: Collection[str], replaces: Collection[str]) -> Place:
    """What stands in a repository or a folder, of which files of these patterns will be replaced.

    Raises:
        ValueError: As `layout_of`.
    """
    gone = frozenset(path for path in files if any(fnmatchcase(path, pattern) for pattern in replaces))
    return Place(repo_id, readme, files, gone, layout_of(files, readme))


def check_room(place: Place, configs: Mapping[str, Config]) -> None:
    """Refuses to write where another configuration lies, over other people's splits, and beside other kinds of files.

    Raises:
        ValueError: As said.
    """
    before, annotated = place.layout, cards.described_configs(place.readme)
    others = {name: splits for name, splits in before.files.items() if name not in configs}
    for other, splits in others.items():
        for name in configs:
            folder = f"{folder_of(name)}/"
            if any(path in place.gone or path.startswith(folder) for paths in splits.values() for path in paths):
                raise ValueError(
                    f"the repository's config `{other}` keeps files in `{folder}`, where config `{name}` "
                    "would go; choose another `config_name`"
                )
    if others and before.kind != "parquet":
        raise ValueError(
            f"the repository's config `{next(iter(others))}` is of files that `datasets` reads as `{before.kind}`, and "
            "all of a repository must be of one kind, these being Parquet; choose another repository or folder"
        )
    for name, config in configs.items():
        lost = before.files.get(name, {}).keys() - config.splits.keys()
        if config.whole and lost and name not in annotated:
            raise ValueError(
                f"config `{name}` is there, with splits that these rows have not ({', '.join(sorted(lost))}) and that "
                "could not be loaded any longer; choose another `config_name`, or push a single split as a `Dataset`"
            )


def readme_of(
    place: Place,
    written: Mapping[str, Written],
    *,
    sources: Sequence[Source],
    source_cards: Mapping[str, str],
) -> str:
    """Writes the README on top of the one that is there.

    Args:
        place: What stands there.
        written: What is new.
        sources: Of the rows.
        source_cards: Their READMEs, by id.

    Raises:
        ValueError: Something that can be loaded there could not be any longer.
    """
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(**cards.file_metadata(place.readme))
    infos = DatasetInfosDict.from_dataset_card_data(data)
    layouts = MetadataConfigs.from_dataset_card_data(data)
    before = place.layout
    new = {path for config in written.values() for shards in config.splits.values() for path in shards.files}
    files = sorted({*place.files, *new} - (place.gone - new))
    _say_what_went_without_saying(layouts, before, written, files)
    facts = {}
    for name, config in written.items():
        kept = _kept_splits(name, config, infos.get(name), before.files.get(name, {}))
        infos[name] = _info(config, kept, [*(infos[name].splits if kept else ()), *config.splits])
        facts[name] = {**config.facts, "kept_splits": list(kept)}
    infos.to_dataset_card_data(data)

    def text() -> str:
        layouts.to_dataset_card_data(data)
        said = {
            "repo_id": place.repo_id,
            "library": f"legend_hf {__version__}",
            "sources": [{"repo_id": source.repo_id, "revision": source.revision} for source in sources],
            "metadata": {"dataset_info": data["dataset_info"], "configs": data["configs"]},
            "configs": facts,
        }
        return cards.dataset_card(said, place.readme, source_cards)

    for name, config in written.items():
        paths = {s: config.splits[s].files if s in config.splits else before.files[name][s] for s in infos[name].splits}
        own = _without(layouts.get(name, {}), "data_dir", "description")
        layouts[name] = own | {"data_files": data_files(paths, files)}
        if place.repo_id is None:
            # By `configs:` in a folder's card `datasets` knows it again in its cache, and by nothing else: other rows
            # in a folder of the same name must be told in there, or the earlier ones are loaded.
            layouts[name]["description"] = f"sha256 {config.sha256}"
    made = text()
    after = layout_of(files, made)
    if others := changed(before, after, but=written):
        # A pattern of theirs that takes in what is new: they get the files that they had.
        for name in others:
            own = {"data_files": data_files(before.files[name], files)}
            layouts[name] = _without(layouts[name], "data_dir") | own
        made = text()
        after = layout_of(files, made)
    check_same(before, after, new=written)
    _check_columns({name: config.features for name, config in written.items()}, made)
    return made


def _without(layout: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in layout.items() if key not in keys}


def _say_what_went_without_saying(layouts: Any, before: Layout, written: Collection[str], files: Sequence[str]) -> None:
    """Writes down the configurations that a README does not name: once it names one, it must name them all."""
    if not layouts:
        layouts.update({name: {"data_files": data_files(splits, files)} for name, splits in before.files.items()})
    if before.default not in (None, "default") and before.default not in written and "default" not in written:
        layouts[before.default] = {**layouts[before.default], "default": True}


def _info(config: Written, kept: Mapping[str, Any], order: Iterable[str]) -> Any:
    """What `datasets` keeps of a configuration: columns, and the sizes of the splits that are new and of those kept."""
    from datasets import DatasetInfo
    from datasets.splits import SplitDict, SplitInfo

    splits = SplitDict()
    for split in dict.fromkeys(order):
        new = config.splits.get(split)
        splits.add(kept[split] if new is None else SplitInfo(split, num_bytes=new.unpacked, num_examples=new.rows))
    return DatasetInfo(
        features=config.features,
        splits=splits,
        # What the kept splits take to download is recorded nowhere; their size unpacked stands in for it.
        download_size=sum(shards.download for shards in config.splits.values())
        + sum(info.num_bytes for info in kept.values()),
        dataset_size=sum(info.num_bytes for info in splits.values()),
    )


def _check_columns(features: Mapping[str, Any], text: str) -> None:
    """Refuses columns that a card cannot hold."""
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    said = DatasetInfosDict.from_dataset_card_data(DatasetCardData(**cards.file_metadata(text)))
    for name, types in features.items():
        if said[name].features != types:
            raise ValueError(
                f"the columns of config `{name}` cannot be described in a card, so `load_dataset` would read them as "
                "something else; cast them to plain types first"
            )


def _kept_splits(config: str, new: Written, info: Any, there: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a configuration on the Hub that a push of a single one leaves alone, as `SplitInfo`s."""
    if new.whole:
        return {}
    known = dict(info.splits) if info is not None and info.splits else {}
    others = set(there) - set(new.splits)
    if not others:
        return {}
    if info is None or info.features != new.features or others - set(known):
        # https://github.com/huggingface/datasets/issues/8608: one set of columns is kept for all splits.
        raise ValueError(
            f"config `{config}` has other splits there ({', '.join(sorted(others))}), and their columns are "
            "not those of this dataset; annotate all splits and push them together as a `DatasetDict`, or choose "
            "another `config_name`"
        )
    return {split: known[split] for split in known if split in others}
