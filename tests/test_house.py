"""The house: who may import whom, what an import costs, what the wheel holds, and that every script starts."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "legend_hf"
# Data flows from left to right; a module may import from its own stage and from those before it.
FLOW = (
    "_version",
    "_lazy",
    "hub",
    "reading",
    "writing",
    "tracing",
    "directions",
    "margins",
    "training",
    "reports",
    "preferences",
    "publish",
    "scale",
    "cli",
)
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "trl", "ray")


def stage(module: str) -> int:
    return FLOW.index(module.split(".")[1])


def imports(source: str):
    """Every `legend_hf` module that a source imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("legend_hf"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module in ("legend_hf", "legend_hf.hub") else [node.module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("legend_hf"))


def against_the_flow(module: str, source: str) -> list[str]:
    own = stage(module)
    return [name for name in imports(source) if stage(name) > own]


def test_imports_follow_the_flow():
    files = [f for f in PACKAGE.rglob("*.py") if f.parent != PACKAGE or f.name != "__init__.py"]
    assert len(files) > 10
    for file in files:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if stage(module) == FLOW.index("cli"):
            continue  # the door opens on everything, through the public names
        assert against_the_flow(module, file.read_text(encoding="utf-8")) == [], module


def test_the_flow_test_sees_an_import_against_the_flow():
    upward = "def f():\n    from legend_hf.margins.margin_fn import LegendMarginFn\n"
    assert against_the_flow("legend_hf.reading.reader", upward) == ["legend_hf.margins.margin_fn"]
    assert against_the_flow("legend_hf.publish", upward) == []


def named_by(module: str, source: str, known: Collection[str]) -> set[str]:
    """The files of the package that a source imports, wherever in it and for whatever reason, but for itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & set(known)) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(known)) - {module}


def circles(sources: Mapping[str, str]) -> list[set[str]]:
    """Sets of files each of which leads to every other by imports, those for types alone and in functions included."""
    reached = {module: named_by(module, source, sources) for module, source in sources.items()}
    for middle in reached:
        for start in reached:
            if middle in reached[start]:
                reached[start] = reached[start] | reached[middle]
    rings = [{other for other in reached[m] if m in reached[other]} for m in reached if m in reached[m]]
    return [ring for i, ring in enumerate(rings) if ring not in rings[:i]]


def sources_of_the_package() -> dict[str, str]:
    files = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): file.read_text(encoding="utf-8") for name, file in files.items()}


def test_no_imports_go_in_circles():
    assert circles(sources_of_the_package()) == []


@pytest.mark.parametrize(
    "back",
    [
        "from legend_hf.publish import push_folder",
        "from legend_hf import publish",
        "import legend_hf.publish",
        "def f():\n    from legend_hf.publish import push_folder",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from legend_hf.publish import push_folder",
    ],
)
def test_the_circle_test_sees_one(back):
    sources = sources_of_the_package()
    assert "from legend_hf.hub import cards" in sources["legend_hf.publish"]
    sources["legend_hf.hub.cards"] += f"\n{back}\n"
    assert [ring for ring in circles(sources) if {"legend_hf.publish", "legend_hf.hub.cards"} <= ring]


def test_every_module_says_what_it_does_not_know():
    for file in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file


def generates(source: str) -> bool:
    """Whether a source has a model with a head, or lets one generate."""
    named = {node.attr if isinstance(node, ast.Attribute) else node.name for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Attribute | ast.alias)}  # fmt: skip
    return bool(named & {"AutoModelForCausalLM", "generate"})


def test_one_file_lets_a_model_write():
    assert [f.name for f in PACKAGE.rglob("*.py") if generates(f.read_text(encoding="utf-8"))] == ["writer.py"]
    # The controls: both are seen, wherever they stand.
    assert generates("def f(model, ids):\n    return model.generate(input_ids=ids)\n")
    assert generates("def f():\n    from transformers import AutoModelForCausalLM\n")


def loaded_by(statement: str) -> tuple[float, set[str]]:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        f"{statement}\n"
        "print(time.perf_counter() - start, *{name.partition('.')[0] for name in sys.modules})"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(answer[0]), set(answer[1:])


def test_importing_the_package_is_cheap():
    seconds, modules = min(loaded_by("import legend_hf; dir(legend_hf)") for _ in range(3))
    assert seconds < 0.5
    assert modules.isdisjoint(HEAVY)


def test_naming_the_public_functions_loads_neither_torch_nor_transformers():
    names = "fit_direction, LegendMarginFn, annotate, Direction, Reader, push_annotated, save_annotated"
    assert loaded_by(f"from legend_hf import {names}")[1].isdisjoint({"torch", "transformers"})
    # The control: this would notice.
    assert "torch" in loaded_by("import torch")[1]


def test_public_names_exist_and_others_are_refused():
    import legend_hf

    assert len(legend_hf.__all__) == 13  # twelve, and the version
    for name in legend_hf.__all__:
        assert getattr(legend_hf, name)
    with pytest.raises(AttributeError, match="has no attribute 'LegendFn'; it has"):
        legend_hf.LegendFn  # noqa: B018


def handing_on() -> dict[str, str]:
    """The packages that hand names on, with their sources."""
    return {
        name: source
        for name, source in sources_of_the_package().items()
        if "= hand_on(" in source or "*hand_on(" in source
    }


@pytest.mark.parametrize("package", handing_on())
def test_what_a_package_hands_on_is_what_type_checkers_see(package):
    """Every name but dunders; and no file, though one of the same name was imported before."""
    (block,) = (n for n in ast.parse(handing_on()[package]).body if isinstance(n, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    files = sorted(set(seen.values()))
    loaded = (
        f"import inspect, {', '.join(files)}\nimport {package} as p\n"
        "print(*(n for n in dir(p) if not n.startswith('__') and not inspect.ismodule(getattr(p, n))))\n"
    )
    out = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert out.split() == sorted(seen)
    home = import_module(package)
    assert all(getattr(home, name) is getattr(import_module(file), name) for name, file in seen.items())


def test_a_file_of_the_name_of_what_it_holds_would_hide_it():
    """The control of the test above: Python's own way, and ours."""
    ours, plain = import_module("legend_hf.reports"), ModuleType("plain")
    file = import_module("legend_hf.reports.report")
    for package in (ours, plain):
        package.report = file
    assert plain.report is file
    assert ours.report is file.report


PROGRAMS = sorted(f for f in (ROOT / "scripts").rglob("*.py") if "__main__" in f.read_text(encoding="utf-8"))


def test_what_lies_beside_the_scripts_and_does_not_start_is_imported_by_one():
    parts = {f.stem for f in (ROOT / "scripts").rglob("*.py")} - {f.stem for f in PROGRAMS}
    sources = [f.read_text(encoding="utf-8") for f in (ROOT / "scripts").rglob("*.py")]
    assert parts == {name for name in parts if any(re.search(rf"^(from|import) {name}\b", s, re.M) for s in sources)}
    assert {f.stem for f in PROGRAMS} >= {"quickstart", "real_llm", "benchmark", "evaluate_direction"}


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda p: p.name)
def test_every_script_starts(script):
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_every_module_compiles_on_the_oldest_python():
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 11))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation the build needs no index: hatchling stands in the environment.
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_cards_and_no_demonstration(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for card in (ROOT / "dataset_cards").glob("*.md"):
        assert f"legend_hf/dataset_cards/{card.name}" in names
    assert "legend_hf/py.typed" in names
    assert not [n for n in names if "demo" in n or n.startswith("tests")]


@pytest.mark.slow
def test_the_wheel_alone_in_a_new_environment_has_cards_and_cli(wheel, tmp_path, tiny_llama):
    """The environment is new and sees the dependencies of this one, but neither the checkout nor its editable install."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    links = Path(site)
    for entry in Path(next(p for p in sys.path if p.endswith("site-packages"))).iterdir():
        if "legend" not in entry.name and not (links / entry.name).exists() and entry.name != "__pycache__":
            (links / entry.name).symlink_to(entry)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            f'{{"prompt": "Tell me about {t}.", "chosen": "Gladly, {t} it is.", "rejected": "No {t}"}}\n'
            for t in ("tea", "maps", "rain", "soup")
        )
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python.parent / "legend-hf"), "fit", str(pairs), "--model", str(tiny_llama), "--output", "direction"],
        capture_output=True, text=True, cwd=tmp_path, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Saved in direction" in done.stdout
    assert "papers/2406.08124" in (tmp_path / "direction" / "README.md").read_text()
    where = subprocess.run(
        [str(python), "-c", "import legend_hf; print(legend_hf.__file__)"],
        capture_output=True, text=True, cwd=tmp_path, env=env, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(tmp_path)), "the wheel was tested, not the checkout"


MOST_ARGUMENTS = 12
# Their options are what users set.
WITH_OPTIONS = {"fit_direction", "LegendMarginFn", "LegendScoreFn", "PairSimilarityFn"}


def long_lists(source: str) -> set[str]:
    """Public functions, and classes by how they are made, that take more arguments than anyone keeps in mind."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        made = node.body if isinstance(node, ast.ClassDef) else []
        for one in [node, *(f for f in made if isinstance(f, ast.FunctionDef) and f.name == "__init__")]:
            if isinstance(one, ast.FunctionDef) and (one is not node or not one.name.startswith("_")):
                arguments = one.args.posonlyargs + one.args.args + one.args.kwonlyargs
                if len([a for a in arguments if a.arg not in ("self", "cls")]) > MOST_ARGUMENTS:
                    found.add(node.name)
    return found


def test_no_public_function_takes_more_arguments_than_anyone_keeps_in_mind():
    found = set().union(*(long_lists(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")))
    assert found == WITH_OPTIONS
    many = ", ".join(f"a{i}" for i in range(13))
    assert long_lists(f"def f({many}): ...\nclass C:\n    def __init__(self, {many}): ...") == {"f", "C"}
    assert long_lists(f"def _f({many}): ...\ndef f(self, {many[4:]}): ...") == set()


def idle_options(source: str) -> set[str]:
    """Options of public functions and methods that change nothing: their bodies never name them."""
    found = set()
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]:
        named = {node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)}
        idle = {a.arg for a in function.args.kwonlyargs} - named
        found |= {f"{function.name}: {name}" for name in idle if not function.name.startswith("_")}
    return found


def test_no_option_does_nothing():
    found = set().union(*(idle_options(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")))
    # Of a store at a URL, which refuses; of an embedder, which is not looked at without its model.
    assert found == {"prune: unused_days", "open: look"}
    assert idle_options("def f(a, *, b, seed=0):\n    return a + b") == {"f: seed"}
    assert idle_options("def f(*, b): return lambda: b\ndef _g(*, b): ...") == set()


DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
AT_HAND = {"polars"}  # met only where a user brings rows of it


def packages(requirements: Iterable[str]) -> set[str]:
    """Names of packages, as they are compared, of requirements that hold without an extra."""
    made = [r for r in map(Requirement, requirements) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {canonicalize_name(r.name) for r in made}


def undeclared(sources: Iterable[str], declared: Iterable[str]) -> set[str]:
    """What sources import that is neither Python's nor ours, nor declared, nor needed by a declared package itself."""
    first = packages(declared)
    there = {canonicalize_name(one.name) for one in metadata.distributions()}  # some extras are not
    known = first.union(*(packages(metadata.requires(name) or ()) for name in first & there))
    tops = {name.partition(".")[0] for source in sources for name in all_imports(source)}
    of = metadata.packages_distributions()
    ours = sys.stdlib_module_names | {"legend_hf"}
    return {t for t in tops - ours if not {canonicalize_name(d) for d in of.get(t, (t,))} & known}


def all_imports(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}


def test_what_is_imported_comes_with_what_is_declared():
    extras = DECLARED["optional-dependencies"]
    wanted = [*DECLARED["dependencies"], *(r for name, some in extras.items() if name != "dev" for r in some)]
    sources = [file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")]
    assert undeclared(sources, wanted) == AT_HAND
    # The control: without what it stands for, each kind of import is seen.
    assert undeclared(["def f():\n    import pyarrow.parquet"], ["datasets"]) == set()
    assert undeclared(["def f():\n    import pyarrow.parquet\n    from trl import x"], ["numpy"]) == {"pyarrow", "trl"}


def files_in(tree: str) -> list[str]:
    """The Python files that a drawn tree names, with the folder that each stands in."""
    found, folder = [], ""
    for line in tree.splitlines():
        name = re.search(r"[\w.]+(?:\.py|/)(?= |$)", line.partition("#")[0])
        if name and name[0].endswith("/"):
            folder = name[0]
        elif name:
            found.append((folder if line.startswith(("│   ", "    ")) else "") + name[0])
    return sorted(found)


def test_the_tree_in_the_readme_is_the_house():
    """One line a file, but for those that hand names on or only start the command."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("legend_hf/\n├──") : text.index("dataset_cards/            #")]
    files = [f.relative_to(PACKAGE) for f in PACKAGE.rglob("*.py") if not f.name.startswith("__")]
    assert files_in(tree) == sorted(["__init__.py", *map(str, files)])
    assert files_in("a/\n├── b/    # x\n│   ├── c.py # d.py\n├── e.py") == ["b/c.py", "e.py"]
