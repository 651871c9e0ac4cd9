"""A race: what it costs, who takes part, who wins, and where its stage runs none."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tells
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from tiny_finetune import make_inputs
from torch import nn

from tasks.artifacts.records import (
    Decision,
    LayerGroup,
    Phase,
    Race,
    read_record,
)
from tasks.backbones.catalogue import create_architecture
from tasks.backbones.groups import layer_groups
from tasks.errors import TrainingError
from tasks.heads.features import Labeled
from tasks.judging.rule import ValSet
from tasks.params import FinetuneParams
from tasks.params_file import load_params
from tasks.race import find_reason_to_skip, plan_race
from tasks.racing.field import choose_field, cost_of_race, expected_cost, staying
from tasks.racing.race import (
    Ground,
    Lap,
    Means,
    confidence_of_each,
    find_winner,
    run_race,
    say_race,
)
from tasks.racing.racers import Track, train_racer
from tasks.runtime.machine import Machine
from tasks.training.costs import Workload, cost_of_cache, cost_of_phase, measure_costs, share_lost
from tasks.training.inputs import Examples
from tasks.transferability.arms import NamedArm, name_arms
from tasks.transferability.rules import Evidence, choose_cuts

PARAMS = load_params(ROOT / "params.yaml")
GROUPS = [LayerGroup(name=str(one), parameters=1, blocks=1) for one in range(8)]
COSTS = [0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05]
MOST = NamedArm("most", "fine_tune", 4)


# costs -------------------------------------------------------------------------------------------


class Small(nn.Module):
    """3 x 8 x 8 pixels: a convolution to 4 x 4 x 4, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 8, 8)}
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.top = nn.Linear(4, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        return self.head(self.top(self.stem(images).mean((2, 3))))

    def get_classifier(self):
        return self.head

    def group_matcher(self, coarse=False):
        return {"stem": r"^stem", "top": r"^top"}


def test_costs_are_the_multiply_adds_of_each_group():
    convolution, linear = 4 * 4 * 4 * 3 * 3 * 3, 16 * 4
    whole = convolution + linear
    assert measure_costs(Small()) == pytest.approx([convolution / whole, linear / whole])


def test_a_backward_pass_costs_two_forward_passes():
    work = Workload(images=10, views=2, val=5, epochs=3, looks=4)
    assert cost_of_phase(COSTS, 0, work) == pytest.approx(3 * 10 * 3 + 5 * 4)
    assert cost_of_phase(COSTS, 6, work) == pytest.approx(0.1 * (3 * 10 * 3 + 5 * 4))
    assert cost_of_cache(COSTS, 6, work) == pytest.approx(0.9 * (10 * 3 + 5))
    assert cost_of_cache(COSTS, 0, work) == 0


def test_phases_that_were_rolled_back_have_their_share_of_the_cost():
    work = Workload(images=10, views=2, val=5, epochs=0, looks=0)
    kept = Phase.model_construct(unfrozen_from=6, epochs=1, kept=True)
    lost = Phase.model_construct(unfrozen_from=4, epochs=2, kept=False)
    first, second, cache = 0.1 * (3 * 10 + 5 * 2), 0.4 * (3 * 20 + 5 * 3), 0.9 * (10 * 3 + 5)
    expected = second / (first + second + cache)
    assert share_lost([kept, lost], COSTS, work) == pytest.approx(expected)
    assert share_lost([kept], COSTS, work) == share_lost([], COSTS, work) == 0


# who takes part ----------------------------------------------------------------------------------


def fields(images, share, cuts=(4,), val=100):
    work = Workload(images, 2, val, 0, 0)
    race = PARAMS.race.model_copy(update={"share": share, "min_images": 100})
    return choose_field(GROUPS, COSTS, cuts, work, race, PARAMS.finetune), work


@settings(max_examples=100, deadline=None)
@given(
    images=st.integers(50, 200_000), share=st.floats(0.01, 1), cut=st.integers(0, 7),
    val=st.integers(10, 20_000),
)  # fmt: skip
def test_no_race_costs_more_than_its_share_or_wants_images_that_are_not_there(
    images, share, cut, val
):
    field, work = fields(images, share, (cut,), val)
    if field is None:
        return
    whole = expected_cost(COSTS, [cut], work, PARAMS.finetune)
    cost = cost_of_race(COSTS, field.entries, field.images, work, PARAMS.race.epochs)
    assert cost <= share * whole * (1 + 1e-9)
    assert field.share == pytest.approx(cost / whole)
    assert 100 <= field.images <= images / 2


def test_more_images_let_more_arms_race():
    numbers = [500, 2_000, 5_000, 20_000, 100_000]
    raced = [fields(images, 0.15)[0] for images in numbers]
    names = [[one.name for one in field.entries] if field else [] for field in raced]
    assert names[0] == []
    assert names[-1] == ["top", "most", "all", "scratch"]
    assert [len(one) for one in names] == sorted(len(one) for one in names)


@pytest.mark.parametrize(("epochs", "images"), [(10, 10_000), (5, 18_000)])
def test_where_a_race_begins_with_lite0_is_what_the_documents_say(epochs, images):
    network = create_architecture("tf_efficientnet_lite0", image_px=224)
    groups, costs = layer_groups(network), measure_costs(network)
    cuts = choose_cuts(
        "fine_tune", Evidence(images, 10, tuple(g.blocks for g in groups)), PARAMS.decide
    )
    tuning = PARAMS.finetune.model_copy(update={"epochs": epochs})
    for some, raced in ((images, False), (1.1 * images, True)):
        work = Workload(some, PARAMS.augment.views, int(some / 4), 0, 0)
        field = choose_field(groups, costs, cuts, work, PARAMS.race, tuning)
        assert (field is not None) is raced
    for page in ("README.md", "docs/training.md"):
        assert f"{images:,}" in (ROOT / page).read_text()


def test_half_of_the_racers_stay():
    assert [staying(racers) for racers in (4, 3, 2, 1)] == [2, 1, 1, 1]


def test_arms_go_from_the_cheapest_to_the_dearest():
    assert [(one.name, one.phases) for one in name_arms(GROUPS)] == [
        ("frozen", []), ("top", [5]), ("most", [3]), ("all", [0]), ("scratch", [0]),
    ]  # fmt: skip


# who wins ----------------------------------------------------------------------------------------


def drawn_answers(rng, labels, accuracy, shared):
    """Logits of a model that is right with this probability; how hard an image is, all share."""
    margin = shared + 0.7 * rng.normal(0, 1, len(labels))
    margin -= norm.ppf(1 - accuracy, scale=np.hypot(1, 0.7))
    sign = np.where(labels == 1, 1.0, -1.0)
    return np.stack([-sign * margin, sign * margin], axis=1).astype(np.float32)


def winner_of(rng, accuracies, images=300):
    labels = rng.integers(0, 2, images)
    val = ValSet(labels, [str(i) for i in range(images)])
    shared = rng.normal(0, 1, images)
    frozen, *others = (drawn_answers(rng, labels, one, shared) for one in accuracies)
    arms = name_arms(GROUPS)[1 : 1 + len(others)]
    lap = Lap(np.arange(0), frozen, dict(zip(arms, others, strict=True)))
    confidence = confidence_of_each(PARAMS.race, len(arms))
    return find_winner(lap, val, confidence=confidence, seed=17)


def test_a_race_between_equal_arms_names_no_winner():
    rng = np.random.default_rng(1)
    named = [winner_of(rng, [0.85] * 5) for _ in range(40)]
    assert sum(winner is not None for winner in named) <= 3


def test_a_better_arm_wins():
    rng = np.random.default_rng(2)
    named = [winner_of(rng, [0.8, 0.8, 0.9]) for _ in range(20)]
    assert sum(winner is not None and winner.name == "most" for winner in named) >= 18


def test_of_two_arms_that_are_as_much_better_the_cheaper_one_wins():
    rng = np.random.default_rng(3)
    named = [winner_of(rng, [0.75, 0.9, 0.9]) for _ in range(20)]
    assert sum(winner is not None and winner.name == "top" for winner in named) >= 18


# the race itself ---------------------------------------------------------------------------------


def make_ground(folder: Path) -> Ground:
    """Three colors; features that tell nothing, pixels that tell all."""
    inputs = make_inputs(folder)
    rng = np.random.default_rng(0)

    def features(split):
        labels = inputs.manifest.labels(split)
        rows = rng.normal(0, 1, (len(labels), 2, inputs.backbone.feature_dim))
        return Labeled(rows.astype(np.float32), labels, inputs.manifest.groups(split))

    return Ground(
        manifest=inputs.manifest,
        backbone=inputs.backbone,
        baseline=inputs.baseline,
        stores=inputs.stores,
        train=features("train"),
        val=features("val"),
        strengths=[0.1, 1.0],
        seed=17,
    )


def tuning(**changed) -> FinetuneParams:
    return PARAMS.finetune.model_copy(
        update={"batch_size": 6, "head_lr": 0.02, "backbone_lr": 0.02, **changed}
    )


def make_means(folder: Path, **changed) -> Means:
    params = PARAMS.race.model_copy(update={"epochs": 3, **changed})
    return Means(params, tuning(), Machine(engine="torch", threads=1), folder / "cache")


def make_field(ground: Ground, names, images: int):
    entries = [one for one in name_arms(ground.backbone.groups) if one.name in names]
    return replace(fields(100_000, 0.15)[0], entries=entries, images=images)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("ground"))


def test_rounds_double_the_images_and_halve_the_arms(ground, tmp_path):
    field = make_field(ground, ["top", "most", "all", "scratch"], 9)
    race = run_race(ground, field, make_means(tmp_path))
    first, second = race.rounds
    assert [racer.name for racer in first.racers] == ["top", "most", "all", "scratch"]
    assert (first.images, second.images) == (9, 18)
    best = sorted(first.racers, key=lambda racer: racer.val_loss)[:2]
    assert {racer.name for racer in second.racers} == {racer.name for racer in best}
    assert race.val_images == 12
    assert not any(tmp_path.rglob("*.npy")), "activations were left behind"


def test_the_same_race_again_is_the_same(ground, tmp_path):
    field = make_field(ground, ["top", "most"], 9)
    first, again = (run_race(ground, field, make_means(tmp_path)) for _ in range(2))
    assert first == again


def test_what_a_killed_race_left_does_not_reach_the_next_one(ground, tmp_path, monkeypatch):
    """Each round has other images, whose cached activations may have the same shape."""
    from tasks.training.feed import activations
    from tasks.training.feed.parts import BackboneParts

    monkeypatch.setattr(activations, "SHARD_BYTES", 1)
    monkeypatch.setattr(activations, "ROWS_AT_ONCE", 2)  # so that shards of both rounds are full
    field = make_field(ground, ["top", "most"], 9)
    undisturbed = run_race(ground, field, make_means(tmp_path / "undisturbed"))
    with monkeypatch.context() as killed:
        killed.setattr(BackboneParts, "close", lambda _: None)
        killed.setattr("tasks.racing.race.ROUNDS", 1)
        run_race(ground, replace(field, images=18), make_means(tmp_path))
    assert any(tmp_path.glob("cache/**/*.npy"))
    assert run_race(ground, field, make_means(tmp_path)) == undisturbed


def test_a_racer_shows_every_image_of_its_part_as_often_as_there_are_epochs(
    ground, tmp_path, monkeypatch
):
    from tasks.training.step import Stepper

    seen, train = [], Stepper.train

    def spy(self, part, rows, labels):
        seen.append((rows, labels))
        return train(self, part, rows, labels)

    monkeypatch.setattr(Stepper, "train", spy)
    images = ground.part(9)
    head, _ = ground.frozen(images)
    labels = ground.train.labels[images]
    track = Track(
        ground.backbone, ground.baseline, head, ground.stores,
        Examples(labels, ["a"] * 9, ground.val.judge, 3), 4, tuning(), 17,
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    train_racer(name_arms(ground.backbone.groups)[1], track, Machine(engine="torch"), tmp_path)
    rows = np.concatenate([rows for rows, _ in seen])
    shown = rows // 2 % 9  # one augmented view
    assert np.bincount(shown).tolist() == [4] * 9
    np.testing.assert_array_equal(np.concatenate([one for _, one in seen]), labels[shown])
    assert all(torch.equal(tensor, head.state_dict()[name]) for name, tensor in before.items())


def test_training_from_scratch_that_breaks_down_leaves_the_race(ground, tmp_path, monkeypatch):
    from tasks.training.loop import Trainer

    def break_down(*_):
        raise TrainingError("nothing was learned")

    monkeypatch.setattr(Trainer, "run_phase", break_down)
    race = run_race(ground, make_field(ground, ["scratch"], 9), make_means(tmp_path))
    assert race.winner is None
    with pytest.raises(TrainingError, match="nothing was learned"):
        run_race(ground, make_field(ground, ["top"], 9), make_means(tmp_path))


def test_a_race_that_all_lose_at_once_ends_after_the_first_round(ground, tmp_path, monkeypatch):
    from tasks.racing import race as module

    right = 9 * np.eye(3, dtype=np.float32)[ground.val.labels]
    monkeypatch.setattr(Ground, "frozen", lambda self, images: (nn.Linear(1, 3), right))
    monkeypatch.setattr(module, "train_racer", lambda *_: -right)
    race = run_race(ground, make_field(ground, ["top", "most"], 9), make_means(tmp_path))
    assert len(race.rounds) == 1
    assert race.winner is None
    assert tells(say_race(race), "no arm beat frozen features", "9 of the training images")


def test_a_winner_is_told_with_its_gain(ground, tmp_path, monkeypatch):
    from tasks.racing import race as module

    right = 9 * np.eye(3, dtype=np.float32)[ground.val.labels]
    monkeypatch.setattr(Ground, "frozen", lambda self, images: (nn.Linear(1, 3), -right))
    monkeypatch.setattr(module, "train_racer", lambda *_: right)
    race = run_race(ground, make_field(ground, ["top", "most"], 9), make_means(tmp_path))
    assert race.winner.name == "top"
    assert tells(say_race(race), "top third", "beat frozen features", "+100.0 points")


@pytest.mark.parametrize(("overfit", "raised"), [(1.3, False), (3.4, True)])
def test_the_budget_is_a_share_of_what_fine_tuning_at_its_rates_costs(
    ground, tmp_path, monkeypatch, overfit, raised
):
    monkeypatch.setattr("tasks.race.choose_field", lambda *given: given[-1].epochs)
    seen = Evidence(images=1000, classes=2, blocks=(1, 2, 3), overfit=overfit)
    means = make_means(tmp_path)
    tuning = means.tuning.model_copy(update={"epochs": 9, "raise_lr": 2.0})
    epochs = plan_race(seen, ground, PARAMS.decide, replace(means, tuning=tuning))
    assert epochs == (5 if raised else 9)


# the stage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unforced(runs, tmp_path_factory):
    """A run whose arm the user leaves open."""
    run = runs("fine-tuned").copy(tmp_path_factory.mktemp("unforced"))
    run.set(run.params, {"decide.arm": "auto"})
    return run


def run_stage(run, stage, monkeypatch):
    monkeypatch.setenv("REGRAFT_ENGINE", "torch")
    monkeypatch.setenv("REGRAFT_SCRATCH", str(run.root / ".regraft"))
    import_module(f"tasks.{stage}").main(run.arguments(stage))


def test_the_stage_races_and_decide_tells_it(unforced, monkeypatch):
    path = unforced.root / "data/race/race.json"
    assert read_record(path, Race).skipped == "No race: the user asked to fine-tune."
    run_stage(unforced, "race", monkeypatch)
    race, written = read_record(path, Race), path.read_bytes()
    assert race.skipped is None
    assert 0 < race.cost <= 1
    assert [done.epochs for done in race.rounds] == [1] * len(race.rounds)
    assert not list((unforced.root / ".regraft").rglob("*.npy"))
    run_stage(unforced, "race", monkeypatch)
    assert path.read_bytes() == written
    run_stage(unforced, "decide", monkeypatch)
    decision = read_record(unforced.root / "data/decide/decision.json", Decision)
    assert decision.evidence.race == race
    assert sum("In a race" in reason for reason in decision.reasons) == 1


def test_a_race_that_the_budget_does_not_pay_for_is_said_to_be_too_dear(unforced, monkeypatch):
    unforced.set(unforced.params, {"race.min_images": 1000})
    run_stage(unforced, "race", monkeypatch)
    skipped = read_record(unforced.root / "data/race/race.json", Race).skipped
    assert tells(skipped, "100%", "race.share", "1,000 images", "race.min_images")


# where there is none -----------------------------------------------------------------------------


def reason(arm="auto", error=0.1, room=0.05):
    evidence = Evidence(images=1000, classes=2, blocks=(1, 2, 3), error=error, room=room)
    return find_reason_to_skip(evidence, PARAMS.decide.model_copy(update={"arm": arm}))


def test_nothing_is_raced_where_a_race_could_settle_nothing():
    assert tells(reason("scratch"), "the user asked to train from scratch")
    assert tells(reason(error=0.0, room=-0.01), "at their ceiling")
    assert reason() is None


def test_a_skipped_race_holds_nothing_but_the_reason():
    race = Race(skipped="No race.")
    assert (race.rounds, race.winner, race.words) == ([], None, "")
