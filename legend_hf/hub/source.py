"""Where did these rows come from, and may they go there? What `datasets` leaves behind of that, and what it means.

In: datasets, ids that somebody named, and a repository to write to. Out: repositories of the Hub with the commit that
was loaded, their cards, and what could not be identified; or a refusal to show what a source hides. Only what
`datasets` keeps can be seen: rows that were copied into Python objects and back carry no trace. Reads no rows, and
nothing in a card.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from legend_hf.hub.transfer import Description, Repository, list_datasets

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILE = re.compile(r"hf://datasets/(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/")
# The Hub's cache: datasets--namespace--name/snapshots/commit/file.
_SNAPSHOT = re.compile(r"(?:^|/)datasets--(?P<id>[\w.-]+?--[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})/")


@dataclass(frozen=True, order=True)
class Trace:
    """One thing that is known of where rows came from.

    Attributes:
        said: For a message: what the rows were loaded as.
        name: `namespace/name` or `name`, in the spelling of `datasets`' cache unless `exact`; empty when not known.
        commit: The commit that was loaded; empty when not known.
        exact: Whether `name` is spelled as on the Hub.
    """

    said: str
    name: str = ""
    commit: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Source:
    """A dataset on the Hub that rows came from.

    Attributes:
        repository: As the Hub describes it now.
        revision: The commit that was loaded, None when that is not known.
    """

    repository: Description
    revision: str | None

    @property
    def repo_id(self) -> str:
        """Its full id, by its present name."""
        return self.repository.repo_id


def traces_of(datasets: Iterable[Dataset]) -> tuple[Trace, ...]:
    """Collects what `datasets` left behind of where rows came from; empty for rows that were made in memory.

    Rows keep the files that they lie in and the name that they were loaded by. A file in the cache of a Hub dataset
    tells its name, in a spelling that is not the Hub's (`user/MyData` is `user___my_data`), and its commit. Rows of
    several datasets that were put together and then written anew lie in the cache of the first and have lost their
    name, so a trace says that there were others.
    """
    return tuple(sorted({trace for rows in datasets for trace in _traces(rows)}))


def loaded_as(splits: Mapping[str, Dataset]) -> dict[str, Any]:
    """With which arguments `load_dataset` gave these rows, as far as its cache tells.

    Returns:
        `arguments` (`name`, `data_dir` and `split`, where they were given) and `unknown` (what of them is not recorded,
        in words).
    """
    found: list[dict[str, str]] = []
    unknown: list[str] = []
    for split, rows in splits.items():
        info = rows.info
        folders = {parts[-4] for f in rows.cache_files if len(parts := PurePath(f["filename"]).parts) >= 5
                   and _COMMIT.fullmatch(parts[-2])}  # fmt: skip
        name = info.config_name
        if len(folders) != 1 or name is None or info.dataset_name == info.builder_name:
            unknown.append("how the rows were loaded")
            continue
        arguments = {"name": name} if name != "default" else {}
        suffix = folders.pop().removeprefix(name).removeprefix("-")
        words = dict(part.partition("=")[::2] for part in suffix.split(",") if "=" in part)
        if words.keys() == {"data_dir"}:
            arguments["data_dir"] = unquote_plus(words["data_dir"])
        elif suffix:
            unknown.append("`data_dir`, `data_files` and further arguments of `load_dataset`")
        there = (info.splits or {}).get(split)
        if there is None or there.num_examples != len(rows):
            unknown.append("which rows of it were taken")
        elif len(splits) == 1 and len(info.splits or {}) > 1:
            arguments["split"] = split
        found.append(arguments)
    if any(arguments != found[0] for arguments in found):
        unknown.append("how the splits were loaded, each in another way")
    return {"arguments": found[0] if found and len(found) == len(splits) else {}, "unknown": sorted(set(unknown))}


def spelled(repo_id: str) -> str:
    """An id as `datasets` spells it in its cache."""
    from datasets.naming import camelcase_to_snakecase

    namespace, _, name = repo_id.rpartition("/")
    return f"{namespace}/{camelcase_to_snakecase(name)}" if namespace else camelcase_to_snakecase(name)


def find_sources(
    traces: Sequence[Trace], named: Sequence[str] | None, *, token: str | bool | None = None
) -> tuple[tuple[Source, ...], tuple[Trace, ...]]:
    """Finds the repositories that traces lead to.

    Args:
        traces: Of the rows.
        named: Hub ids that somebody gave as the sources, `id` or `id@commit`; an empty list says that the rows never
            were on the Hub. None: nobody said anything.
        token: Hub token; None takes the environment's.

    Returns:
        The sources, those that were named first, and the traces that lead nowhere. What was named answers for traces
        without a commit: it cannot be held against anything. A trace with a commit is answered by a repository that
        has this commit, or by a named one of the same spelling, whose history may have been rewritten.

    Raises:
        ValueError: A dataset that was named does not exist, or is hidden from this token.
        OSError: The Hub cannot be reached.
    """
    found: dict[str, Source] = {}
    for name in named or ():
        repo_id, _, commit = name.partition("@")
        repository = Repository(repo_id, "dataset", token=token).describe()
        if not repository.exists:
            raise ValueError(
                f"`source` is {repo_id!r}, which the Hub does not have, or which this token may not see; give "
                "the id of the dataset that was annotated, or leave it out"
            )
        found.setdefault(repository.repo_id, Source(repository, commit or None))
    given = dict.fromkeys((*found, *(name.partition("@")[0] for name in named or ())))
    lost = []
    for trace in traces:
        if not trace.commit and not trace.exact:
            if named is None:
                lost.append(trace)
            continue
        for repo_id in dict.fromkeys((*found, *_candidates(trace, token))):
            repository = Repository(repo_id, "dataset", trace.commit or None, token).describe()
            same = repository.repo_id.lower() == trace.name.lower() if trace.exact else False
            if repository.exists and (repository.commit == trace.commit if trace.commit else same):
                found[repository.repo_id] = Source(repository, trace.commit or None)
                break
        else:
            if not any(trace.name.lower() in (spelled(repo_id).lower(), repo_id.lower()) for repo_id in given):
                lost.append(trace)
    return tuple(found.values()), tuple(lost)


def has_commit(repo_id: str, commit: str, *, token: str | bool | None = None) -> bool:
    """Whether a dataset repository has a commit."""
    return Repository(repo_id, "dataset", commit, token).describe().commit == commit


def _traces(rows: Dataset) -> Iterator[Trace]:
    info = rows.info
    by_name = info.dataset_name is not None and info.dataset_name != info.builder_name
    paths = [PurePath(file["filename"]).parts for file in rows.cache_files]
    for url in info.download_checksums or ():
        if match := _HUB_FILE.match(str(url)):
            commit = match["revision"] if _COMMIT.fullmatch(match["revision"] or "") else ""
            yield Trace(f"`{match['id']}`", match["id"], commit, exact=True)
    known = bool(info.download_checksums)
    for parts in paths:
        if match := _SNAPSHOT.search("/".join(parts)):
            repo_id = match["id"].replace("--", "/", 1)
            yield Trace(f"`{repo_id}`", repo_id, match["commit"], exact=True)
            known = True
        # datasets/namespace___name/config/version/commit/file.arrow
        elif len(parts) >= 5 and _COMMIT.fullmatch(parts[-2]):
            name = parts[-5].replace("___", "/", 1)
            yield Trace(f"`{name}` at commit {parts[-2]}", name, parts[-2])
            known = True
            if info.dataset_name is None and parts[-1].startswith("cache-"):
                yield Trace(f"rows of several datasets that were put together, the first being `{name}`")
    if known:
        return
    if by_name and _COMMIT.fullmatch(info.dataset_name):
        yield Trace(f"a snapshot of commit {info.dataset_name}", "", info.dataset_name)
    elif by_name:
        yield Trace(f"`{info.dataset_name}`, of which only the name is known", info.dataset_name)
    elif info.dataset_name is not None:
        yield Trace(f"what the loader `{info.builder_name}` read, which may be files of the Hub")
    elif paths:
        yield Trace(f"a file without a record of where its rows are from, `{paths[0][-1]}`")


def _candidates(trace: Trace, token: str | bool | None) -> Iterator[str]:
    """Ids on the Hub that a trace may mean, the likeliest first; the caller checks each."""
    from huggingface_hub import constants

    if trace.exact:
        yield trace.name
        return
    # What was loaded was downloaded, and the Hub's own cache keeps names as they are.
    snapshots = sorted(Path(constants.HF_HUB_CACHE).glob(f"datasets--*--*/snapshots/{trace.commit}"))
    cached = [snapshot.parts[-3].removeprefix("datasets--").replace("--", "/", 1) for snapshot in snapshots]
    # Copies of a repository have its commits: the one that is spelled as the rows' own comes before them.
    yield from sorted(cached, key=lambda repo_id: spelled(repo_id).lower() != trace.name.lower())
    namespace = trace.name.rpartition("/")[0]
    if trace.name:
        yield trace.name
    if namespace:
        yield from (
            name for name in list_datasets(namespace, token=token) if spelled(name).lower() == trace.name.lower()
        )


def look_at_sources(
    rows: Iterable[Dataset],
    named: Sequence[str] | None,
    target: Description,
    *,
    private: bool,
    allow_source: bool,
    token: str | bool | None,
) -> tuple[tuple[Source, ...], dict[str, str]]:
    """Finds the sources of rows and their cards by id, and checks that the rows may go to the target.

    Args:
        rows: Datasets.
        named: Ids that somebody named.
        target: Where the rows would go.
        private: As for `check_sources`, as the next two.
        allow_source: As said.
        token: As said.

    Raises:
        ValueError: As `find_sources` and `check_sources`.
    """
    traces = traces_of(rows)
    sources, lost = find_sources(traces, named, token=token)
    check_sources(target, sources, traces, lost, private=private, allow_source=allow_source, token=token)
    # The card of a source that is written to is the one that is there.
    others = [one for one in sources if not _is_same_repository(one.repo_id, target.repo_id)]
    return sources, _cards_of(others, token)


def look_from_afar(
    rows: Iterable[Dataset], named: Sequence[str] | None
) -> tuple[tuple[Source, ...], dict[str, str], bool]:
    """The sources and their cards as far as they can be reached, and whether all sources are known."""
    sources: tuple[Source, ...] = ()
    try:
        sources, lost = find_sources(traces_of(rows), named)
        return sources, _cards_of(sources, None), not lost
    except (OSError, ValueError) as error:
        logger.warning("left the card of %s out: %s", ", ".join(f"`{n}`" for n in named or ("the source",)), error)
    ids = (name.partition("@") for name in named or ())
    sources = sources or tuple(Source(Description(n, None, False, False), at or None) for n, _, at in ids)
    return sources, {}, named is not None


def check_sources(
    target: Description,
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


def _cards_of(sources: Iterable[Source], token: str | bool | None) -> dict[str, str]:
    """The cards of sources, as they were when these were loaded, by id."""
    found = {}
    for source in sources:
        commit = source.revision or source.repository.commit
        card = commit and Repository(source.repo_id, "dataset", commit, token).readme()
        found[source.repo_id] = card or ""
    return found
