import io
import tracemalloc
import weakref

import pytest
import torch
from PIL import Image, ImageChops, ImageSequence

from ddimctl.errors import DataError, RequestError
from ddimctl.files.pictures.animation import write_animation
from ddimctl.files.pictures.images import to_pil


def encode_animation(frames, *given, **named) -> bytes:
    file = io.BytesIO()
    write_animation(file, len(frames), frames.__getitem__, *given, **named)
    return file.getvalue()


def ramps(count: int = 5) -> list[Image.Image]:
    """Frames of few colours, each different from the one before."""
    frames = torch.zeros(count, 16, 24, 3, dtype=torch.uint8)
    for index in range(count):
        frames[index, :, 4 * index : 4 * index + 4] = torch.tensor([200, 20 * index, 40])
    return [to_pil(frame) for frame in frames]


def decoded(data: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(data)) as image:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize("format", ["gif", "webp"])
def test_frames_of_few_colours_come_back_exactly(format: str) -> None:
    frames = ramps()
    found = decoded(encode_animation(frames, format))
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in frames]


@pytest.mark.parametrize("format", ["gif", "webp"])
def test_it_loops_for_ever_and_holds_frames(format: str) -> None:
    with Image.open(io.BytesIO(encode_animation(ramps(), format, fps=10, holds={4: 2}))) as image:
        assert image.info["loop"] == 0
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
    assert durations == [100, 100, 100, 100, 2000]


def test_one_frame_and_gray_frames_are_enough() -> None:
    for format in ("gif", "webp"):
        gray = Image.new("L", (8, 8), 90)
        assert decoded(encode_animation([gray], format))[0].getpixel((0, 0)) == (90, 90, 90)


def test_equal_frames_give_equal_bytes() -> None:
    for format in ("gif", "webp"):
        assert encode_animation(ramps(), format) == encode_animation(ramps(), format)


def test_gif_has_one_palette_and_stays_close_to_its_frames() -> None:
    end = Image.merge("RGB", [Image.linear_gradient("L").rotate(turn) for turn in (0, 90, 180)])
    black = Image.new("RGB", end.size)
    frames = [Image.blend(black, end, index / 9) for index in range(10)]
    shown = decoded(encode_animation(frames, "gif"))
    assert len({colour for frame in shown for _, colour in frame.getcolors(2**16)}) <= 256
    for frame, found in zip(frames, shown, strict=True):
        difference = torch.tensor(bytearray(ImageChops.difference(frame, found).tobytes()))
        assert difference.float().mean() < 12


def test_gif_never_flickers_where_nothing_changes() -> None:
    still = Image.radial_gradient("L").convert("RGB")
    frames = []
    for index in range(6):
        frame = still.copy()
        frame.paste((255, 40 * index, 0), (0, 0, 16, 16))
        frames.append(frame)
    corners = {
        frame.crop((64, 64, 256, 256)).tobytes() for frame in decoded(encode_animation(frames))
    }
    assert len(corners) == 1


@pytest.mark.parametrize("format", ["gif", "webp"])
def test_parts_change_at_any_place_and_equal_frames_are_one(format: str) -> None:
    frames = [Image.new("RGB", (31, 17), (9, 8, 7))]
    for place in ((3, 5), (30, 16), (0, 0), (7, 1)):
        frame = frames[-1].copy()
        frame.putpixel(place, (place[0], 200, place[1]))
        frames += [frame, frame]
    data = encode_animation(frames, format, fps=10)
    assert [frame.tobytes() for frame in decoded(data)] == [
        frame.tobytes() for frame in [frames[0], *frames[1::2]]
    ]
    with Image.open(io.BytesIO(data)) as image:
        durations = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            durations.append(frame.info["duration"])
    assert durations == [100, 200, 200, 200, 200]


def test_a_gif_of_more_colours_than_it_can_hold_never_shows_its_unused_one() -> None:
    dice = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (6, 32, 32, 3), generator=dice, dtype=torch.uint8)
    frames = [to_pil(frame) for frame in noise]
    for frame, found in zip(frames, decoded(encode_animation(frames)), strict=True):
        difference = torch.tensor(bytearray(ImageChops.difference(frame, found).tobytes()))
        assert difference.float().mean() < 25


@pytest.mark.parametrize("format", ["gif", "webp"])
def test_memory_holds_few_of_many_frames(format: str, tmp_path) -> None:
    made, most = [], []

    def frame_at(i: int) -> Image.Image:
        frame = Image.new("L", (16, 16), i % 2 * 90)
        made[:] = [ref for ref in made if ref()] + [weakref.ref(frame)]
        most.append(len(made))
        return frame

    with (tmp_path / "long").open("wb") as file:
        tracemalloc.start()
        write_animation(file, 2000, frame_at, format)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(most) <= 4
    assert peak < 2_000_000
    with Image.open(tmp_path / "long") as image:
        assert image.n_frames == 2000


def test_impossible_animations_are_refused() -> None:
    with pytest.raises(RequestError, match="mp4"):
        encode_animation(ramps(), "mp4")
    with pytest.raises(RequestError, match="fps must be between"):
        encode_animation(ramps(), fps=0)
    with pytest.raises(DataError, match="frames"):
        encode_animation([])
    with pytest.raises(DataError, match="one size"):
        encode_animation([*ramps(), Image.new("RGB", (3, 3))])
