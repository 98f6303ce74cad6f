"""An annotated dataset becomes Parquet files and a card, on the Hub or in a folder.

In: datasets with margin columns, and the direction they were annotated with. Out: one commit, or a folder
that `load_dataset` reads. Everything is checked before the first byte is uploaded. Reads no texts and no
models.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from legend_hf.hub import cards, outputs, transfer
from legend_hf.hub.loadable import check_room, place_of, readme_of
from legend_hf.hub.parquet import folder_of, replaced, write
from legend_hf.hub.rows import load_rows, named_ids, united_sources
from legend_hf.hub.source import look_at_sources, look_from_afar
from legend_hf.hub.verdict import verdict_on
from legend_hf.margins.configs import MadeBy, inspected, made_by

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from legend_hf.margins.configs import Annotated

logger = logging.getLogger(__name__)


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
    return _push(
        dataset,
        direction,
        config_name,
        transfer.Repository(repo_id, "dataset", revision, token),
        source,
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
    configs = {name: load_rows(folder, name if len(names) > 1 else None) for name in names}
    noted = {name: manifest.get("configs", {}).get(name, {}) for name in names}
    dataset: Any = configs
    if len(names) == 1:
        (name,) = names
        config_name = config_name or name
        dataset, noted = configs[name], {config_name: noted[name]}
    if source is None and manifest:
        source = named_ids(united_sources(manifest))
    return _push(
        dataset,
        direction,
        config_name,
        transfer.Repository(repo_id, "dataset", revision, token),
        source,
        noted=noted,
        card=_read_card(Path(folder) / transfer.README),
        private=private,
        commit_message=commit_message,
        create_pr=create_pr,
        allow_source=allow_source,
    )


def _push(
    dataset: Annotated,
    direction: MadeBy,
    config_name: str | None,
    repo: transfer.Repository,
    source: str | Sequence[str] | None,
    *,
    noted: Mapping[str, Mapping[str, Any]] | None = None,
    card: str | None = None,
    private: bool,
    commit_message: str,
    create_pr: bool,
    allow_source: bool,
) -> CommitInfo:
    """Uploads configurations in one commit; the text of `card` joins that of the card that is there."""
    configs = inspected(dataset, direction, config_name, noted)
    named = named_sources(source)
    target = repo.check_writable(create_pr=create_pr)
    judged = [verdict_on(d["facts"]) for config in configs.values() for d in config.facts["directions"].values()]
    for said in dict.fromkeys(verdict.warning for verdict in judged if verdict.doubtful):
        logger.warning("pushing margins to `%s` of a direction that is %s", target.repo_id, said)
    repo = replace(repo, repo_id=target.repo_id)
    rows = [one for config in configs.values() for one in config.splits.values()]
    sources, source_cards = look_at_sources(
        rows, named, target, private=private, allow_source=allow_source, token=repo.token
    )
    replaces = replaced(configs)
    with TemporaryDirectory(prefix="legend_hf_") as folder:
        written = write(configs, Path(folder))

        def readme(existing: str | None) -> str:
            place = place_of(target.repo_id, existing, repo.list_files(), replaces)
            check_room(place, configs)
            place = replace(place, readme=cards.united(existing, card))
            return readme_of(place, written, sources=sources, source_cards=source_cards)

        return repo.commit(
            {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*.parquet"))},
            readme=readme,
            replaces=replaces,
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
    configs = inspected(dataset, direction, config_name)
    rows = [one for config in configs.values() for one in config.splits.values()]
    sources, source_cards, known = look_from_afar(rows, named_sources(source))
    noted = [{"repo_id": one.repo_id, "revision": one.revision} for one in sources] if known else None
    made = {name: made_of(noted, direction) for name in configs}
    reads = [file["filename"] for one in rows for file in one.cache_files]
    check_saved_place(folder, made, reads=reads, overwrite=overwrite)
    target, replaces = Path(folder), replaced(configs)
    target.mkdir(parents=True, exist_ok=True)
    manifest = outputs.read_manifest(target) or {"files": [], "configs": {}}
    there = [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()]
    place = place_of(None, _read_card(target / transfer.README), there, replaces)
    check_room(place, configs)
    # What the card's patterns would take for rows of these splits goes, too.
    replaces += [f"{folder_of(name)}/{split}-*" for name, config in configs.items() for split in config.splits]
    with TemporaryDirectory(prefix=".partial_", dir=target) as partial:
        card = readme_of(place, write(configs, Path(partial)), sources=sources, source_cards=source_cards)
        (Path(partial) / transfer.README).write_bytes(card.encode("utf-8"))
        new = _put(Path(partial), target, replaces)
    _, arguments = made_by(direction)
    made = {
        name: {**made[name], "arguments": arguments, "loaded": config.facts["loaded"]}
        for name, config in configs.items()
    }
    files = {name for name in (*manifest["files"], *new) if (target / name).is_file()}
    outputs.write_manifest(target, "dataset", files, configs={**manifest.get("configs", {}), **made})


def _put(partial: Path, target: Path, replaces: Iterable[str]) -> list[str]:
    """Moves what was written to where it belongs, the README last; what it takes the place of goes."""
    new = [path.relative_to(partial).as_posix() for path in sorted(partial.rglob("*.parquet"))]
    for pattern in replaces:
        for old in [path for path in target.glob(pattern) if path.is_file()]:
            if old.relative_to(target).as_posix() not in new:
                old.unlink()
    new.append(transfer.README)
    for name in new:
        (target / name).parent.mkdir(exist_ok=True)
        (partial / name).replace(target / name)
    return new


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
    writes = (transfer.README, outputs.MANIFEST, *(f"{folder_of(name)}/train" for name in made or ("default",)))
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
