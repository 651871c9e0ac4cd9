"""The page: offline, escaped, complete and true to its records."""

import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import (
    HOSTILE,
    Shape,
    fake_exported,
    fake_findings,
    fake_provenance,
)
from PIL import Image

from tasks.errors import ArtifactError
from tasks.params import Params
from tasks.reporting import html
from tasks.reporting.findings import Findings, read_picture
from tasks.reporting.html import render_report

VOID = {"meta", "link", "br", "img", "hr", "input"}
SHAPES = {
    "fine-tuned": Shape(hardest=2),
    "frozen": Shape(
        arm="feature_extraction",
        shipped="baseline",
        card=False,
        hardest=0,
        decision={"confidence": "low"},
    ),
    "scratch": Shape(arm="scratch", head="mlp", classes=("a", "b", "c"), hardest=1),
    "many": Shape(
        classes=[f"species {i:03d}" for i in range(120)],
        test=480,
        wrong=200,
        baseline_wrong=240,
        hardest=3,
        health={
            "warnings": ["LEAK: 2 pictures stand in several of the given splits."],
            "split_leaks": [["a/1.png", "b/2.png"]] * 20,
        },
    ),
}


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


@pytest.fixture(scope="module", params=list(SHAPES))
def findings(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    default_params: Params,
) -> Findings:
    return fake_findings(tmp_path_factory.mktemp("page"), SHAPES[request.param], default_params)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Findings:
    return fake_findings(tmp_path_factory.mktemp("page"), SHAPES["fine-tuned"], default_params)


def render(findings: Findings, *, whole: bool = True) -> str:
    return render_report(findings, fake_exported(whole=whole), fake_provenance())


def test_the_page_needs_no_network_no_script_and_no_other_file(findings: Findings) -> None:
    source = render(findings)
    page = Page(source)
    tags = Counter(tag for tag, _ in page.elements)
    assert not {"script", "link", "iframe", "object", "form"} & set(tags)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.attributes("src"))
    assert all(address.startswith("#") for address in page.attributes("href"))
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in source


def test_tags_match_and_every_link_of_the_page_leads_somewhere(findings: Findings) -> None:
    page = Page(render(findings))
    assert page.mismatched == []
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {address.removeprefix("#") for address in page.attributes("href")} <= set(ids)


def test_no_value_is_left_undefined_or_raw(findings: Findings) -> None:
    text = Page(render(findings)).text
    assert not re.search(r"\bnan\b", text)
    for leftover in ("None ", "None)", "\\xa0", "{{", "{%", "Undefined", "Markup", "&amp;", "&lt;"):
        assert leftover not in text, leftover


def test_the_first_screen_holds_the_verdict_and_its_interval(tuned: Findings) -> None:
    source = render(tuned)
    first = Page(source[: source.index('<section id="data">')]).text
    assert "classifies ELPV images into 2 classes with 90.0 % test accuracy" in first
    assert "95 % interval 87.3 to 92.7 %, 60 test images" in first
    assert "Within noise." in first
    assert "Shipped: Fine-tuned test_efficientnet" in first


def test_leaks_stand_before_everything_else(tmp_path: Path, default_params: Params) -> None:
    source = render(fake_findings(tmp_path, SHAPES["many"], default_params))
    assert source.index('class="serious"') < source.index('<dl class="tiles">')
    assert "and 8 more in data/ingest/health.json" in Page(source).text


def test_test_numbers_are_those_of_the_records(tuned: Findings) -> None:
    text = Page(render(tuned)).text
    assert tuned.metrics.difference is not None
    assert tuned.metrics.difference.sentence in text
    for estimate in (tuned.metrics.baseline.accuracy, tuned.shipped.macro_f1):
        assert estimate.low is not None
        assert f"{100 * estimate.value:.1f} %" in text
        assert f"{100 * estimate.low:.1f} to" in text
    assert f"{tuned.shipped.temperature:.2f}" in text


def test_decision_and_phases_are_told_with_their_reasons(tuned: Findings) -> None:
    text = Page(render(tuned)).text
    for sentence in (*tuned.decision.reasons, *tuned.decision.would_change):
        assert sentence in text
    assert all(rule.statement in text for rule in tuned.decision.rules)
    assert text.count("keptval does not speak against it") == 2
    assert text.count("rolled backval says that it is worse") == 1
    assert "75 % fine-tuned and 25 % start weights" in text


def test_an_average_of_the_phases_is_told(tuned: Findings) -> None:
    averaged = tuned.finetuned.model_copy(update={"interpolation": 1.0, "averaged": True})
    text = Page(render(replace(tuned, finetuned=averaged))).text
    assert "The final weights are the average of what the kept phases ended with" in text
    assert "start weights" not in text


def test_learning_rates_are_the_highest_of_each_phase(tuned: Findings) -> None:
    rates = html._peak_rates(tuned.history)
    assert [phase for phase, _ in rates] == [1, 2, 3]
    assert rates[0][1]["head"] == 5e-4
    assert rates[0][1]["blocks.5"] == 0.0
    assert rates[1][1]["blocks.5"] == pytest.approx(2e-4 * 0.7**2)


def test_provenance_tells_commit_hashes_versions_and_parameters(tuned: Findings) -> None:
    text = Page(render(tuned)).text
    provenance = fake_provenance()
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
    page = render_report(tuned, fake_exported(), fake_provenance(("tasks/x.py",)))
    text = Page(page).text
    assert "with uncommitted changes in tasks/x.py" in text
    assert "cd" * 32 in text


def test_nothing_fine_tuned_leaves_no_empty_section(tmp_path: Path, default_params: Params) -> None:
    source = render(fake_findings(tmp_path, SHAPES["frozen"], default_params))
    text = Page(source).text
    assert "Nothing was fine-tuned." in text
    assert "Learning rate of every group" not in text
    assert "Loss over" not in text
    assert 'id="hardest"' not in source
    assert "MMD² to" not in text


def test_a_head_that_lies_apart_is_said_and_its_code_printed(tuned: Findings) -> None:
    text = Page(render(tuned, whole=False)).text
    assert "a timm backbone, and a head in a file of its own" in text
    assert 'load_file(folder / "head.safetensors")' in text
    assert 'load_file(folder / "head.safetensors")' not in Page(render(tuned)).text


def test_names_are_escaped_and_shown_as_they_are(tmp_path: Path, default_params: Params) -> None:
    classes = (HOSTILE, "\u202ereversed\n", "{{ 7 * 7 }}")
    shape = Shape(classes=classes, name=f'"{HOSTILE}', hardest=3)
    found = replace(fake_findings(tmp_path, shape, default_params), title=HOSTILE)
    source = render(found)
    page = Page(source)
    assert "script" not in {tag for tag, _ in page.elements}
    assert HOSTILE in page.text
    assert "\u202e" not in source
    assert "\\u202ereversed\\n" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert page.mismatched == []


def test_one_hundred_and_twenty_classes_stay_small_and_complete(
    tmp_path: Path, default_params: Params
) -> None:
    found = fake_findings(tmp_path, SHAPES["many"], default_params)
    source = render(found)
    assert len(source) < 1_000_000
    text = Page(source).text
    assert all(name in text for name in found.health.classes)
    assert "105 others" in text
    assert "Most frequent mistakes" in text


def noise(path: Path, side: int) -> Path:
    Image.effect_noise((side, side), 90).convert("RGB").save(path, quality=95)
    return path


def test_large_pictures_are_made_smaller_small_ones_kept_as_they_are(tmp_path: Path) -> None:
    small, large = noise(tmp_path / "small.jpg", 64), noise(tmp_path / "large.jpg", 900)
    kept = html._embed(read_picture(small), 100_000)
    assert kept["width"] == 64
    assert len(kept["src"]) == pytest.approx(small.stat().st_size * 4 / 3, abs=32)
    shrunk = html._embed(read_picture(large), 60_000)
    assert large.stat().st_size > 60_000 > len(shrunk["src"]) * 3 / 4
    assert 48 < shrunk["width"] < 900


def test_a_missing_or_broken_picture_is_named(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, format="PNG")
    (tmp_path / "no.jpg").write_bytes(png.getvalue())
    with pytest.raises(ArtifactError, match=r"no\.jpg: cannot be read"):
        html._embed(read_picture(tmp_path / "no.jpg"), 1000)
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
    assert all(f".{kind}" in style for kind in drawn)


def test_a_network_without_batch_norm_has_no_shift_profile(tuned: Findings) -> None:
    similarity = tuned.similarity.model_copy(update={"shift": None, "shift_groups": []})
    source = render(replace(tuned, layers=[], places=[], similarity=similarity))
    text = Page(source).text
    assert "Shift by layer" not in text
    assert "Batch-norm shift" not in text
    assert "Features in two dimensions" not in text
    assert "Where this data lies" in text


def test_code_in_a_sentence_is_set_as_code_and_nothing_else_is_trusted() -> None:
    assert html.set_sentence("run `dvc repro` <now>") == ("run <code>dvc repro</code> &lt;now&gt;")
    assert html.set_sentence("a ` alone") == "a ` alone"
    assert html.set_sentence("`<b>`") == "<code>&lt;b&gt;</code>"
