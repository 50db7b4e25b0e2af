import pytest
import torch

from ddimctl.errors import RequestError
from ddimctl.files.pictures.grids import GRID_LIMIT, default_columns, make_grid
from ddimctl.files.pictures.images import image_pixels


def holds(image, cell: torch.Tensor) -> bool:
    """Whether the cell (H, W, 3) is somewhere in the image, pixel for pixel."""
    there = image_pixels(image).unfold(0, cell.shape[0], 1).unfold(1, cell.shape[1], 1)
    return bool((there == cell.permute(2, 0, 1)).flatten(2).all(2).any())


def test_default_columns_of_usual_counts() -> None:
    for count, columns in ((1, 1), (4, 2), (8, 4), (12, 4), (16, 4), (32, 8), (50, 10), (64, 8)):
        assert default_columns(count) == columns


def test_default_grids_are_not_tall_and_at_most_a_fifth_empty() -> None:
    for count in range(2, GRID_LIMIT + 1):
        columns = default_columns(count)
        rows = -(-count // columns)
        assert rows <= columns <= 5 * rows
        assert (rows * columns - count) * 5 <= rows * columns


def test_every_image_is_there_enlarged_pixel_for_pixel() -> None:
    pixels = torch.randint(0, 256, (6, 4, 4, 3), dtype=torch.uint8)
    grid = make_grid(pixels, columns=3, scale=2)
    assert grid.mode == "RGB"
    for image in pixels:
        assert holds(grid, image.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_images_go_row_by_row() -> None:
    pixels = torch.arange(1, 5, dtype=torch.uint8)[:, None, None, None].expand(4, 8, 8, 3) * 50
    found = image_pixels(make_grid(pixels, columns=2, scale=1))
    top, left = found.shape[0] // 4, found.shape[1] // 4
    corners = [found[y, x, 0].item() for y in (top, 3 * top) for x in (left, 3 * left)]
    assert corners == [50, 100, 150, 200]


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    assert make_grid(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).width >= 128
    assert 256 <= make_grid(torch.zeros(1, 256, 256, 3, dtype=torch.uint8)).width < 300


def test_gray_and_transparent_images_have_grids_too() -> None:
    for channels in (1, 4):
        pixels = torch.full((2, 8, 8, channels), 200, dtype=torch.uint8)
        if channels == 4:
            pixels[..., 3] = 255
        assert holds(make_grid(pixels, scale=1), torch.full((8, 8, 3), 200, dtype=torch.uint8))


def test_at_most_the_limit_is_shown() -> None:
    pixels = torch.zeros(GRID_LIMIT + 50, 2, 2, 3, dtype=torch.uint8)
    some = make_grid(pixels[:GRID_LIMIT], scale=1)
    assert make_grid(pixels, scale=1, labels=["a"] * len(pixels)).width == some.width


def test_huge_grids_are_shrunk_and_huge_scales_refused() -> None:
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(64, 1024, 1024, 1)
    assert max(make_grid(pixels).size) < 8192
    with pytest.raises(RequestError, match="--scale 100"):
        make_grid(pixels, scale=100)


def test_labels_are_drawn_below_and_leave_the_images_alone() -> None:
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    plain, labelled = make_grid(pixels, scale=2), make_grid(pixels, scale=2, labels=["a", "b"])
    other = make_grid(pixels, scale=2, labels=["a", "c"])
    assert labelled.height > plain.height
    assert labelled.width == plain.width
    assert labelled.tobytes() != other.tobytes()
    for image in pixels:
        assert holds(labelled, image.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_label_that_all_share_is_drawn_once() -> None:
    pixels = torch.zeros(16, 32, 32, 3, dtype=torch.uint8)
    shared = make_grid(pixels, labels=["monster"] * 16)
    assert shared.height < make_grid(pixels, labels=["monster"] * 15 + ["door"]).height


def test_labels_stay_below_their_own_image() -> None:
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    for text in ("a very long class name, golden retriever", "x" * 500, "ab\ncd"):
        for scale in (1, 4):
            long = image_pixels(make_grid(pixels, columns=2, scale=scale, labels=[text, "b"]))
            short = image_pixels(make_grid(pixels, columns=2, scale=scale, labels=["", "b"]))
            assert long.shape == short.shape
            differing = (long != short).any(2).any(0).nonzero()
            assert 0 < len(differing)
            assert int(differing.max()) < long.shape[1] / 2


def test_impossible_columns_and_scales_are_refused() -> None:
    for wrong in ({"columns": 0}, {"scale": 0}, {"columns": -1}):
        with pytest.raises(RequestError, match="at least 1"):
            make_grid(torch.zeros(2, 2, 2, 3, dtype=torch.uint8), **wrong)
