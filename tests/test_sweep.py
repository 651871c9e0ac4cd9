"""What a sweep is going to try: told and checked before its first run starts."""

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tells
from test_comparison import LABELS, draw, manifest
from test_evaluate import make_baseline, make_finetuned
from test_flow_artifacts import metrics
from toy import ToyProject

from flows import sweep as module
from flows.errors import GraphError
from flows.stages.isolation import Base, cloned
from flows.sweep import Trial, combine, plan
from tasks.artifacts.arrays import write_array
from tasks.artifacts.records import write_record
from tasks.artifacts.tables import write_manifest
from tasks.errors import ParamsError
from tasks.params import Params
from tasks.params_file import load_params

pytest_plugins = ["toy_fixtures"]
pytestmark = pytest.mark.filterwarnings("default")  # DVC's own dependencies warn


@pytest.fixture
def project(tmp_path: Path, dvc_state: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy = ToyProject(tmp_path)
    toy.create()
    toy.write("params.yaml", (ROOT / "params.yaml").read_text())
    monkeypatch.setattr(module.flow_run, "name", "calm-owl", raising=False)
    return tmp_path


def test_a_grid_is_every_combination_of_its_lists() -> None:
    grid = {"finetune.head_lr": [0.1, 0.2], "finetune.epochs": [3, 4, 5]}
    settings = combine(grid, [], [], [])
    assert len(settings) == 6
    assert settings[0] == {"finetune.head_lr": 0.1, "finetune.epochs": 3}
    assert settings[-1] == {"finetune.head_lr": 0.2, "finetune.epochs": 5}


def test_rows_stay_as_they_are_and_backbones_multiply_them() -> None:
    rows = [{"finetune.head_lr": 0.1}, {"finetune.epochs": 3}]
    assert combine({}, rows, [], []) == rows
    assert combine({}, rows, ["resnet18", "convnext_atto"], []) == [
        {"backbone.name": "resnet18", "finetune.head_lr": 0.1},
        {"backbone.name": "resnet18", "finetune.epochs": 3},
        {"backbone.name": "convnext_atto", "finetune.head_lr": 0.1},
        {"backbone.name": "convnext_atto", "finetune.epochs": 3},
    ]
    assert combine({}, [], ["resnet18"], []) == [{"backbone.name": "resnet18"}]


def test_seeds_alone_try_what_stands_in_params_yaml(project: Path) -> None:
    trials = plan(project, combine({}, [], [], [3, 4]), [3, 4])
    assert [(trial.seed, trial.values) for trial in trials] == [(3, {"seed": 3}), (4, {"seed": 4})]
    assert {trial.setting for trial in trials} == {"as in params.yaml"}


def test_grid_and_rows_together_or_nothing_is_refused() -> None:
    with pytest.raises(GraphError, match="grid and rows are both given"):
        combine({"seed": [1]}, [{"seed": 2}], [], [])
    with pytest.raises(GraphError, match=r"nothing.* grid, rows, backbones or seeds"):
        combine({}, [], [], [])
    with pytest.raises(GraphError, match=r"grid: finetune.head_lr has no values"):
        combine({"finetune.head_lr": []}, [], [], [])


def test_every_setting_runs_with_every_seed_under_a_name_of_its_own(project: Path) -> None:
    trials = plan(project, [{"finetune.epochs": 3}, {"finetune.epochs": 4}], [1, 2])
    assert [(trial.name, trial.setting, trial.seed) for trial in trials] == [
        ("calm-owl-1", "finetune.epochs = 3", 1),
        ("calm-owl-2", "finetune.epochs = 3", 2),
        ("calm-owl-3", "finetune.epochs = 4", 1),
        ("calm-owl-4", "finetune.epochs = 4", 2),
    ]
    assert trials[1].values == {"seed": 2, "finetune.epochs": 3}


def test_names_are_those_that_the_experiments_will_have(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.flow_run, "name", "My sweep", raising=False)
    toy = ToyProject(project)
    toy.git("update-ref", "refs/exps/ab/cdef/My-sweep-1", "HEAD")  # of the first try of this sweep
    trials = plan(project, [{"finetune.epochs": 3}, {"finetune.epochs": 4}], [])
    assert [trial.name for trial in trials] == ["My-sweep-1-2", "My-sweep-2"]


def test_all_runs_start_from_the_project_as_it_was_when_the_sweep_began(project: Path) -> None:
    first, second = plan(project, [{"finetune.epochs": 3}, {"finetune.epochs": 4}], [])
    assert first.base == second.base
    toy = ToyProject(project)
    toy.set("seed", 3)
    with cloned(project, first.name, first.values, first.base) as clone:
        assert load_params(clone.path / "params.yaml").seed == first.seed == 17
    (later,) = plan(project, [{"finetune.epochs": 3}], [])
    assert later.base != first.base


def test_without_seeds_that_of_params_yaml_is_taken(project: Path) -> None:
    text = (project / "params.yaml").read_text().replace("\nseed: 17", "\nseed: 5")
    (project / "params.yaml").write_text(text)
    (trial,) = plan(project, [{"finetune.epochs": 3}], [])
    assert trial.seed == 5


def test_a_seed_among_the_values_is_the_seed_of_the_run(project: Path) -> None:
    trials = plan(project, [{"seed": 3}, {"seed": 4}], [])
    assert [(trial.seed, trial.values["seed"]) for trial in trials] == [(3, 3), (4, 4)]
    with pytest.raises(GraphError, match=r"seed .*values.* seeds"):
        plan(project, [{"seed": 3}], [1, 2])


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ({"finetune.heed_lr": 0.1}, ("finetune.heed_lr", "Did you mean finetune.head_lr?")),
        ({"finetune.head_lr": -1}, ("finetune.head_lr is -1", "allowed")),
        ({"seed.x": 3}, ("seed.x", "seed is a value")),
        ({"finetune.head_lr": "quick"}, ("finetune.head_lr is 'quick'", "allowed")),
    ],
)
def test_a_wrong_value_is_told_before_anything_runs(
    project: Path, setting: dict[str, object], facts: tuple[str, ...]
) -> None:
    with pytest.raises((ParamsError, GraphError)) as error:
        plan(project, [{"finetune.epochs": 3}, setting], [1])
    assert tells(str(error.value), *facts)


def test_two_runs_of_the_same_are_one_too_many(project: Path) -> None:
    with pytest.raises(GraphError, match=r"finetune.epochs = 3 stands twice"):
        plan(project, [{"finetune.epochs": 3}, {"finetune.epochs": 3}], [1])


@pytest.mark.parametrize(
    ("balanced", "chosen"), [((True, True), "finds"), ((True, False), "common")]
)
def test_classes_count_the_same_where_they_did_in_all_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    default_params: Params,
    balanced: tuple[bool, bool],
    chosen: str,
) -> None:
    logits = {"finds": draw(1.5), "common": draw(0.0) + np.array([4.0, 0.0])}
    for (name, one), counted in zip(logits.items(), balanced, strict=True):
        write_manifest(tmp_path / name / "ingest/manifest.csv", manifest())
        write_record(tmp_path / name / "evaluate/metrics.json", metrics(shipped="baseline"))
        write_record(
            tmp_path / name / "baseline/baseline.json", make_baseline(class_balanced=counted)
        )
        for stage in ("baseline", "finetune"):
            write_array(tmp_path / name / stage / "val_logits.npy", one.astype(np.float32))
        write_record(tmp_path / name / "finetune/finetune.json", make_finetuned())
    monkeypatch.setattr(module.isolation, "experiment_outs", outs_of)
    shown = []
    monkeypatch.setattr(module, "publish_sweep", lambda ranked, *_: shown.extend(ranked))
    trials = [Trial(name, name, 17, {}, Base("", "")) for name in logits]
    state = module._compare(tmp_path, default_params, trials, {})
    accuracy = np.mean(logits[chosen].argmax(axis=1) == LABELS)
    on_val, on_test = f"{100 * accuracy:.1f} %", "86.5 %"
    if all(balanced):
        on_val, on_test = f"class-balanced {100 * shown[0].accuracy:.1f} %", "50.0 %"
    assert [one.balanced for one in shown] == [all(balanced)] * 2
    assert state.message == f"chosen on val: {chosen}, {on_val}; on test {on_test}; 2 runs"


def outs_of(root: Path, experiment: str) -> dict[str, Path]:
    """Files of an experiment, which lie in a folder of its name."""
    folder = root / experiment
    return {f"data/{file.relative_to(folder)}": file for file in folder.rglob("*.*")}
