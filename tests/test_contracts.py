"""The promises of the architecture that a reader of one file cannot see: ranks, deps, keys."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from dvc.repo import Repo
from pydantic import BaseModel
from ruamel.yaml import YAML

from flows.stages.graph import read_state, stale_at
from tasks import params as params_module
from tasks.artifacts.records import HeadKind, Summary, ValSummary
from tasks.images.operations.registry import OPERATIONS
from tasks.params import Block, Params
from tasks.params_file import leaf_paths
from tasks.training.resume.workspace import IMPORTED

ROOT = Path(__file__).parent.parent
GRAPH: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STAGES = list(GRAPH)

RANKS = [
    {"errors"},
    {"artifacts"},
    {"params"},
    {"params_file"},
    {"runtime"},
    {"images"},
    {"backbones"},
    {"judging"},
    {"heads"},
    {"delivery"},
    {"auditing", "transferability", "training", "evaluation", "reporting"},
    {"racing", "watching"},
    {*STAGES, "predict"},
    {"monitor"},
]
# What a registry imports by name: modules of its own folder.
REGISTERED = {
    ROOT / "tasks/images/operations/registry.py": OPERATIONS,
    ROOT / "tasks/heads/registry.py": get_args(HeadKind),
}
# Their values are tracked as values, so that a change of a description reruns nothing.
UNTRACKED = {"tasks/errors.py", "tasks/params.py", "tasks/params_file.py"}


def rank_of(module: str) -> int:
    part = module.split(".")[1]
    return next(number for number, parts in enumerate(RANKS) if part in parts)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[Path]:
    """Modules of tasks/ that a module imports; packages that only hold a docstring are left out."""
    found = set()
    for name in imported_names(path):
        if name.split(".")[0] != "tasks":
            continue
        base = ROOT.joinpath(*name.split("."))
        if base.with_suffix(".py").is_file():
            found.add(base.with_suffix(".py"))
    return found | {path.with_name(f"{name}.py") for name in REGISTERED.get(path, ())}


def closure(stage: str) -> set[Path]:
    """Every module of tasks/ that a stage imports, transitively, itself included."""
    seen: set[Path] = set()
    waiting = {ROOT / "tasks" / f"{stage}.py"}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= imported_modules(module) - seen
    return seen


def expected_code_deps(stage: str) -> set[str]:
    """The stage's own module and the packages of tasks/ that it imports, transitively."""
    parts = [path.relative_to(ROOT).parts for path in closure(stage)]
    return ({"/".join(part[:2]) for part in parts} - UNTRACKED) | {"constraints.txt"}


def blocks_of_schema() -> dict[str, str]:
    """Class name of each block -> its key path."""

    def walk(model: type[BaseModel], at: str) -> Iterator[tuple[str, str]]:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Block):
                yield kind.__name__, f"{at}{name}"
                yield from walk(kind, f"{at}{name}.")

    return dict(walk(Params, "")) | {"Params": ""}


def attribute_chain(node: ast.Attribute) -> tuple[str, list[str]]:
    names: list[str] = []
    value: ast.expr = node
    while isinstance(value, ast.Attribute):
        names.insert(0, value.attr)
        value = value.value
    return (value.id, names) if isinstance(value, ast.Name) else ("", names)


def annotated_variables(function: ast.FunctionDef) -> dict[str, str]:
    """Variables of a function that hold a block: name -> block class."""
    arguments = [*function.args.args, *function.args.kwonlyargs, *function.args.posonlyargs]
    blocks = blocks_of_schema()
    found = {
        argument.arg: argument.annotation.id
        for argument in arguments
        if isinstance(argument.annotation, ast.Name) and argument.annotation.id in blocks
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            called, (target, *_) = node.value.func, node.targets
            if isinstance(called, ast.Name) and called.id in {"load_params", "read_arguments"}:
                name = target.elts[1] if isinstance(target, ast.Tuple) else target
                assert isinstance(name, ast.Name)
                found[name.id] = "Params"
    return found


def key_paths_touched(path: Path) -> set[str]:
    """Key paths (of blocks and leaves) that a module reads from a Params or a block of it."""
    blocks, touched = blocks_of_schema(), set()
    for function in [node for node in ast.walk(syntax(path)) if isinstance(node, ast.FunctionDef)]:
        variables = annotated_variables(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                name, attributes = attribute_chain(node)
                if name in variables:
                    touched.add(".".join(filter(None, [blocks[variables[name]], *attributes])))
    return touched


def keys_read(stage: str) -> set[str]:
    """Keys that a stage's own module reads: whole blocks, and values beside them."""
    own = key_paths_touched(ROOT / "tasks" / f"{stage}.py")
    return {path.split(".")[0] for path in own} - {"model_dump"}


def templated_keys(stage: str) -> set[str]:
    """Leaf keys that become part of a stage's command and deps."""
    return set(re.findall(r"\$\{([\w.]+)\}", str(GRAPH[stage])))


def listed_keys(stage: str) -> set[str]:
    return set(GRAPH[stage].get("params", []))


def code_deps(stage: str) -> set[str]:
    return {
        dep for dep in GRAPH[stage]["deps"] if dep.startswith("tasks/") or dep == "constraints.txt"
    }


ALL_MODULES = sorted(p for p in (ROOT / "tasks").rglob("*.py") if p.name != "__init__.py")


def test_the_modules_at_the_top_of_tasks_are_the_stages_and_what_a_user_calls() -> None:
    parts = set().union(*RANKS[:-2])
    top = {path.stem for path in (ROOT / "tasks").glob("*.py")} - parts - {"__init__"}
    assert top == {*STAGES, "predict", "monitor"}


@pytest.mark.parametrize("path", ALL_MODULES, ids=module_name)
def test_a_module_imports_only_lower_ranks_or_its_own_folder(path: Path) -> None:
    own = module_name(path)
    for imported in map(module_name, imported_modules(path)):
        same_folder = imported.split(".")[1] == own.split(".")[1]
        assert same_folder or rank_of(imported) < rank_of(own), f"{own} imports {imported}"


@pytest.mark.parametrize("path", ALL_MODULES, ids=module_name)
def test_tasks_know_neither_prefect_nor_dvc_nor_flows(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported_names(path)}
    assert not packages & {"prefect", "dvc", "flows"}


def test_a_public_class_or_function_of_one_name_is_defined_once() -> None:
    kinds = (ast.ClassDef, ast.FunctionDef)
    modules = [*ALL_MODULES, *(ROOT / "flows").rglob("*.py")]
    places = Counter(
        node.name
        for path in modules
        for node in syntax(path).body
        if isinstance(node, kinds) and not node.name.startswith("_")
    )
    of_kinds = {"draw", "build", "train"}  # what registries find in modules
    shared = {"main", "Paths"} | of_kinds  # every stage has its own
    assert {name for name, count in places.items() if count > 1} == shared


def test_only_a_registry_imports_by_name() -> None:
    by_name = {path for path in ALL_MODULES if "importlib.import_module" in imported_names(path)}
    assert by_name == set(REGISTERED)


def test_the_package_itself_holds_nothing_that_changes_results() -> None:
    # It is no dep of any stage, so code in it would change results unseen.
    docstring, *rest = syntax(ROOT / "tasks/__init__.py").body
    assert isinstance(docstring, ast.Expr)
    speed = ["import os", "os.environ.setdefault('OPENBLAS_THREAD_TIMEOUT', '4')"]  # no result
    assert [ast.unparse(node) for node in rest] == speed


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_packages_that_a_stage_imports(stage: str) -> None:
    assert code_deps(stage) == expected_code_deps(stage)


def test_a_checkpoint_is_of_the_packages_that_training_imports() -> None:
    assert {f"tasks/{name}" for name in IMPORTED} == code_deps("finetune") - {
        "tasks/finetune.py",
        "constraints.txt",
    }


def test_words_of_the_decision_do_not_train_again() -> None:
    deps = GRAPH["finetune"]["deps"]
    assert [dep for dep in deps if dep.startswith("data/decide/")] == ["data/decide/transfer.json"]


def test_check_depends_on_the_whole_of_the_parameters() -> None:
    assert "params.yaml" in GRAPH["check"]["deps"]
    assert listed_keys("check") == set()


def test_report_depends_on_the_whole_of_the_parameters() -> None:
    assert GRAPH["report"]["params"] == [{"params.yaml": None}]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in {"check", "report"}])
def test_params_are_the_blocks_that_the_stage_reads(stage: str) -> None:
    assert listed_keys(stage) == keys_read(stage)


def test_every_value_is_read_somewhere_in_the_code_that_computes() -> None:
    everywhere = set().union(*(key_paths_touched(module) for module in ALL_MODULES))
    templated = set().union(*(templated_keys(stage) for stage in STAGES))
    registered = {f"augment.custom.{name}" for name in OPERATIONS}
    assert set(leaf_paths()) - everywhere - templated - registered == set()


def test_only_what_reports_reads_what_was_made_of_the_test_images() -> None:
    made_of_test = {"data/augment/test", "data/extract/test"}
    readers = {stage for stage in STAGES if made_of_test & set(GRAPH[stage]["deps"])}
    assert readers == {"extract", "audit", "evaluate", "report"}  # report: are the files as torch
    assert "data/augment/test" in GRAPH["extract"]["deps"]  # once, to make the features


def test_nothing_that_chooses_reads_what_audit_found() -> None:
    found = {f"data/audit/{name}" for name in ("audit.json", "twins.csv", "pairs")}
    readers = {stage for stage in STAGES if found & set(GRAPH[stage]["deps"])}
    assert readers == {"evaluate", "report"}


@pytest.mark.filterwarnings("default")  # DVC's own dependencies warn
def test_dvc_shows_what_val_says_before_what_test_says() -> None:
    with Repo(str(ROOT)) as repo:
        shown = repo.metrics.show()[""]["data"]  # `dvc exp show` has its columns in this order
    assert [Path(path).name for path in shown] == ["val.json", "summary.json"]
    assert all(name.startswith("val_") for name in ValSummary.model_fields)
    assert all(name.startswith("test_") for name in Summary.model_fields)


@pytest.mark.filterwarnings("default")  # as above
@pytest.mark.slow  # fails until `make run` has followed a change of code; the gate wants both
def test_the_committed_results_are_those_of_the_committed_code_and_values() -> None:
    _, reasons = read_state(ROOT)
    changed = [why for stage in STAGES for why in reasons[stage] if not why.startswith("data/")]
    assert changed == []


@pytest.mark.filterwarnings("default")  # as above
@pytest.mark.slow
def test_the_last_commit_holds_the_results_of_its_own_code_and_values() -> None:
    assert stale_at(ROOT, "HEAD") == {}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_below_its_own_folder(stage: str) -> None:
    outs = [
        *GRAPH[stage].get("outs", []),
        *GRAPH[stage].get("metrics", []),
        *GRAPH[stage].get("plots", []),
    ]
    paths = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    assert paths
    assert all(path.startswith(f"data/{stage}/") for path in paths)


@pytest.mark.parametrize("stage", STAGES)
def test_no_value_stands_in_a_command_where_a_shell_would_read_it(stage: str) -> None:
    assert "$" not in GRAPH[stage]["cmd"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_a_command_is_a_dep_or_an_out(stage: str) -> None:
    spec = GRAPH[stage]
    outs = [*spec.get("outs", []), *spec.get("metrics", []), *spec.get("plots", [])]
    listed = {out if isinstance(out, str) else next(iter(out)) for out in outs} | set(spec["deps"])
    named = {word for word in spec["cmd"].split() if word.startswith("data/")}
    named_in_params = {"ingest": {"data/check/paths.json"}, "extract": {"data/weights"}}
    data_listed = {path for path in listed if path.startswith("data/")}
    assert named == data_listed - named_in_params.get(stage, set())


def schema_fields() -> list[tuple[str, Any]]:
    kinds = [kind for kind in vars(params_module).values() if isinstance(kind, type)]
    return [
        (f"{kind.__name__}.{name}", field)
        for kind in kinds
        if issubclass(kind, Block)
        for name, field in kind.model_fields.items()
    ]


@pytest.mark.parametrize(("name", "field"), schema_fields(), ids=[n for n, _ in schema_fields()])
def test_schema_has_no_default_values_and_describes_every_leaf(name: str, field: Any) -> None:
    assert field.is_required(), f"{name} has a default that DVC cannot see"
    is_block = isinstance(field.annotation, type) and issubclass(field.annotation, Block)
    assert is_block or field.description
