import io
import json
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image

from ddimctl.errors import DataError, RequestError
from ddimctl.files.pictures.formats import readable
from ddimctl.files.pictures.images import (
    encode_image,
    fit_image,
    from_uint8,
    image_pixels,
    read_image,
    read_image_text,
    to_pil,
    to_uint8,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# Tensors


def test_every_level_survives_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    floats = from_uint8(levels)
    assert floats.shape == (2, 3, 16, 16)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), levels)


def test_levels_are_rounded_and_clamped() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 1.5, float("inf")], dtype=dtype)
        assert to_uint8(values.view(1, 1, 1, 6)).flatten().tolist() == [0, 0, 128, 255, 255, 255]


def test_to_uint8_is_within_half_a_level() -> None:
    x_0 = torch.rand(4, 3, 16, 16) * 2 - 1
    assert (from_uint8(to_uint8(x_0)) - x_0).abs().max() <= 0.5 / 127.5 + 1e-6


def test_pixels_survive_the_way_to_an_image_and_back() -> None:
    for channels in (1, 3, 4):
        pixels = noise(5, 7, channels)
        assert torch.equal(image_pixels(to_pil(pixels)), pixels)


# Encoding


def test_encoding_is_lossless() -> None:
    for format in ("png", "webp"):
        for channels in (1, 3, 4):
            pixels = noise(5, 7, channels)  # transparent pixels keep their colours
            with Image.open(io.BytesIO(encode_image(to_pil(pixels), format))) as image:
                assert image.format == format.upper()
                found = image_pixels(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
            assert torch.equal(found, pixels)


@pytest.mark.parametrize("format", ["png", "webp"])
def test_text_comes_back(tmp_path: Path, format: str) -> None:
    for text in (
        {},
        {"ddimctl": json.dumps({"steps": 20, "seed": 7})},
        {"ddimctl": "Größe · 大きさ", "Comment": 'quotes " and\nlines'},
    ):
        data = encode_image(to_pil(noise(4, 4, 3)), format, text)
        assert read_image_text(data) == text
        (tmp_path / "a").write_bytes(data)
        assert read_image_text(tmp_path / "a") == text


def test_equal_images_give_equal_bytes() -> None:
    for format in ("png", "webp"):
        pixels, text = noise(16, 16, 3), {"ddimctl": '{"seed":7}'}
        assert encode_image(to_pil(pixels), format, text) == encode_image(
            to_pil(pixels.clone()), format, text
        )


def test_other_channel_counts_are_refused() -> None:
    for channels in (2, 5, 6):
        with pytest.raises(DataError, match=f"{channels} channels"):
            encode_image(to_pil(noise(4, 4, channels)))


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(RequestError, match="jpeg"):
        encode_image(to_pil(noise(4, 4, 3)), "jpeg")


def test_another_programs_comment_is_no_text_of_ours() -> None:
    for comment in (b"ASCII\0\0\0{not json", b"ASCII\0\0\0[1]", b"hello", "text"):
        exif = Image.Exif()
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: comment}
        assert read_image_text(file_of(Image.new("RGB", (4, 4)), "JPEG", exif=exif)) == {}


# Reading


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]
)
def test_every_mode_is_read(mode: str) -> None:
    for channels in (1, 3):
        format = "TIFF" if mode in ("CMYK", "YCbCr", "PA") else "PNG"
        source = Image.linear_gradient("L").resize((8, 8)).convert("L")
        if mode == "I;16":
            source = source.convert("I").point(lambda level: level * 257).convert("I;16")
        elif mode == "PA":
            source = source.convert("LA")
        elif mode == "P":
            source = source.quantize(8)
        else:
            source = source.convert("RGB").convert(mode)
        image = read_image(file_of(source, format), channels)
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert image.size == (8, 8)
        if mode != "1":
            expected = image_pixels(Image.linear_gradient("L").resize((8, 8)))
            assert (image_pixels(image).int() - expected).abs().max() <= 2


def test_16_bits_are_scaled_and_rounded() -> None:
    levels = [0, 128, 129, 257, 32768, 65278, 65407, 65535]
    data = b"".join(level.to_bytes(2, "little") for level in levels)
    for format in ("PNG", "TIFF", "PPM"):
        stored = Image.frombytes("I;16", (8, 1), data)
        image = read_image(file_of(stored, format), 1)
        assert image_pixels(image).flatten().tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_numbers_of_an_unknown_range_are_refused() -> None:
    for mode in ("F", "I"):
        image = Image.new(mode, (2, 2), 70000)
        with pytest.raises(DataError, match="unknown range"):
            read_image(file_of(image, "TIFF"), 3)


def test_alpha_is_composited_on_the_background() -> None:
    pixels = noise(9, 9, 4)
    for background in ((0, 0, 0), (10, 200, 30), (77,)):
        full = background if len(background) == 3 else background * 3
        below = Image.new("RGBA", (9, 9), (*full, 255))
        expected = Image.alpha_composite(below, to_pil(pixels)).convert("RGB")
        found = read_image(encode_image(to_pil(pixels)), 3, background)
        assert found.tobytes() == expected.tobytes()


def test_palettes_with_a_transparent_colour_show_the_background() -> None:
    stored = Image.new("P", (2, 1))
    stored.putpalette([255, 0, 0, 0, 0, 255])
    stored.putpixel((1, 0), 1)
    image = read_image(file_of(stored, transparency=0), 3, (1, 2, 3))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(1, 2, 3), (0, 0, 255)]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(format: str) -> None:
    for orientation in range(1, 9):
        turns = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,  # stored turned left, so turned right on showing
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        upright = Image.new("RGB", (32, 16), "black")
        upright.paste((255, 255, 255), (0, 0, 8, 8))
        stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image = read_image(file_of(stored, format, exif=exif), 1)
        assert image.size == (32, 16)
        assert image.getpixel((3, 3)) > 200
        assert max(image.getpixel(place) for place in ((28, 3), (3, 12), (28, 12))) < 50


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        data = file_of(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(data, 3).getpixel((0, 0)) == (255, 0, 0)


def test_the_installed_pillow_knows_every_format_that_is_named() -> None:
    Image.init()
    assert set(readable()) <= set(Image.OPEN)


def test_a_file_object_and_a_path_are_read_alike(tmp_path: Path) -> None:
    data = encode_image(to_pil(noise(4, 4, 3)))
    (tmp_path / "a.png").write_bytes(data)
    expected = read_image(data, 3).tobytes()
    assert read_image(tmp_path / "a.png", 3).tobytes() == expected
    assert read_image(io.BytesIO(data), 3).tobytes() == expected


def test_nothing_of_the_file_but_its_pixels_is_kept() -> None:
    data = file_of(Image.new("RGB", (4, 4)), icc_profile=b"profile", dpi=(72, 72))
    assert read_image(data, 3).info == {}


def test_images_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    whole = encode_image(to_pil(noise(64, 64, 3)))
    broken = {
        "empty.png": b"",
        "text.png": b"hello, this is no image",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": file_of(Image.effect_noise((64, 64), 50), "JPEG")[:700],
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name) as raised:
            read_image(tmp_path / name, 3)
        assert len(raised.value.cause.splitlines()) == 1
        assert raised.value.remedy
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "gone.png", 3)
    with pytest.raises(DataError, match="folder"):
        read_image(tmp_path, 3)
    with pytest.raises(DataError, match=r"cats/1\.png"):
        read_image(b"", 3, name="cats/1.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about the EXIF
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000"])
def test_damaged_files_give_an_image_or_a_data_error(format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.effect_noise((24, 24), 90).convert("RGB")
    whole = file_of(image, format, **({"exif": exif} if format != "BMP" else {}))
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        data = bytearray(whole)
        for place in torch.randint(0, min(len(data), 300), (4,), generator=generator).tolist():
            data[place] = int(torch.randint(0, 256, (), generator=generator))
        for read in (lambda data: read_image(data, 3), read_image_text):
            try:
                read(bytes(data))
            except DataError:
                continue


def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="too many pixels; the limit is 128 million"):
        read_image(file_of(Image.new("1", (64, 64))), 3)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(DataError, match="4 channels"):
        read_image(encode_image(to_pil(noise(4, 4, 4))), 4)


# Fitting


def test_every_image_fits_every_way() -> None:
    for fit in ("crop", "pad", "stretch"):
        for source in ((1, 1), (3, 1), (1000, 3), (3, 1000), (40, 30), (16, 8)):
            for mode in ("L", "RGB"):
                found = fit_image(Image.new(mode, source, "white"), (8, 16), fit)
                assert found.size == (16, 8)
                assert found.mode == mode


def test_an_image_of_that_size_stays_as_it_is() -> None:
    image = to_pil(noise(8, 16, 3))
    for fit in ("crop", "pad", "stretch"):
        assert fit_image(image, (8, 16), fit).tobytes() == image.tobytes()


def test_crop_cuts_pad_fills_and_stretch_distorts() -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste((255, 0, 0), (0, 0, 8, 16))
    crop = fit_image(image, (16, 16), "crop")
    pad = fit_image(image, (16, 16), "pad", (0, 0, 9))
    stretch = fit_image(image, (16, 16), "stretch")
    assert crop.getpixel((0, 8)) == (255, 255, 255)
    assert pad.getpixel((0, 0)) == (0, 0, 9)
    assert pad.getpixel((0, 15)) == (0, 0, 9)
    assert pad.getpixel((15, 8)) == (255, 255, 255)
    assert stretch.getpixel((0, 8)) == (255, 0, 0)


def test_a_gray_image_is_padded_with_gray() -> None:
    padded = fit_image(Image.new("L", (16, 4), 255), (8, 8), "pad", (50,))
    assert padded.getpixel((0, 0)) == 50


def test_unknown_fits_are_refused() -> None:
    with pytest.raises(RequestError, match="squeeze"):
        fit_image(Image.new("L", (4, 4)), (8, 8), "squeeze")
