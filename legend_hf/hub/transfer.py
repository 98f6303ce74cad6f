"""Files from the Hub, a folder or a URL, and files to the Hub: whole, bounded, pinned to a commit, retried.

In: names and bytes. Out: bytes, or one commit. Nothing is uploaded before the right to write has been
checked, and nothing stands half in a repository: a push is one commit on top of the state it was made for.
Knows no directions, no rows and no cards.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote

from legend_hf._version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES = 64 * 1024 * 1024
ATTEMPTS = 6
PAUSE = 0.5
"""Seconds before the second attempt; doubled, give or take half, before every further one."""
LONGEST_WAIT = 300.0
"""Seconds: the window of the Hub's own rate limit. A server that asks for more is told no."""
README = "README.md"

_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_HUB_URL = re.compile(r"hf://(?:models/)?([^/@:]+/[^/@:]+)(?:@([^/]+))?/?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:://|::)")
_RETRIED = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
# Answers to a request that the Hub understood and did nothing about.
_REFUSED = frozenset({400, 401, 403, 404, 409, 412, 413, 422, 429})
# Kinds of URL that hold a list of other files, of any kind and anywhere, which would be read in place of their own.
_ELSEWHERE = frozenset({"reference"})
# A URL's kind, then whatever may be a name and a password: up to the last `@`, as a password may hold one.
_CREDENTIALS = re.compile(r"([A-Za-z][\w+.-]*:/+)(?=[^/?#]*[:@])(.*)@", re.DOTALL)
_QUERY = re.compile(r"([A-Za-z][\w+.-]*:/+[^?#]*)[?#](.*)", re.DOTALL)
_TOKEN = re.compile(r"\bhf_[\w-]{6,}(?:\.[\w-]+)*")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_LOG_IN = "log in with `hf auth login`, or set `HF_TOKEN`"


@dataclass(frozen=True)
class Files:
    """Files that were read together.

    Attributes:
        contents: Name to content; an optional file that is not there has no entry.
        repo_id: Hub repository they came from, None when from elsewhere.
        commit: The commit they were read at, None when not from a Hub repository.
        source: Where they came from, for messages; holds no credentials.
    """

    contents: Mapping[str, bytes]
    repo_id: str | None
    commit: str | None
    source: str


@dataclass(frozen=True)
class Description:
    """What the Hub says of a repository.

    Attributes:
        repo_id: Its full id `namespace/name`, by its present name.
        commit: What `revision` means now; None when the repository does not exist.
        public: Whether anybody can read its files: it is neither private nor gated. False when it does not
            exist.
        exists: Whether it exists, as far as this token can see.
        private: Whether only its owners can read its files. A gated one, which lets others in, is neither.
    """

    repo_id: str
    commit: str | None
    public: bool
    exists: bool
    private: bool = False


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, and how it is seen: at which revision, with which token. Making one asks nobody.

    Every method asks the Hub again and again until it answers, or until it is no use.

    Attributes:
        repo_id: `namespace/name`; or `name`, to write to one of the token's own account.
        repo_type: `"model"` or `"dataset"`.
        revision: Branch, tag or commit; None is the main branch.
        token: Hub token; None takes the environment's.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)

    def describe(self) -> Description:
        """Asks the Hub what this is; one that is not there, or hidden from this token, is no error.

        A revision that it does not have is described as the newest one.

        Raises:
            OSError: The Hub cannot be reached, or refuses to say.
        """
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        api = _api(self.token)

        def ask() -> Description:
            try:
                info = api.repo_info(self.repo_id, repo_type=self.repo_type, revision=self.revision)
            except GatedRepoError:
                return Description(self.repo_id, None, public=False, exists=True)
            except RepositoryNotFoundError:
                return Description(self.repo_id, None, public=False, exists=False)
            except RevisionNotFoundError:
                info = api.repo_info(self.repo_id, repo_type=self.repo_type)
            private, gated = bool(info.private), bool(getattr(info, "gated", False))
            return Description(info.id, info.sha, public=not (private or gated), exists=True, private=private)

        return _again(ask, replace(self, revision=None), "look at")

    def resolve(self, *, cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False) -> Repository:
        """The same at the commit that its revision is now, or was when the Hub was last reached.

        Raises:
            OSError: The repository or revision does not exist or is hidden, or the Hub cannot be reached and it was
                never asked before.
        """
        from huggingface_hub import resolve_revision

        def ask() -> str:
            return resolve_revision(
                self.repo_id,
                repo_type=self.repo_type,
                revision=self.revision,
                cache_dir=None if cache_dir is None else str(cache_dir),
                local_files_only=local_files_only,
                token=self.token,
            ).resolved

        return replace(self, revision=_again(ask, self, "read"))

    def list_files(self) -> list[str]:
        """Paths of its files.

        Raises:
            OSError: The repository or revision does not exist or is hidden, or the Hub cannot be reached.
        """
        api = _api(self.token)
        return _again(
            lambda: api.list_repo_files(self.repo_id, repo_type=self.repo_type, revision=self.revision), self, "look at"
        )

    def read(
        self,
        name: str,
        *,
        required: bool = False,
        max_bytes: int = MAX_BYTES,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> bytes | None:
        """Reads one file at a commit through the Hub's cache. None: it is not there and not `required`.

        Raises:
            OSError: As `read_files`.
            ValueError: It is larger than `max_bytes`, or its download is damaged.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

        def fetch(dry_run: bool, again: bool = False) -> Any:
            return hf_hub_download(
                self.repo_id,
                name,
                repo_type=self.repo_type,
                revision=self.revision,
                cache_dir=None if cache_dir is None else str(cache_dir),
                local_files_only=local_files_only,
                token=self.token,
                dry_run=dry_run,
                force_download=again,
            )

        def attempt(again: bool = False) -> bytes | None:
            try:
                _check_size(fetch(dry_run=True, again=again).file_size, name, self.repo_id, max_bytes)
                path = fetch(dry_run=False, again=again)
            except LocalEntryNotFoundError as error:
                offline = local_files_only or isinstance(_root(error), OfflineModeIsEnabled)
                if offline and not required:
                    return None
                raise
            except EntryNotFoundError as error:
                if not required:
                    return None
                raise FileNotFoundError(
                    f"`{self.repo_id}` has no `{name}` at commit {self.revision}; check that it is the right "
                    "repository and revision"
                ) from error
            content = _read_local(Path(path), max_bytes)
            if _is_damaged(Path(path), content):
                if again or local_files_only:
                    raise ValueError(
                        f"the download of `{name}` from `{self.repo_id}` is damaged: it does not have the hash that "
                        f"the Hub gives; delete {os.path.realpath(path)!r} and try again with a connection"
                    )
                return attempt(again=True)
            return content

        return _again(attempt, self, f"read `{name}` of")

    def download(self, name: str) -> Path:
        """The path of one of its files, of any size, in the Hub's cache; downloaded if it is not there.

        Raises:
            OSError: As `read_files`, or there is no such file.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        def attempt() -> Path:
            try:
                return Path(
                    hf_hub_download(
                        self.repo_id, name, repo_type=self.repo_type, revision=self.revision, token=self.token
                    )
                )
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError as error:
                raise FileNotFoundError(f"`{self.repo_id}` has no `{name}` at commit {self.revision}") from error

        return _again(attempt, self, f"read `{name}` of")

    def readme(self) -> str | None:
        """Its README at a commit; None when it has none.

        Raises:
            OSError: As `read_files`.
            ValueError: It is not UTF-8, larger than a card can be, or its download is damaged.
        """
        content = self.read(README)
        if content is None:
            return None
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise ValueError(
                f"`{README}` of `{self.repo_id}` is not UTF-8 in line {line}; save it as UTF-8 first"
            ) from error

    def sha256s(self, names: Sequence[str]) -> dict[str, str]:
        """SHA-256 of files of a model at a commit: from the cache, else from the Hub's record of its large files.

        Nothing large is downloaded. Files that are not there have no entry.

        Raises:
            OSError: As `read_files`.
        """
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.hf_api import RepoFile

        found, unknown = {}, []
        for name in names:
            cached = try_to_load_from_cache(self.repo_id, name, revision=self.revision)
            if isinstance(cached, str):
                found[name] = _cached_sha256(Path(cached))
            elif cached is None:  # else it is known that there is none
                unknown.append(name)
        if not unknown:
            return found

        def ask() -> list[Any]:
            return _api(self.token).get_paths_info(self.repo_id, list(unknown), revision=self.revision)

        for entry in _again(ask, self, "read"):
            if isinstance(entry, RepoFile) and entry.lfs is not None:
                found[entry.path] = entry.lfs.sha256
            elif isinstance(entry, RepoFile):  # small enough to stand in git itself
                content = self.read(entry.path)
                if content is not None:
                    found[entry.path] = hashlib.sha256(content).hexdigest()
        return found

    def check_writable(self, *, create_pr: bool = False) -> Description:
        """Checks that a push can succeed, before anything is uploaded.

        Args:
            create_pr: Whether only a pull request will be opened, which needs no right to write.

        Raises:
            PermissionError: There is no token, the Hub refuses it, or it may not write there.
            ConnectionError: The Hub cannot be reached.
            ValueError: The id cannot be one.
        """
        from huggingface_hub import whoami
        from huggingface_hub.errors import LocalTokenNotFoundError

        token, there = self.token, replace(self, revision=None)
        try:
            me = _again(lambda: whoami(token, cache=True), there, "push to")
        except LocalTokenNotFoundError as error:
            raise PermissionError(
                f"pushing to `{self.repo_id}` needs a Hub token with write permission and none was found; {_LOG_IN}"
            ) from error
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PermissionError(
                f"the Hub token in use (of `{me['name']}`) is read-only, so nothing can be pushed to `{self.repo_id}`; "
                f"make one with write permission at https://huggingface.co/settings/tokens and {_LOG_IN}"
            )
        full_id = self.repo_id if "/" in self.repo_id else f"{me['name']}/{self.repo_id}"
        if not _REPO_ID.fullmatch(full_id):
            raise ValueError(
                f"`repo_id` is {self.repo_id!r}; it must be `namespace/name` or `name`, of letters, digits, `-_.`"
            )
        found = replace(there, repo_id=full_id).describe()
        if found.exists and not create_pr:
            there = replace(there, repo_id=found.repo_id)
            api = _api(token)
            _again(lambda: api.auth_check(there.repo_id, repo_type=self.repo_type, write=True), there, "push to")
        return found

    def commit(
        self,
        files: Mapping[str, bytes | Path],
        *,
        readme: Callable[[str | None], str] | None = None,
        replaces: Sequence[str] = (),
        private: bool = True,
        commit_message: str,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Puts files into the repository in one commit, or in none when they are all there already.

        Each attempt looks at the branch anew, merges the README with the one that is there, and commits on top of
        exactly that state. So a push can be repeated: after a race with somebody else's commit, a rate limit, a fault
        of the server, a lost connection or a lost answer; and what others changed in between stays. The repository and
        its branch are made if missing.

        Args:
            files: Path in the repository to content, or to a local file.
            readme: Makes the README out of the one that is there (None: there is none). Called once per attempt.
            replaces: Glob patterns: files in the repository that match and are not in `files` are removed.
            private: Whether a repository that is made now is private. One that exists keeps what it is.
            commit_message: First line of the commit.
            create_pr: Open a pull request instead of committing to the branch.

        Returns:
            The commit, whose `oid` is the newest one where nothing had to change.

        Raises:
            PermissionError: The token is missing, refused or may not write. Nothing was uploaded.
            ConnectionError: The Hub could not be reached, or failed again and again. The same push can be run again.
            ValueError: The Hub refuses a file or the README's metadata.
        """
        found = self.check_writable(create_pr=create_pr)
        here = replace(self, repo_id=found.repo_id)._made(private=private, exists=found.exists)

        def push() -> CommitInfo:
            head = _api(here.token).repo_info(here.repo_id, repo_type=here.repo_type, revision=here.revision).sha
            assert head is not None
            operations = replace(here, revision=head)._operations(files, readme, replaces)
            if not operations:
                return here._said(head, commit_message)
            return here._committed(operations, head, commit_message, create_pr=create_pr)

        return _again(push, replace(here, revision=None), "push to")

    def _made(self, *, private: bool, exists: bool) -> Repository:
        """Makes what is missing of repository and branch; the repository, by the id that the Hub gives it."""
        api, here = _api(self.token), self
        plain = replace(self, revision=None)
        if not exists:
            made = _again(
                lambda: api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True),
                plain,
                "create",
            )
            here = replace(self, repo_id=made.repo_id)
        branch = self.revision
        if branch is not None and not branch.startswith("refs/"):
            _again(
                lambda: api.create_branch(here.repo_id, branch=branch, repo_type=self.repo_type, exist_ok=True),
                replace(here, revision=None),
                "push to",
            )
        return here

    def _operations(
        self, files: Mapping[str, bytes | Path], readme: Callable[[str | None], str] | None, replaces: Sequence[str]
    ) -> list[Any]:
        """What has to change at this commit so that `commit` is done."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.hf_api import RepoFile

        tree = _api(self.token).list_repo_tree(
            self.repo_id, recursive=True, revision=self.revision, repo_type=self.repo_type
        )
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        wanted = dict(files)
        if readme is not None:
            wanted[README] = readme(self.readme() if README in there else None).encode("utf-8")
        operations: list[Any] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in wanted.items()
            if path not in there or not _is_same(content, there[path])
        ]
        return operations + [
            CommitOperationDelete(path)
            for path in there
            if path not in wanted and any(fnmatchcase(path, pattern) for pattern in replaces)
        ]

    def _committed(self, operations: Sequence[Any], head: str, commit_message: str, *, create_pr: bool) -> CommitInfo:
        """Commits on top of exactly that commit."""
        import httpx2

        before = self._pull_requests() if create_pr else {}
        try:
            return _api(self.token).create_commit(
                self.repo_id,
                operations,
                commit_message=commit_message,
                repo_type=self.repo_type,
                revision=self.revision,
                parent_commit=head,
                create_pr=create_pr,
            )
        except httpx2.HTTPError as error:
            # A pull request leaves no trace on the branch: an answer that was lost, or that is no refusal, does not
            # say whether it was opened, and a second one would be noise.
            if not create_pr or not _may_be_done(error):
                raise
            opened = self._opened(before, commit_message)
            if opened is not None:
                return opened
            raise ConnectionError(
                f"the connection broke while a pull request was opened on `{self.repo_id}` "
                f"({_reason(error, self.token)}); look at its discussions before you try again"
            ) from _cause(error, self.token)
        except RuntimeError as error:
            # The client puts a fault of one large file's upload into another.
            if isinstance(error.__cause__, httpx2.HTTPError):
                raise error.__cause__ from None
            raise

    def _pull_requests(self) -> dict[int, str]:
        """Titles of this account's open pull requests, by number."""
        api = _api(self.token)
        me = api.whoami(cache=True)["name"]
        found = api.get_repo_discussions(
            self.repo_id, repo_type=self.repo_type, author=me, discussion_type="pull_request", discussion_status="open"
        )
        return {pull.num: pull.title for pull in found}

    def _opened(self, before: Collection[int], commit_message: str) -> CommitInfo | None:
        """The pull request that was opened although its answer was lost; None where none is seen."""
        import httpx2

        try:
            new = {num: title for num, title in self._pull_requests().items() if num not in before}
            number = next((num for num, title in new.items() if title == commit_message), None)
            if number is None:
                return None
            api = _api(self.token)
            oid = api.repo_info(self.repo_id, repo_type=self.repo_type, revision=f"refs/pr/{number}").sha
        except httpx2.HTTPError:
            return None
        return self._said(oid or "", commit_message, number)

    def _said(self, oid: str, commit_message: str, pull_request: int | None = None) -> CommitInfo:
        """A commit as the client describes one."""
        from huggingface_hub import CommitInfo

        kind = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        url = f"{_api(self.token).endpoint}/{kind}{self.repo_id}"
        pull = None if pull_request is None else f"{url}/discussions/{pull_request}"
        return CommitInfo(f"{url}/commit/{oid}", commit_message, "", oid, pr_url=pull)


def read_files(
    source: str | os.PathLike[str],
    names: Sequence[str],
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Files:
    """Reads small files by name from a folder, a Hub model repository or any fsspec URL.

    A folder wins over a Hub id of the same spelling, as in `transformers`. A Hub revision is resolved to a
    commit once, so all files are of one state; they are cached, checked against the Hub's own hashes (plain
    downloads are not), and can be read offline afterwards. When the Hub cannot be reached, the commit that
    was seen last is used.

    Args:
        source: A folder, a Hub id `user/name`, or a URL such as `hf://user/name`, `s3://bucket/x`,
            `zip://x::file://y.zip`.
        names: Files that must be there.
        optional: Files that may be.
        revision: Branch, tag or commit; only for the Hub.
        token: Hub token; None takes the environment's. It is sent to the Hub only.
        cache_dir: Instead of the Hub's cache folder.
        local_files_only: Never ask the Hub.
        max_bytes: Most bytes in one file.

    Raises:
        FileNotFoundError: The folder, repository, revision or a file does not exist, or is hidden from this
            token.
        PermissionError: The repository is gated, or the token is refused.
        ConnectionError: The Hub cannot be reached and the files are not cached.
        ValueError: `source` is neither of the three or a kind of URL that reads other files than it names, a
            file is larger than `max_bytes`, or a download is damaged.
        ImportError: The URL is of a kind that needs a package which is not installed.
    """
    text = os.fspath(source)
    for name in (*names, *optional):
        assert not os.path.isabs(name), name
        assert ".." not in name.split("/"), name
    in_url = _HUB_URL.fullmatch(text)
    if os.path.isdir(text):
        _refuse_revision(revision, text, "a folder")
        contents = _read_all(names, optional, lambda name: _read_local(Path(text) / name, max_bytes))
        return Files(contents, None, None, text)
    if in_url:
        pinned = unquote(in_url[2]) if in_url[2] else None
        if pinned and revision and pinned != revision:
            raise ValueError(f"`{text}` names revision {pinned!r} and `revision` is {revision!r}; give only one")
        text, revision = in_url[1], pinned or revision
    elif is_url(text):
        _refuse_revision(revision, without_secrets(text), "a URL")
        return _read_url(text, names, optional, token=token, max_bytes=max_bytes)
    if not _REPO_ID.fullmatch(text):
        raise ValueError(
            f"{without_secrets(text)!r} is not a folder here, not a Hub id and not a URL; give a folder that exists, "
            "an id such as `user/name`, or a URL such as `hf://user/name` or `s3://bucket/folder`"
        )
    return _read_hub(
        Repository(text, revision=revision, token=token),
        names,
        optional,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        max_bytes=max_bytes,
    )


def list_datasets(author: str, *, token: str | bool | None = None) -> list[str]:
    """Ids of a user's or an organisation's datasets, as far as this token can see.

    Raises:
        OSError: The Hub cannot be reached, or refuses to say.
    """
    api = _api(token)
    return _again(
        lambda: [info.id for info in api.list_datasets(author=author)],
        Repository(author, "dataset", token=token),
        "look through",
    )


def _may_be_done(error: Any) -> bool:
    """Whether a commit may stand although this came in the place of an answer."""
    try:
        asked = "/commit/" in error.request.url.path
    except RuntimeError:  # nobody knows which request it was
        asked = True
    return asked and getattr(getattr(error, "response", None), "status_code", None) not in _REFUSED


def _cached_sha256(path: Path) -> str:
    """Of a cached file; a large one lies under it as its name."""
    name = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_hub(
    repo: Repository,
    names: Sequence[str],
    optional: Sequence[str],
    *,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    max_bytes: int,
) -> Files:
    pinned = repo.resolve(cache_dir=cache_dir, local_files_only=local_files_only)
    contents: dict[str, bytes] = {}
    for name in (*names, *optional):
        content = pinned.read(
            name,
            required=name in names,
            max_bytes=max_bytes,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        if content is not None:
            contents[name] = content
    return Files(contents, repo.repo_id, pinned.revision, f"{repo.repo_id}@{pinned.revision}")


def _is_damaged(path: Path, content: bytes) -> bool:
    """Holds a cached file against the Hub's etag, by which it is named: sha256, or git's blob sha1."""
    if not path.is_symlink():
        return False  # A file system without links: the cache keeps no hash there.
    # Only the first link: the blob may itself be a link into a store that names files by another hash.
    etag = os.path.basename(os.readlink(path))
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return hashlib.sha256(content).hexdigest() != etag
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        return _git_sha1(content) != etag
    return False


def is_url(text: Any) -> bool:
    """Whether a text is a URL, or several chained."""
    return isinstance(text, str) and _URL.match(text) is not None


def open_url(url: str, *, token: str | bool | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        ValueError: It is no URL, or of a kind that reads other files than it names.
        ImportError: It is of a kind that needs a package which is not installed.
        FileNotFoundError: It cannot be opened.
    """
    import fsspec

    shown = without_secrets(url)
    secrets = _secrets_in(url)
    elsewhere = sorted(_ELSEWHERE & {part.partition(":")[0].lower() for part in url.split("::")})
    if elsewhere:
        raise ValueError(
            f"`{shown}` is a `{elsewhere[0]}` URL, which reads other files than it names; give the URL of the folder "
            "that holds them"
        )
    # Credentials for one place must not travel to another.
    options = {"token": token} if url.startswith("hf://") and token is not None else {}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ValueError as error:
        raise ValueError(f"`{shown}` cannot be opened ({_reason(error, token, secrets)}); check the URL") from None
    except ImportError as error:
        raise ImportError(
            f"`{shown}` cannot be opened ({_reason(error, token, secrets)}); install what URLs of this kind need"
        ) from None
    except Exception as error:  # each kind of URL has errors of its own, and many of them quote it
        raise FileNotFoundError(
            f"`{shown}` cannot be opened ({_reason(error, token, secrets)}); check the URL"
        ) from None
    return fs, root


def _read_url(
    url: str, names: Sequence[str], optional: Sequence[str], *, token: str | bool | None, max_bytes: int
) -> Files:
    fs, root = open_url(url, token=token)
    shown, secrets = without_secrets(url), _secrets_in(url)

    def read(name: str) -> bytes:
        path = f"{root.rstrip('/')}/{name}" if root else name
        try:
            # Reading one byte more than allowed bounds a file whose size is not known before, a packed one
            # above all.
            with fs.open(path, "rb") as file:
                content: bytes = file.read(max_bytes + 1)
        except (FileNotFoundError, IsADirectoryError, KeyError):
            raise FileNotFoundError(
                f"`{name}` is not at `{shown}`; check the URL, which must name the folder that holds it"
            ) from None
        except PermissionError as error:
            raise PermissionError(f"`{name}` at `{shown}` may not be read: {_reason(error, token, secrets)}") from None
        except Exception as error:
            raise ConnectionError(f"`{name}` at `{shown}` cannot be read: {_reason(error, token, secrets)}") from None
        _check_size(len(content), name, shown, max_bytes)
        return content

    return Files(_read_all(names, optional, read), None, None, shown)


def _read_all(names: Sequence[str], optional: Sequence[str], read: Callable[[str], bytes]) -> dict[str, bytes]:
    contents = {name: read(name) for name in names}
    for name in optional:
        try:
            contents[name] = read(name)
        except FileNotFoundError:
            continue
    return contents


def _read_local(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(
            f"the folder {str(path.parent)!r} has no file `{path.name}`; check that it is the right folder"
        ) from error
    _check_size(len(content), path.name, str(path.parent), max_bytes)
    return content


def _check_size(size: int | None, name: str, where: str, max_bytes: int) -> None:
    if size is not None and size > max_bytes:
        raise ValueError(
            f"`{name}` of `{where}` is larger than the {max_bytes} bytes that are read at most; it is not what it "
            "should be, check the source"
        )


def _refuse_revision(revision: str | None, source: str, kind: str) -> None:
    if revision is not None:
        raise ValueError(
            f"`revision` is {revision!r} but `{source}` is {kind}, which has no revisions; leave it out, or "
            "give a Hub id"
        )


def _is_same(content: bytes | Path, entry: Any) -> bool:
    """Whether a file is the one there, by its hash: sha256 for large files, git's blob sha1 else."""
    if entry.lfs is None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        return _git_sha1(data) == entry.blob_id
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest() == entry.lfs.sha256
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _api(token: str | bool | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="legend_hf", library_version=__version__)


def _again(action: Callable[[], T], repo: Repository, doing: str) -> T:
    """Runs `action` until it succeeds or it is no use. It must be safe to run twice.

    Raises:
        OSError: What `_refusal` makes of an answer that will not change, or of the last of too many faults.
        ValueError: The token cannot be one.
    """
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError

    token = repo.token
    if isinstance(token, str) and not re.fullmatch(r"[!-~]*", token):
        # The client would put it into a header, and quote the header where it complains.
        raise ValueError("`token` holds a space, a line end or another character that no token has; copy it anew")
    # All that the Hub's client raises for a request: an answer with an error status, a broken connection, no
    # connection.
    faults = (httpx2.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except faults as error:
            wait = _wait_before_retry(_root(error), attempt)
            if wait is None or wait > LONGEST_WAIT or attempt == ATTEMPTS:
                raise _refusal(error, repo, doing, attempt) from _cause(error, token)
            logger.warning(
                "could not %s `%s` (%s); trying again in %.1f s", doing, repo.repo_id, _reason(error, token), wait
            )
        except OSError as error:
            # The client's check of a download's length raises no class of its own.
            if "Consistency check failed" not in str(error) or attempt == ATTEMPTS:
                raise
            wait = PAUSE
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _wait_before_retry(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait before another attempt; None when another one cannot help."""
    import httpx2

    pause = PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
    if isinstance(error, httpx2.TransportError):
        # An unknown protocol or a broken proxy is a setting, not a fault.
        return None if isinstance(error, httpx2.ProxyError | httpx2.UnsupportedProtocol) else pause
    response = getattr(error, "response", None)
    if response is None or response.status_code not in _RETRIED:
        return None
    asked = response.headers.get("Retry-After", "")
    return max(pause, float(asked)) if asked.isdecimal() else pause


def _root(error: BaseException) -> BaseException:
    """The fault beneath the client's "not in the cache": that one says whether another attempt can help."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError

    while isinstance(error, LocalEntryNotFoundError | RevisionResolutionError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refusal(error: Exception, repo: Repository, doing: str, attempts: int) -> OSError:
    """Says in one sentence what the client says in many: what was tried, the Hub's reason, what to do."""
    from huggingface_hub import errors

    root = _root(error)
    reason = _reason(root, repo.token)
    tried = f"cannot {doing} the {repo.repo_type} repository `{repo.repo_id}`"
    status = getattr(getattr(root, "response", None), "status_code", None)
    if isinstance(root, errors.GatedRepoError):
        return PermissionError(
            f"{tried}, which is gated: {reason}; ask for access on its page on the Hub, then {_LOG_IN}"
        )
    if isinstance(root, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{tried} at revision {repo.revision!r}, which it does not have: {reason}; give one of its branches, tags "
            "or commits, or leave it out for the newest"
        )
    if isinstance(root, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{tried}: it does not exist, or it is private and this token may not see it ({reason}); check "
            "the id, or " + _LOG_IN
        )
    if isinstance(root, errors.DisabledRepoError):
        return PermissionError(f"{tried}: the Hub has disabled it ({reason})")
    if status == 401:
        return PermissionError(
            f"{tried}: the Hub refuses the token ({reason}); make a new one at https://huggingface.co/settings/tokens "
            f"and {_LOG_IN}"
        )
    if status == 403:
        return PermissionError(
            f"{tried}: {reason}; use a token with write permission there, of an account that may: {_LOG_IN}"
        )
    if isinstance(root, errors.OfflineModeIsEnabled):
        return ConnectionError(
            f"{tried}: offline mode is on (`HF_HUB_OFFLINE`) and it is not in the cache; turn it off once to "
            "download it"
            if doing.startswith("read")
            else f"{tried}: offline mode is on; unset `HF_HUB_OFFLINE`"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError) and root is error:
        return ConnectionError(
            f"{tried}: only local files are allowed and it is not in the cache; leave out `local_files_only` once"
        )
    if status is not None and status not in _RETRIED:
        return OSError(f"{tried}: {reason}")
    return ConnectionError(
        f"{tried}: {reason}, {attempts} time{'s' if attempts > 1 else ''} in a row; try again later"
        + ("" if doing.startswith(("read", "look")) else ", what has arrived is recognised and not sent twice")
    )


def _reason(error: BaseException, token: str | bool | None, secrets: Collection[str] = ()) -> str:
    """The server's own words if it had any, else the error's first line; never a token."""
    response = getattr(error, "response", None)
    text = getattr(error, "server_message", None) or ""
    if not text and response is not None:
        text = response.headers.get("X-Error-Message") or ""
    if not text:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else ""
    status = f"{response.status_code} " if response is not None else f"{type(error).__name__} "
    return _hidden(f"{status}{text}".strip().rstrip("."), token, secrets)


def _cause(error: BaseException, token: str | bool | None) -> BaseException | None:
    """The client's error, to be printed above ours; None where one in its chain would show a token or a signed URL."""
    link: BaseException | None = error
    while link is not None:
        words = "\n".join([str(link), *getattr(link, "__notes__", ())])
        if _hidden(words, token) != words:
            return None
        link = link.__cause__ or link.__context__
    return error


def reason_at(url: str, error: BaseException) -> str:
    """Why something at a URL failed, in one line; never what in the URL may be secret."""
    return _reason(error, None, _secrets_in(url))


def _hidden(text: str, token: str | bool | None, secrets: Collection[str] = ()) -> str:
    """A text of somebody else's without tokens and without what in URLs may be secret."""
    known = {token if isinstance(token, str) else "", *(os.environ.get(name, "").strip() for name in _TOKEN_VARIABLES)}
    for secret in sorted({*known, *secrets} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r"(://)[^/\s]*@(?=[^/\s])", r"\1***@", _TOKEN.sub("hf_***", text))
    return re.sub(r"(://[^\s?#'\"]*)[?#][^\s'\"]*", r"\1?***", text)


def without_secrets(url: str) -> str:
    """A URL, or several chained by `::`, without user names, passwords, queries and fragments (signatures, keys)."""
    bare = (_CREDENTIALS.sub(r"\1***@", part) for part in url.split("::"))
    return "::".join(_QUERY.sub(r"\1?***", part) for part in bare)


def _secrets_in(url: str) -> set[str]:
    """What of a URL may be secret: passwords, queries and their values, as written and decoded."""
    found: set[str] = set()
    for part in url.split("::"):
        if credentials := _CREDENTIALS.match(part):
            found |= {credentials[2], credentials[2].partition(":")[2]}
        if query := _QUERY.match(part):
            found |= {query[2], *(value for _, value in parse_qsl(query[2]))}
    # Shorter ones are no secrets, and stand in other words.
    return {secret for secret in {*found, *map(unquote, found)} if len(secret) > 3}
