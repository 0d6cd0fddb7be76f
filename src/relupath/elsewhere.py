"""What the linear model that a network is at one picture says about other pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from jaxtyping import Float

from ._html import block, said, table
from ._linear import linear_model
from ._paths import Path
from .errors import InputError, PathError, UsageError
from .explanations import FORMAT as EXPLAINED
from .images import Picture
from .models import Classifier
from .runs import Progress, class_index, record

FORMAT = "relupath.elsewhere/1"


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """Linear models of n pictures, each applied to every picture.

    Attributes:
        model: the model's name.
        pictures: the pictures' names.
        targets: the class explained at each picture.
        titles: ``whole network``, then each path in words.
        values: ``values[p, i, j]`` is what the linear model of path p at picture i, for the target of i, gives for
            picture j; on the diagonal of the first it is the logit.
        logits: ``logits[i, j]`` is what the network itself gives at picture j for the target of i.
    """

    model: str
    pictures: tuple[str, ...]
    targets: tuple[str, ...]
    titles: tuple[str, ...]
    values: Float[np.ndarray, "paths n n"] = field(repr=False)
    logits: Float[np.ndarray, "n n"] = field(repr=False)

    def _repr_html_(self) -> str:
        heads = ("frozen at", "for its class", *(f"at {name}" for name in self.pictures))
        parts = []
        for title, values in (("the network itself", self.logits), *zip(self.titles, self.values, strict=True)):
            rows = zip(self.pictures, self.targets, values.tolist(), strict=True)
            parts += [said(title), table(heads, [(picture, target, *row) for picture, target, row in rows])]
        return block(f"{self.model}: each linear model applied to every picture", *parts)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain lists and dictionaries."""
        models = [{"path": t, "values": v.tolist()} for t, v in zip(self.titles, self.values, strict=True)]
        names = {"model": self.model, "pictures": list(self.pictures), "targets": list(self.targets)}
        return {"format": FORMAT, **names, "logits": self.logits.tolist(), "models": models}


def elsewhere(
    classifier: Classifier,
    pictures: Sequence[Picture],
    target: str | int | None = None,
    paths: Sequence[Path] = (),
    progress: Progress = lambda stage: None,
) -> Elsewhere:
    """Freeze the network at each picture, and apply every linear model to every picture.

    ``f_i(x_j) = <W_i, x_j> + b_i`` is what the explanation of picture i would say of picture j.

    Args:
        classifier: the model.
        pictures: at least one picture.
        target: class index or name, for all pictures; None means the class predicted at each.
        paths: paths whose linear models are applied too, beside that of the whole network.
        progress: called before each stage with its name.

    Raises:
        UsageError: there is no picture, or the network takes them in different sizes.
        RelupathError: any other of the library's errors, each in one sentence.

    Source: figure 1 of the paper, the linear model of one input at others.
    """
    inputs = [classifier.prepare(picture.image) for picture in pictures]
    if len({tuple(x.shape) for x in inputs}) != 1:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        raise UsageError(f"give pictures that the network takes in one size; got {shapes or 'none'}")
    values = np.empty((1 + len(paths), len(inputs), len(inputs)))
    targets, outputs = [], []
    for i, x in enumerate(inputs):
        progress(f"linear models of picture {i + 1} of {len(inputs)}")
        frozen = record(classifier, x, 1)
        logits = frozen.output[0]
        targets.append(int(logits.argmax()) if target is None else class_index(classifier, target, len(logits)))
        outputs.append(logits.cpu().double().numpy())
        for p, path in enumerate([None, *paths]):
            model = linear_model(frozen, targets[-1], path)
            values[p, i] = [float(model(other[None])) for other in inputs]
    return Elsewhere(
        classifier.name,
        tuple(picture.name for picture in pictures),
        tuple(classifier.class_name(c) for c in targets),
        ("whole network", *map(str, paths)),
        values,
        np.stack(outputs).T[targets],
    )


def paths_of(file: FilePath) -> tuple[Path, ...]:
    """The paths that explain the target of an explanation, from the file that ``relupath explain --json`` wrote.

    Raises:
        InputError: it is another file.
    """
    try:
        numbers = json.loads(file.read_text(encoding="utf-8"))
        if numbers["format"] != EXPLAINED:
            raise KeyError("format")
        (parts,) = (row["parts"] for row in numbers["rows"] if row["role"] == "target")
        return tuple(Path.from_dict(part["path"]) for part in parts)
    except (OSError, ValueError, LookupError, TypeError, PathError) as error:
        raise InputError(f"{file} is not what relupath explain --json wrote: {type(error).__name__} {error}") from error
