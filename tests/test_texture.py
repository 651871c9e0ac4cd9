"""Statistics of pictures against pictures whose statistics are known."""

import numpy as np
import pytest

from tasks.images.texture import (
    STATISTICS,
    even_share,
    local_entropy,
    measure_texture,
    measure_textures,
    share_above,
    spectrum_slope,
    tabulate,
)


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


def test_the_slope_knows_neither_brightness_nor_contrast():
    gray = of_slope(-2.0)
    assert spectrum_slope(7 * gray + 50) == pytest.approx(spectrum_slope(gray))


def test_a_picture_of_one_gray_has_no_slope_and_no_sharpness():
    found = texture_of(np.full((32, 32, 3), 90, np.uint8))
    assert np.isnan(found["slope"])
    assert np.isnan(found["sharpness"])
    assert (found["entropy"], found["chroma"], found["even"]) == (0, 0, 1)


def test_the_laplacian_of_white_noise_is_the_root_of_twenty_times_its_spread():
    assert texture_of(white())["sharpness"] == pytest.approx(20**0.5, rel=0.02)


def test_blocks_of_two_and_of_four_grays_have_one_and_two_bits():
    columns = np.arange(64) % 2 * 128.0
    assert local_entropy(np.tile(columns, (64, 1))) == pytest.approx(1)
    assert local_entropy(np.tile(np.arange(64) % 4 * 64.0, (64, 1))) == pytest.approx(2)
    halves = np.repeat([0.0, 200.0], 32)  # each block is of one gray
    assert local_entropy(np.tile(halves, (64, 1))) == 0
    assert local_entropy(white()[..., 0].astype(float)) == pytest.approx(5, abs=0.15)


def test_chroma_is_the_distance_of_the_channels():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = (10, 60, 30)
    assert texture_of(pixels)["chroma"] == 25
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


def test_shares_above_a_value_are_read_off_the_table():
    table = {"even": [float(step) for step in range(21)]}
    assert share_above(table, "even", 15.0) == pytest.approx(0.25)
    assert share_above(table, "even", 10.5) == pytest.approx(0.475)
    assert share_above(table, "even", -1.0) == 1
    assert share_above(table, "even", 30.0) == 0
