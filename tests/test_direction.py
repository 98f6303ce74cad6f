"""The artifact: what it keeps, where it loads from, and every way in which it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from builders import pair_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legend_hf import ArtifactError, Direction, fit_direction
from legend_hf.directions.calibrate import KINDS, MOST_PARTS, RAW, fit_calibration
from legend_hf.directions.direction import CARD_FILE, CONFIG_FILE, FORMAT, TENSOR_FILE, _digest, _unpack

PAIRS = pair_rows()


@pytest.fixture(scope="module")
def direction(tiny_llama):
    """One whose calibration holds every kind."""
    raw = np.random.default_rng(0).standard_normal(200) + 0.5
    return replace(fit_direction(PAIRS, model=str(tiny_llama)), calibration=fit_calibration("unit", raw))


@pytest.fixture(scope="module")
def saved(direction, tmp_path_factory):
    folder = tmp_path_factory.mktemp("direction")
    direction.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub_model(hub, tiny_llama):
    """The tiny model in a repository of the loopback Hub."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("user/tiny-llama", exist_ok=True)
    api.upload_folder(repo_id="user/tiny-llama", folder_path=tiny_llama)
    return "user/tiny-llama"


def same(one: Direction, other: Direction) -> bool:
    return (
        one.vector.tobytes() == other.vector.tobytes()
        and one.reader == other.reader
        and one.calibration == other.calibration
        and one.facts == other.facts
    )


def test_saved_and_loaded_is_the_same_to_the_bit(direction, saved, tiny_llama):
    assert sorted(p.name for p in saved.iterdir()) == [CARD_FILE, CONFIG_FILE, TENSOR_FILE]
    loaded = Direction.from_pretrained(saved, model=tiny_llama)
    assert same(loaded, direction)
    assert loaded.score("Why?", "Because.") == direction.score("Why?", "Because.")


def test_no_path_of_this_machine_is_in_the_artifact(direction, saved, tiny_llama):
    for file in saved.iterdir():
        assert str(tiny_llama).encode() not in file.read_bytes()
    assert direction.model_path == str(tiny_llama), "it is known here all the same"


def test_loads_from_any_url(direction, saved):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in (CONFIG_FILE, TENSOR_FILE, CARD_FILE):
        memory.pipe(f"/directions/safety/{name}", (saved / name).read_bytes())
    assert same(Direction.from_pretrained("memory://directions/safety"), direction)
    assert same(Direction.from_pretrained(f"file://{saved}"), direction)


def test_hub_round_trip_by_branch_and_commit(direction, hub_model):
    pushed = direction.push_to_hub("user/safety-direction", model_id=hub_model)
    assert pushed.reader.model == hub_model
    assert len(pushed.revision) == 40
    loaded = Direction.from_pretrained("user/safety-direction")
    assert same(loaded, pushed)
    assert (loaded.repo_id, loaded.revision) == ("user/safety-direction", pushed.revision)
    assert same(Direction.from_pretrained("user/safety-direction", revision=pushed.revision), pushed)
    assert loaded.score("Why?", "Because.") == pytest.approx(direction.score("Why?", "Because."), abs=1e-6)

    from huggingface_hub import HfApi

    api = HfApi()
    assert api.model_info("user/safety-direction").private
    again = loaded.push_to_hub("user/safety-direction")
    assert again.revision == pushed.revision, "nothing changed, so nothing is committed"
    other = replace(pushed, facts=replace(pushed.facts, pairs_source="others")).push_to_hub("user/safety-direction")
    assert other.revision != pushed.revision
    assert same(Direction.from_pretrained("user/safety-direction", revision=pushed.revision), pushed)


def test_a_hand_written_card_survives_a_second_push(direction, hub_model):
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    direction.push_to_hub("user/carded", model_id=hub_model)
    text = open(hf_hub_download("user/carded", CARD_FILE)).read()
    mine = text + "\n## Notes of its author\n\nFitted on a rainy day.\n"
    api.upload_file(path_or_fileobj=mine.encode(), path_in_repo=CARD_FILE, repo_id="user/carded")
    changed = replace(direction, facts=replace(direction.facts, pairs_source="a newer set of pairs"))
    changed.push_to_hub("user/carded", model_id=hub_model)
    text = open(hf_hub_download("user/carded", CARD_FILE)).read()
    assert "Fitted on a rainy day." in text
    assert "a newer set of pairs" in text


def test_a_folders_direction_needs_a_hub_model_to_be_pushed(direction, hub_model, tmp_path, tiny_llama):
    with pytest.raises(
        ValueError, match=r'which nobody else can load; publish the model and name it: .*model_id="you/model"'
    ):
        direction.push_to_hub("user/never")
    from huggingface_hub import HfApi
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_llama)
    config.num_hidden_layers = 2
    AutoModel.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    HfApi().create_repo("user/other-llama", exist_ok=True)
    HfApi().upload_folder(repo_id="user/other-llama", folder_path=tmp_path)
    with pytest.raises(ValueError, match="is not the model of this direction: its `n_layers` differs"):
        direction.push_to_hub("user/never", model_id="user/other-llama")
    pushed = direction.push_to_hub("user/named", model_id=hub_model)
    with pytest.raises(ValueError, match="but this direction was fitted on user/tiny-llama@"):
        pushed.push_to_hub("user/named", model_id="user/other-llama")


OFFLINE = """
import sys
from legend_hf import Direction
d = Direction.from_pretrained(sys.argv[1])
print(d.revision, d.score("Why?", "Because."))
"""


def test_offline_after_the_first_use(direction, hub_model, tmp_path):
    pushed = direction.push_to_hub("user/cached", model_id=hub_model)

    def run(**env):
        return subprocess.run(
            [sys.executable, "-c", OFFLINE, "user/cached"],
            capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path), **env},
        )  # fmt: skip

    cold = run(HF_HUB_OFFLINE="1")
    assert cold.returncode != 0
    assert "user/cached" in cold.stderr
    online = run()
    assert online.returncode == 0, online.stderr
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == online.stdout
    assert online.stdout.split()[0] == pushed.revision


def rewritten(saved, change, *, tensors=None, seal=True):
    """An artifact whose config was changed, with a digest that fits it again unless told otherwise."""
    config = json.loads((saved / CONFIG_FILE).read_bytes())
    tensors = (saved / TENSOR_FILE).read_bytes() if tensors is None else tensors
    digest = config.pop("sha256")
    change(config)
    return json.dumps({**config, "sha256": _digest(config, tensors) if seal else digest}).encode(), tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(format=FORMAT + 1),
            f"has format {FORMAT + 1}, this library reads up to {FORMAT}; upgrade: `pip install -U legend-hf`",
        ),
        (lambda c: c.update(format="1"), "has format '1'"),
        (lambda c: c.pop("format"), "is not a direction's; give the id of a legend_hf direction"),
        (lambda c: c.pop("calibration"), r"has a `config.json` that lacks \['calibration'\]"),
        (lambda c: c.update(extra=1), r"has unknown \['extra'\]; upgrade"),
        (lambda c: c["reader"].pop("eos"), r"has a `reader` that lacks \['eos'\]"),
        (lambda c: c["reader"].update(code="x"), r"has a `reader` that .*unknown \['code'\]"),
        (lambda c: c["reader"].update(layer="last"), "has `reader.layer` = 'last', not int"),
        (lambda c: c["reader"].update(layer=True), "has `reader.layer` = True, not int"),
        (
            lambda c: c["reader"].update(layer=99),
            "contradicts itself: `layer` is 99; this model has 3 blocks",
        ),
        (lambda c: c["reader"].update(d_model=33), r"contradicts itself: `vector` is float32 \[32\]"),
        (lambda c: c["reader"].update(date="today"), "contradicts itself: Invalid isoformat"),
        (
            lambda c: c["calibration"].update(scale=-1.0),
            "contradicts itself: the calibration's `scale` is -1.0",
        ),
        (
            lambda c: c["calibration"].update(scale=float("nan")),
            "contradicts itself: the calibration's `scale` is nan",
        ),
        (lambda c: c["calibration"].update(kind="percent"), "contradicts itself: `calibration` is 'percent'; allowed"),
        (lambda c: c["calibration"].update(kind=None), "has `calibration.kind` = None, not str"),
        (
            lambda c: c["calibration"].update(link=None, kind="link"),
            "`calibration` is 'link', but its numbers are missing",
        ),
        (lambda c: c["calibration"].update(scale=10**400), "has `calibration.scale` = 10+.*, not float | None"),
        (lambda c: c["calibration"].update(scale=True), "has `calibration.scale` = True, not float | None"),
        (lambda c: c["calibration"].pop("logit"), r"has a `calibration` that lacks \['logit'\]"),
        (lambda c: c["calibration"].update(bins=[1]), r"has `calibration.bins` = \[1\], not Bins | None"),
        (lambda c: c["calibration"]["bins"].pop("edges"), r"has a `calibration.bins` that lacks \['edges'\]"),
        (lambda c: c["calibration"]["bins"].update(edges=["1"]), r"has `calibration.bins.edges` = \['1'\], not tuple"),
        (lambda c: c["calibration"]["bins"].update(edges=3), "has `calibration.bins.edges` = 3, not tuple"),
        (lambda c: c["calibration"]["bins"]["edges"].reverse(), "contradicts itself: the bins' `edges` fall"),
        (lambda c: c["calibration"]["bins"]["values"].append(1), "contradicts itself: the bins have 3 `edges` and 5"),
        (
            lambda c: c["calibration"].update(bins={"edges": [1] * MOST_PARTS, "values": [1] * (MOST_PARTS + 1)}),
            "contradicts itself: the bins have 64 `edges`",
        ),
        (lambda c: c["calibration"]["link"].update(code="x"), r"has a `calibration.link` that has unknown \['code'\]"),
        (lambda c: c["calibration"]["link"].update(slope=-1), "contradicts itself: the link's `slope` is -1"),
        (
            lambda c: c["calibration"]["link"]["heights"].pop(),
            "contradicts itself: the link has 3 `heights`, 4 `places`",
        ),
        (lambda c: c["calibration"]["link"]["heights"].__setitem__(0, float("inf")), "the link's `heights` is inf"),
        (lambda c: c["facts"].update(pairs="many"), "has `facts.pairs` = 'many', not int | None"),
        (lambda c: c["facts"].update(accuracy_interval=[1]), "has `facts.accuracy_interval` ="),
        (lambda c: c.update(facts=None), "has a `facts` that is not a mapping"),
    ],
)
def test_artifacts_are_refused_by_what_is_wrong(saved, change, message):
    with pytest.raises(ArtifactError, match=message):
        _unpack(*rewritten(saved, change), "you/direction")


def test_a_changed_or_damaged_file_is_refused(saved):
    def later(config):
        config["facts"]["pairs"] = 10_000

    with pytest.raises(ArtifactError, match="does not match its own sha256: a file was damaged, cut or changed"):
        _unpack(*rewritten(saved, later, seal=False), "you/direction")
    _unpack(*rewritten(saved, later), "you/direction")  # the control: it was the digest that refused
    with pytest.raises(ArtifactError, match="is not JSON"):
        _unpack(b"{", b"", "you/direction")


def test_tensors_are_refused_by_what_is_wrong(saved):
    from safetensors.numpy import save

    def packed(tensors):
        return rewritten(saved, lambda c: None, tensors=tensors)

    vector = Direction.from_pretrained(saved).vector
    for tensors, message in (
        (b"not tensors", "cannot be read"),
        (save({"vector": vector}), r"has tensors \['vector'\] instead of `direction`"),
        (save({"direction": vector * 2}), "must be finite and of length one"),
        (save({"direction": vector.astype(np.float16)}), "`vector` is float16"),
        (save({"direction": np.full_like(vector, np.nan)}), "must be finite"),
    ):
        with pytest.raises(ArtifactError, match=message):
            _unpack(*packed(tensors), "you/direction")


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutated_artifact_is_taken_or_crashes(saved, data):
    """Any change of any byte, in either file, is an `ArtifactError` and nothing else."""
    files = {name: (saved / name).read_bytes() for name in (CONFIG_FILE, TENSOR_FILE)}
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    else:
        content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        unchanged = json.loads(content) == json.loads(files[CONFIG_FILE]) if name == CONFIG_FILE else False
    except (ValueError, RecursionError):
        unchanged = False
    files[name] = bytes(content)
    if unchanged:
        return  # white space between JSON values means nothing
    with pytest.raises(ArtifactError):
        _unpack(files[CONFIG_FILE], files[TENSOR_FILE], "you/direction")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_forged_calibration_is_taken_unless_it_makes_sense(saved, data):
    """A calibration with any value replaced, and a digest that fits: an `ArtifactError`, or one that works."""

    def forge(config):
        part = config["calibration"]
        while isinstance(part, dict | list) and len(part):
            key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else list(range(len(part)))))
            if not isinstance(part[key], dict | list) or data.draw(st.booleans()):
                part[key] = data.draw(JSON)
                return
            part = part[key]

    try:
        calibration = _unpack(*rewritten(saved, forge), "you/direction").calibration
    except ArtifactError:
        return
    raw = np.array([-1e30, -1.0, 0.0, 0.5, 1e30])
    for kind in calibration.kinds:
        margins = calibration.apply(raw, kind)
        assert np.isfinite(margins).all()
        assert (np.diff(margins) >= 0).all()
    if calibration.gives_prob:
        assert np.isfinite(calibration.prob(raw)).all()


def test_every_calibration_survives_the_way_to_disk_and_is_told_in_the_card(direction, tmp_path):
    raw = np.linspace(-4, 4, 101)
    for calibration in (RAW, *(replace(direction.calibration, kind=kind) for kind in KINDS)):
        replace(direction, calibration=calibration).save_pretrained(tmp_path)
        loaded = Direction.from_pretrained(tmp_path).calibration
        assert loaded == calibration
        assert loaded.apply(raw).tobytes() == calibration.apply(raw).tobytes()
        assert f"`margin` is `{calibration.kind}` unless" in (tmp_path / CARD_FILE).read_text()
    assert loaded.prob(raw).tobytes() == direction.calibration.prob(raw).tobytes()


def test_an_incomplete_folder_names_the_missing_file(saved, tmp_path):
    (tmp_path / CONFIG_FILE).write_bytes((saved / CONFIG_FILE).read_bytes())
    with pytest.raises(OSError, match=TENSOR_FILE):
        Direction.from_pretrained(tmp_path)


def test_the_wrong_model_folder_is_refused(saved, tmp_path):
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(OSError, match=r"has no file named model\.safetensors"):
        Direction.from_pretrained(saved, model=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="the direction was fitted on .*give the model it was fitted on"):
        Direction.from_pretrained(saved, model=tmp_path)


def test_a_hand_written_card_survives_saving(direction, tmp_path):
    direction.save_pretrained(tmp_path)
    card = tmp_path / CARD_FILE
    card.write_text(card.read_text() + "\nMy own words.\n")
    direction.save_pretrained(tmp_path)
    assert "My own words." in card.read_text()


def test_score_refuses_what_it_cannot_read(direction):
    with pytest.raises(ValueError, match="empty"):
        direction.score("Why?", "")
    with pytest.raises(ValueError, match="`max_length` is 512"):
        direction.score("Why?", "word " * 600)
