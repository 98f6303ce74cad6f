"""An annotated dataset becomes Parquet files and a card, on the Hub or in a folder.

In: datasets with margin columns, and the direction they were annotated with. Out: one commit, or a folder
that `load_dataset` reads. Everything is checked before the first byte is uploaded. Reads no texts and no
models.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from legend_hf._version import __version__
from legend_hf.hub import cards, outputs, transfer
from legend_hf.hub.layout import Layout, data_files, layout_of
from legend_hf.hub.rows import load_rows, named_ids, united_sources
from legend_hf.hub.source import Source, Trace, find_sources, has_commit, traces_of
from legend_hf.hub.verdict import verdict_on
from legend_hf.margins.configs import Config, MadeBy, by_config, inspected, made_by

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import CommitInfo

    from legend_hf.margins.configs import Annotated

logger = logging.getLogger(__name__)

SHARD_BYTES = 500_000_000
"""Of Arrow data in one Parquet file, as `datasets` does."""


def push_annotated(
    dataset: Annotated,
    repo_id: str,
    *,
    direction: MadeBy,
    source: str | Sequence[str] | None = None,
    private: bool = True,
    config_name: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add margins",
    create_pr: bool = False,
    allow_source: bool = False,
) -> CommitInfo:
    """Pushes an annotated dataset with a card that says where its margins come from.

    Data, card and the card's description of the columns go up in one commit, so none of them ever stands
    without the others. A second push of the same changes nothing; text that people wrote into the card, other
    configurations and other files stay. Parquet files are written to the temporary folder first, which needs
    room for them.

    Args:
        dataset: A `DatasetDict` (all splits of one configuration), a `Dataset` (one split; the
            configuration's others stay), or a mapping from configuration names to `DatasetDict`s.
        repo_id: `namespace/name`, or `name` for the token's own account. Made if missing.
        direction: What made the margins: the `LegendMarginFn`, by whose options the card says how to compute them
            again; or its direction, or the mapping of directions that it was given, where the options are taken from
            what the columns tell.
        source: Hub id of the dataset that was annotated, or a list of ids: licence, language, tags and card text
            are taken over. None finds what was loaded from the Hub and is still in the cache of `datasets`. Sources
            that are found are checked whatever is named. `[]` says that the rows never were on the Hub; rows that were
            copied out of `datasets` and back (`from_list`, `from_pandas`) carry no trace, and count as such.
        private: Whether a repository that is made now is private. One that exists keeps what it is.
        config_name: Name of the configuration; None is `"default"`.
        token: Hub token with write permission; None takes the environment's.
        revision: Branch to push to; made if missing.
        commit_message: Of the commit.
        create_pr: Open a pull request instead of committing.
        allow_source: Allow pushing onto the source repository itself.

    Returns:
        The commit; the newest one where nothing had to change.

    Raises:
        TypeError: The dataset is streaming, or not a dataset.
        ValueError: A margin column is missing, not finite or not this direction's; splits differ in their
            columns; the repository is the source; something private would become public; or rows would that
            are from files or the Hub and whose source is not known. Nothing was uploaded.
        PermissionError: The token is missing or may not write there. Nothing was uploaded.
        ConnectionError: The Hub failed again and again. The same push can be run again.
    """
    directions, arguments = made_by(direction)
    splits = by_config(dataset, config_name)
    return _push(
        inspected(splits, directions, {name: {"arguments": arguments} for name in splits}),
        transfer.Repository(repo_id, "dataset", revision, token),
        named_sources(source),
        card=None,
        private=private,
        commit_message=commit_message,
        create_pr=create_pr,
        allow_source=allow_source,
    )


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    direction: MadeBy,
    source: str | Sequence[str] | None = None,
    private: bool = True,
    config_name: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add margins",
    create_pr: bool = False,
    allow_source: bool = False,
) -> CommitInfo:
    """Pushes a folder that this library saved as it stands: every configuration and split, and its card's text.

    Args:
        folder: As `save_annotated` or a command left it; it knows what its rows are from, and the transform's options.
        repo_id: As for `push_annotated`.
        direction: As for `push_annotated`.
        source: As for `push_annotated`; None takes what the folder knows.
        private: As for `push_annotated`.
        config_name: Push the only configuration as this one.
        token: As for `push_annotated`.
        revision: Branch to push to; made if missing.
        commit_message: Of the commit.
        create_pr: Open a pull request instead of committing.
        allow_source: Allow pushing onto the source repository itself.

    Returns:
        The commit; the newest one where nothing had to change.

    Raises:
        ValueError: As `push_annotated`.
        OSError: As `push_annotated`, or the folder cannot be read.
    """
    manifest = outputs.read_manifest(folder) or {}
    names = [*manifest.get("configs", {})] or ["default"]
    if len(names) > 1 and config_name is not None:
        raise ValueError(
            f"`config_name` is {config_name!r}, and {os.fspath(folder)!r} holds the configurations {', '.join(names)}; "
            "leave it out"
        )
    loaded = {name: load_rows(folder, name if len(names) > 1 else None) for name in names}
    dataset: Any = loaded if len(names) > 1 else loaded[names[0]]
    if len(names) == 1 and names != ["default"]:
        config_name = config_name or names[0]
    if source is None and manifest:
        source = named_ids(united_sources(manifest))
    directions, arguments = made_by(direction)
    splits = by_config(dataset, config_name)
    noted = [
        manifest.get("configs", {}).get(name, {}) | ({"arguments": arguments} if arguments else {}) for name in names
    ]
    readme = Path(folder) / transfer.README
    return _push(
        inspected(splits, directions, dict(zip(splits, noted, strict=True))),
        transfer.Repository(repo_id, "dataset", revision, token),
        named_sources(source),
        card=_read_card(readme),
        private=private,
        commit_message=commit_message,
        create_pr=create_pr,
        allow_source=allow_source,
    )


def _push(
    configs: Mapping[str, Config],
    repo: transfer.Repository,
    named: tuple[str, ...] | None,
    *,
    card: str | None,
    private: bool,
    commit_message: str,
    create_pr: bool,
    allow_source: bool,
) -> CommitInfo:
    """Uploads checked configurations in one commit; the text of `card` joins that of the card that is there."""
    target = repo.check_writable(create_pr=create_pr)
    judged = [verdict_on(d["facts"]) for config in configs.values() for d in config.facts["directions"].values()]
    for said in dict.fromkeys(verdict.warning for verdict in judged if verdict.doubtful):
        logger.warning("pushing margins to `%s` of a direction that is %s", target.repo_id, said)
    repo = replace(repo, repo_id=target.repo_id)
    sources, source_cards = _look_at_sources(
        configs, named, target, private=private, allow_source=allow_source, token=repo.token
    )

    def readme(existing: str | None) -> str:
        there = repo.list_files()
        before = layout_of(there, existing)
        _check_room(configs, before, there, cards.described_configs(existing))
        joined = cards.united(existing, card)
        return _card(configs, described, joined, target.repo_id, sources, source_cards, before, there, [*files])

    with TemporaryDirectory(prefix="legend_hf_") as folder:
        described = _write(configs, Path(folder))
        files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*.parquet"))}
        return repo.commit(
            files,
            readme=readme,
            replaces=_replaced(configs),
            private=private,
            commit_message=commit_message,
            create_pr=create_pr,
        )


def save_annotated(
    dataset: Annotated,
    folder: str | os.PathLike[str],
    *,
    direction: MadeBy,
    source: str | Sequence[str] | None = None,
    config_name: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes what `push_annotated` would push into a folder, for `load_dataset(folder)`.

    Beside the data stands `legend_hf.json`, by which `push_folder` knows the sources and the transform's options, and a
    later run its own files.

    Args:
        dataset: As for `push_annotated`.
        folder: Made if missing. Text that people wrote into its `README.md` stays. What an earlier call wrote is
            replaced where it is the same again: margins of the same direction for the same source.
        direction: As for `push_annotated`.
        source: As for `push_annotated`, but a source that cannot be reached only leaves its card out.
        config_name: As for `push_annotated`.
        overwrite: Replace what else stands in the way: other margins, and files of others.

    Raises:
        TypeError: As `push_annotated`.
        ValueError: As `push_annotated`, or the folder holds something else, or what is read.
        OSError: The folder cannot be written.
    """
    directions, arguments = made_by(direction)
    splits = by_config(dataset, config_name)
    configs = inspected(splits, directions, {name: {"arguments": arguments} for name in splits})
    named = named_sources(source)
    sources: tuple[Source, ...] = ()
    source_cards: dict[str, str] = {}
    known = True
    try:
        sources, lost = find_sources(_traces(configs), named)
        known = not lost
        source_cards = _cards_of(sources, None)
    except (OSError, ValueError) as error:
        logger.warning("left the card of %s out: %s", ", ".join(f"`{n}`" for n in named or ("the source",)), error)
        known = named is not None
        ids = (name.partition("@") for name in named or ())
        sources = sources or tuple(Source(transfer.Description(n, None, False, False), at or None) for n, _, at in ids)
    noted = [{"repo_id": one.repo_id, "revision": one.revision} for one in sources] if known else None
    made = {name: made_of(noted, directions) for name in configs}
    reads = [
        file["filename"] for config in configs.values() for one in config.splits.values() for file in one.cache_files
    ]
    check_saved_place(folder, made, reads=reads, overwrite=overwrite)
    target = Path(folder)
    existing = _read_card(target / transfer.README)
    target.mkdir(parents=True, exist_ok=True)
    manifest = outputs.read_manifest(target) or {"files": [], "configs": {}}
    there = [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()]
    before = layout_of(there, existing)
    _check_room(configs, before, there, cards.described_configs(existing))
    with TemporaryDirectory(prefix=".partial_", dir=target) as partial:
        described = _write(configs, Path(partial))
        new = {path.relative_to(partial).as_posix(): path for path in Path(partial).rglob("*.parquet")}
        card = _card(configs, described, existing, None, sources, source_cards, before, there, [*new])
        # What the card's patterns would take for rows of these splits goes, too.
        patterns = [f"{_folder_of(name)}/{split}-*" for name, config in configs.items() for split in config.splits]
        for pattern in (*_replaced(configs), *patterns):
            for old in [path for path in target.glob(pattern) if path.is_file()]:
                if old.relative_to(target).as_posix() not in new:
                    old.unlink()
        for name, path in new.items():
            (target / name).parent.mkdir(exist_ok=True)
            path.replace(target / name)
        (Path(partial) / transfer.README).write_bytes(card.encode("utf-8"))
        (Path(partial) / transfer.README).replace(target / transfer.README)
    files = {name for name in (*manifest["files"], *new, transfer.README) if (target / name).is_file()}
    noted_too = {name: {"arguments": arguments, "loaded": config.facts["loaded"]} for name, config in configs.items()}
    made = {name: {**one, **noted_too[name]} for name, one in made.items()}
    outputs.write_manifest(target, "dataset", files, configs={**manifest.get("configs", {}), **made})


def made_of(sources: Sequence[Mapping[str, str | None]] | None, direction: MadeBy) -> dict[str, Any]:
    """What a saved folder notes of a configuration: the sources of its rows, and which directions made its margins."""
    digests = {name: hashlib.sha256(d.vector.tobytes()).hexdigest() for name, d in made_by(direction)[0].items()}
    return {"sources": None if sources is None else [*sources], "directions": digests}


def check_saved_place(
    folder: str | os.PathLike[str],
    made: Mapping[str, Any] | None = None,
    *,
    dataset: str | os.PathLike[str] | None = None,
    reads: Iterable[str | os.PathLike[str] | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuses, before the work, a folder that `save_annotated` would not write into.

    Args:
        folder: Where it will be saved.
        made: Configuration to what `made_of` says of it; None before that is known.
        dataset: File or folder of the rows that are read.
        reads: What else is read for it.
        overwrite: As for `save_annotated`.

    Raises:
        ValueError: The place is taken, or lies in the rows that are read.
        OSError: It cannot be written.
    """
    there = (outputs.read_manifest(folder) or {}).get("configs", {})
    # Other options of the same transform are the same again: the scores are what costs work.
    again = all(there[name].get(key) == value for name, one in (made or {}).items() if name in there
                for key, value in one.items())  # fmt: skip
    writes = (transfer.README, outputs.MANIFEST, *(f"{_folder_of(name)}/train" for name in made or ("default",)))
    outputs.check_folder(
        folder,
        writes,
        owned=outputs.owned_files(folder),
        again=again and bool(there),
        reads=[dataset, *reads],
        overwrite=overwrite,
    )
    if not overwrite:
        outputs.check_outside(folder, [dataset])


def _read_card(readme: Path) -> str | None:
    """A card with its line ends as they are."""
    return outputs.read_text(readme) if readme.is_file() else None


def named_sources(source: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The sources that somebody named; None when nothing was said.

    Raises:
        ValueError: It is neither an id nor a list of ids.
    """
    if source is None:
        return None
    names = (source,) if isinstance(source, str) else tuple(source)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"`source` is {source!r}; give the Hub id of a dataset, a list of ids, or `[]` for none")
    return names


def check_sources(
    target: transfer.Description,
    sources: Sequence[Source],
    traces: Sequence[Trace],
    lost: Sequence[Trace],
    *,
    private: bool,
    allow_source: bool = False,
    token: str | bool | None = None,
) -> None:
    """Refuses to write onto a source, and to show what a source hides or what is from nobody knows where.

    Args:
        target: Where the rows would go.
        sources: As `find_sources` gives them.
        traces: Of the rows.
        lost: Those of them that lead nowhere.
        private: Whether the target would be made private, where it does not exist.
        allow_source: Allow pushing onto a source itself.
        token: Hub token; None takes the environment's.

    Raises:
        ValueError: As said.
    """
    if target.exists and not allow_source:
        commits = {trace.commit for trace in traces if trace.commit}
        if any(_is_same_repository(source.repo_id, target.repo_id) for source in sources) or any(
            has_commit(target.repo_id, commit, token=token) for commit in commits
        ):
            raise ValueError(
                f"`{target.repo_id}` is the dataset that was annotated; push to another repository, or pass "
                "`allow_source=True` to put the margins into this one"
            )
    if target.private if target.exists else private:
        return
    gated = target.exists and not target.public
    seen = f"{'is' if target.exists else 'would be'} {'gated, which lets others in' if gated else 'public'}"
    for source in sources:
        hidden = source.repository.private if gated else not source.repository.public
        if hidden and not _is_same_repository(source.repo_id, target.repo_id):
            raise ValueError(
                f"the source `{source.repo_id}` is private or gated and `{target.repo_id}` {seen}; push to a private "
                "repository (`private=True`), or make the source public first"
            )
    if lost:
        raise ValueError(
            f"these rows are from {lost[0].said}, and it cannot be found out which dataset of the Hub that is, while "
            f'`{target.repo_id}` {seen}; name all that they are from, `source="user/name"` or a list of such '
            "(`source=[]`: they never were on the Hub), or push to a private repository (`private=True`)"
        )


def _is_same_repository(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _look_at_sources(
    configs: Mapping[str, Config],
    named: tuple[str, ...] | None,
    target: transfer.Description,
    *,
    private: bool,
    allow_source: bool,
    token: str | bool | None,
) -> tuple[tuple[Source, ...], dict[str, str]]:
    """Finds the sources and their cards by id, and checks that the rows may go to the target."""
    traces = _traces(configs)
    sources, lost = find_sources(traces, named, token=token)
    check_sources(target, sources, traces, lost, private=private, allow_source=allow_source, token=token)
    # The card of a source that is written to is the one that is there.
    others = [s for s in sources if not _is_same_repository(s.repo_id, target.repo_id)]
    return sources, _cards_of(others, token)


def _traces(configs: Mapping[str, Config]) -> tuple[Trace, ...]:
    return traces_of(rows for config in configs.values() for rows in config.splits.values())


def _cards_of(sources: Iterable[Source], token: str | bool | None) -> dict[str, str]:
    """The cards of sources, as they were when these were loaded, by id."""
    found = {}
    for source in sources:
        commit = source.revision or source.repository.commit
        card = commit and transfer.Repository(source.repo_id, "dataset", commit, token).readme()
        found[source.repo_id] = card or ""
    return found


def _folder_of(config: str) -> str:
    return "data" if config == "default" else config


def _replaced(configs: Mapping[str, Config]) -> list[str]:
    """Patterns of the Parquet files that a push takes the place of: shards of its splits, and of those it ends."""
    shards = "-of-".join(["[0-9]" * 5] * 2)
    return [
        f"{_folder_of(name)}/{split}-{shards}.parquet"
        for name, config in configs.items()
        for split in (["*"] if config.whole else config.splits)
    ]


def _gone(configs: Mapping[str, Config], there: Iterable[str]) -> set[str]:
    """The files that a push takes the place of."""
    return {path for path in there if any(fnmatchcase(path, pattern) for pattern in _replaced(configs))}


def _write(configs: Mapping[str, Config], folder: Path) -> dict[str, dict[str, Any]]:
    """Writes Parquet files as `datasets` lays them out. Returns sizes by configuration and split."""
    import pyarrow.parquet as pq

    described: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        data = folder / _folder_of(name)
        data.mkdir()
        described[name] = {}
        for split, rows in config.splits.items():
            # The part of the table that these rows are: a slice shares the whole one.
            size = rows.data.nbytes * len(rows) // max(len(rows.data), 1)
            count = min(size // SHARD_BYTES + 1, len(rows))
            download = unpacked = 0
            content = hashlib.sha256()
            for index in range(count):
                path = data / f"{split}-{index:05d}-of-{count:05d}.parquet"
                _embedded(rows.shard(num_shards=count, index=index, contiguous=True)).to_parquet(path)
                download += path.stat().st_size
                with open(path, "rb") as file:
                    content.update(hashlib.file_digest(file, "sha256").digest())
                # From the file and not from Arrow, whose size depends on how the rows came about: the same
                # rows must give the same card.
                metadata = pq.read_metadata(path)
                unpacked += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            described[name][split] = {
                "rows": len(rows),
                "download": download,
                "unpacked": unpacked,
                "sha256": content.hexdigest(),
            }
    return described


def _embedded(rows: Dataset) -> Dataset:
    """Puts files that a column only points to (images, audio) into the rows, or they would stay here."""
    from datasets.features.features import require_decoding
    from datasets.table import embed_table_storage

    if not any(require_decoding(feature, ignore_decode_attribute=True) for feature in rows.features.values()):
        return rows
    return rows.with_format("arrow").map(embed_table_storage, batched=True, keep_in_memory=True).with_format(None)


def _card(
    configs: Mapping[str, Config],
    described: Mapping[str, Mapping[str, Any]],
    existing: str | None,
    repo_id: str | None,
    sources: Sequence[Source],
    source_cards: Mapping[str, str],
    before: Layout,
    there: Collection[str],
    new_files: Collection[str],
) -> str:
    """Writes the card on top of the one that is there, such that all that could be loaded there still can be.

    Args:
        configs: What is written.
        described: Its sizes.
        existing: The README that is there.
        repo_id: Of the target, None for a folder.
        sources: Of the rows.
        source_cards: Their READMEs, by id.
        before: What can be loaded there.
        there: Paths of the files that are there.
        new_files: Paths of those that are written.

    Raises:
        ValueError: Something that can be loaded there could not be any longer.
    """
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(**cards.file_metadata(existing))
    infos = DatasetInfosDict.from_dataset_card_data(data)
    layouts = MetadataConfigs.from_dataset_card_data(data)
    files = sorted({*there, *new_files} - (_gone(configs, there) - set(new_files)))
    if not layouts:
        # What is found by its name alone is found no longer once a card names anything.
        layouts.update({name: {"data_files": data_files(splits, files)} for name, splits in before.files.items()})
    if before.default not in (None, "default") and before.default not in configs and "default" not in configs:
        layouts[before.default] = {**layouts[before.default], "default": True}
    facts = {}
    for name, config in configs.items():
        folder = _folder_of(name)
        features = next(iter(config.splits.values())).features
        kept = _kept_splits(name, config, infos.get(name), before.files.get(name, {}), features)
        new = {
            split: SplitInfo(name=split, num_bytes=size["unpacked"], num_examples=size["rows"])
            for split, size in described[name].items()
        }
        order = [*(infos[name].splits if kept else ()), *new]
        splits = SplitDict()
        for split in dict.fromkeys(order):
            splits.add(new.get(split) or kept[split])
        infos[name] = DatasetInfo(
            features=features,
            splits=splits,
            # What the kept splits take to download is recorded nowhere; their size unpacked stands in for it.
            download_size=sum(size["download"] for size in described[name].values())
            + sum(info.num_bytes for info in kept.values()),
            dataset_size=sum(info.num_bytes for info in splits.values()),
        )
        ours = {split: [path for path in new_files if path.startswith(f"{folder}/{split}-")] for split in new}
        layouts[name] = {key: value for key, value in layouts.get(name, {}).items() if key != "data_dir"} | {
            "data_files": data_files({split: ours.get(split) or before.files[name][split] for split in splits}, files)
        }
        layouts[name].pop("description", None)
        if repo_id is None:
            # By `configs:` in a folder's card `datasets` knows it again in its cache, and by nothing else: other rows
            # in a folder of the same name must be told in there, or the earlier ones are loaded.
            known = "".join(f"{split}:{size['sha256']};" for split, size in described[name].items())
            layouts[name]["description"] = f"sha256 {hashlib.sha256(known.encode()).hexdigest()}"
        facts[name] = {**config.facts, "kept_splits": list(kept)}
    infos.to_dataset_card_data(data)

    def write() -> tuple[str, list[str]]:
        """The card, and the configurations of others that would not be what they were."""
        layouts.to_dataset_card_data(data)
        text = cards.dataset_card(
            {
                "repo_id": repo_id,
                "library": f"legend_hf {__version__}",
                "sources": [{"repo_id": source.repo_id, "revision": source.revision} for source in sources],
                "metadata": {"dataset_info": data["dataset_info"], "configs": data["configs"]},
                "configs": facts,
            },
            existing,
            source_cards,
        )
        after = layout_of(files, text)
        broken = [name for name in before.files if name not in configs and after.files.get(name) != before.files[name]]
        return text, broken + [name for name in configs if name not in after.files or after.kind != "parquet"]

    text, broken = write()
    if others := [name for name in broken if name not in configs]:
        # A pattern of theirs that takes in what is new: they get the files that they had.
        for name in others:
            rest = {key: value for key, value in layouts[name].items() if key != "data_dir"}
            layouts[name] = rest | {"data_files": data_files(before.files[name], files)}
        text, broken = write()
    if broken:
        raise ValueError(
            f"after this, `load_dataset` could not read config `{broken[0]}` as it is, beside what else is there; "
            "choose another `config_name`, or another place"
        )
    written = DatasetInfosDict.from_dataset_card_data(DatasetCardData(**cards.file_metadata(text)))
    for name, config in configs.items():
        if written[name].features != next(iter(config.splits.values())).features:
            raise ValueError(
                f"the columns of config `{name}` cannot be described in a card, so `load_dataset` would read them as "
                "something else; cast them to plain types first"
            )
    return text


def _check_room(
    configs: Mapping[str, Config], before: Layout, there: Collection[str], annotated: Collection[str]
) -> None:
    """Refuses to write where another configuration lies, over other people's splits, and beside other kinds of files.

    Args:
        configs: What is written.
        before: What can be loaded there.
        there: Paths of the files there.
        annotated: The configurations there that this library wrote.
    """
    gone = _gone(configs, there)
    others = {name: splits for name, splits in before.files.items() if name not in configs}
    for other, splits in others.items():
        for name in configs:
            folder = f"{_folder_of(name)}/"
            if any(path in gone or path.startswith(folder) for paths in splits.values() for path in paths):
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


def _kept_splits(config: str, new: Config, info: Any, there: Mapping[str, Any], features: Any) -> dict[str, Any]:
    """The splits of a configuration on the Hub that a push of a single one leaves alone, as `SplitInfo`s."""
    if new.whole:
        return {}
    known = dict(info.splits) if info is not None and info.splits else {}
    others = set(there) - set(new.splits)
    if not others:
        return {}
    if info is None or info.features != features or others - set(known):
        # https://github.com/huggingface/datasets/issues/8608: one set of columns is kept for all splits.
        raise ValueError(
            f"config `{config}` has other splits there ({', '.join(sorted(others))}), and their columns are "
            "not those of this dataset; annotate all splits and push them together as a `DatasetDict`, or choose "
            "another `config_name`"
        )
    return {split: known[split] for split in known if split in others}
