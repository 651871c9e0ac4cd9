"""The committed ruler: what the similarity stage tells readers about data sets they know."""

import pytest
from conftest import ROOT, make_origin

from tasks.backbones.source_cards import find_card, read_card
from tasks.params_file import load_params
from tasks.transferability.ruler import find_ruler
from tasks.transferability.rules import Evidence, domain_by_mmd, domain_by_shift

CARDS = ROOT / "data" / "cards"
CARD = CARDS / "imagenet1k_tf_efficientnet_lite0.safetensors"


def committed():
    ruler = find_ruler(CARDS, read_card(CARD).weights_sha256)
    assert ruler is not None
    return ruler


def test_the_ruler_belongs_to_the_committed_card_and_the_default_size():
    ruler, params = committed(), load_params(ROOT / "params.yaml")
    card = find_card(CARDS, ruler.weights_sha256)
    assert (ruler.backbone, ruler.image_px) == (params.backbone.name, params.augment.image_px)
    assert (ruler.source, ruler.image_px) == (card.name, card.image_px)


def test_the_order_of_the_known_sets_makes_sense():
    names = [known.name.split(" (")[0] for known in committed().sets]
    photographs = ["photographs of trash", "photographs of clothing"]
    drawings = ["gray pictures of clothing", "handwritten letters"]
    far = ["electroluminescence of solar cells", "photographs of hand signs", "uniform noise"]
    assert names == ["other ImageNet photographs", *photographs, *drawings, *far]


def test_the_thresholds_stand_between_the_known_sets():
    params = load_params(ROOT / "params.yaml").decide
    domains = {}
    for known in committed().sets:
        seen = Evidence(100, 2, 8, known.mmd, 0.01, known.shift, 0.1)
        name = known.name.split(" (")[0]
        domains[name] = domain_by_mmd(seen, params), domain_by_shift(seen, params)
    assert domains["other ImageNet photographs"] == ("similar", "similar")
    assert domains["photographs of trash"] == ("similar", "similar")
    assert domains["photographs of clothing"] == ("intermediate", "similar")
    others = list(domains)[3:]
    assert others
    assert all(domains[name] == ("far", "far") for name in others)


@pytest.mark.parametrize(("kind", "left"), [("package", 7), ("folder", 8)])
def test_the_packaged_data_set_itself_is_not_among_the_known_sets(kind, left):
    origin = make_origin("ELPV", kind)
    names = [known.name for known in committed().without(origin).sets]
    assert len(names) == left
    assert any("ELPV" in name for name in names) == (kind == "folder")


def test_the_ruler_names_no_path():
    assert "/" not in committed().provenance
