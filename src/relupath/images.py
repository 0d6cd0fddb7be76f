"""Read a picture: what is unambiguous is converted and said, the rest is refused in one sentence."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from . import creatures
from .errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_000_000


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in plain 8-bit RGB.

    Attributes:
        image: the picture, mode RGB, upright.
        name: where it came from.
        notes: one sentence for each conversion that a person should know of.
    """

    image: Image.Image
    name: str
    notes: tuple[str, ...] = ()


def noise(size: int = 256) -> Picture:
    """A picture of independent random colours, the same each time."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels), "noise", ("no photo was given: the picture is noise",))


def scene(seed: int) -> Picture:
    """A drawn scene of creatures."""
    return Picture(Image.fromarray(creatures.draw(seed).image), f"scene {seed}")


def read(path: str | Path) -> Picture:
    """Read a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file as 8-bit RGB.

    Transparency is laid over white, CMYK and palettes are converted, 16-bit values are scaled to 8 bits, of an
    animation the first frame is taken, and the orientation tag is applied; ``notes`` says so.

    Raises:
        InputError: there is no such file, or it is empty, corrupt, truncated, of another format or too large.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: give one picture file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")
    return _decoded(path, str(path), MAX_PIXELS)


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """What ``read`` gives, from the bytes of a file.

    Args:
        data: the bytes.
        name: what the picture is called.
        max_pixels: how many it may have; no more are unpacked.

    Raises:
        InputError: the bytes are none, corrupt, truncated, of another format, or of too many pixels.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes)")
    return _decoded(io.BytesIO(data), name, max_pixels)


def _decoded(source: Path | io.BytesIO, name: str, max_pixels: int) -> Picture:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > max_pixels:
                    raise InputError(f"{name} has {width} x {height} pixels; the limit is {max_pixels:,} in all")
                opened.load()
                image, notes = _plain(opened)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise InputError(f"{name} would unpack to a picture of too many pixels (limit {max_pixels:,})") from None
        except UnidentifiedImageError:
            raise InputError(
                f"{name} is not a picture of a known format ({', '.join(FORMATS)}), or is corrupt"
            ) from None
        except InputError:
            raise
        except Exception as error:  # whatever a decoder says of bytes that are no picture
            raise InputError(f"{name} cannot be read as a picture: {error}") from error
    return Picture(image, name, tuple(f"{Path(name).name}: {note}" for note in notes))


def _plain(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The first frame, upright, as 8-bit RGB, and what was done to get there."""
    notes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("it has several frames; the first one is explained")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        notes.append(
            f"its {'16-bit' if image.mode.startswith('I;16') else image.mode} grey values are scaled to 8 bits"
        )
        return _scaled(image), notes
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append("it is transparent in places; it is laid over white")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), notes
    if image.mode == "CMYK":
        notes.append("it is CMYK; it is converted to RGB without a colour profile")
    return image.convert("RGB"), notes


def _scaled(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits, scaled to 0..255: 16-bit ones by 257, others by their own range."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError("its pixels hold NaN or infinite values")
    low, high = (0.0, 65535.0) if image.mode.startswith("I") and values.max() <= 65535 else (values.min(), values.max())
    grey = np.round(np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
