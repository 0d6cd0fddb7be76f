"""Pictures: what is converted is said, what cannot be read is refused in one sentence."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from relupath import images
from relupath.errors import InputError


@pytest.fixture
def picture(tmp_path):
    """Save a picture under a name and return its path."""

    def save(name, image, **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


GRADIENT = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def test_plain_rgb_is_read_as_it_is(picture):
    read = images.read(picture("a.png", Image.fromarray(GRADIENT)))
    assert np.array_equal(np.asarray(read.image), GRADIENT)
    assert read.notes == ()


def test_transparency_is_laid_over_white_and_said(picture):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    read = images.read(picture("a.png", image))
    assert read.image.getpixel((0, 0)) == (255, 0, 0)
    assert read.image.getpixel((1, 0)) == (255, 255, 255)
    assert "transparent" in read.notes[0]


def test_opaque_alpha_and_palettes_need_no_word(picture):
    opaque = images.read(picture("a.png", Image.fromarray(GRADIENT).convert("RGBA")))
    palette = images.read(picture("b.png", Image.new("P", (3, 3), 0)))
    assert opaque.notes == palette.notes == ()
    assert opaque.image.mode == palette.image.mode == "RGB"


def test_cmyk_is_converted_and_said(picture):
    read = images.read(picture("a.jpg", Image.new("CMYK", (4, 4), (0, 255, 255, 0))))
    red, green, blue = read.image.getpixel((1, 1))
    assert red > 240
    assert green < 20
    assert blue < 20
    assert "CMYK" in read.notes[0]


def test_sixteen_bits_are_scaled_not_cut(picture):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    read = images.read(picture("a.png", Image.fromarray(values)))
    assert [read.image.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]
    assert "16-bit" in read.notes[0]


def test_float_pixels_are_scaled_and_nan_is_refused(picture):
    read = images.read(picture("a.tiff", Image.fromarray(np.array([[0.5, 2.5]], dtype=np.float32))))
    assert [read.image.getpixel((x, 0))[0] for x in range(2)] == [0, 255]
    with pytest.raises(InputError, match="NaN"):
        images.read(picture("b.tiff", Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32))))


def test_of_an_animation_the_first_frame_is_taken_and_said(picture):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    read = images.read(picture("a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert read.image.getpixel((0, 0)) == (255, 0, 0)
    assert "several frames" in read.notes[0]


def test_the_orientation_tag_is_applied(picture):
    image = Image.fromarray(np.zeros((2, 5, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    assert images.read(picture("a.jpg", image, exif=exif)).image.size == (2, 5)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"this is no picture at all", "not a picture of a known format"),
        ("cut.png", None, "cannot be read as a picture"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known format"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is None:
        whole = tmp_path / "whole.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
        content = whole.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        images.read(path)


def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(InputError, match="pixels"):
        images.read(tmp_path / "bomb.png")


def test_folders_and_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="a folder"):
        images.read(tmp_path)
    with pytest.raises(InputError, match="not there"):
        images.read(tmp_path / "nothing.png")
