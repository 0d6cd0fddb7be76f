"""Figure 3: thin paths, with units on few layers, show more of a picture than deep ones, of which they are the sum.

    python paper/figure3.py --output FOLDER --json paper/expected/figure3.json
    python paper/figure3.py --model torchvision/squeezenet1_0 --weights FILE --photos FOLDER --output ELSEWHERE

For Algorithm 1's path, cut after the top layer, the top two, and so on, the numbers say what share of the logit it
holds, on what share of the pixels nine tenths of its map lie, and how alike that is to the map of the whole network.
That the thin path is the sum of deep ones is measured too: the leaves of a tree from the top down against the logit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import asked
import relupath
from relupath import _canvas, draw, runs
from relupath.explanations import Explanation
from relupath.images import Picture

MOST = 0.9
PLOTS = {"held": "share of the logit", "extent": "share of the pixels", "alike": "correlation with the whole map"}


def measured(explanation: Explanation) -> dict[str, Any]:
    """The path of the target from thin to deep, and the tree's sum."""
    (row,) = (row for row in explanation.rows if row.role == "target")
    parts = [row.whole, *row.parts]
    whole = row.whole.contribution
    tree = explanation.tree
    assert tree is not None
    return {
        "picture": Path(explanation.picture).name,
        "target": row.title,
        "logit": row.whole.value,
        "tree_error": abs(sum(leaf.value for leaf in tree.leaves()) - row.whole.value) / abs(row.whole.value),
        "layers": [part.path.steps[0].layer for part in row.parts],
        "held": [part.value / row.whole.value for part in parts],
        "extent": [extent(part.contribution) for part in parts],
        "alike": [asked.alike(part.contribution, whole) for part in parts],
    }


def extent(contribution: Float[np.ndarray, "H W"]) -> float:
    """On what share of the pixels, the fewest possible, ``MOST`` of the sum of the |values| lies."""
    sizes = np.sort(np.abs(contribution).ravel())[::-1].cumsum()
    return float((np.searchsorted(sizes, MOST * sizes[-1]) + 1) / len(sizes)) if sizes[-1] else 0.0


def told(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By the number of layers, from none (the whole network): medians over the pictures whose paths go so deep."""
    deepest = max(len(row["held"]) for row in rows)
    medians: dict[str, Any] = {"tree_error": max(row["tree_error"] for row in rows)}
    intervals = {}
    for word in PLOTS:
        reached = (np.array([row[word][k] for row in rows if k < len(row[word])]) for k in range(deepest))
        intervals[word] = [asked.middle(values) for values in reached]
        medians[word] = [found["middle"] for found in intervals[word] if found is not None]
    return {"medians": medians, "intervals": intervals}


def figure(found: dict[str, Any]) -> Any:
    """Each number against the number of layers: a grey line a picture, and the median."""
    side, gap = 2.9, 0.7
    width, height = gap + (side + gap) * len(PLOTS), 0.8 + side + 0.75
    fig = _canvas.canvas(width, height, "From thin to deep")
    for column, (word, title) in enumerate(PLOTS.items()):
        axes = fig.add_axes(((gap + (side + gap) * column) / width, 0.75 / height, side / width, side / height))
        for row in found["rows"]:
            axes.plot(row[word], color=_canvas.LINE, linewidth=0.8)
        axes.plot(found["medians"][word], color="#0072b2", linewidth=2)
        if word != "alike":
            axes.set_yscale("log")
        axes.set_title(title, fontsize=9.5, color=_canvas.INK)
        axes.set_xlabel("layers on the path, from the top", fontsize=8, color=_canvas.FAINT)
        axes.tick_params(labelsize=8, length=2)
    note = f"{found['model']}, {len(found['rows'])} pictures, Algorithm 1 over {found['partition']}; blue: the median."
    fig.text(0.03, 0.12 / height, note, fontsize=7, color=_canvas.FAINT)
    return fig


def explained(classifier: relupath.models.Classifier, picture: Picture, partition: relupath.Partition) -> Explanation:
    """The picture explained, with a tree of two levels."""
    return runs.explain(classifier, picture, plan=runs.Plan(partition=partition, tree=(2, 4)))


def main() -> None:
    """Explain every picture, print the medians, and draw."""
    options = asked.drawing_parser(__doc__).parse_args()
    name, rows = asked.drawn(options, explained, measured)
    found = {"model": name, "partition": options.partition, **told(rows), "rows": rows}
    print(f"the leaves of a tree sum to the logit within {found['medians']['tree_error']:.1e}")
    print(f"{'layers':<8}" + "".join(f"{title:>32}" for title in PLOTS.values()))
    for k in range(len(found["medians"]["held"])):
        print(f"{k:<8}" + "".join(f"{found['medians'][word][k]:>32.3g}" for word in PLOTS))
    asked.write(options.json, found)
    if options.output:
        draw.save(figure(found), options.output / "figure3.svg")


if __name__ == "__main__":
    main()
