"""Images to tensors, tensors to images."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ddimctl.api.arguments import instance, sides, whole, word
from ddimctl.api.tensors import floats
from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import RequestError, brief, python_words
from ddimctl.files.pictures import grids, images
from ddimctl.jobs.sample.plan import image_shape


@python_words()
def prepare_image(
    source: str | Path | Image.Image,
    ckpt: Checkpoint,
    *,
    size: tuple[int, int] | None = None,
    fit: str = "crop",
) -> Tensor:
    """An image as the checkpoint takes it: x_0 (1, C, H, W), float32 in [-1, 1], on its device.

    source: a file, or an image of Pillow; upright afterwards, transparent pixels on the
    checkpoint's background.  size: (H, W), by default the checkpoint's.
    fit: "crop", "pad" or "stretch", where the proportions differ.
    Raises DataError for a file that cannot be read, RequestError for arguments that do not fit.
    """
    instance("source", source, (str, Path, Image.Image), "a path or an image of Pillow")
    instance("ckpt", ckpt, Checkpoint, "a checkpoint")
    channels, height, width = image_shape(sides(size), ckpt)
    background = ckpt.background or (0, 0, 0)
    found = images.read_image(
        Path(source) if isinstance(source, str) else source, channels, background
    )
    word("fit", fit, images.FITS)
    pixels = images.image_pixels(images.fit_image(found, (height, width), fit, background))
    return images.from_uint8(pixels[None]).to(ckpt.device)


@python_words()
def to_pil(x_0: Tensor) -> list[Image.Image]:
    """N gray, RGB or RGBA images of Pillow from x_0 (N, C, H, W); outside [-1, 1] is clamped.

    Raises DataError for other numbers of channels.
    """
    return [images.to_pil(pixels) for pixels in images.to_uint8(floats("x_0", x_0, dims=4))]


@python_words()
def make_grid(
    x_0: Tensor,
    columns: int | None = None,
    scale: int | None = None,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """An RGB image of Pillow that shows x_0 (N, C, H, W), the first 256, row by row.

    columns: by default a little wider than tall.  scale: a whole factor; by default small images
    grow to about 128 pixels.  labels: N texts, drawn below the images.
    Raises RequestError for arguments that do not fit.
    """
    pixels = images.to_uint8(floats("x_0", x_0, dims=4))
    texts = None if labels is None else list(labels)
    if texts is not None:
        if isinstance(labels, str) or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"labels must be a list of texts, not {brief(labels)}.")
        if len(texts) != len(pixels):
            raise RequestError(f"labels are {len(texts)}, the images {len(pixels)}.")
    return grids.make_grid(
        pixels,
        None if columns is None else whole("columns", columns, 1),
        None if scale is None else whole("scale", scale, 1, 64),
        texts,
    )
