"""What a page is sent: maps as small whole numbers with a scale, pictures, scores, shares of the output."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ._node import Node
from ._paths import Path, Step

MOST = 127
LARGEST = 1024
"""The longest side of a picture that is reduced."""


def map_of(contribution: Sequence[Tensor], side: int) -> dict[str, Any]:
    """W * x of the first explained input as rows and columns, channels summed, for the page to colour.

    Neighbours are summed until no side is longer than ``side``, so that the map sums to what the tensor does. An entry
    is sent as a whole number q from -127 to 127 in whose square small entries keep their sign and some of their size::

        value = scale * sign(q) * (q / 127)^2
    """
    values = plane(contribution[0]).cpu().double().numpy()
    step = max(1, math.ceil(max(values.shape) / side))
    if step > 1:
        rows, columns = (-size % step for size in values.shape)
        padded = np.pad(values, ((0, rows), (0, columns)))
        values = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).sum((1, 3))
    scale = float(np.abs(values).max(initial=0.0))
    share = np.sqrt(np.abs(values) / scale) if scale else values
    whole = (np.sign(values) * np.round(share * MOST)).astype(np.int8)
    packing = zlib.compressobj(1, strategy=zlib.Z_RLE)  # faster on these numbers than matches, and no larger
    packed = packing.compress(whole.tobytes()) + packing.flush()
    return {"shape": list(whole.shape), "step": step, "scale": scale, "data": _text(packed)}


def plane(values: Float[Tensor, "..."]) -> Float[Tensor, "H W"]:
    """A tensor summed over all axes but rows and columns: channels of a picture, features of a row of tokens."""
    if values.ndim == 2:
        values = values.sum(1)
    while values.ndim > 2:
        values = values.sum(0)
    return values if values.ndim == 2 else values.reshape(1, -1)


def guessed(x: Float[Tensor, "..."]) -> Image.Image | None:
    """An input that looks like a picture, stretched to black and white; None for others."""
    if x.ndim != 3 or x.shape[0] not in (1, 3) or min(x.shape[1:]) < 4:
        return None
    low, high = x.amin(), x.amax()
    scaled = ((x - low) / (high - low).clamp(min=1e-12) * 255).round().expand(3, *x.shape[1:])
    return Image.fromarray(scaled.permute(1, 2, 0).to(torch.uint8).cpu().numpy())


def picture_of(shown: UInt8[np.ndarray, "H W 3"]) -> dict[str, Any]:
    """A picture as a PNG file in a line of text."""
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    return {"mime": "image/png", "shape": list(shown.shape[:2]), "data": _text(file.getvalue())}


def reduced(image: Image.Image) -> dict[str, Any]:
    """A picture of any size and kind, as a PNG file that is not too large."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    return picture_of(np.asarray(small))


def node_of(node: Node, above: Node | None, side: int) -> dict[str, Any]:
    """A share of the output; ``key`` tells it from the others of the same parent."""
    lowest = node.path.steps[0] if node.path.steps else None
    own = lowest if above is None or len(node.path) > len(above.path) else None
    return {
        "key": key_of(node, above),
        "kind": node.kind,
        "layer": " | ".join(own.layers) if own else None,
        "unit": unit_of(own) if own and node.kind == "path" else None,
        **numbers_of(node, side),
        "path": node.path.to_dict() if node.kind in ("path", "rest") else None,
    }


def numbers_of(node: Node, side: int) -> dict[str, Any]:
    """Value, its parts and its map, of the linear model of a share."""
    shown = None if node.kind == "bias" or node.contribution is None else map_of(node.contribution, side)
    return {"value": node.value, "weight_part": node.weight_part, "bias": node.bias, "map": shown}


def key_of(node: Node, above: Node | None) -> str:
    """What names a node among its siblings: a unit, ``rest``, ``bias`` or ``by-pass``."""
    return str(node.path.steps[0]) if node.kind == "path" and above is not None else node.kind


def unit_of(step: Step) -> str:
    """The units of a step in a few words, without the layer's name."""
    if step.but or step.beside:
        count = sum(len(part.units) for part in step.parts.values())
        return f"all but {count} units" if step.but else f"{count} units"
    first, more = str(replace(step, units=step.units[:1])), len(step.units) - 1
    return first.removeprefix(step.layer).strip("[]") + (f" and {more} more" if more > 0 else "")


def python_of(beginning: str, target: str, path: Path) -> str:
    """The lines of Python that give the linear model of a path."""
    lines = ["import relupath", "", *beginning.splitlines(), f"target = {target}"]
    if not path:
        return "\n".join([*lines, "model = relupath.linear_model(frozen, target)", ""])
    lines += [
        f"path = relupath.Path.from_json({path.to_json()!r})",
        "model = relupath.linear_model(frozen, target, path)",
    ]
    return "\n".join([*lines, ""])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
