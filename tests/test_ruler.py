"""The committed ruler: what the similarity stage tells readers about data sets they know."""

import pytest
from conftest import ROOT, make_origin

from tasks.backbones.source_cards import read_card
from tasks.params_file import load_params
from tasks.transferability.ruler import find_marks, find_ruler
from tasks.transferability.rules import Evidence, domain_of, set_marks

CARDS = ROOT / "data" / "cards"


CARDS_OF_LITE0 = [read_card(path) for path in sorted(CARDS.glob("*lite0*.safetensors"))]
SIZES = [card.image_px for card in CARDS_OF_LITE0]


def committed(image_px=224):
    ruler = find_ruler(CARDS, CARDS_OF_LITE0[0].weights_sha256, image_px)
    assert ruler is not None
    return ruler


def test_every_committed_card_has_a_ruler_with_marks():
    for card in map(read_card, sorted(CARDS.glob("*.safetensors"))):
        ruler = find_ruler(CARDS, card.weights_sha256, card.image_px)
        assert ruler is not None
        assert (ruler.image_px, ruler.source) == (card.image_px, card.name)
        assert ruler.marks is not None
        assert ruler.marks == find_marks(ruler.sets)


@pytest.mark.parametrize("image_px", SIZES)
def test_the_order_of_the_known_sets_makes_sense(image_px):
    names = [known.name.split(" (")[0] for known in committed(image_px).sets]
    photographs = ["photographs of trash", "photographs of clothing"]
    assert names[:4] == [
        "other images of ImageNet-1k", *photographs, "gray pictures of clothing",
    ]  # fmt: skip
    assert set(names[4:]) == {
        "handwritten letters", "electroluminescence of solar cells", "uniform noise",
        "photographs of hand signs",
    }  # fmt: skip


@pytest.mark.parametrize("image_px", SIZES)
def test_the_marks_put_every_known_set_where_people_see_it(image_px):
    ruler, params = committed(image_px), load_params(ROOT / "params.yaml").decide
    marked = set_marks(params, ruler.marks)
    for known in ruler.sets:
        seen = Evidence(100, 2, (1,) * 8, known.distance)
        assert domain_of(seen, marked) == known.domain, known.name


@pytest.mark.parametrize(("kind", "left"), [("package", 7), ("folder", 8)])
def test_the_packaged_data_set_itself_is_not_among_the_known_sets(kind, left):
    origin = make_origin("ELPV", kind)
    names = [known.name for known in committed().without(origin).sets]
    assert len(names) == left
    assert any("ELPV" in name for name in names) == (kind == "folder")


def test_the_ruler_names_no_path():
    assert "/" not in committed().provenance
