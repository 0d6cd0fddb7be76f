"""Creatures: a small picture world in which the reason for every class is known, pixel by pixel.

A creature carries three decisive parts: an ornament on the head, something on the back, and a tail. Each exists in two
forms, and the three forms *are* the class: 2 x 2 x 2 = 8 classes, and each syllable of a class name stands for one part
("Lu-no-rix": horn, sail, arrow). All else (place, colours, coat, legs, muzzle, size, pose) is drawn independently of
the class: the same seed with another label is the same scene with other decisive parts.
The network of the package was trained on seeds below `FIRST_UNSEEN_SEED`; scenes from that seed on are unseen.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import comb
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor, nn

__all__ = ["ATTRIBUTES", "CLASSES", "FIRST_UNSEEN_SEED", "PARTS", "Scene", "draw", "network", "parts_of", "preprocess"]

SIZE, _FINE = 96, 4  # pixels of a side, and how many times finer the creature is drawn
FIRST_UNSEEN_SEED = 1_000_000
MEAN, STD = 0.5, 0.25

ATTRIBUTES = {"ornament": ("horn", "crest"), "back": ("wing", "sail"), "tail": ("brush", "arrow")}
CLASSES: tuple[str, ...] = tuple("".join(syllables) for syllables in product(("Lu", "So"), ("mi", "no"), ("la", "rix")))
_DECISIVE = tuple(product(ATTRIBUTES["ornament"], ATTRIBUTES["back"], ATTRIBUTES["tail"]))
_COMMON = ("legs", "body", "pattern", "head", "muzzle", "eye")
PARTS: tuple[str, ...] = ("background", *(part for pair in ATTRIBUTES.values() for part in pair), *_COMMON)

_Number = int | float
_Points = Float[np.ndarray, "_ 2"]
_Colour = Float[np.ndarray, "3"]
_Shares = Float[np.ndarray, "layers 9216"]


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, its class, and which pixels show which part.

    Attributes:
        image: The picture.
        label: Index into `CLASSES`.
        parts: For each name in `PARTS`, the pixels of which this part covers the largest visible share. The masks
            partition the picture; the mask of an absent part is empty.
        seed: The seed from which the scene was drawn.
    """

    image: UInt8[np.ndarray, "96 96 3"]
    label: int
    parts: dict[str, Bool[np.ndarray, "96 96"]]
    seed: int


def parts_of(label: int) -> tuple[str, str, str]:
    """The names of the decisive parts of a class: ornament, back and tail.

    Raises:
        ValueError: If there is no such class.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"expected a label from 0 to {len(CLASSES) - 1}, got {label}; it is an index into {CLASSES}")
    return _DECISIVE[label]


def draw(seed: int, label: int | None = None) -> Scene:
    """The scene of a seed: the same pixels each time.

    Args:
        seed: Any non-negative integer; see `FIRST_UNSEEN_SEED` for the split.
        label: The class to draw; by default the seed decides. All that is not decisive depends on the seed alone.
    """
    rng = np.random.default_rng(seed)
    by_seed = int(rng.integers(len(CLASSES)))
    label = by_seed if label is None else label
    traits = _sample(rng)
    canvas = _Canvas(traits.pose)
    _plants(canvas, traits.place, rng)
    for part, paint in _BACK_TO_FRONT.items():
        if part in (*_COMMON, *parts_of(label)):
            paint(canvas, traits)
    shares = canvas.shares()
    return Scene(canvas.shaded(shares, _backdrop(traits, rng)), label, canvas.masks(shares), seed)


def preprocess(image: UInt8[np.ndarray, "96 96 3"]) -> Float[Tensor, "3 96 96"]:
    """The picture as the network takes it: channels first, (image / 255 - `MEAN`) / `STD`."""
    return (torch.tensor(image).permute(2, 0, 1) / 255 - MEAN) / STD


def network() -> nn.Sequential:
    """A plain VGG-like network with random weights: nine 3 x 3 convolutions with ReLU, max pooling, a linear head."""
    features: list[nn.Module] = []
    channels = 3
    for block in ((16,), (24, 24), (48, 48), (96, 96), (112, 112)):
        for width in block:
            features += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
        features.append(nn.MaxPool2d(2))
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(CLASSES)))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), classifier=classifier))


def _colour(code: str) -> _Colour:
    return np.array(ImageColor.getrgb(code), dtype=float)


def _mix(first: np.ndarray, second: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    return np.asarray(first + (second - first) * share)


class _Place(NamedTuple):
    """A background: sky from top to horizon, hills from far to near (the last is the ground), leaf and flower."""

    sky: tuple[str, str]
    hills: tuple[str, str, str]
    light: str
    ridge: str
    plants: tuple[str, str]
    stars: bool = False


_PLACES = (
    _Place(("#6fb7e9", "#e3f4f7"), ("#a9d3c0", "#7dbb86", "#5fa463"), "#fff6d8", "rolling", ("#3f8550", "#ffe9f0")),
    _Place(("#f5b57a", "#fdeac6"), ("#e8b183", "#d99563", "#e2b274"), "#fffbe6", "rolling", ("#6d8f56", "#f7ead0")),
    _Place(("#141a45", "#4a4f96"), ("#373c7c", "#2a2f66", "#262b58"), "#f9f3d2", "peaks", ("#3f5c80", "#b9c7ff"), True),
    _Place(("#8fd0ee", "#eef8f4"), ("#3f9ac0", "#59b7cc", "#f0dcae"), "#ffffff", "flat", ("#7fa36a", "#f5f0e6")),
    _Place(("#b9dccb", "#eaf3dc"), ("#8fbfa3", "#5c957c", "#4b7d5b"), "#fffde0", "trees", ("#2f5e47", "#f3d9e6")),
    _Place(("#7c5fa8", "#f7b7a3"), ("#a5719f", "#80578f", "#5f4879"), "#ffe3b8", "rolling", ("#43345f", "#ffd0c2")),
    _Place(("#9cc3e6", "#eef4fb"), ("#b9cfe6", "#93b2d3", "#edf3fa"), "#ffffff", "peaks", ("#7fa3bf", "#ffffff")),
)
_BRIGHT = "#f2786b #2f9c95 #f0b429 #a58bd6 #7c4d8f #58ade3 #8fd6b0 #ee8fb0"
_CALM = "#f7e6c4 #8a5a44 #5b6c8f #c8425b #ef8a3c #37477f #a9c94b #f6f1ea"
_COATS = [_colour(code) for code in f"{_BRIGHT} {_CALM}".split()]
_CREAM = _colour("#fff6e4")


class _Traits(NamedTuple):
    """All in which two creatures of one class differ; none of it depends on the class."""

    place: _Place
    coats: dict[str, _Colour]
    pose: Float[np.ndarray, "2 3"]
    legs: int
    leg_length: float
    length: float
    head: tuple[float, float]
    pattern: str
    spots: Float[np.ndarray, "14 3"]
    muzzle: str
    curl: float
    iris: _Colour


def _sample(rng: np.random.Generator) -> _Traits:
    place = _PLACES[rng.integers(len(_PLACES))]
    behind = np.stack([_colour(code) for code in (place.sky[1], *place.hills)])
    visible = [coat for coat in _COATS if np.abs(coat - behind).sum(axis=1).min() > 90]
    coats = [visible[k] for k in rng.choice(len(visible), 4, replace=False)]
    scale, tilt, facing = rng.uniform(0.92, 1.08), rng.uniform(-0.1, 0.1), rng.choice((-1.0, 1.0))
    turn = scale * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    return _Traits(
        place=place,
        coats=dict(zip(("body", "tail", "back", "ornament"), coats, strict=True)),
        pose=np.column_stack([turn * (facing, 1), np.add((48 + 3 * facing, 59), rng.uniform((-3.5, -2), (3.5, 3)))]),
        legs=int(rng.integers(2, 5)),
        leg_length=rng.uniform(8, 13),
        length=rng.uniform(15, 19),
        head=(rng.uniform(16, 20), rng.uniform(-18, -14)),
        pattern=str(rng.choice(("plain", "spots", "stripes"))),
        spots=rng.uniform((-19, -9, 1.6), (19, 9, 3), (14, 3)),
        muzzle=str(rng.choice(("beak", "snout"))),
        curl=rng.uniform(-1, 1),
        iris=_COATS[rng.integers(8)],
    )


def _direction(angle: ArrayLike) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


_HALF_TURN = np.linspace(-np.pi / 2, np.pi / 2, 9)
_TURN = np.concatenate([np.full(24, -np.pi / 2), _HALF_TURN, np.full(24, np.pi / 2), np.pi + _HALF_TURN])
_AROUND = np.concatenate([np.arange(24), np.full(9, 23), np.arange(24)[::-1], np.zeros(9, dtype=int)])


@cache
def _bernstein(degree: int, start: float, end: float) -> Float[np.ndarray, "24 knots"]:
    t = np.linspace(start, end, 24)[:, None]
    return np.hstack([comb(degree, k) * t**k * (1 - t) ** (degree - k) for k in range(degree + 1)])


def _ribbon(knots: ArrayLike, radii: ArrayLike, start: float = 0.0, end: float = 1.0) -> _Points:
    """The outline of a disc that travels along a Bezier curve and changes its radius on the way."""
    centre, radius = (_bernstein(len(c) - 1, start, end) @ c for c in (np.array(knots), np.array(radii)))
    step = np.diff(centre, axis=0, append=2 * centre[-1:] - centre[-2:-1])
    heading = np.arctan2(step[:, 1], step[:, 0])
    return np.asarray(centre[_AROUND] + radius[_AROUND, None] * _direction(heading[_AROUND] + _TURN))


def _disc(x: _Number, y: _Number, rx: _Number, ry: _Number | None = None) -> _Points:
    return _direction(np.linspace(0, 2 * np.pi, 41)) * (rx, ry or rx) + (x, y)


def _fan(x: _Number, y: _Number, radius: _Number, degrees: np.ndarray, depth: float) -> _Points:
    """A fan from (x, y), one ray per angle; its edge runs in points for positive depth, in lobes for negative depth."""
    ray = np.linspace(0, len(degrees) - 1, 61)
    wave = np.abs(np.sin(np.pi * ray))
    reach = radius * (1 - depth * wave if depth > 0 else 1 + depth * (1 - wave))
    reach = reach * (0.75 + 0.25 * np.sin(np.pi * np.linspace(0, 1, 61)))
    angle = np.deg2rad(np.interp(ray, np.arange(len(degrees)), degrees))
    return np.concatenate([reach[:, None] * _direction(angle) + (x, y), [(x, y)]])


class _Canvas:
    """Layers of one part and colour each; a fine pixel holds the number of the topmost one, 0 where the backdrop is."""

    def __init__(self, pose: Float[np.ndarray, "2 3"]) -> None:
        self.pose = pose
        self.parts, self.colours, self.volumes = ["background"], [np.zeros(3)], [0]
        self.ids = Image.new("L", (SIZE * _FINE, SIZE * _FINE))

    def add(self, part: str, colour: _Colour, *outlines: _Points, on: int | None = None) -> int:
        """Adds a layer on top, or colours what is visible of the layer `on`; the number of the layer."""
        number = len(self.parts)
        target = self.ids if on is None else Image.new("L", self.ids.size)
        pen = ImageDraw.Draw(target)
        for outline in outlines:
            placed = (outline @ self.pose[:, :2].T + self.pose[:, 2]) * _FINE
            pen.polygon(placed.ravel().tolist(), fill=number)
        if on is not None:
            inside = (np.asarray(target) > 0) & (np.asarray(self.ids) == on)
            self.ids.paste(number, mask=Image.fromarray(inside))
        self.parts.append(part)
        self.colours.append(colour)
        self.volumes.append(number if on is None else self.volumes[on])
        return number

    def shares(self) -> _Shares:
        """The visible share of each layer in each pixel, in sixteenths: exact."""
        pixel = np.arange(SIZE * SIZE).reshape(SIZE, 1, SIZE, 1)
        layer = np.asarray(self.ids, dtype=np.intp).reshape(SIZE, _FINE, SIZE, _FINE)
        counts = np.bincount((layer * SIZE * SIZE + pixel).ravel(), minlength=len(self.parts) * SIZE * SIZE)
        return np.asarray(counts.reshape(-1, SIZE * SIZE) / _FINE**2, dtype=np.float32)

    def masks(self, shares: _Shares) -> dict[str, Bool[np.ndarray, "96 96"]]:
        """The pixels of each part: those of which it shows more than any other."""
        belongs = np.equal.outer(PARTS, self.parts).astype(np.float32)
        winner = (belongs @ shares).argmax(axis=0).reshape(SIZE, SIZE)
        return {part: winner == k for k, part in enumerate(PARTS)}

    def shaded(self, shares: _Shares, backdrop: Float[np.ndarray, "96 96 3"]) -> UInt8[np.ndarray, "96 96 3"]:
        """The picture: each volume looks as if puffed up, and lit from the upper left."""
        colours = np.stack(self.colours, axis=1, dtype=np.float32)
        volumes, at = np.unique(self.volumes, return_inverse=True)
        cover = np.equal.outer(np.arange(len(volumes)), at).astype(np.float32) @ shares
        dy, dx = np.gradient(_BLUR @ cover.reshape(-1, SIZE, SIZE) @ _BLUR, axis=(1, 2))
        light = np.clip(3.7 * dx + 5.6 * dy, -1, 1).reshape(len(volumes), -1)[at] * shares
        picture = backdrop.reshape(-1, 3) * shares[0, :, None] + (colours @ shares).T
        picture += (_GLOW * colours @ np.maximum(light, 0) + _SHADE * colours @ np.minimum(light, 0)).T
        return np.asarray(np.clip(picture, 0, 255).round(), dtype=np.uint8).reshape(SIZE, SIZE, 3)


_DISTANCE = np.subtract.outer(np.arange(SIZE), np.arange(SIZE), dtype=np.float32)
_BLUR = np.exp(-0.5 * (_DISTANCE / 2.6) ** 2) / (2.6 * (2 * np.pi) ** 0.5)
_GLOW, _SHADE = np.array([[[0.2], [0.17], [0.12]], [[0.42], [0.4], [0.26]]], dtype=np.float32)


def _ridge(shape: str, height: float, rng: np.random.Generator) -> Float[np.ndarray, "96"]:
    x = np.arange(SIZE) / SIZE + rng.uniform(0, 10)
    rolling = height * (np.sin(x * rng.uniform(5, 8)) + 0.4 * np.sin(x * rng.uniform(11, 17)))
    often, high = {"peaks": (3.3, 3.4 * height), "trees": (18.0, 9.0)}.get(shape, (0.0, 0.0))
    return {"rolling": 1.0, "flat": 0.05}.get(shape, 0.5) * rolling - high * np.abs((x * often) % 2 - 1)


def _backdrop(traits: _Traits, rng: np.random.Generator) -> Float[np.ndarray, "96 96 3"]:
    """Sky, sun or moon, clouds or stars, hills, ground, the shadow of the creature and a little grain."""
    y, x = np.mgrid[0:SIZE, 0:SIZE, 0:1][:2].astype(float)
    place, light = traits.place, _colour(traits.place.light)
    picture = _mix(_colour(place.sky[0]), _colour(place.sky[1]), np.clip(y / 58, 0, 1))
    sun = np.hypot(x - rng.uniform(8, 88), y - rng.uniform(8, 26)) - rng.uniform(5, 8)
    picture = _mix(picture, light, 0.45 * np.exp(-np.maximum(sun, 0) / 11))
    picture = _mix(picture, light, np.clip(0.5 - sun, 0, 1))
    clouds = np.zeros_like(x)
    for cx, cy in rng.uniform((0, 8), (SIZE, 34), (3, 2)):
        for dx, dy in ((-7, 3), (0, 5), (6, 4)):
            clouds += np.exp(-(((x - cx - dx) / 5) ** 2) - ((y - cy + dy) / dy) ** 2) * (y < cy + 1)
    stars = rng.random(x.shape) ** 300
    picture = _mix(picture, light, stars if place.stars else np.clip(2 * clouds - 0.5, 0, 0.8))
    for k, code in enumerate(place.hills):
        shape = "rolling" if k == 2 and place.ridge != "flat" else place.ridge
        below = y - (54 + 9 * k) - _ridge(shape, 4.5 - 1.5 * k, rng)[:, None]
        hill = _mix(_mix(_colour(code), light, 0.18), 0.86 * _colour(code), np.clip(below / 26, 0, 1))
        picture = _mix(picture, hill, np.clip(below + 0.5, 0, 1))
    foot_x, foot_y = traits.pose @ (0, 13 + traits.leg_length, 1)
    shadow = np.exp(-((((x - foot_x) / 25) ** 2 + ((y - foot_y) / 4.2) ** 2) ** 2))
    return np.asarray(picture * (1 - 0.42 * shadow * (1.0, 0.95, 0.75)) + rng.normal(0, 1.2, x.shape))


def _plants(canvas: _Canvas, place: _Place, rng: np.random.Generator) -> None:
    leaves, flowers = [], []
    for x, y, size in rng.uniform((-46, 14, 3), (46, 36, 6), (9, 3)):
        tips = [(x + size * lean, y - size * tall) for lean, tall in ((-0.7, 0.8), (-0.1, 1.2), (0.6, 0.9))]
        leaves += [_ribbon([(x, y), (x, y - 0.7 * size), tip], [0.9, 0.2]) for tip in tips]
        flowers += [_disc(*tip, 0.2 * size) for tip in tips[: rng.integers(4)]]
    for outlines, code in zip((leaves, flowers), place.plants, strict=True):
        canvas.add("background", _colour(code), *outlines)


def _brush(canvas: _Canvas, traits: _Traits) -> None:
    coat, curl = traits.coats["tail"], 4 * traits.curl
    knots, radii = [(6 - traits.length, 4), (-30, 14), (-46, curl - 6), (curl - 28, -22)], [2, 4, 15, 8, 0.5]
    brush = canvas.add("brush", coat, _ribbon(knots, radii))
    canvas.add("brush", _mix(coat, _CREAM, 0.5), _ribbon(knots, radii, start=0.72), on=brush)


def _arrow(canvas: _Canvas, traits: _Traits) -> None:
    coat, curl = traits.coats["tail"], 4 * traits.curl
    knots = np.array([(6 - traits.length, 4), (-30, 16), (-42, curl + 2), (curl - 33, -14)])
    x, y = (knots[3] - knots[2]) / np.linalg.norm(knots[3] - knots[2])
    barb = np.array([(12, 0), (-3, 8), (0, 2), (0, -2), (-3, -8)]) @ ((x, y), (-y, x))
    canvas.add("arrow", coat, _ribbon(knots, [4, 2.2, 2.2, 1.8]))
    canvas.add("arrow", _mix(coat, _CREAM, 0.5), knots[3] + barb)


def _legs(canvas: _Canvas, traits: _Traits) -> None:
    coat, foot = traits.coats["body"], 12 + traits.leg_length
    for k, x in enumerate(np.linspace(5 - traits.length, traits.length - 5, traits.legs)):
        thigh = _ribbon([(x, 4), (x - 1, foot - 6), (x, foot)], [5, 2, 2.6])
        leg = canvas.add("legs", coat * (0.92, 0.78)[k % 2], thigh, _disc(x + 1, foot, 3.8, 2.6))
        canvas.add("legs", coat * 0.6, _disc(x + 1, foot + 2, 5, 2.6), on=leg)


def _sail(canvas: _Canvas, traits: _Traits) -> None:
    coat, degrees = traits.coats["back"], np.linspace(-165, -55, 6) + 8 * traits.curl
    sail = canvas.add("sail", coat, _fan(-4, 0, 34, degrees, 0.2))
    ribs = [_ribbon([(-4, 0), (-4 + x, y)], [0.6, 2.2]) for x, y in 40 * _direction(np.deg2rad(degrees))]
    canvas.add("sail", _mix(coat, _CREAM, 0.5), *ribs, on=sail)


def _horn(canvas: _Canvas, traits: _Traits) -> None:
    coat, (x, y) = traits.coats["ornament"], traits.head
    knots = [(x, y - 5), (x + 3, y - 17), (x + 7 + 1.5 * traits.curl, y - 28)]
    horn = canvas.add("horn", coat, _ribbon(knots, [6.4, 3.8, 0.4]))
    rings = [_ribbon([(x - 6, y - up), (x + 2, y - up + 1), (x + 12, y - up - 5)], [1.3, 1.3]) for up in (9, 15, 21)]
    canvas.add("horn", _mix(coat, _CREAM, 0.5), *rings, on=horn)


def _crest(canvas: _Canvas, traits: _Traits) -> None:
    coat, (x, y) = traits.coats["ornament"], traits.head
    degrees = np.linspace(-158, -46, 5) + 8 * traits.curl
    crest = canvas.add("crest", coat, _fan(x - 3, y - 2, 22, degrees, -0.3))
    canvas.add("crest", _mix(coat, _CREAM, 0.5), _fan(x - 3, y - 2, 16.5, degrees, -0.3), on=crest)


def _body(canvas: _Canvas, traits: _Traits) -> None:
    coat, (x, y) = traits.coats["body"], traits.head
    body = canvas.add("body", coat, _disc(0, 3, traits.length, 12), _ribbon([(6, 2), (14, 0), (x, y)], [9, 6, 7]))
    stripes = [_ribbon([(k, -16), (k + 3, -4), (k - 2, 7)], [2, 1.6, 0.3]) for k in np.arange(-18, 24, 7) + traits.curl]
    marks = {"plain": [], "spots": [_disc(*spot) for spot in traits.spots], "stripes": stripes}[traits.pattern]
    canvas.add("pattern", coat * 0.72, *marks, on=body)
    canvas.add("body", _mix(coat, _CREAM, 0.5), _disc(0, 14, traits.length, 9), on=body)


def _wing(canvas: _Canvas, traits: _Traits) -> None:
    coat, shoulder = traits.coats["back"], np.array((2.0, -2.0))
    for degrees, size in zip((-172, -153, -134, -115, -164, -143, -122), (1, 1, 1, 1, 0.62, 0.62, 0.62), strict=True):
        far = size * (degrees + 260) / 4 * _direction(np.deg2rad(degrees + 8 * traits.curl))
        tint = _mix(coat, _CREAM, 0.25 if size < 1 else (-degrees - 100) / 130)
        canvas.add("wing", tint, _ribbon([shoulder, far * 0.5 + (2, -4), far + shoulder], [3, 8 * size, 2.2]))


def _head(canvas: _Canvas, traits: _Traits) -> None:
    coat, (x, y) = traits.coats["body"], traits.head
    head = canvas.add("head", _mix(coat, _CREAM, 0.08), _disc(x, y, 11.5, 10.5))
    if traits.muzzle == "beak":
        bill = _ribbon([(x + 8, y + 1), (x + 14, y), (x + 18, y + 5)], [5, 4, 0.5])
        mouth = _ribbon([(x + 6, y + 4), (x + 12, y + 4), (x + 16, y + 5)], [0.5, 0.4])
        muzzle = canvas.add("muzzle", _colour("#f5a53a"), bill)
        canvas.add("muzzle", _colour("#b8692a"), mouth, on=muzzle)
    else:
        mouth = _ribbon([(x + 6, y + 7), (x + 9, y + 9), (x + 13, y + 7)], [0.4, 0.4])
        muzzle = canvas.add("muzzle", _mix(coat, _CREAM, 0.45), _disc(x + 9, y + 4.5, 6.5, 5))
        canvas.add("muzzle", coat * 0.45, mouth, _disc(x + 12, y + 2.5, 1.3, 1), on=muzzle)
    canvas.add("head", _mix(coat, _colour("#ff7f8f"), 0.55), _disc(x - 1, y + 6, 2.6, 1.9), on=head)
    canvas.add("eye", _colour("#fffdf6"), _disc(x + 2, y - 1, 4.4, 5))
    canvas.add("eye", traits.iris * 0.8, _disc(x + 3, y - 0.8, 3.3, 4))
    canvas.add("eye", _colour("#1d1a2b"), _disc(x + 3.2, y - 0.6, 2.3, 3))
    canvas.add("eye", _colour("#ffffff"), _disc(x + 2.3, y - 2.4, 1.2), _disc(x + 4.2, y + 0.8, 0.6))


_BACK_TO_FRONT = {
    **{"brush": _brush, "arrow": _arrow, "legs": _legs, "sail": _sail, "horn": _horn, "crest": _crest},
    **{"body": _body, "wing": _wing, "head": _head},
}
