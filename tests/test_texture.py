"""Statistics of pictures against pictures whose statistics are known."""

import io

import numpy as np
import pytest
from PIL import Image

from tasks.images.texture import (
    STATISTICS,
    even_share,
    gray_share,
    local_entropy,
    measure_texture,
    measure_textures,
    mostly_even_share,
    spectrum_slope,
    tabulate,
    unpadded,
)
from tasks.images.views import read_view


def white(side=128, seed=0, low=0, high=256):
    noise = np.random.default_rng(seed).integers(low, high, (side, side), np.uint8)
    return np.repeat(noise[..., None], 3, axis=2)


def of_slope(slope, side=128, seed=0):
    """A gray picture whose power falls as the frequency to the power `slope`."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(side, side)))
    return np.fft.irfft2(spectrum * frequency ** (slope / 2), (side, side))


def texture_of(pixels):
    return dict(zip(STATISTICS, measure_texture(pixels), strict=True))


@pytest.mark.parametrize("side", [32, 160, 224])
@pytest.mark.parametrize("slope", [0.0, -1.0, -2.0, -3.0])
def test_the_slope_of_a_known_spectrum_is_found(slope, side):
    found = np.mean([spectrum_slope(of_slope(slope, side, seed)) for seed in range(20)])
    assert found == pytest.approx(slope, abs=0.2)


def test_a_picture_whose_edges_do_not_meet_has_its_slope_too():
    parts = [of_slope(-4.0, 256, seed)[:128, :128] for seed in range(20)]
    assert np.mean([spectrum_slope(part) for part in parts]) == pytest.approx(-4, abs=0.25)


def test_small_pictures_have_no_slope():
    assert np.isnan(texture_of(white(31))["slope"])
    assert np.isfinite(texture_of(white(31))["sharpness"])
    assert np.isfinite(texture_of(white(32))["slope"])


def test_the_slope_knows_neither_brightness_nor_contrast():
    gray = of_slope(-2.0)
    assert spectrum_slope(7 * gray + 50) == pytest.approx(spectrum_slope(gray))


def test_a_picture_of_one_gray_has_no_slope_and_no_sharpness():
    found = texture_of(np.full((32, 32, 3), 90, np.uint8))
    assert np.isnan(found["slope"])
    assert np.isnan(found["sharpness"])
    assert (found["entropy"], found["chroma"], found["even"]) == (0, 0, 1)
    assert not np.signbit(found["entropy"])


def test_the_laplacian_of_white_noise_is_the_root_of_twenty_times_its_spread():
    assert texture_of(white())["sharpness"] == pytest.approx(20**0.5, rel=0.02)


def test_blocks_of_two_and_of_four_grays_have_one_and_two_bits():
    columns = np.arange(64) % 2 * 128.0
    assert local_entropy(np.tile(columns, (64, 1))) == pytest.approx(1)
    assert local_entropy(np.tile(np.arange(64) % 4 * 64.0, (64, 1))) == pytest.approx(2)
    halves = np.repeat([0.0, 200.0], 32)  # each block is of one gray
    assert local_entropy(np.tile(halves, (64, 1))) == 0
    assert local_entropy(white()[..., 0].astype(float)) == pytest.approx(5, abs=0.15)


def columns_of(*colors):
    return np.array(colors, np.uint8)[np.arange(32) % len(colors)][None].repeat(32, axis=0)


def test_grays_fall_into_the_steps_that_they_are_in():
    assert texture_of(columns_of([15] * 3, [16] * 3))["entropy"] == 1
    for gray in range(8, 256, 8):
        assert texture_of(columns_of([gray - 1] * 3, [gray] * 3))["entropy"] == 1


def test_red_is_brighter_than_blue():
    assert texture_of(columns_of([0, 0, 0], [30, 0, 0]))["entropy"] == 1  # of 0 and 8.97
    assert texture_of(columns_of([0, 0, 0], [0, 0, 30]))["entropy"] == 0  # of 0 and 3.42
    assert texture_of(columns_of([0, 0, 0], [0, 14, 0]))["entropy"] == 1  # of 0 and 8.22


def test_chroma_is_the_distance_of_the_channels():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = (10, 60, 30)
    assert texture_of(pixels)["chroma"] == 25
    assert texture_of(columns_of([0, 0, 0], [0, 0, 0], [0, 0, 32]))["chroma"] == 10
    assert texture_of(white())["chroma"] == 0


def test_even_areas_must_be_the_same_in_every_channel():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, ::2, 2] = 1
    assert even_share(pixels) == 0.5  # down, not across
    assert even_share(np.zeros((16, 16, 3), np.uint8)) == 1


def test_tables_keep_quantiles_of_what_can_be_measured():
    flat = np.full((32, 32, 3), 90, np.uint8)
    table = tabulate(measure_textures([white(32, seed) for seed in range(20)] + [flat]))
    assert set(table) == set(STATISTICS)
    assert all(len(steps) == 21 and steps == sorted(steps) for steps in table.values())
    assert np.isfinite(list(table.values())).all()
    assert table["even"][-1] == 1
    assert set(tabulate(measure_textures([flat]))) == {"entropy", "chroma", "even"}


def test_gray_and_mostly_even_pictures_are_counted():
    textures = np.array([[-2, 3, 1, 0, 0.0], [-2, 3, 1, 1.9, 0.1], [-2, 3, 1, 2, 0.45],
                         [-2, 3, 1, 4, 0.44]])  # fmt: skip
    assert (gray_share(textures), mostly_even_share(textures)) == (0.5, 0.25)
    assert gray_share(textures[:0]) == mostly_even_share(textures[:0]) == 0


# padding -----------------------------------------------------------------------------------------


def photograph(width, height, seed):
    """A color picture whose power falls as in photographs, as a file."""
    side = max(width, height)
    gray = of_slope(-2.0, side, 10 * seed)
    channels = [gray + 0.4 * of_slope(-2.0, side, 10 * seed + 1 + one) for one in range(3)]
    picture = np.stack(channels, axis=2)[:height, :width]
    picture = (128 + 45 * (picture - picture.mean()) / picture.std()).clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(600, 300), (300, 600)])
def test_padding_makes_no_photograph_look_drawn(width, height):
    files = [photograph(width, height, seed) for seed in range(6)]
    whole = [read_view(one, image_px=224, fit="pad", max_pixels=10**6).pixels for one in files]
    # The same part at about the same scale.
    half = [read_view(one, image_px=112, fit="crop", max_pixels=10**6).pixels for one in files]
    padded, expected = (np.median(measure_textures(one), axis=0) for one in (whole, half))
    shown = [unpadded(pixels, width, height) for pixels in whole]
    found = np.median(measure_textures(shown), axis=0)
    assert padded[-1] > 0.45  # what this is about
    assert found[-1] < 0.05
    np.testing.assert_allclose(found[:4], expected[:4], rtol=0.1)


def test_nothing_of_the_padding_is_left_and_what_is_not_padded_is_whole():
    picture = np.random.default_rng(0).integers(0, 256, (50, 100, 3), np.uint8)
    padded = np.zeros((100, 100, 3), np.uint8)
    padded[25:75] = picture
    np.testing.assert_array_equal(unpadded(padded, 100, 50), picture[2:-2, 27:-27])
    np.testing.assert_array_equal(unpadded(padded[:24, :24], 80, 80), padded[:24, :24])


def test_where_padding_leaves_too_little_there_is_nothing_to_look_at():
    pixels = np.zeros((72, 72, 3), np.uint8)
    assert unpadded(pixels, 200, 100).shape == (32, 32, 3)
    assert unpadded(pixels, 202, 100) is None
