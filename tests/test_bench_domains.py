"""How far photographs are called: at two sizes, blurred more and more."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from bench.domains import CARDS, OUT, corruptions, extract, measure
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_sample_images

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.records import Distance, Marks
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.source_cards import find_cards, nearest_size
from tasks.params import Params
from tasks.runtime.machine import read_machine
from tasks.transferability.ruler import find_ruler

SIZES = (160, 224)
BLURS = ("none", "blur 1 px", "blur 2 px", "blur 4 px", "blur 8 px")
DISTANCES = {
    tuple(cells[:3]): (float(cells[3].split()[0]), cells[5])
    for line in (ROOT / OUT).read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6
    and cells[1].isdigit()
}
SETS = sorted({name for name, *_ in DISTANCES})
assert len(SETS) == 2, "the page has another form"


@pytest.mark.parametrize("name", SETS)
def test_the_page_calls_the_same_photographs_similar_at_both_sizes(name: str) -> None:
    assert {DISTANCES[name, str(px), "none"][1] for px in SIZES} == {"similar"}


@pytest.mark.parametrize("px", SIZES)
@pytest.mark.parametrize("name", SETS)
def test_on_the_page_photographs_are_farther_the_more_they_are_blurred(name: str, px: int) -> None:
    distances = [DISTANCES[name, str(px), blur][0] for blur in BLURS]
    assert all(less < more for less, more in pairwise(distances))
    assert DISTANCES[name, str(px), BLURS[-1]][1] == "far"


def cut_photographs(px: int, count: int) -> list[Pixels]:
    """Squares of the two photographs that scikit-learn has, from small to as large as they are."""
    rng, photographs = np.random.default_rng(1), load_sample_images().images
    squares = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        height, width, _ = photograph.shape
        side = int(rng.integers(60, height + 1))
        top, left = (int(rng.integers(0, most - side + 1)) for most in (height, width))
        square = Image.fromarray(photograph[top : top + side, left : left + side])
        squares.append(np.asarray(square.resize((px, px), Image.Resampling.BICUBIC)))
    return squares


def measure_blurred(
    px: int, blurs: Sequence[str], params: Params
) -> tuple[dict[str, Distance], Marks]:
    """Measure pieces of photographs, blurred so and so, against the committed card of a size."""
    name, weights = params.backbone.name, params.backbone.weights
    backbone = load_backbone(name, weights, image_px=px, seed=params.seed)
    card = nearest_size(find_cards(ROOT / CARDS, backbone.weights_sha256), px)
    ruler = find_ruler(ROOT / CARDS, backbone.weights_sha256, px)
    assert card is not None
    assert ruler is not None
    assert ruler.marks is not None
    pixels, known = cut_photographs(px, 60), dict(corruptions())
    network = PooledFeatures(backbone.model)
    engine = make_engine(network, backbone.input, read_machine(), np.stack(pixels[:8]))
    found = {
        blur: measure(card, extract(engine, pixels, known[blur]), params).matched for blur in blurs
    }
    return found, ruler.marks


@pytest.mark.slow
def test_pieces_of_photographs_are_equally_far_at_both_sizes_and_farther_blurred(
    default_params: Params,
) -> None:
    """Pieces of two photographs are alike, so that a blur of 2 px may bring them nearer."""
    for px in SIZES:
        found, marks = measure_blurred(px, ["none", *BLURS[2:]], default_params)
        clean, *blurred = found.values()
        assert marks.similar < clean.value < marks.far < blurred[-1].value
        assert all(less.value < more.value for less, more in pairwise(blurred))
        assert clean.high < blurred[-1].low
