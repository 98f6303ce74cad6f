"""Files to and from the Hub, with the real client against the loopback Hub, faults included."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN, LoopbackHub

from legend_hf.hub import transfer

FILES = {"config.json": b'{"a": 1}\n', "direction.safetensors": bytes(range(256)) * 5}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.01)


@pytest.fixture
def repo_id() -> str:
    return f"user/r{uuid.uuid4().hex[:12]}"


@pytest.fixture
def uploaded(hub: LoopbackHub, repo_id: str) -> str:
    """A private model repository with FILES and a README."""
    transfer.Repository(repo_id).commit({**FILES, "README.md": b"# Hand-written\n"}, commit_message="first")
    return repo_id


def stored(hub: LoopbackHub, repo_id: str, kind: str = "models") -> dict[str, bytes]:
    """What the Hub's main branch really holds, past every client and cache."""
    repo = hub.store.repos[(kind, *repo_id.split("/"))]
    tree = repo.resolve("main").tree
    return {path: hub.store.blobs.read(e["sha"]) for path, e in tree.items() if path != ".gitattributes"}


def commits(hub: LoopbackHub, repo_id: str, kind: str = "models") -> int:
    repo = hub.store.repos[(kind, *repo_id.split("/"))]
    return len(repo.history(repo.resolve("main")))


# ---------------------------------------------------------------- reading


def test_reads_a_folder(tmp_path: Path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    found = transfer.read_files(tmp_path, list(FILES), optional=["README.md"])
    assert found == transfer.Files(FILES, None, None, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"the folder '.*' has no file `README.md`; check that it is the right"):
        transfer.read_files(tmp_path, ["README.md"])
    with pytest.raises(ValueError, match=r"`direction.safetensors` of .* is larger than the 100 bytes"):
        transfer.read_files(tmp_path, list(FILES), max_bytes=100)
    with pytest.raises(
        ValueError, match="`revision` is 'main' but .* is a folder, which has no revisions; leave it out"
    ):
        transfer.read_files(tmp_path, list(FILES), revision="main")


@pytest.mark.parametrize(
    "source", ["nothing", "./nothing/here", "a/b/c", "/no/such/folder", "", "user/na me", "user/../x"]
)
def test_refuses_what_is_no_source(source: str):
    with pytest.raises(ValueError, match="is not a folder here, not a Hub id and not a URL; give a folder that exists"):
        transfer.read_files(source, list(FILES))


def test_a_folder_wins_over_a_hub_id(uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert transfer.read_files(uploaded, ["config.json"]).repo_id == uploaded
    (tmp_path / uploaded).mkdir(parents=True)
    (tmp_path / uploaded / "config.json").write_bytes(b"mine")
    found = transfer.read_files(uploaded, ["config.json"])
    assert found.contents == {"config.json": b"mine"}
    assert found.repo_id is None


def test_reads_any_fsspec_url(tmp_path: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            memory.pipe(f"/bucket/direction/{name}", content)
            archive.writestr(f"inside/{name}", content)
            archive.writestr(name, content)
        archive.writestr("bomb/config.json", b"0" * 10_000_000)
    (tmp_path / "packed.zip").write_bytes(packed.getvalue())
    memory.pipe("/packed.zip", packed.getvalue())

    for url in (
        "memory://bucket/direction",
        "memory://bucket/direction/",
        f"file://{tmp_path}/packed.zip".replace("file://", "zip://inside::file://"),
        f"zip://::file://{tmp_path}/packed.zip",
        "zip://inside::memory://packed.zip",
    ):
        found = transfer.read_files(url, list(FILES), optional=["README.md"])
        assert found.contents == FILES, url
        assert (found.repo_id, found.commit) == (None, None)

    with pytest.raises(ValueError, match="larger than the 1000000 bytes that are read at most"):
        transfer.read_files("zip://bomb::memory://packed.zip", ["config.json"], max_bytes=1_000_000)
    with pytest.raises(FileNotFoundError, match="`config.json` is not at `memory://nowhere`; check the URL"):
        transfer.read_files("memory://nowhere", ["config.json"])
    with pytest.raises(FileNotFoundError, match="`config.json` is not at `zip://elsewhere::memory://packed.zip`"):
        transfer.read_files("zip://elsewhere::memory://packed.zip", ["config.json"])
    memory.pipe("/broken.zip", b"not a zip")
    with pytest.raises(OSError, match="`zip://x::memory://broken.zip` cannot be opened .*; check the URL"):
        transfer.read_files("zip://x::memory://broken.zip", ["config.json"])
    with pytest.raises(ValueError, match="`nothing://x` cannot be opened .*[Pp]rotocol"):
        transfer.read_files("nothing://x", ["config.json"])
    with pytest.raises(ValueError, match="is a URL, which has no revisions"):
        transfer.read_files("memory://bucket/direction", ["config.json"], revision="main")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://me:secret@127.0.0.1:9/direction", "`ftp://***@127.0.0.1:9/direction`"),
        ("memory://nowhere?key=secret", "`memory://nowhere?***`"),
        ("zip://x::memory://nowhere.zip?key=secret", "`zip://x::memory://nowhere.zip?***`"),
    ],
)
def test_credentials_in_a_url_are_not_shown(url: str, shown: str):
    with pytest.raises(OSError, match=re.escape(shown)) as caught:
        transfer.read_files(url, ["config.json"])
    assert caught.value.__suppress_context__
    assert "secret" not in str(caught.value)


def test_reads_a_hub_repository_at_one_commit(hub: LoopbackHub, uploaded: str):
    first = transfer.read_files(uploaded, list(FILES), optional=["README.md", "plots.png"])
    assert first.contents == {**FILES, "README.md": b"# Hand-written\n"}
    assert first.repo_id == uploaded
    transfer.Repository(uploaded).commit({"config.json": b"second"}, commit_message="second")
    second = transfer.read_files(uploaded, ["config.json"])
    assert second.contents["config.json"] == b"second"
    assert second.commit != first.commit
    again = transfer.read_files(uploaded, list(FILES), revision=first.commit)
    assert again.contents == FILES
    assert again.commit == first.commit

    hub.log(clear=True)
    transfer.read_files(uploaded, list(FILES), revision=first.commit)
    assert hub.log() == []  # pinned and cached: nobody is asked


@pytest.mark.parametrize("form", ["hf://{id}", "hf://{id}@main", "hf://models/{id}/", "hf://{id}@{commit}"])
def test_a_hub_url_is_a_hub_id(uploaded: str, form: str):
    commit = transfer.Repository(uploaded).resolve().revision
    found = transfer.read_files(form.format(id=uploaded, commit=commit), list(FILES))
    assert (found.contents, found.repo_id, found.commit) == (FILES, uploaded, commit)
    with pytest.raises(ValueError, match="names revision 'main' and `revision` is 'other'; give only one"):
        transfer.read_files(f"hf://{uploaded}@main", list(FILES), revision="other")


def test_a_hub_url_may_name_a_folder_or_a_dataset(hub: LoopbackHub):
    for kind, repo_type in (("datasets/", "dataset"), ("", "model")):
        name = f"user/d{uuid.uuid4().hex[:12]}"
        nested = {f"sub/{k}": v for k, v in FILES.items()}
        transfer.Repository(name, repo_type).commit(nested, commit_message="x")
        assert transfer.read_files(f"hf://{kind}{name}/sub", list(FILES)).contents == FILES


def test_what_cannot_be_read_from_the_hub_is_said_with_the_remedy(hub: LoopbackHub, uploaded: str, monkeypatch):
    ns, name = uploaded.split("/")
    repo = hub.store.repos["models", ns, name]
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (FileNotFoundError, rf"`{uploaded}` has no `no.json` at commit [0-9a-f]{{40}}; check", {"names": ["no.json"]}),
        (FileNotFoundError, "at revision 'nope', which it does not have: 404 .*; give one of", {"revision": "nope"}),
        (
            FileNotFoundError,
            "does not exist, or it is private .*404 Repository not found.*hf auth login",
            {"token": OTHER_TOKEN},
        ),
        (
            PermissionError,
            "the Hub refuses the token .*401 Invalid credentials.*hf auth login",
            {"token": "hf_wrong_token"},
        ),
        (ValueError, "`config.json` of .* is larger than the 3 bytes", {"max_bytes": 3}),
    ]
    for kind, message, changes in cases:
        arguments = {"names": ["config.json"], "cache_dir": None, **changes}
        with pytest.raises(kind, match=message) as caught:
            transfer.read_files(uploaded, **arguments)
        assert "hf_wrong_token" not in "".join(traceback.format_exception(caught.value)).replace('"hf_wrong_token"', "")
    with pytest.raises(FileNotFoundError, match="does not exist, or it is private"):
        transfer.read_files("user/never-made", ["config.json"])
    repo.private, repo.gated = False, "manual"
    with pytest.raises(
        PermissionError, match="gated: 403 Access to model .* is restricted .*; ask for access on its page"
    ):
        transfer.read_files(uploaded, ["direction.safetensors"], token=OTHER_TOKEN)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="gated: 401 .*You must have access to it and be authenticated"):
        transfer.read_files(uploaded, ["direction.safetensors"])
    repo.gated = False
    assert transfer.read_files(uploaded, ["direction.safetensors"]).contents


OFFLINE = """
import json, sys
from legend_hf.hub import transfer
out = {}
for source in sys.argv[2:]:
    try:
        revision = json.loads(sys.argv[1])
        found = transfer.read_files(source, ["config.json"], optional=["README.md", "never.txt"], revision=revision)
        out[source] = [found.commit, sorted(found.contents)]
    except Exception as error:
        out[source] = [type(error).__name__, str(error)]
try:
    transfer.Repository("user/x").commit({}, commit_message="x")
except Exception as error:
    out["push"] = [type(error).__name__, str(error)]
print(json.dumps(out))
"""


def test_works_offline_once_cached(uploaded: str):
    commit = transfer.read_files(uploaded, ["config.json"], optional=["README.md", "never.txt"]).commit
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for revision in (None, "main", commit):
        run = subprocess.run(
            [sys.executable, "-c", OFFLINE, json.dumps(revision), uploaded, "user/never-cached"],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        out = json.loads(run.stdout)
        assert out[uploaded] == [commit, ["README.md", "config.json"]], revision
        kind, message = out["user/never-cached"]
        assert kind == "ConnectionError"
        assert "offline mode is on (`HF_HUB_OFFLINE`) and it is not in the cache; turn it off once" in message
        assert out["push"] == [
            "ConnectionError",
            "cannot push to the model repository `user/x`: offline mode is on; unset `HF_HUB_OFFLINE`",
        ]


def test_local_files_only_asks_nobody(hub: LoopbackHub, uploaded: str):
    with pytest.raises(ConnectionError, match="only local files are allowed and it is not in the cache; leave out"):
        transfer.read_files(uploaded, ["config.json"], local_files_only=True)
    commit = transfer.read_files(uploaded, ["config.json"]).commit
    hub.log(clear=True)
    found = transfer.read_files(uploaded, ["config.json"], optional=["never.txt"], local_files_only=True)
    assert found.commit == commit
    assert hub.log() == []


@pytest.mark.parametrize(
    "fault", [{"action": "status", "status": 503}, {"action": "drop"}, {"action": "reset", "after": 10}]
)
@pytest.mark.parametrize("path", ["/api/models/", "/resolve/", "^/(dl|api/resolve-cache)/"])
def test_reading_survives_a_passing_fault(hub: LoopbackHub, uploaded: str, fault: dict, path: str, tmp_path: Path):
    hub.faults.add(path=path, count=1, **fault)
    found = transfer.read_files(uploaded, list(FILES), cache_dir=tmp_path)
    assert found.contents == FILES
    assert sum(rule["hits"] for rule in hub.faults.list()) == 1


def test_a_hub_that_is_down_is_said_after_the_last_attempt(
    hub: LoopbackHub, uploaded: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    hub.faults.add(path="/api/models/", action="status", status=503, count=-1)
    with pytest.raises(
        ConnectionError, match=r"cannot read .*503 injected fault 503, 2 times in a row; try again later$"
    ):
        transfer.read_files(uploaded, ["config.json"], cache_dir=tmp_path)
    # The control: with a warm cache, the commit seen last serves.
    hub.faults.clear()
    commit = transfer.read_files(uploaded, ["config.json"], cache_dir=tmp_path).commit
    hub.faults.add(path="/", action="status", status=503, count=-1)
    assert transfer.read_files(uploaded, ["config.json"], cache_dir=tmp_path).commit == commit


def test_a_damaged_download_is_noticed(hub: LoopbackHub, uploaded: str, tmp_path: Path):
    files = r"^/(dl|api/resolve-cache)/"
    for name in FILES:
        hub.faults.add(path=files + f".*{name}", action="corrupt", after=3, count=1, method="GET")
    found = transfer.read_files(uploaded, list(FILES), cache_dir=tmp_path / "a")
    assert found.contents == FILES  # fetched again
    assert [rule["hits"] for rule in hub.faults.list()] == [1, 1]
    hub.faults.clear()

    hub.faults.add(path=files, action="corrupt", after=3, count=-1, method="GET")
    with pytest.raises(
        ValueError, match="the download of `config.json` from .* is damaged: .* delete '.*' and try again"
    ):
        transfer.read_files(uploaded, ["config.json"], cache_dir=tmp_path / "b")
    # The control: the client itself notices nothing.
    from huggingface_hub import hf_hub_download

    bad = hf_hub_download(uploaded, "config.json", cache_dir=tmp_path / "c")
    assert Path(bad).read_bytes() != FILES["config.json"]


def test_a_repository_asks_nobody_until_it_is_asked_and_shows_no_token(hub: LoopbackHub, uploaded: str):
    hub.log(clear=True)
    repo = transfer.Repository(uploaded, token=WRITE_TOKEN)
    assert WRITE_TOKEN not in repr(repo)
    assert hub.log() == []
    pinned = repo.resolve()
    assert hub.log(), "the control: this asks"
    assert pinned == transfer.Repository(uploaded, revision=repo.describe().commit, token=WRITE_TOKEN)
    assert pinned.readme() == "# Hand-written\n"
    assert (pinned.read("config.json"), pinned.read("never.txt")) == (FILES["config.json"], None)


# ---------------------------------------------------------------- uploading


def test_one_commit_and_then_none(hub: LoopbackHub, repo_id: str):
    first = transfer.Repository(repo_id).commit(FILES, commit_message="first", readme=lambda old: f"{old} card")
    assert stored(hub, repo_id) == {**FILES, "README.md": b"None card"}
    assert commits(hub, repo_id) == 2  # the Hub's own, and this one
    assert first.oid == hub.store.repos[("models", *repo_id.split("/"))].refs["refs/heads/main"]
    assert first.repo_url.repo_id == repo_id
    again = transfer.Repository(repo_id).commit(FILES, commit_message="again", readme=lambda old: old or "")
    assert again.oid == first.oid
    assert commits(hub, repo_id) == 2
    changed = transfer.Repository(repo_id).commit({**FILES, "config.json": b"{}"}, commit_message="third")
    assert changed.oid != first.oid
    assert commits(hub, repo_id) == 3


@pytest.mark.parametrize("private", [True, False])
def test_private_concerns_creation_only(hub: LoopbackHub, repo_id: str, private: bool):
    transfer.Repository(repo_id).commit(FILES, private=private, commit_message="x")
    repo = hub.store.repos[("models", *repo_id.split("/"))]
    assert repo.private is private
    transfer.Repository(repo_id).commit({"a": b"a"}, private=not private, commit_message="x")
    assert repo.private is private


def test_a_name_alone_is_of_the_own_account(hub: LoopbackHub, repo_id: str):
    info = transfer.Repository(repo_id.split("/")[1]).commit(FILES, commit_message="x")
    assert info.repo_url.repo_id == repo_id


def test_readme_is_merged_with_the_one_there_and_other_files_stay(hub: LoopbackHub, uploaded: str):
    transfer.Repository(uploaded).commit({"notes.txt": b"mine"}, commit_message="x", readme=lambda old: f"{old}added\n")
    assert stored(hub, uploaded) == {**FILES, "notes.txt": b"mine", "README.md": b"# Hand-written\nadded\n"}


def test_replaced_files_go_and_only_those(hub: LoopbackHub, repo_id: str):
    old = {
        "data/train-0.parquet": b"1",
        "data/train-1.parquet": b"2",
        "data/sub/train-2.parquet": b"3",
        "x/train-1.parquet": b"4",
    }
    transfer.Repository(repo_id, "dataset").commit(old, commit_message="x")
    new = {"data/train-0.parquet": b"new"}
    transfer.Repository(repo_id, "dataset").commit(new, commit_message="x", replaces=["data/train-*.parquet"])
    left = {**old, **new}
    del left["data/train-1.parquet"]
    assert stored(hub, repo_id, "datasets") == left


@pytest.mark.parametrize(
    ("token", "target", "message"),
    [
        (READ_TOKEN, "{new}", "the Hub token in use .of `user`. is read-only.*settings/tokens and log in"),
        (READ_TOKEN, "{old}", "is read-only"),
        ("hf_wrong_token", "{new}", "the Hub refuses the token .401 Invalid .*; make a new one at .* and log in"),
        (OTHER_TOKEN, "{new}", "cannot create .*403 You don't have the rights .*; use a token with write permission"),
        (None, "{new}", "needs a Hub token with write permission and none was found; log in with `hf auth login`"),
    ],
)
def test_no_right_to_write_is_said_before_anything_is_uploaded(
    hub: LoopbackHub, uploaded: str, token: str | None, target: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    before = commits(hub, uploaded)
    hub.log(clear=True)
    with pytest.raises(PermissionError, match=message) as caught:
        transfer.Repository(target.format(new="user/unmade", old=uploaded), token=token).commit(
            FILES, commit_message="x"
        )
    assert not hub.log("preupload|commit|/up/")
    assert ("models", "user", "unmade") not in hub.store.repos
    assert commits(hub, uploaded) == before
    assert not token or token not in str(caught.value)


def test_another_accounts_repository_is_refused_before_anything_is_uploaded(hub: LoopbackHub, uploaded: str):
    hub.store.repos[("models", *uploaded.split("/"))].private = False
    hub.log(clear=True)
    with pytest.raises(
        PermissionError, match="cannot push to .*403 You don't have the rights to write to .*; use a token"
    ):
        transfer.Repository(uploaded, token=OTHER_TOKEN).commit(FILES, commit_message="x")
    assert not hub.log("preupload|commit|/up/")


@pytest.mark.parametrize("repo_id", ["user/a/b", "user/", "us er/a", "../x"])
def test_an_id_that_is_none_is_refused(hub: LoopbackHub, repo_id: str):
    with pytest.raises(ValueError, match="`repo_id` is .*; it must be `namespace/name` or `name`"):
        transfer.Repository(repo_id).commit(FILES, commit_message="x")


def test_metadata_that_the_hub_refuses_stops_before_the_upload(hub: LoopbackHub, uploaded: str):
    before = stored(hub, uploaded)
    hub.log(clear=True)
    with pytest.raises(ValueError, match="license"):
        transfer.Repository(uploaded).commit(
            {"a.bin": b"1"}, readme=lambda old: "---\nlicense: none-such\n---\n", commit_message="x"
        )
    assert stored(hub, uploaded) == before
    assert not hub.log("preupload|/up/|commit/")


FAULTS: dict[str, dict[str, Any]] = {
    "503": {"action": "status", "status": 503},
    "500 after the work": {"action": "lose"},
    "429": {"action": "status", "status": 429, "retry_after": 1},
    "412": {"action": "status", "status": 412},
    "409": {"action": "status", "status": 409},
    "drop": {"action": "drop"},
    "cut": {"action": "cut", "after": 1},
    "reset": {"action": "reset", "after": 0},
    "slow": {"action": "slow", "rate": 2000},
}
STEPS = {
    "commit": {"path": "/commit/main", "method": "POST"},
    "info": {"path": r"^/api/models/user/\w+$", "method": "GET"},
    "tree": {"path": "/tree/"},
    "preupload": {"path": "/preupload/"},
    "lfs": {"path": "/up/", "side": "store"},
    "create": {"path": "/api/repos/create"},
}


# A race or a rate limit answers the commit and the description; the client itself waits out those of uploads.
ANSWERED = ("429", "412", "409")


@pytest.mark.parametrize(
    ("fault", "step"), [(f, s) for f in FAULTS for s in STEPS if f not in ANSWERED or s in ("commit", "info")]
)
def test_a_push_survives_a_passing_fault(hub: LoopbackHub, repo_id: str, fault: str, step: str):
    rule = hub.faults.add(count=1, **FAULTS[fault], **STEPS[step])
    transfer.Repository(repo_id).commit(FILES, commit_message="x", readme=lambda old: f"{old}")
    assert stored(hub, repo_id) == {**FILES, "README.md": b"None"}
    assert commits(hub, repo_id) == 2, "pushed twice"
    assert next(r for r in hub.faults.list() if r["id"] == rule)["hits"] == 1


def test_retry_after_is_obeyed(hub: LoopbackHub, uploaded: str, monkeypatch: pytest.MonkeyPatch, caplog):
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    hub.faults.add(path="/commit/main", action="status", status=429, retry_after=7, count=1)
    with caplog.at_level(logging.WARNING):
        transfer.Repository(uploaded).commit({"a": b"a"}, commit_message="x")
    assert 7.0 in waits
    assert "trying again in 7.0 s" in caplog.text
    hub.faults.add(path="/commit/main", action="status", status=429, retry_after=7000, count=1)
    with pytest.raises(ConnectionError, match="429 .*1 time in a row; try again later"):
        transfer.Repository(uploaded).commit({"b": b"b"}, commit_message="x")


def test_a_fault_that_stays_leaves_the_repository_as_it_was(hub: LoopbackHub, uploaded: str, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    before = stored(hub, uploaded)
    hub.faults.add(path="/commit/main", action="status", status=503, count=-1)
    with pytest.raises(
        ConnectionError, match="cannot push to .*503 injected fault 503, 3 times in a row; try again later, what"
    ):
        transfer.Repository(uploaded).commit({"new.safetensors": b"x" * 99, "a": b"a"}, commit_message="x")
    assert stored(hub, uploaded) == before
    hub.faults.clear()
    hub.log(clear=True)
    transfer.Repository(uploaded).commit({"new.safetensors": b"x" * 99, "a": b"a"}, commit_message="x")
    assert stored(hub, uploaded) == {**before, "new.safetensors": b"x" * 99, "a": b"a"}
    assert not hub.log("/up/")  # the large file had arrived


def test_a_commit_in_between_is_kept(hub: LoopbackHub, uploaded: str):
    seen: list[str | None] = []

    def readme(old: str | None) -> str:
        seen.append(old)
        if len(seen) == 1:
            transfer.Repository(uploaded).commit({"theirs": b"1", "README.md": b"# Theirs\n"}, commit_message="theirs")
        return f"{old}ours\n"

    transfer.Repository(uploaded).commit({"mine": b"2"}, commit_message="x", readme=readme)
    assert seen == ["# Hand-written\n", "# Theirs\n"]
    assert stored(hub, uploaded) == {**FILES, "theirs": b"1", "mine": b"2", "README.md": b"# Theirs\nours\n"}


def test_two_pushers_lose_nothing_and_double_nothing(hub: LoopbackHub, uploaded: str, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 50)
    failures: list[BaseException] = []

    def push(who: int) -> None:
        def readme(old: str | None) -> str:
            line = f"- {who}.{turn}\n"
            return old if old and line in old else f"{old or ''}{line}"

        try:
            for turn in range(4):
                transfer.Repository(uploaded).commit({f"{who}.txt": b"%d" % turn}, commit_message="x", readme=readme)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    lines = stored(hub, uploaded)["README.md"].decode().splitlines()[1:]
    assert sorted(lines) == [f"- {who}.{turn}" for who in range(3) for turn in range(4)]
    assert commits(hub, uploaded) == 2 + 12


def test_a_branch_and_a_pull_request_leave_main_alone(hub: LoopbackHub, uploaded: str):
    before = stored(hub, uploaded)
    repo = hub.store.repos[("models", *uploaded.split("/"))]
    info = transfer.Repository(uploaded, revision="try").commit({"a": b"1"}, commit_message="x")
    again = transfer.Repository(uploaded, revision="try").commit({"a": b"1"}, commit_message="x")
    assert again.oid == info.oid == repo.refs["refs/heads/try"]
    request = transfer.Repository(uploaded).commit({"a": b"1"}, create_pr=True, commit_message="x")
    assert request.pr_revision == "refs/pr/1"
    assert stored(hub, uploaded) == before

    hub.store.repos[("models", *uploaded.split("/"))].private = False
    transfer.Repository(uploaded, token=OTHER_TOKEN).commit({"a": b"1"}, create_pr=True, commit_message="x")
    assert len(repo.discussions) == 2


@pytest.mark.parametrize("status", [None, 408, 500, 502, 503, 504])
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_a_lost_answer_opens_one_pull_request(hub: LoopbackHub, repo_type: str, status: int | None, done: bool):
    """Whether the connection broke or a gateway gave up, and whether the Hub had done its work by then or not."""
    name = f"user/p{uuid.uuid4().hex[:10]}"
    transfer.Repository(name, repo_type).commit(FILES, commit_message="first")
    repo = hub.store.repos[(f"{repo_type}s", *name.split("/"))]

    def ask() -> Any:
        return transfer.Repository(name, repo_type).commit({"a": b"1"}, create_pr=True, commit_message="x")

    ask()  # an earlier one of the same title is not taken for this one
    kind = {"action": "lose" if done else "status" if status else "drop"} | ({"status": status} if status else {})
    hub.faults.add(path="/commit/main", count=1, **kind)
    if done:
        info = ask()
        assert info.pr_revision == "refs/pr/2"
        assert info.oid == repo.refs["refs/pr/2"]
    else:
        with pytest.raises(ConnectionError, match=r"while a pull request was opened .* look at its discussions"):
            ask()
    assert len(repo.discussions) == 1 + done
    hub.faults.add(path="/commit/main", count=1, action="status", status=429)
    hub.faults.add(path="preupload", count=1, action="status", status=504)
    ask()  # the control: what was refused for sure is asked again
    assert len(repo.discussions) == 2 + done


def test_a_readme_that_is_not_utf8_is_named(uploaded: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer.Repository, "read", lambda *args, **kwargs: b"caf\xe9")
    with pytest.raises(ValueError, match="`README.md` of .* is not UTF-8 .* save it as UTF-8 first"):
        transfer.Repository(uploaded).commit({"a": b"1"}, commit_message="x", readme=lambda old: old or "")


@pytest.mark.parametrize("call", ["read", "push", "look"])
def test_no_token_in_errors_or_logs(hub: LoopbackHub, uploaded: str, call: str, monkeypatch, caplog):
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: transfer.read_files(uploaded, ["config.json"], token=WRITE_TOKEN, cache_dir="/nonexistent"),
        "push": lambda: transfer.Repository(uploaded, token=WRITE_TOKEN).commit(FILES, commit_message="x"),
        "look": lambda: transfer.Repository(uploaded, token=WRITE_TOKEN).describe(),
    }
    hub.faults.add(path="/api/", action="status", status=500, message=f"failed for {WRITE_TOKEN}", count=-1)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConnectionError) as caught:
        calls[call]()
    assert WRITE_TOKEN not in str(caught.value)
    assert WRITE_TOKEN not in "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("legend_hf"))
    assert "hf_***" in str(caught.value) or "***" in str(caught.value)
