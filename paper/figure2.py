"""Figure 2: what speaks for the target class beside what speaks for the plausible one, the best of the others.

    python paper/figure2.py --output FOLDER --json paper/expected/figure2.json
    python paper/figure2.py --model torchvision/squeezenet1_0 --weights FILE --photos FOLDER --output ELSEWHERE

Each picture is drawn as ``relupath explain`` draws it: target, plausible class and their contrast, the whole network
and Algorithm 1's path from thin to deep. The numbers say how alike the two classes' maps are, and how many units their
paths share. On creatures it is known what should tell the two apart: the decisive parts in which they differ.
"""

from pathlib import Path
from typing import Any

import numpy as np

import asked
import relupath
from relupath import creatures, runs
from relupath.explanations import Explanation, Row
from relupath.images import Picture


def measured(explanation: Explanation) -> dict[str, Any]:
    """Both classes' logits in two parts, and how alike their maps and their paths are."""
    target, plausible, contrast = (_row(explanation, role) for role in ("target", "plausible", "contrast"))
    numbers: dict[str, Any] = {"picture": Path(explanation.picture).name}
    for row in (target, plausible):
        numbers[row.role] = row.title
        numbers[f"{row.role}_logit"] = row.whole.value
        numbers[f"{row.role}_bias"] = row.whole.bias
    numbers["alike"] = asked.alike(target.whole.contribution, plausible.whole.contribution)
    ours, others = (
        {(name, part.units) for step in row.parts[-1].path.steps for name, part in step.parts.items()}
        for row in (target, plausible)
    )
    numbers["units_shared"] = len(ours & others)
    numbers["alike_by_layers"] = [
        asked.alike(a.contribution, b.contribution) for a, b in zip(target.parts, plausible.parts, strict=False)
    ]
    found = explanation.picture.removeprefix("scene ")
    if explanation.model == "creatures" and found.isdecimal():
        numbers |= _known(explanation, creatures.draw(int(found)), contrast.whole.contribution)
    return numbers


def _known(explanation: Explanation, scene: creatures.Scene, contrast: np.ndarray) -> dict[str, Any]:
    """What of the contrast, target less plausible, lies on the parts in which the two classes differ."""
    ours, other = (creatures.parts_of(score.index) for score in (explanation.target, explanation.plausible))
    differ = [part for part in ours if part not in other]
    there = np.any([scene.parts[part] for part in differ], axis=0)
    size = np.abs(contrast)
    return {
        "parts_that_differ": differ,
        "contrast_there": float(contrast[there].sum() / contrast.sum()),
        "size_there": float(size[there].sum() / size.sum()),
        "area_there": float(there.mean()),
    }


def _row(explanation: Explanation, role: str) -> Row:
    return next(row for row in explanation.rows if row.role == role)


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the pictures, with intervals."""
    words = ("alike", "units_shared", "contrast_there", "size_there", "area_there")
    kept = {word: np.array([row[word] for row in rows if word in row]) for word in words}
    middles = {word: asked.middle(values) for word, values in kept.items()}
    some = {word: found for word, found in middles.items() if found is not None}
    return {"medians": {word: found["middle"] for word, found in some.items()}, "intervals": some}


def explained(classifier: relupath.models.Classifier, picture: Picture, partition: relupath.Partition) -> Explanation:
    """The picture explained for the predicted class."""
    return runs.explain(classifier, picture, plan=runs.Plan(relupath.Greedy(), partition))


def main() -> None:
    """Explain every picture, print the medians, and draw."""
    options = asked.drawing_parser(__doc__).parse_args()
    name, rows = asked.drawn(options, explained, measured)
    found = {"model": name, "partition": options.partition, **told(rows), "rows": rows}
    for word, value in found["medians"].items():
        print(f"{word:<16}{value:>8.3f}")
    asked.write(options.json, found)


if __name__ == "__main__":
    main()
