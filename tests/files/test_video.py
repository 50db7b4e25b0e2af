import io

import pytest
import torch
from PIL import Image

from ddimctl.errors import RequestError
from ddimctl.files.pictures import video
from ddimctl.files.pictures.video import check_video, write_video


def encode_video(frames, *given):
    file = io.BytesIO()
    write_video(file, len(frames), frames.__getitem__, *given)
    return file.getvalue()


def ramps(count=5, side=16):
    """Images of few colours, each different from the one before."""
    frames = torch.zeros(count, side, side, 3, dtype=torch.uint8)
    for index in range(count):
        frames[index, :, 2 * index : 2 * index + 4] = torch.tensor([200, 20 * index, 40])
    return list(frames)


def decoded_mp4(data):
    av = pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.video[0].average_rate
        return [frame.to_image() for frame in container.decode(video=0)], rate


@pytest.mark.parametrize("format", ["gif", "webp"])
@pytest.mark.parametrize("holds", [{}, {4: 1.0}, {0: 0.5, 2: 0.01}])
def test_animations_are_enlarged_repeat_and_hold_frames(format, holds):
    with Image.open(io.BytesIO(encode_video(ramps(), format, 10, holds))) as image:
        assert image.size == (256, 256)
        assert image.n_frames == 5
        assert image.info["loop"] == 0
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
    assert durations == [max(100, 1000 * holds.get(i, 0)) for i in range(5)]


def test_mp4_has_every_frame_at_its_pace():
    pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")
    frames, rate = decoded_mp4(encode_video(ramps(), "mp4", 7.5, {3: 0.4}))  # three frames long
    assert len(frames) == 7
    assert rate == 7.5
    assert frames[3].tobytes() == frames[5].tobytes()
    for frame, pixels in zip([*frames[:4], frames[6]], ramps(), strict=True):
        assert frame.size == (256, 256)
        found = torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8).view(256, 256, 3)
        difference = found[8::16, 8::16].int() - pixels.int()
        assert difference.abs().float().mean() < 8


@pytest.mark.parametrize("size", [(257, 301), (16, 15), (1, 1)])
def test_mp4_takes_odd_sizes_and_gray(size):
    pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")
    frames, _ = decoded_mp4(encode_video([torch.zeros(*size, 1, dtype=torch.uint8)] * 3, "mp4"))
    assert len(frames) == 3
    assert all(side % 2 == 0 for side in frames[0].size)


@pytest.mark.parametrize(
    ("format", "fps", "named"),
    [("avi", 12, "'avi'"), ("gif", 0, "--fps must be"), ("mp4", -1, "not -1")],
)
def test_impossible_videos_are_refused(format, fps, named):
    with pytest.raises(RequestError, match=named):
        check_video(format, fps)


def test_mp4_without_pyav_names_the_extra(monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"ddimctl\[video\]"):
        check_video("mp4", 12)
    check_video("webp", 12)
