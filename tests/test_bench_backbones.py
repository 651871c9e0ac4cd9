"""Candidates of `select` after fine-tuning: who is compared, the page, one run of all."""

from dataclasses import replace
from pathlib import Path

import pytest
from bench.backbones import Trial, Trials, choices_of, parse, read_trials, write_page
from conftest import ROOT, ImageFolder

KNOWN = Trial(
    set="a", images_per_class="50", seed=17, px=160, backbone="small", code="c", train_images=100,
    test_images=80, taken=True, foreseen=0.7, frozen_accuracy=0.72, accuracy=0.8, seconds=20.0,
)  # fmt: skip
LARGE = replace(KNOWN, backbone="large", taken=False, foreseen=0.75, frozen_accuracy=0.7)


def test_choices_are_compared_on_images_that_all_candidates_have() -> None:
    later = replace(KNOWN, seed=18, taken=False), replace(LARGE, seed=18, taken=True)
    alone = replace(KNOWN, seed=19)
    choices = choices_of([KNOWN, LARGE, *later, alone])
    assert list(choices) == ["small", "large", "by features"]
    assert all(len(chosen) == 2 for chosen in choices.values())
    assert [one.backbone for one in choices["by features"].values()] == ["small", "large"]


def test_the_page_has_the_differences_to_the_first_candidate() -> None:
    trials = [KNOWN, replace(LARGE, accuracy=0.83, seconds=30.0)]
    page = write_page(trials, "make it", "Nothing.\n")
    assert "| large | all | 1 | +5.0 | -2.0 | +3.0 | 83.0 | 30 |" in page
    assert "| by features | all | 1 | +0.0 | +0.0 | +0.0 | 80.0 | 20 |" in page
    assert page.endswith("## What was kept\n\nNothing.\n")
    assert "What was kept" not in write_page(trials, "make it", "")


def test_the_committed_page_is_that_of_the_committed_table() -> None:
    folder = ROOT / "docs/benchmarks/backbones"
    page = folder.with_suffix(".md").read_text()
    _, command, *_ = page.split("`")
    kept = (folder / "kept.md").read_text()
    assert write_page(read_trials(folder / "trials.csv"), command, kept) == page


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_candidates_are_trained_by_the_stages_and_a_run_goes_on(
    tmp_path: Path, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--set", f"drawn={image_folder(images=40)}", "--px", "32", "--level", "10"]
    given += ["--seeds", "17", "--scratch", str(tmp_path / "scratch"), "--out", str(tmp_path)]
    Trials(parse(given)).run()
    trials = read_trials(tmp_path / "trials.csv")
    assert [one.backbone[-5:] for one in trials] == ["lite0", "lite1", "lite2"]
    assert sum(one.taken for one in trials) == 1
    assert {one.train_images for one in trials} == {30}
    monkeypatch.setattr(Trials, "choose", lambda *_: pytest.fail("nothing is missing"))
    Trials(parse(given)).run()
