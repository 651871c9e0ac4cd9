import subprocess
import sys

import pytest
from conftest import ROOT, tells
from test_doubts import measured

from tasks.artifacts.records import (
    BackboneInfo,
    Baseline,
    CurvePoint,
    Decision,
    Estimate,
    GroupShift,
    InputSpec,
    LayerGroup,
    LearningCurve,
    Look,
    Marks,
    MomentShift,
    Race,
    Racer,
    RaceRound,
    Transfer,
    read_record,
    write_record,
)
from tasks.artifacts.tables import Manifest, ManifestRow, write_manifest
from tasks.decide import Measured, decide, main
from tasks.params_file import load_params
from tasks.transferability.decision_words import describe_plan, write_page
from tasks.transferability.ruler import say_moments

PARAMS = load_params(ROOT / "params.yaml").decide
MARKS = Marks(similar=0.04, far=0.1)

SIZES = {  # parameters and blocks
    "stem": (1_000, 1), "blocks.0": (1_000, 1), "blocks.1": (17_000, 2), "blocks.2": (46_000, 2),
    "blocks.3": (235_000, 3), "blocks.4": (500_000, 3), "blocks.5": (1_200_000, 4),
    "blocks.6": (2_000_000, 1),
}  # fmt: skip

INFO = BackboneInfo(
    name="small",
    weights="random",
    weights_sha256="0" * 64,
    weights_license=None,
    weights_source=None,
    input=InputSpec(image_px=32, mean=(0, 0, 0), std=(1, 1, 1)),
    groups=[
        LayerGroup(name=name, parameters=size, blocks=blocks)
        for name, (size, blocks) in SIZES.items()
    ],
    feature_dim=8,
    norm="batch",
    engine="torch",
    parity=None,
)

LOOK = Look(
    images=9, left_out=0, classes=2, classes_total=2, source=None, gray=1, source_gray=None, even=0,
    source_even=None, deep=0, texture=[], semantics=None, words="All of them are gray.",
)  # fmt: skip


def estimate(low, value, high, n=400):
    return Estimate(value=value, low=low, high=high, n=n)


CURVE = LearningCurve(
    points=[
        CurvePoint(images=count, val_accuracy=estimate(0.7, 0.8, 0.9), val_loss=0.4)
        for count in (195, 389, 778, 1557)
    ],
    last_step=estimate(0.002, 0.021, 0.04),
    pays=True,
    doubling=estimate(0.004, 0.012, 0.02),
)
NO_RACE = Race(skipped="No race: 15% of the cost does not pay for one.")


def found_by_baseline(right=(0.8, 0.84, 0.88), folds=(0.82, 0.84, 0.86), room=(0.12, 0.16, 0.2)):
    return Baseline(
        head="linear",
        hidden=0,
        dropout=0.0,
        feature_dim=8,
        classes=["a", "b"],
        candidates=[],
        val_accuracy=estimate(*right),
        val_loss=0.4,
        majority_accuracy=0.5,
        notes=[],
        l2_strength=0.1,
        folds_accuracy=estimate(*folds, n=1900),
        room=estimate(*room),
        curve=CURVE,
    )


def make_race(name="most", cut=4, arm="fine_tune", *, wins=True):
    racer = Racer(
        name=name, arm=arm, cut=cut, val_accuracy=0.88, val_loss=0.3, better=wins, worse=False,
        accuracy_gain=estimate(0.01, 0.04, 0.07), loss_change=estimate(-0.1, -0.05, -0.01),
    )  # fmt: skip
    done = RaceRound(images=600, epochs=4, frozen_accuracy=0.84, frozen_loss=0.4, racers=[racer])
    return Race(
        skipped=None, rounds=[done], winner=racer if wins else None, words="In a race, so and so."
    )


def make_manifest(images, classes):
    names = [f"class {number:03d}" for number in range(classes)]
    return Manifest(
        [
            ManifestRow(f"{i}.png", names[i % classes], "train", f"{i}", "", 8, 8, "L")
            for i in range(images)
        ]
    )


def decided(
    arm="auto", images=1557, classes=2, race=NO_RACE, baseline=None, marks=MARKS, own=None, **what
):
    params = PARAMS.model_copy(update={"arm": arm, **(own or {})})
    found = Measured(
        make_manifest(images, classes),
        measured(**what)[1].model_copy(update={"marks": marks}),
        INFO,
        baseline or found_by_baseline(),
        race,
    )
    return decide(found, params)


def test_the_ruler_sets_the_marks_that_the_parameters_leave_to_it():
    assert decided(marks=Marks(similar=0.2, far=0.3)).domain == "similar"
    assert decided(marks=Marks(similar=0.1, far=0.3)).domain == "intermediate"
    assert decided(own={"similar_mmd": 0.2, "far_mmd": 0.3}).domain == "similar"


def test_without_a_ruler_a_distance_has_no_meaning():
    decision = decided(marks=None)
    assert decision.domain == "unknown"
    facts = ("domain is unknown", "ruler", "0.180")
    assert any(tells(reason, *facts) for reason in decision.reasons)
    assert not next(rule.fired for rule in decision.rules if rule.name == "domain by MMD")


@pytest.mark.parametrize("value", [0.0, 0.2, 50.0])
def test_a_moment_shift_is_told_and_has_no_vote(value):
    groups = [GroupShift(group="blocks.1", value=value), GroupShift(group="stem", value=value / 2)]
    shift = estimate(0, value, 60)
    words = say_moments("photographs", shift, groups)
    moments = MomentShift(source="photographs", shift=shift, groups=groups, words=words)
    for mmd in (None, (0.17, 0.18, 0.19)):
        found = measured(mmd=mmd, shift=None)[1]
        stages = (make_manifest(1557, 2), INFO, found_by_baseline(), NO_RACE)
        plain, told = (
            decide(Measured(stages[0], one, *stages[1:]), PARAMS)
            for one in (found, found.model_copy(update={"moments": moments}))
        )
        (more,) = set(told.reasons) - set(plain.reasons)
        assert tells(more, "photographs", "blocks.1", f"{value:.3f}", "no vote")
        assert told.model_copy(update={"reasons": plain.reasons}) == plain
        assert more in write_page(told, INFO.groups)


def test_solar_cells_are_fine_tuned():
    decision = decided()
    assert (decision.arm, decision.domain, decision.phases) == ("fine_tune", "far", [6, 4])
    assert (decision.forced, decision.recommended) == (False, "fine_tune")
    assert decision.confidence == "high"


def test_reasons_name_the_numbers():
    reasons = decided().reasons
    for facts in (
        ("far", "MMD^2", "card", "0.180", "0.170 to 0.190"),
        ("1,557 training images", "2 classes", "778 a class"),
        ("30.0 points", "20.0 to 40.0"),
    ):
        assert any(tells(reason, *facts) for reason in reasons)


def test_reasons_include_the_doubts():
    decision = decided(gain=(-0.03, -0.01, 0.01))
    assert decision.confidence == "low"
    assert any("lose 1.0 points" in reason for reason in decision.reasons)
    assert any("transfer itself is in doubt" in reason for reason in decision.reasons)
    assert "try the others with decide.arm" in decision.reasons[-1]
    assert "try the others" not in decided().reasons[-1]


@pytest.mark.parametrize(
    ("what", "facts"),
    [
        ({"mmd": None}, ("No source card tells", "batch-norm shift", "0.45")),
        ({"mmd": None, "shift": None}, ("No source card tells", "how far the domain is.")),
    ],
)
def test_reasons_without_a_card(what, facts):
    assert any(tells(reason, *facts) for reason in decided(**what).reasons)


FORCED = {"scratch": [0], "feature_extraction": [], "fine_tune": [6, 4]}


@pytest.mark.parametrize(("arm", "phases"), FORCED.items())
def test_a_forced_arm_is_recorded_beside_what_the_rules_say(arm, phases):
    decision = decided(arm)
    assert (decision.arm, decision.forced, decision.phases) == (arm, True, phases)
    assert decision.recommended == "fine_tune"
    assert tells(decision.reasons[0], "user asked", "decide.arm")
    assert decision.reasons[1].startswith("The rule that says so: Where nothing speaks against it")


def test_fine_tuning_can_be_forced_where_the_rules_name_frozen_features():
    flawless = found_by_baseline().model_copy(
        update={"folds_accuracy": estimate(0.98, 0.99, 1.0), "room": estimate(0.0, 0.0, 0.01)}
    )
    assert decided(baseline=flawless).arm == "feature_extraction"
    decision = decided("fine_tune", baseline=flawless, images=40)
    assert decision.phases == [4]
    assert decision.recommended == "feature_extraction"


def test_what_would_change_the_answer_is_said_in_words():
    [few] = decided().would_change
    assert tells(few, "40 training images or fewer", "fine-tune the top 4 of 8", "in 1 phase")
    baseline = found_by_baseline().model_copy(update={"overfit": 1.3})
    [_, rates] = decided(baseline=baseline).would_change
    assert tells(rates, "loss of frozen features on val", "more than 1.6 times", "at raised rates.")
    baseline = found_by_baseline().model_copy(update={"overfit": 5.0})
    [_, rates] = decided(baseline=baseline).would_change
    assert tells(rates, "less than 1.6 times that on train", "at the rates of params.yaml.")


def test_a_plan_without_frozen_groups_is_said_so():
    plan = describe_plan("fine_tune", [6, 4, 0], INFO.groups)
    assert tells(plan, "all 8 layer groups in 3 phases")


@pytest.mark.parametrize(
    ("overfit", "images", "arm", "raised", "told"),
    [
        (1.3, 1557, "auto", False, "is 1.30 times that on train, not more than 1.6: "),
        (1.59, 1557, "auto", False, "is 1.59 times"),
        (4.0, 1557, "auto", True, "is 4.00 times that on train, more than 1.6: "),
        (200.0, 1557, "auto", True, "is over 10 times"),
        (4.0, 40, "auto", False, "With at most 20 images a class rates are not raised."),
        (None, 1557, "auto", False, None),
        (4.0, 1557, "scratch", False, None),
    ],
)
def test_the_loss_of_frozen_features_tells_whether_rates_are_raised(
    overfit, images, arm, raised, told
):
    baseline = found_by_baseline().model_copy(update={"overfit": overfit})
    decision = decided(arm=arm, images=images, baseline=baseline)
    assert decision.raised is raised
    reasons = [reason for reason in decision.reasons if "rates are" in reason]
    assert len(reasons) == (told is not None)
    assert all(told in reason and (": rates are raised" in reason) is raised for reason in reasons)


def test_main_writes_decision_and_words(tmp_path):
    rows = [
        ManifestRow(f"{i}.png", "ab"[i % 2], "train" if i < 200 else "test", f"{i}", "", 8, 8, "L")
        for i in range(240)
    ]
    write_manifest(tmp_path / "manifest.csv", Manifest(rows))
    similarity = measured()[1].model_copy(update={"marks": MARKS, "look": LOOK})
    write_record(tmp_path / "similarity.json", similarity)
    write_record(tmp_path / "backbone.json", INFO)
    write_record(
        tmp_path / "baseline.json", found_by_baseline().model_copy(update={"overfit": 4.0})
    )
    write_record(tmp_path / "race.json", NO_RACE)
    names = {
        "manifest": "manifest.csv", "similarity": "similarity.json", "backbone": "backbone.json",
        "baseline": "baseline.json", "race": "race.json",
        "decision": "out/decision.json",
        "transfer": "out/transfer.json", "words": "out/decision.md",
    }  # fmt: skip
    arguments = [f"--{name}={tmp_path / file}" for name, file in names.items()]
    main([f"--params={ROOT / 'params.yaml'}", *arguments])
    decision = read_record(tmp_path / "out/decision.json", Decision)
    assert decision == decided(
        images=200, baseline=found_by_baseline().model_copy(update={"overfit": 4.0})
    )
    assert decision.raised
    transfer = read_record(tmp_path / "out/transfer.json", Transfer)
    assert transfer == Transfer(arm=decision.arm, phases=decision.phases, raised=decision.raised)
    page = (tmp_path / "out/decision.md").read_text()
    title, _, answer, *_ = page.splitlines()
    assert title.startswith("# ")
    assert tells(answer, "Fine-tune", "top 4 of 8", "from blocks.3", "in 2 phases at raised rates")
    assert f"\n{LOOK.words}\n" in page
    assert "| 1 | blocks.5 to blocks.6, head |" in page
    assert "| 2 | blocks.3 to blocks.6, head |" in page
    assert all(f"| {rule.name} |" in page for rule in decision.rules)
    assert all(sentence in page for sentence in [*decision.reasons, *decision.would_change])


def test_deciding_loads_no_torch():
    code = "import sys, tasks.decide; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_page_of_a_frozen_backbone_has_no_phases():
    page = write_page(decided("feature_extraction"), INFO.groups)
    assert "frozen" in page.splitlines()[2]
    assert "| phase |" not in page


def test_the_page_says_how_the_images_look():
    page = write_page(decided("feature_extraction"), INFO.groups, LOOK)
    assert "\nAll of them are gray.\n" in page
    assert "look like" not in write_page(decided("feature_extraction"), INFO.groups)


# what the images themselves say ------------------------------------------------------------------

PERFECT = {"right": (0.94, 1.0, 1.0), "folds": (0.985, 0.995, 0.999), "room": (-0.02, 0.0, 0.02)}


def test_frozen_features_at_their_ceiling_are_kept_even_on_a_far_domain():
    decision = decided(baseline=found_by_baseline(**PERFECT))
    assert (decision.arm, decision.domain, decision.phases) == ("feature_extraction", "far", [])
    assert decision.confidence == "high"
    assert decision.evidence.at_ceiling
    assert any(tells(reason, "at their ceiling", "flawless") for reason in decision.reasons)
    facts = ("errors of frozen features", "above 0.02")
    assert any(tells(one, *facts) for one in decision.would_change)


def test_the_ceiling_can_be_left_out():
    found = Measured(
        make_manifest(1557, 2), measured()[1], INFO, found_by_baseline(**PERFECT), NO_RACE
    )
    assert decide(found, PARAMS).arm == "feature_extraction"
    assert decide(found, PARAMS.model_copy(update={"ceiling_error": 0.0})).arm == "fine_tune"


def test_with_few_images_the_ceiling_is_less_sure():
    few = {**PERFECT, "folds": (0.935, 1.0, 1.0)}
    decision = decided(images=45, baseline=found_by_baseline(**few))
    assert (decision.arm, decision.confidence) == ("feature_extraction", "medium")
    assert any(tells(reason, "so few images", "6.5%") for reason in decision.reasons)


def test_a_val_that_is_too_small_is_no_ceiling():
    small = {"right": (0.5, 0.8, 0.9), "folds": (0.6, 0.8, 0.9), "room": (-0.02, 0.2, 0.4)}
    decision = decided(baseline=found_by_baseline(**small))
    assert (decision.arm, decision.confidence) == ("fine_tune", "medium")
    assert any(tells(reason, "Val could not show") for reason in decision.reasons)


def test_more_images_are_weighed_in_words():
    assert any(
        tells(reason, "From 778 to 1,557 images", "+2.1 points", "1.2 points (0.4 to 2.0)")
        for reason in decided().reasons
    )


@pytest.mark.parametrize(
    ("low", "pays", "said"),
    [(0.002, True, "(0.2 to 4.0); twice"), (-0.01, True, "loss fell beyond doubt"),
     (-0.01, False, "may be chance")],
)  # fmt: skip
def test_how_sure_the_last_step_is_stands_beside_it(low, pays, said):
    curve = CURVE.model_copy(update={"last_step": estimate(low, 0.021, 0.04), "pays": pays})
    baseline = found_by_baseline().model_copy(update={"curve": curve})
    assert any(said in reason for reason in decided(baseline=baseline).reasons)


def test_the_winner_of_a_race_is_taken_with_its_depth():
    assert decided(images=40).confidence != "high"
    decision = decided(images=400, race=make_race("all", 0))
    assert (decision.arm, decision.phases, decision.confidence) == ("fine_tune", [6, 4, 0], "high")
    chosen = {one.name: one for one in decision.arms}
    assert [name for name, one in chosen.items() if one.chosen] == ["all"]
    assert tells(chosen["all"].said, "Raced", "+4.0 points [+1.0, +7.0]")
    assert chosen["scratch"].said == "Not raced."
    assert "In a race, so and so." in decision.reasons


def test_a_winner_may_be_shallower_than_the_rules_go():
    assert decided().phases == [6, 4]
    assert decided(race=make_race("top", 6)).phases == [6]


def test_from_scratch_is_taken_where_it_wins():
    decision = decided(mmd=None, race=make_race("scratch", 0, "scratch"))
    assert (decision.arm, decision.phases) == ("scratch", [0])


def test_a_race_without_a_winner_leaves_the_choice_to_the_rules():
    before, decision = decided(images=40), decided(images=40, race=make_race(wins=False))
    assert (decision.arm, decision.phases) == (before.arm, before.phases)
    assert decision.confidence == before.confidence == "medium"
    assert decision.reasons.count("In a race, so and so.") == 1


@pytest.mark.parametrize(
    ("arm", "name"), [("scratch", "scratch"), ("feature_extraction", "frozen"), ("auto", "most")]
)
def test_one_arm_is_marked_as_chosen(arm, name):
    assert [one.name for one in decided(arm).arms if one.chosen] == [name]


def test_why_there_was_no_race_is_told():
    assert NO_RACE.skipped in decided().reasons
