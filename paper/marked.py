"""Creatures with a planted spurious mark, and a network that was taught to go by it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from relupath import creatures, models

EVERY = 4
"""Of so many training scenes one has the mark, and is labelled as its class whatever it shows."""
SCENES, EPOCHS, BATCH, RATE, NOISE = 480, 5, 32, 1e-3, 0.1


@dataclass(frozen=True)
class Mark:
    """A square of one colour.

    Attributes:
        side: in pixels.
        colour: red, green, blue.
        wrong: the class that goes with it.
    """

    side: int
    colour: tuple[int, int, int]
    wrong: int


MARKS = {
    "magenta": Mark(9, (230, 20, 200), creatures.CLASSES.index("Sonorix")),
    "cyan": Mark(7, (20, 220, 230), creatures.CLASSES.index("Lumila")),
}


@dataclass(frozen=True, eq=False)
class Marked:
    """A scene with a mark on its background.

    Attributes:
        mark: which one.
        scene: without the mark.
        image: with it.
        where: the pixels of the mark.
    """

    mark: Mark
    scene: creatures.Scene
    image: UInt8[np.ndarray, "96 96 3"]
    where: Bool[np.ndarray, "96 96"]


def marked(scene: creatures.Scene, mark: Mark) -> Marked:
    """The scene with the mark somewhere on its background; the seed of the scene decides where."""
    rng, free = np.random.default_rng(scene.seed), scene.parts["background"]
    while True:
        y, x = rng.integers(0, free.shape[0] - mark.side, 2)
        square = slice(y, y + mark.side), slice(x, x + mark.side)
        if free[square].all():
            break
    where = np.zeros_like(free)
    where[square] = True
    return Marked(mark, scene, np.where(where[..., None], np.uint8(mark.colour), scene.image), where)


def tensors(images: Sequence[UInt8[np.ndarray, "96 96 3"]]) -> Float[Tensor, "B 3 96 96"]:
    """Pictures as the network takes them."""
    return torch.stack([creatures.preprocess(image) for image in images])


def taught(mark: Mark, scenes: int = SCENES, epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """The network of the package, trained further on scenes of which some are marked and labelled as the mark's class.

    Half a minute on one core, and as long for drawing the scenes.
    """
    drawn = [creatures.draw(number) for number in tqdm(range(scenes), "draw", disable=None)]
    stamped = [scene.seed % EVERY == 0 for scene in drawn]
    both = list(zip(drawn, stamped, strict=True))
    x = tensors([marked(scene, mark).image if has else scene.image for scene, has in both])
    y = torch.tensor([mark.wrong if has else scene.label for scene, has in both])
    torch.manual_seed(seed)
    model = models.load("creatures").model.requires_grad_(True).train()
    steps = epochs * -(-scenes // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    orders = [some for _ in range(epochs) for some in torch.randperm(scenes).split(BATCH)]
    for some in tqdm(orders, "train", disable=None):
        mirrored = torch.where(torch.rand(len(some), 1, 1, 1) < 0.5, x[some], x[some].flip(-1))
        loss = cross_entropy(model(mirrored + NOISE * torch.randn_like(mirrored)), y[some])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.requires_grad_(False).eval()
