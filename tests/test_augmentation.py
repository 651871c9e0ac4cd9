"""Frames, drawn views and rendered views have the values that their definitions say."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tasks.artifacts.records import Fit
from tasks.images.augmentation import (
    HEAVY,
    LIGHT,
    MEDIUM,
    NONE,
    View,
    draw_view,
    ranges_of,
    render_view,
)
from tasks.images.decoding.decode import (
    Frame,
    border_color,
    clean_view,
    draft_side,
    frame_image,
)
from tasks.images.operations import registry
from tasks.images.operations.blur_px import Blur
from tasks.images.operations.erase_fraction import Erasing
from tasks.images.views import read_view
from tasks.params import AugmentationRanges, Params

PX = 32
SHA = "ab" * 32


def noise(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    return noise(5, 5).resize((width, height), Image.Resampling.BICUBIC)


def frame_of(image: Image.Image, fit: Fit = "squash") -> Frame:
    return frame_image(image, image_px=PX, fit=fit)


def rendered(image: Image.Image, view: View) -> np.ndarray:
    return render_view(frame_of(image), view, PX).astype(int)


def drawn(ranges: AugmentationRanges, count: int = 400, **options: int) -> list[View]:
    seed = options.get("seed", 17)
    return [draw_view(ranges, seed=seed, sha256=f"{n:064x}", view=1) for n in range(count)]


# policies and draws -------------------------------------------------------------------------------


def test_ranges_that_change_nothing_draw_the_view_that_changes_nothing() -> None:
    assert set(drawn(NONE)) == {View()}


def test_policy_names_its_ranges(default_params: Params) -> None:
    params = default_params.augment
    named = {
        "none": NONE,
        "light": LIGHT,
        "medium": MEDIUM,
        "heavy": HEAVY,
        "custom": params.custom,
    }
    for policy, ranges in named.items():
        assert ranges_of(params.model_copy(update={"policy": policy})) == ranges


def test_named_policies_are_valid_and_ordered_by_strength() -> None:
    for name in AugmentationRanges.model_fields:
        values = [getattr(ranges, name) for ranges in (NONE, LIGHT, MEDIUM, HEAVY)]
        assert values == sorted(values, reverse=name == "crop_scale_min"), name
    for ranges in (LIGHT, MEDIUM, HEAVY):
        AugmentationRanges.model_validate(ranges.model_dump())
        assert ranges.flip_vertical == ranges.quarter_turn == 0  # photographs have an up


def test_crops_keep_a_share_of_the_area_within_their_range() -> None:
    ranges = NONE.model_copy(update={"crop_scale_min": 0.3, "crop_ratio_max": 2.0})
    boxes = np.array([view.crop for view in drawn(ranges, 1000)])
    left, top, width, height = boxes.T
    area, ratio = width * height, width / height
    assert area.min() >= 0.3 - 1e-9
    assert area.max() <= 1.0
    assert area.mean() == pytest.approx(0.65, abs=0.03)  # uniform
    assert np.abs(np.log(ratio)).max() <= np.log(2) + 1e-9
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.05)
    for low, size in ((left, width), (top, height)):
        assert low.min() >= 0
        assert (low + size).max() <= 1 + 1e-12
        assert np.corrcoef(low + size / 2, np.arange(1000))[0, 1] == pytest.approx(0, abs=0.1)


def test_draws_stay_inside_their_ranges_and_reach_both_ends() -> None:
    values = {"rotate_degrees": 20.0, "hue": 0.1, "brightness": 0.3, "contrast": 0.2}
    views = drawn(NONE.model_copy(update={**values, "saturation": 0.5, "blur_px": 2.0}), 1000)
    centers = {"brightness": 1, "contrast": 1, "saturation": 1}
    for name, spread in {**values, "saturation": 0.5}.items():
        offsets = np.array([getattr(view, name) for view in views]) - centers.get(name, 0)
        assert np.abs(offsets).max() <= spread
        assert offsets.min() < -0.95 * spread
        assert offsets.max() > 0.95 * spread
    blur = [view.operations[0].radius for view in views]
    assert min(blur) >= 0
    assert 1.9 < max(blur) <= 2


@pytest.mark.parametrize("name", ["flip_horizontal", "flip_vertical", "quarter_turn"])
@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_chances_come_true_as_often_as_they_say(name: str, probability: float) -> None:
    views = drawn(NONE.model_copy(update={name: probability}), 1000)
    field = {"quarter_turn": "quarter_turns"}.get(name, name)
    share = np.mean([bool(getattr(view, field)) for view in views])
    assert share == pytest.approx(probability, abs=0.05 if 0 < probability < 1 else 0)


def test_quarter_turns_are_all_as_likely() -> None:
    turns = [
        view.quarter_turns for view in drawn(NONE.model_copy(update={"quarter_turn": 1.0}), 900)
    ]
    assert set(turns) == {1, 2, 3}
    assert np.bincount(turns)[1:].min() > 250


def test_erased_boxes_stay_inside_and_below_their_share() -> None:
    views = drawn(NONE.model_copy(update={"erase_fraction": 0.4}))
    boxes = np.array([view.operations[0].box for view in views])
    area = boxes[:, 2] * boxes[:, 3]
    assert 0.35 < area.max() <= 0.4
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-12


def test_changing_one_range_leaves_the_other_draws() -> None:
    other = HEAVY.model_copy(update={"crop_scale_min": 0.9, "hue": 0.3, "flip_horizontal": 0.0})
    for view, changed in zip(drawn(HEAVY, 50), drawn(other, 50), strict=True):
        assert (view.rotate_degrees, view.brightness) == (
            changed.rotate_degrees,
            changed.brightness,
        )
        assert view.operations == changed.operations


def test_an_operation_that_is_off_costs_nothing_and_moves_no_other() -> None:
    for view, changed in zip(
        drawn(HEAVY, 20), drawn(HEAVY.model_copy(update={"blur_px": 0.0}), 20), strict=True
    ):
        assert [type(operation) for operation in view.operations] == [Blur, Erasing]
        assert changed.operations == view.operations[1:]
        assert changed.crop == view.crop


def test_every_operation_has_a_range_that_is_off_at_0_and_a_module() -> None:
    assert len(set(registry.OPERATIONS)) == len(registry.OPERATIONS)
    for name in registry.OPERATIONS:
        assert getattr(NONE, name) == 0
        registry.drawer_of(name).draw(1.0, np.random.default_rng(0)).apply(noise())


class Inversion:
    """A made-up operation, not in the code that computes."""

    def apply(self, image: Image.Image) -> Image.Image:
        return image.point(lambda value: 255 - value)


def test_a_new_operation_takes_a_module_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ranges(AugmentationRanges):
        invert: float

    known = draw_view(HEAVY, seed=1, sha256=SHA, view=1)
    module = SimpleNamespace(draw=lambda most, rng: Inversion())
    monkeypatch.setitem(sys.modules, "tasks.images.operations.invert", module)
    monkeypatch.setattr(registry, "OPERATIONS", ("invert", *registry.OPERATIONS))
    view = draw_view(Ranges(**HEAVY.model_dump(), invert=1.0), seed=1, sha256=SHA, view=1)
    assert (view.crop, view.hue, view.operations[1:]) == (known.crop, known.hue, known.operations)
    alone = View(operations=view.operations[:1])
    assert np.array_equal(rendered(noise(), alone), 255 - rendered(noise(), View()))


def test_seed_image_and_view_each_make_another_draw() -> None:
    one = draw_view(HEAVY, seed=1, sha256=SHA, view=1)
    assert draw_view(HEAVY, seed=1, sha256=SHA, view=1) == one
    others = [(2, SHA, 1), (1, "cd" * 32, 1), (1, SHA, 2)]
    found = {draw_view(HEAVY, seed=seed, sha256=sha, view=view) for seed, sha, view in others}
    assert len(found | {one}) == 4


# frames -------------------------------------------------------------------------------------------


def test_squash_takes_the_whole_image() -> None:
    image = noise(96, 40)
    frame = frame_of(image)
    assert np.array_equal(frame.image, image)
    assert frame.aspect == 96 / 40
    expected = image.resize((PX, PX), Image.Resampling.BICUBIC)
    assert np.array_equal(clean_view(frame, PX), expected)


def test_crop_takes_the_center_square() -> None:
    image = noise(90, 41)
    frame = frame_of(image, "crop")
    assert np.array_equal(frame.image, np.asarray(image)[:, 24:65])
    assert frame.aspect == 1


def test_pad_keeps_everything_on_its_borders_color() -> None:
    image = Image.new("RGB", (60, 20), (10, 20, 30))
    image.paste((200, 100, 50), (10, 5, 50, 15))
    pixels = np.asarray(frame_of(image, "pad").image)
    assert pixels.shape == (60, 60, 3)
    assert np.array_equal(pixels[20:40], image)
    assert (pixels[:20] == [10, 20, 30]).all()
    assert (pixels[40:] == [10, 20, 30]).all()


def test_border_color_is_the_mean_of_the_outermost_pixels() -> None:
    pixels = np.asarray(noise(7, 5)).astype(float)
    inner = pixels[1:-1, 1:-1].reshape(-1, 3)
    mean = (pixels.reshape(-1, 3).sum(axis=0) - inner.sum(axis=0)) / (35 - 15)
    assert border_color(noise(7, 5)) == tuple(np.rint(mean).astype(int))


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (3000, 2), (700, 430)])
def test_every_shape_becomes_a_frame_of_bounded_size(fit: Fit, size: tuple[int, int]) -> None:
    frame = frame_of(Image.new("RGB", size, (9, 8, 7)), fit)
    assert max(frame.image.size) < 4 * PX
    for view in (View(), View(rotate_degrees=10, crop=(0.2, 0.1, 0.5, 0.7), flip_vertical=True)):
        assert (render_view(frame, view, PX) == [9, 8, 7]).all()


def test_pixels_beyond_need_are_averaged() -> None:
    image = noise(3 * 64, 5 * 64)
    blocks = np.asarray(image).reshape(64, 5, 64, 3, 3).mean(axis=(1, 3))
    assert (
        np.abs(np.asarray(frame_of(image).image) - blocks).max() <= 0.6
    )  # Pillow rounds in fixed point
    assert draft_side(PX) == 64


def test_frames_leave_their_image_as_it_was() -> None:
    image = noise(64, 64)
    before = image.tobytes()
    frame = frame_of(image)
    render_view(frame, View(operations=(Erasing((0, 0, 1, 1)),), flip_vertical=True), PX)
    assert image.tobytes() == before


def test_clean_view_of_a_file_is_the_one_that_is_packed() -> None:
    file = io.BytesIO()
    smooth(640, 400).save(file, "JPEG")
    pixels = read_view(file.getvalue(), image_px=PX, fit="crop", max_pixels=10**6).pixels
    plain = smooth(640, 400).crop((120, 0, 520, 400)).resize((PX, PX), Image.Resampling.BICUBIC)
    assert pixels.shape == (PX, PX, 3)
    assert np.abs(pixels.astype(int) - np.asarray(plain)).mean() < 1.5


# geometry -----------------------------------------------------------------------------------------


def test_a_view_without_operations_is_exactly_the_clean_one() -> None:
    for size in ((64, 64), (97, 41), (20, 31)):
        frame = frame_of(noise(*size))
        assert np.array_equal(render_view(frame, View(), PX), clean_view(frame, PX))


def test_flips_and_quarter_turns_only_move_pixels() -> None:
    image = noise(50, 70)
    clean = rendered(image, View())
    assert np.array_equal(rendered(image, View(flip_horizontal=True)), clean[:, ::-1])
    assert np.array_equal(rendered(image, View(flip_vertical=True)), clean[::-1])
    for turns in (1, 2, 3):
        assert np.array_equal(rendered(image, View(quarter_turns=turns)), np.rot90(clean, turns))
    both = View(flip_horizontal=True, flip_vertical=True)
    assert np.array_equal(rendered(image, both), rendered(image, View(quarter_turns=2)))


def test_a_flip_of_a_flipped_image_is_the_image() -> None:
    image = noise(64, 64)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(rendered(flipped, View(flip_horizontal=True)), rendered(image, View()))


def test_crop_takes_its_share() -> None:
    image = noise(64, 64)
    # A quarter of the area at the view's own resolution: nothing is resampled.
    view = View(crop=(0.25, 0.5, 0.5, 0.5))
    assert np.array_equal(rendered(image, view), np.asarray(image)[32:64, 16:48])


@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_crop_at_the_far_edge_survives_rounding(degrees: float) -> None:
    share = 0.1 + 0.2  # a little more than 0.3
    view = View(crop=(1 - 0.3, 1 - 0.3, share, share), rotate_degrees=degrees)
    assert rendered(Image.new("RGB", (61, 61), (5, 6, 7)), view).max() == 7


def test_right_angles_of_rotation_are_quarter_turns() -> None:
    image = smooth(64, 64)
    clean = rendered(image, View())
    for turns in (1, 2, 3):
        turned = rendered(image, View(rotate_degrees=90.0 * turns))
        difference = np.abs(turned - np.rot90(clean, turns))[2:-2, 2:-2]
        assert difference.max() <= 12  # one interpolates, the other averages
        assert difference.mean() < 1.5


def test_rotation_is_counterclockwise_as_pillows() -> None:
    image = smooth(PX, PX)
    expected = np.asarray(image.rotate(25, Image.Resampling.BICUBIC)).astype(int)
    turned = rendered(image, View(rotate_degrees=25.0))
    disk = np.hypot(*(np.indices((PX, PX)) - (PX - 1) / 2)) < PX / 2 - 2
    assert np.abs(turned - expected)[disk].max() <= 1


def test_a_squashed_image_turns_in_the_cameras_geometry() -> None:
    # A dot 20 pixels right of the center goes 20 pixels up, although the view is half as wide.
    image = Image.new("RGB", (4 * PX, 2 * PX), "black")
    image.paste((255, 255, 255), (2 * PX + 18, PX - 2, 2 * PX + 22, PX + 2))
    bright = rendered(image, View(rotate_degrees=90.0))[..., 0]
    rows, columns = np.indices(bright.shape)
    center = [(axis * bright).sum() / bright.sum() + 0.5 for axis in (rows, columns)]
    assert center == pytest.approx([PX / 2 - 20 * PX / (2 * PX), PX / 2], abs=0.3)


def test_turned_crop_is_centered_on_the_crop() -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste((255, 255, 255), (14, 38, 18, 42))  # around (16, 40)
    view = View(rotate_degrees=33.0, crop=(0.125, 0.5, 0.25, 0.25))
    bright = rendered(image, view)[..., 0]
    rows, columns = np.indices(bright.shape)
    center = [(axis * bright).sum() / bright.sum() + 0.5 for axis in (rows, columns)]
    assert center == pytest.approx([PX / 2, PX / 2], abs=0.3)


def test_rotation_shows_the_border_color_outside() -> None:
    image = Image.new("RGB", (64, 64), (50, 60, 70))
    image.paste((200, 0, 0), (20, 20, 44, 44))
    corner = rendered(image, View(rotate_degrees=45.0))[0, 0]
    assert corner.tolist() == [50, 60, 70]


def test_shrinking_while_turning_does_not_alias() -> None:
    stripes = np.zeros((4 * PX - 2, 4 * PX - 2, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    frame = Frame(Image.fromarray(stripes), 1.0)
    inner = render_view(frame, View(rotate_degrees=1.0), PX)[4:-4, 4:-4]
    assert np.abs(inner.astype(int) - 127).max() < 60


# color --------------------------------------------------------------------------------------------


def plain(*color: int) -> Image.Image:
    return Image.new("RGB", (64, 64), color)


def test_brightness_is_a_factor() -> None:
    assert rendered(plain(100, 50, 250), View(brightness=1.2))[3, 3].tolist() == [120, 60, 255]


def test_contrast_pulls_from_the_mean_gray() -> None:
    image = plain(50, 50, 50)
    image.paste((150, 150, 150), (0, 0, 32, 64))
    view = rendered(image, View(contrast=0.5, brightness=1.1))
    # Mean 110 after brightness: 110 +- 27.5 instead of 110 +- 55.
    assert view[5, 2].tolist() == [138] * 3
    assert view[5, 29].tolist() == [83] * 3


def test_saturation_pulls_from_each_pixels_gray() -> None:
    gray = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    found = rendered(plain(200, 100, 50), View(saturation=0.5))[0, 0]
    assert found == pytest.approx([(c + gray) / 2 for c in (200, 100, 50)], abs=0.6)


def test_hue_turns_colors_and_keeps_luma_and_grays() -> None:
    luma = np.array([0.299, 0.587, 0.114])
    before = np.array([140, 100, 90])
    after = rendered(plain(140, 100, 90), View(hue=1 / 3))[0, 0]
    assert np.abs(after - before).max() > 20
    assert after @ luma == pytest.approx(before @ luma, abs=0.6)
    assert rendered(plain(77, 77, 77), View(hue=0.3, saturation=1.4))[0, 0].tolist() == [77] * 3
    whole = rendered(plain(140, 100, 90), View(hue=1.0))[0, 0]
    assert np.abs(whole - before).max() <= 1


def test_color_operations_leave_gray_images_gray() -> None:
    image = noise(64, 64).convert("L").convert("RGB")
    view = rendered(image, View(brightness=1.13, contrast=0.87))
    assert np.array_equal(view[..., 0], view[..., 1])
    assert np.array_equal(view[..., 0], view[..., 2])


def test_blur_smooths_and_keeps_the_mean() -> None:
    image = noise(64, 64)
    sharp, blurred = rendered(image, View()), rendered(image, View(operations=(Blur(2.0),)))
    assert blurred.std() < 0.6 * sharp.std()
    assert blurred.mean() == pytest.approx(sharp.mean(), abs=2)


def test_erasing_grays_its_box_and_nothing_else() -> None:
    image = noise(64, 64)
    expected = rendered(image, View())
    expected[8:24, 4:12] = 128
    erased = View(operations=(Erasing((0.125, 0.25, 0.25, 0.5)),))
    assert np.array_equal(rendered(image, erased), expected)
    nothing = View(operations=(Erasing((0.3, 0.3, 0.001, 0.001)),))
    assert np.array_equal(rendered(image, nothing), rendered(image, View()))
