"""The page: offline, escaped, complete and true to its records."""

import io
import re
from base64 import b64decode
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import HOSTILE, tells
from made_run import Runs, make_exported, make_provenance, reject
from PIL import Image

from tasks.artifacts.records import (
    BackboneChoice,
    BackboneRank,
    ClassSeen,
    Estimate,
    LearningCurve,
    Look,
    MomentShift,
    SeenAs,
    Semantics,
    TextureRange,
)
from tasks.errors import ArtifactError
from tasks.reporting import html
from tasks.reporting.explained import Explained
from tasks.reporting.findings import Findings, SuspectLabels, conclude, read_picture
from tasks.reporting.html import render_report, set_sentence

NONE = Explained()
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: elements with attributes, texts, and whether its tags match."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.mismatched: list[str] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mismatched.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts).replace("\N{NO-BREAK SPACE}", " "))

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@pytest.fixture(scope="module")
def tuned(runs: Runs) -> Findings:
    return runs("fine-tuned").findings


@pytest.fixture(scope="module")
def many(runs: Runs) -> Findings:
    return runs("many").findings


@pytest.fixture(scope="module", params=["fine-tuned", "frozen", "scratch", "many"])
def findings(request: pytest.FixtureRequest, runs: Runs) -> Findings:
    return runs(request.param).findings


def render(findings: Findings, *, whole: bool = True, explained: Explained = NONE) -> str:
    return render_report(findings, make_exported(whole=whole), explained, make_provenance())


def test_the_page_needs_no_network_no_script_and_no_other_file(findings: Findings) -> None:
    source = render(findings)
    page = Page(source)
    tags = Counter(tag for tag, _ in page.elements)
    assert not {"script", "link", "iframe", "object", "form"} & set(tags)
    addresses = list(page.attributes("src"))
    assert addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert all(address.startswith("#") for address in page.attributes("href"))
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in source


def test_the_page_says_between_which_backbones_was_chosen(many: Findings) -> None:
    assert "Chosen between" not in render(many)
    worth = Estimate(value=0.912, low=0.87, high=0.94, n=1000)
    ranking = [
        BackboneRank(name=name, ridge_accuracy=worth, gain=None, better=better, logme=worth,
                     h_score=worth)
        for name, better in (("cheap", True), ("dear", False))
    ]  # fmt: skip
    choice = BackboneChoice(name="cheap", weights="packaged", images=1000, ranking=ranking)
    page = render(replace(many, choice=choice))
    (row,) = re.findall(r"<tr><th>Chosen between</th>.*?</tr>", page)
    assert tells(row, "cheap (91.2", "dear (91.2", "87.0 to 94.0", "1,000")


def test_tags_match_and_every_link_of_the_page_leads_somewhere(findings: Findings) -> None:
    page = Page(render(findings))
    assert page.mismatched == []
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {address.removeprefix("#") for address in page.attributes("href")} <= set(ids)


def test_no_value_is_left_undefined_or_raw(findings: Findings) -> None:
    text = Page(render(findings)).text.replace("{{ 7 * 7 }}", "")  # a class of this name
    assert not re.search(r"\bnan\b", text)
    for leftover in ("None ", "None)", "\\xa0", "{{", "{%", "Undefined", "Markup", "&amp;", "&lt;"):
        assert leftover not in text, leftover


def test_the_first_screen_holds_the_verdict_and_its_interval(tuned: Findings) -> None:
    source = render(tuned)
    first = Page(source[: source.index('<section id="data">')]).text
    verdict = conclude(tuned)
    for fact in (verdict.value, verdict.interval, verdict.model):
        assert fact.replace("\N{NO-BREAK SPACE}", " ") in first
    assert "Within noise." in first


def test_leaks_stand_before_everything_else(tuned: Findings) -> None:
    health = tuned.health.model_copy(
        update={
            "warnings": ["LEAK: 20 pictures stand in several of the given splits."],
            "split_leaks": [["a/1.png", "b/2.png"]] * 20,
        }
    )
    source = render(replace(tuned, health=health))
    assert source.index('class="serious"') < source.index('<dl class="tiles">')
    assert re.search(r"\b8 more\b.*data/ingest/health.json", Page(source).text)


@pytest.mark.parametrize(
    ("found", "tick"),
    [
        ({"mixed_copies": [["a/1.png", "b/2.png"]]}, "No picture has more than one label"),
        ({"label_conflicts": [["a/1.png", "b/2.png"]]}, "No picture has more than one label"),
        ({"warnings": ["LEAK: 2 groups stand in several."]}, "in more than one split"),
    ],
    ids=["look alike", "the same", "groups"],
)
def test_no_tick_stands_beside_a_remark_that_contradicts_it(
    tuned: Findings, found: dict[str, Any], tick: str
) -> None:
    sound = {"mixed_copies": [], "label_conflicts": [], "warnings": [], "split_leaks": []}
    text = [
        Page(render(replace(tuned, health=tuned.health.model_copy(update=update)))).text
        for update in (sound, sound | found)
    ]
    assert tick in text[0]
    assert tick not in text[1]


def test_test_numbers_are_those_of_the_records(tuned: Findings) -> None:
    text = Page(render(tuned)).text
    assert tuned.metrics.difference is not None
    assert tuned.metrics.difference.sentence in text
    for estimate in (tuned.metrics.baseline.accuracy, tuned.shipped.macro_f1):
        assert estimate.low is not None
        assert f"{100 * estimate.value:.1f} %" in text
        assert f"{100 * estimate.low:.1f} to" in text
    assert f"{tuned.shipped.temperature:.2f}" in text


def test_suspect_labels_are_shown_with_label_likely_class_and_path(tuned: Findings) -> None:
    page = Page(render(tuned)).text
    assert tuned.suspects.shown
    for suspects in (tuned.suspects, tuned.test_suspects):
        assert f"{suspects.count} of {suspects.images} images" in page or suspects.count == 0
    for row, _ in [*tuned.suspects.shown, *tuned.test_suspects.shown]:
        for fact in (row.path, row.likely, f"{100 * row.likely_probability:.1f}"):
            assert fact in page


def test_the_folds_stand_beside_the_test_figure(tuned: Findings) -> None:
    folds = tuned.metrics.folds
    assert folds is not None
    page = Page(render(tuned)).text
    for share in (folds.accuracy.value, min(folds.by_fold), tuned.metrics.baseline.accuracy.value):
        assert f"{100 * share:.1f}" in page
    bare = replace(tuned, metrics=tuned.metrics.model_copy(update={"folds": None}))
    assert "Was the split lucky" in page
    assert "Was the split lucky" not in render(bare)


def test_decision_and_phases_are_told_with_their_reasons(tuned: Findings) -> None:
    one, other = tuned.finetuned.phases
    phases = [
        one.model_copy(update={"kept": True, "reason": "val agrees"}),
        other.model_copy(update={"kept": False, "reason": "val refuses"}),
    ]
    changes = {"phases": phases, "interpolation": 0.75, "averaged": False}
    told = replace(tuned, finetuned=tuned.finetuned.model_copy(update=changes))
    text = Page(render(told)).text
    for sentence in (*tuned.decision.reasons, *tuned.decision.would_change):
        assert set_sentence(sentence).striptags().replace("\N{NO-BREAK SPACE}", " ") in text
    assert all(rule.name in text for rule in tuned.decision.rules)
    assert text.count("keptval agrees") == text.count("rolled backval refuses") == 1
    assert "75 % fine-tuned and 25 % start weights" in text


@pytest.mark.parametrize(
    ("kept", "share", "words"),
    [
        ((True, True), 0.0, "0 of 11 epochs (0 % of the computation) went into"),
        ((True, False), 0.93, "10 of 11 epochs (93 % of the computation) went into"),
        ((False, False), None, "11 of 11 epochs went into"),
    ],
    ids=["none", "one", "of an older version"],
)
def test_what_went_into_phases_that_were_rolled_back_is_always_told(
    tuned: Findings, kept: tuple[bool, bool], share: float | None, words: str
) -> None:
    phases = [
        phase.model_copy(update={"kept": good, "epochs": epochs})
        for phase, good, epochs in zip(tuned.finetuned.phases, kept, (1, 10), strict=True)
    ]
    changes = {"phases": phases, "lost_share": share}
    told = replace(tuned, finetuned=tuned.finetuned.model_copy(update=changes))
    assert f"{words} phases that were rolled back." in Page(render(told)).text


def with_curve(findings: Findings, **finetuned: Any) -> Findings:
    """Findings whose frozen features would gain 1.2 points from twice the images."""
    curve = LearningCurve(
        points=[], last_step=None, pays=False,
        doubling=Estimate(value=0.012, low=-0.004, high=0.028, n=200),
    )  # fmt: skip
    gain = Estimate(value=0.036, low=0.011, high=0.061, n=200)
    return replace(
        findings,
        baseline=findings.baseline.model_copy(update={"curve": curve}),
        finetuned=findings.finetuned.model_copy(update={"val_gain": gain, **finetuned}),
    )


def test_what_more_images_would_bring_stands_beside_what_training_brought(tuned: Findings) -> None:
    text = Page(render(with_curve(tuned))).text
    assert tells(text, "Fine-tuning brought +3.6 points (90% interval +1.1 to +6.1) on val.")
    assert tells(
        text, "Twice as many images", "about +1.2 points (90% interval \N{MINUS SIGN}0.4 to +2.8)"
    )
    scratch = Page(render(with_curve(tuned, arm="scratch"))).text
    assert "Training from scratch brought +3.6 points" in scratch
    rejected = Page(render(with_curve(tuned, interpolation=0.0))).text
    assert "Fine-tuning was rejected and brought nothing. Twice as many images" in rejected
    frozen = Page(render(with_curve(tuned, phases=[]))).text
    assert "Twice as many images" in frozen
    assert "brought" not in frozen[frozen.index("Always naming") :]
    bare = tuned.baseline.model_copy(update={"curve": None})
    assert "Twice as many images" not in render(replace(tuned, baseline=bare))


def test_an_average_of_the_phases_is_told(tuned: Findings) -> None:
    averaged = tuned.finetuned.model_copy(update={"interpolation": 1.0, "averaged": True})
    text = Page(render(replace(tuned, finetuned=averaged))).text
    assert "average" in text
    assert "start weights" not in text


def test_a_rejected_fine_tuning_is_said_so_and_never_called_noise(tuned: Findings) -> None:
    text = Page(render(reject(tuned))).text
    words = reject(tuned).finetuned.rejection
    assert words is not None
    assert tells(words, "Fine-tuning was rejected, both models are the same", "val refuses")
    first, results = text.index("Accuracy"), text.index("Results on test")
    assert words in text[:first]
    assert words in text[results:]
    assert "Within noise." in Page(render(tuned)).text
    assert "Within noise." not in text


def test_learning_rates_are_the_highest_of_each_phase(tuned: Findings) -> None:
    first = tuned.history[0]
    history = [
        replace(first, phase=phase, rates={"head": rate, "stem": 0.0})
        for phase, rate in [(1, 1e-4), (1, 3e-4), (2, 2e-4)]
    ]
    groups = [group for group in tuned.backbone.groups if group.name == "stem"]
    backbone = tuned.backbone.model_copy(update={"groups": groups})
    text = Page(render(replace(tuned, history=history, backbone=backbone))).text
    rates = text[text.index("Learning rate of every group") :]
    assert "0.0003" in rates
    assert "0.0002" in rates
    assert "0.0001" not in rates


def test_provenance_tells_commit_hashes_versions_and_parameters(tuned: Findings) -> None:
    text = Page(render(tuned)).text
    provenance = make_provenance()
    for fact in (
        provenance.code.commit,
        provenance.data_sha256,
        tuned.backbone.weights_sha256,
        "ab" * 32,
    ):
        assert fact in text
    assert "torch 2.10.0" in text
    assert "finetune.head_lr" in text
    assert f"git checkout {provenance.code.commit}" in text


def test_uncommitted_code_is_told_with_its_hash(tuned: Findings) -> None:
    page = render_report(tuned, make_exported(), NONE, make_provenance(("tasks/x.py",)))
    text = Page(page).text
    assert "with uncommitted changes in tasks/x.py" in text
    assert "cd" * 32 in text


def test_nothing_fine_tuned_leaves_no_empty_section(runs: Runs) -> None:
    source = render(runs("frozen").findings)
    text = Page(source).text
    assert "Nothing was fine-tuned." in text
    assert "Learning rate of every group" not in text
    assert "Loss over" not in text
    assert 'id="hardest"' not in source


def test_a_head_that_lies_apart_is_said(tuned: Findings) -> None:
    assert tells(Page(render(tuned, whole=False)).text, "timm backbone", "lie beside it")
    assert "lie beside it" not in Page(render(tuned)).text


def test_names_are_escaped_and_shown_as_they_are(runs: Runs) -> None:
    found = replace(runs("scratch").findings, title=f"{HOSTILE}\u202e")
    source = render(found)
    page = Page(source)
    assert "script" not in {tag for tag, _ in page.elements}
    assert all(name in page.text for name in found.health.classes)
    assert {HOSTILE, "{{ 7 * 7 }}"} < set(found.health.classes)
    assert page.mismatched == []


def test_one_hundred_and_twenty_classes_stay_small_and_complete(many: Findings) -> None:
    source = render(many)
    assert len(source) < 1_000_000
    text = Page(source).text
    assert all(name in text for name in many.health.classes)
    assert "105 others" in text
    assert "Most frequent mistakes" in text


def noise(path: Path, side: int) -> Path:
    Image.effect_noise((side, side), 90).convert("RGB").save(path, quality=95)
    return path


def embedded(findings: Findings, path: Path) -> Image.Image:
    """Show a picture as contact sheet and give what the page embeds."""
    shown = replace(findings, sheet=read_picture(path), hardest=[], likest=[])
    none = SuspectLabels(0, 0, [])
    page = Page(render(replace(shown, suspects=none, test_suspects=none)))
    (address,) = page.attributes("src")
    return Image.open(io.BytesIO(b64decode(address.removeprefix("data:image/jpeg;base64,"))))


def test_large_pictures_are_made_smaller_small_ones_kept_as_they_are(
    tmp_path: Path, tuned: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "SHEET_BYTES", 60_000)
    small, large = noise(tmp_path / "small.jpg", 64), noise(tmp_path / "large.jpg", 900)
    assert embedded(tuned, small).size == (64, 64)
    assert large.stat().st_size > 60_000
    assert 48 < embedded(tuned, large).width < 900


def test_all_heatmaps_together_are_bounded(
    tmp_path: Path, tuned: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [read_picture(noise(tmp_path / "large.jpg", 300))] * len(tuned.hardest)
    sizes = []
    for most in (10_000_000, 100_000):
        monkeypatch.setattr(html, "EXPLAINED_BYTES", most)
        sizes.append(len(render(tuned, explained=Explained("", 7, pictures))))
    assert 0 < sizes[1] - len(render(tuned)) < 100_000 * 4 / 3 + 10_000
    assert sizes[1] < sizes[0]


def test_a_missing_or_broken_picture_is_named(tmp_path: Path, tuned: Findings) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "no.jpg", format="PNG")
    with pytest.raises(ArtifactError, match=r"no\.jpg: cannot be read"):
        embedded(tuned, tmp_path / "no.jpg")
    with pytest.raises(ArtifactError, match=r"missing\.jpg: cannot be read"):
        read_picture(tmp_path / "missing.jpg")


def test_figures_take_their_colors_from_the_theme(findings: Findings) -> None:
    source = render(findings)
    style = source[source.index("<style>") : source.index("</style>")]
    body = source[source.index("</style>") :]
    assert not re.search(r'(fill|stroke)="#', body)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    kinds = {kind for page in [Page(body)] for c in page.attributes("class") for kind in c.split()}
    drawn = kinds & {"finetuned", "baseline", "majority", "known", "hit", "miss", "val", "train"}
    assert drawn >= {"baseline", "known", "hit"}
    assert all(f".{kind}" in style for kind in drawn)


def test_the_look_at_the_images_stands_with_its_pictures(tuned: Findings) -> None:
    page = Page(render(tuned))
    look = tuned.similarity.look
    assert look is not None
    assert look.words in page.text
    sides = [row.side for row, _ in tuned.likest]
    assert sides == ["nearest"] * (len(sides) // 2) + ["farthest"] * (len(sides) // 2)
    assert sides
    assert page.attributes("alt").count("Nearest image 1") == 1
    assert all(row.path in page.text for row, _ in tuned.likest)
    assert "Within its range" not in page.text  # the card of this run tells no texture
    assert "Slope of the power spectrum" in page.text


def test_what_the_source_looks_like_stands_beside_the_data(tuned: Findings) -> None:
    texture = TextureRange(
        name="slope", low=-3.5, median=-3.25, high=-3.125, source_low=-3.0, source_median=-2.5,
        source_high=-2.0, inside=0.375,
    )  # fmt: skip
    seen = ClassSeen(
        name=HOSTILE, images=7, seen=[SeenAs(name="solar dish", share=0.34)], sure=0.21
    )
    semantics = Semantics(
        head="ImageNet-1k", images=7, classes=[seen], classes_total=2, sure=0.21,
        source="photographs", source_px=160, source_sure=0.79, source_right=0.85,
    )  # fmt: skip
    look = Look(
        images=7, left_out=0, classes=2, classes_total=2, source="photographs",
        gray=1, source_gray=0.02, even=0, source_even=0.03, deep=0,
        texture=[texture], semantics=semantics, words="See `a` <b>.",
    )  # fmt: skip
    similarity = tuned.similarity.model_copy(update={"look": look})
    source = render(replace(tuned, similarity=similarity))
    text = Page(source).text
    assert "-3.25 (-3.50 to -3.12)" in text
    assert "-2.50 (-3.00 to -2.00)" in text
    assert "38 %" in text
    assert "solar dish 34 %" in text
    assert "the images of photographs at 160 px" in text
    assert "85 % named rightly" in text
    assert "the 1 largest" in text
    assert "See <code>a</code> &lt;b&gt;." in source
    assert HOSTILE not in source
    bare = tuned.similarity.model_copy(update={"look": None})
    assert "A look at the images" not in render(replace(tuned, similarity=bare, likest=[]))


def test_the_profile_of_other_layers_says_what_it_is(tuned: Findings) -> None:
    shift, groups = tuned.similarity.shift, tuned.similarity.shift_groups
    assert shift is not None
    moments = MomentShift(source="photographs <b>", shift=shift, groups=groups, words="")
    update = {"shift": None, "shift_groups": [], "moments": moments}
    similarity = tuned.similarity.model_copy(update=update)
    source = render(replace(tuned, similarity=similarity))
    text = Page(source).text
    assert tells(text, "Shift by layer", "Moment shift", "photographs <b>", "no rule reads it")
    assert "atch-norm" not in text[text.index("Shift by layer") : text.index("Transfer gain")]
    assert "Moment shift" not in Page(render(tuned)).text


def test_a_network_without_batch_norm_has_no_shift_profile(tuned: Findings) -> None:
    similarity = tuned.similarity.model_copy(update={"shift": None, "shift_groups": []})
    source = render(replace(tuned, layers=[], places=[], similarity=similarity))
    text = Page(source).text
    assert "Shift by layer" not in text
    assert "Batch-norm shift" not in text
    assert "Features in two dimensions" not in text
    assert "Where this data lies" in text
    without_card = similarity.model_copy(update={"mmd": None, "known": []})
    assert "Where this data lies" not in Page(render(replace(tuned, similarity=without_card))).text


def test_code_in_a_sentence_is_set_as_code_and_nothing_else_is_trusted() -> None:
    assert set_sentence("run `dvc repro` <now>") == ("run <code>dvc repro</code> &lt;now&gt;")
    assert set_sentence("a ` alone") == "a ` alone"
    assert set_sentence("`<b>`") == "<code>&lt;b&gt;</code>"
