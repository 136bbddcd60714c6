"""The structure of the package: what is installed, which module may import which, and what an import costs."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flmm_plugin"


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser(delimiters=("=",))
    config.read(ROOT / "setup.cfg")
    return config


def lines(config: configparser.ConfigParser, section: str, option: str) -> list[str]:
    return [line.strip() for line in config[section][option].splitlines() if line.strip()]


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the import package as (dotted name, file); adapters, tasks and reports are linked folders."""
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for path in sorted(Path(folder, name) for name in names if name.endswith(".py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path, module: str) -> set[str]:
    """Dotted names a file imports anywhere in it, type-checking blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return found


def reaches(name: str, banned: str) -> bool:
    return name == banned or name.startswith(f"{banned}.")


# --- packaging -----------------------------------------------------------------------------------------------------


def test_every_folder_with_python_files_is_a_package() -> None:
    without = {path.parent for _, path in modules() if not (path.parent / "__init__.py").exists()}
    assert not without, f"add __init__.py : {sorted(map(str, without))}"


def test_setuptools_finds_every_package() -> None:
    found = set(find_packages(str(ROOT), include=["flmm_plugin", "flmm_plugin.*"]))
    assert found == {name for name, path in modules() if path.name == "__init__.py"}


IMPORT_OF = {
    "huggingface-hub": "huggingface_hub",
    "lmms-eval": "lmms_eval",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "segment-anything": "segment_anything",
}
# Needed by what is imported, without being imported: transformers' image processors.
INDIRECT = {"torchvision"}
# Imported by one module that nothing else imports: whoever loads the pytest plugin runs pytest.
# VLMEvalKit has an extra and an environment of its own, and only what it loads imports it.
BROUGHT = {
    "flmm_plugin.adapters.preservation.pytest_plugin": {"pytest"},
    **{
        f"flmm_plugin.adapters.vlmevalkit.{name}": {"vlmeval"} for name in ("dataset", "model", "register", "inference")
    },
    **{f"flmm_plugin.adapters.preservation.{name}": {"vlmeval"} for name in ("vlmevalkit", "plain_vlmevalkit")},
    # `flmm serve` alone loads these, after it has seen that the extra `serve` is installed.
    **{f"flmm_plugin.serve.{name}": {"gradio"} for name in ("page", "serving")},
    # `Groundings.to_supervision` makes records of a library that only its callers have.
    "flmm_plugin.records": {"supervision"},
}


def test_declared_dependencies_are_the_imported_ones() -> None:
    declared = {re.split(r"[<>=!~;\[ ]", line)[0] for line in lines(setup_cfg(), "options", "install_requires")}
    declared_imports = {IMPORT_OF.get(name, name) for name in declared}
    imported = {
        name.partition(".")[0]
        for module, path in modules()
        for name in imports(path, module)
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "flmm_plugin", ""} | BROUGHT.get(module, set())
    }
    assert imported - declared_imports == set(), "name these in setup.cfg install_requires"
    assert declared_imports - imported - INDIRECT == set(), "nothing imports these: remove them from install_requires"


def test_constraints_pin_what_setup_cfg_asks_for() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in text.splitlines() if "==" in line}
    config = setup_cfg()
    asked = [
        line
        for section, option in [
            ("options", "install_requires"),
            *(("options.extras_require", x) for x in ("demo", "test")),
        ]
        for line in lines(config, section, option)
    ]
    missing = {re.split(r"[<>=!~;\[ ]", line)[0].lower() for line in asked} - pinned
    assert not missing, f"run `make constraints`: {missing}"
    assert "://" not in text, "constraints.txt must not name a host"


def test_both_environments_share_their_pins_but_for_what_excludes_itself() -> None:
    pins = {}
    for name in ("constraints.txt", "constraints-vlmevalkit.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text, f"{name} must not name a host"
        pins[name] = dict(line.split(" ")[0].split("==") for line in text.splitlines() if "==" in line.split("#")[0])
    ours, kit = pins.values()
    assert "ms-vlmeval" in kit
    assert "ms-vlmeval" not in ours
    differing = {name for name in ours.keys() & kit.keys() if ours[name] != kit[name]}
    # The kit pins an antlr4 with which lmms-eval's latex2sympy2 does not work: the reason for two environments.
    assert differing == {"antlr4-python3-runtime", "latex2sympy2"}, "run `make constraints`"


# --- layers --------------------------------------------------------------------------------------------------------

# Packages and modules of flmm_plugin, lowest first: none imports what stands in a later row, wherever in a file.
LAYERS = [
    {
        "errors", "bundled", "command_line", "content_hashes", "devices", "exit_codes", "fetching", "file_kinds",
        "files", "hub_files", "json_lines", "measured", "needs", "suggestions", "options", "redaction", "typed_fields",
        "yaml_text",
    },
    {"figures", "geometry", "images", "records", "resampling", "seal", "text_checks"},
    {"delta_rule", "softmax_rows"},
    {"attention", "heads", "row_places", "token_mixers"},
    {"backbones"},
    {
        "capture", "context_length", "frozen_lmm", "grounded_lmm", "grounding", "heads_choice", "passages",
        "verification", "visual_cot",
    },
    {"data", "datasets"},
    {"training"},
    {"tasks"},
    {"reports"},
    {"tiny"},
    {"adapters", "serve"},
    {"bench"},
    {"cli"},
]  # fmt: skip

ADAPTERS, TASKS, REPORTS = "flmm_plugin.adapters", "flmm_plugin.tasks", "flmm_plugin.reports"
# Package -> what it must not know beyond what stands above it; the longest name that fits a module counts.
BANNED = {
    "flmm_plugin": {"lmms_eval"},
    "flmm_plugin.heads": {"transformers", "lmms_eval"},
    TASKS: {"flmm_plugin.backbones", "flmm_plugin.grounded_lmm"},
    f"{TASKS}.metrics": {"torch", "transformers", "lmms_eval"},
    REPORTS: {"torch", "transformers", "lmms_eval", "flmm_plugin.backbones", "flmm_plugin.grounded_lmm"},
    ADAPTERS: set(),
    f"{ADAPTERS}.answering": {"lmms_eval", "vlmeval", f"{ADAPTERS}.lmms_eval", f"{ADAPTERS}.vlmevalkit"},
    f"{ADAPTERS}.lmms_eval": {"vlmeval", f"{ADAPTERS}.vlmevalkit"},
    f"{ADAPTERS}.vlmevalkit": {"lmms_eval", f"{ADAPTERS}.lmms_eval"},
    "flmm_plugin.cli": set(),
}
# Everybody else finds the embedded model and its scenes by their names, through entry points.
KNOW_THE_EMBEDDED_MODEL = {"flmm_plugin.cli", "flmm_plugin.adapters.lmms_eval.demo"}


def import_graph() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports; the package's own `__init__` has no layer."""
    known = dict(modules())
    known.pop("flmm_plugin")
    return {module: {name for name in imports(path, module) if name in known} - {module}
            for module, path in known.items()}  # fmt: skip


def package_of(module: str) -> str:
    """The package of a module as far as it has layers; adapters' folders are packages of their own."""
    depth = 3 if module.startswith(f"{ADAPTERS}.") else 2
    return ".".join(module.split(".")[:depth])


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach each other."""
    reached: dict[str, set[str]] = {}
    for node in graph:
        pending = list(graph[node])
        reached[node] = set()
        while pending:
            following = pending.pop()
            if following not in reached[node]:
                reached[node].add(following)
                pending.extend(graph.get(following, ()))
    groups = {frozenset(other for other in reached[node] if node in reached.get(other, ())) for node in graph}
    return [set(group) for group in groups if group]


def test_every_module_and_package_has_one_layer() -> None:
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    there = {module.split(".")[1] for module in import_graph()}
    assert there - set(placed) == set(), "give these a row of LAYERS"
    assert set(placed) - there == set(), "these are gone: take them out of LAYERS"


def test_no_module_imports_from_a_higher_layer() -> None:
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module} imports {name}"
        for module, names in import_graph().items()
        for name in sorted(names)
        for lower, upper in [(module.split(".")[1], name.split(".")[1])]
        if height[lower] < height[upper]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycles(import_graph()) == []


def test_no_packages_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, names in import_graph().items():
        package = package_of(module)
        graph.setdefault(package, set()).update({package_of(name) for name in names} - {package})
    assert cycles(graph) == []


def test_circles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [{"a", "b", "c"}]


def test_only_the_command_line_and_the_demo_import_the_embedded_model() -> None:
    wrong = {
        module
        for module, names in import_graph().items()
        if package_of(module) != "flmm_plugin.tiny" and any(reaches(name, "flmm_plugin.tiny") for name in names)
    }
    assert wrong <= KNOW_THE_EMBEDDED_MODEL


def banned_for(module: str) -> set[str]:
    return BANNED[max((package for package in BANNED if reaches(module, package)), key=len)]


def test_no_package_imports_what_it_must_not_know() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        for name in sorted(imports(path, module))
        for banned in banned_for(module)
        if reaches(name, banned)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_import_scan_sees_nested_and_relative_imports(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text("def f():\n    from ..tasks import metrics\n    import lmms_eval.api\n", encoding="utf-8")
    found = imports(source, "flmm_plugin.heads.sample")
    assert {"flmm_plugin.tasks.metrics", "lmms_eval.api"} <= found


# --- importing -----------------------------------------------------------------------------------------------------


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "statement",
    [
        "import flmm_plugin",
        "import flmm_plugin.records, flmm_plugin.errors",
        "from flmm_plugin.adapters.lmms_eval.models import manifests; assert list(manifests())",
        "import flmm_plugin.reports.gallery, flmm_plugin.figures",
        "import flmm_plugin.cli",
        "import flmm_plugin.adapters.vlmevalkit.command, flmm_plugin.adapters.vlmevalkit.benchmarks",
    ],
)
def test_registries_cost_no_torch(statement: str, tmp_path: Path) -> None:
    result = python(
        f"{statement}\nimport sys; sys.exit('torch was imported' if 'torch' in sys.modules else 0)", tmp_path
    )
    assert result.returncode == 0, result.stderr


# --- what the repository says --------------------------------------------------------------------------------------

# Written so that this file does not contain what it looks for.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w./:-])/(?:work|root|home|tmp)/\w"),
    "unfinished work": re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b"),
    "a stub": re.compile(r"raise NotImplemented" r"Error\s*$", re.MULTILINE),
    "a swallowed error": re.compile(r"except(?: Exception)?:\s*pass"),
}
TEXT = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".txt", ".sh", ".csv", ".json", ""}


def committed_text() -> Iterator[Path]:
    for top in ("flmm_plugin", "adapters", "tasks", "reports", "tests", "tools", "benchmarks", "docs", ".ci"):
        yield from (
            p for p in (ROOT / top).rglob("*") if p.is_file() and p.suffix in TEXT and "__pycache__" not in p.parts
        )
    yield from (p for p in ROOT.iterdir() if p.is_file() and p.suffix in TEXT and not p.name.startswith(".git"))


def test_the_checks_run_tests_that_exist() -> None:
    named = re.findall(r"\btests/[\w/]+(?:\.py)?", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_says(what: str) -> None:
    hits = [
        f"{path.relative_to(ROOT)}: {match.group(0)!r}"
        for path in committed_text()
        if not (what == "a stub" and "tests" in path.parts)  # a test may well need a model that offers nothing
        if (match := FORBIDDEN[what].search(path.read_text(encoding="utf-8", errors="replace")))
    ]
    assert not hits, "\n".join(hits)
