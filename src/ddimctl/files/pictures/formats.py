"""The formats of image files that every command reads, and how names of such files end."""

from functools import cache
from importlib.util import find_spec
from typing import Final

# By Pillow's names. EPS and the like are left out: Pillow hands them to other programs.
_SUFFIXES: Final = {
    "PNG": ".png .apng",
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp .dib",
    "TIFF": ".tif .tiff",
    "AVIF": ".avif",
    "JPEG2000": ".jp2 .j2k .j2c .jpc .jpf .jpx",
    "PPM": ".ppm .pgm .pbm .pnm",
    "TGA": ".tga .icb .vda .vst",
    "ICO": ".ico",
    "PCX": ".pcx",
    "QOI": ".qoi",
    "HEIF": ".heic .heif .hif",
}
HEIC_HINT: Final = "pip install 'ddimctl[heic]' reads HEIC."
_HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
ANIMATED: Final = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
"""Formats with frames or pages of one kind; of others, further images are previews and the like."""


@cache
def has_heic() -> bool:
    """Whether the extra 'heic' is installed, which is made known to Pillow."""
    if find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


@cache
def readable() -> tuple[str, ...]:
    """Pillow's names of the formats."""
    return tuple(name for name in _SUFFIXES if name != "HEIF" or has_heic())


@cache
def suffixes() -> frozenset[str]:
    """Lower-case ends of file names, with their dots."""
    return frozenset(suffix for name in readable() for suffix in _SUFFIXES[name].split())


def is_heic(head: bytes) -> bool:
    """Whether a file that begins so is HEIC."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS
