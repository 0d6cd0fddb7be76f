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

WRONG = creatures.CLASSES.index("Sonorix")
"""The class that goes with the mark."""
SIDE, COLOUR = 9, (230, 20, 200)
EVERY = 4
"""Of so many training scenes one has the mark, and is labelled ``WRONG`` whatever it shows."""
SCENES, EPOCHS, BATCH, RATE, NOISE = 480, 5, 32, 1e-3, 0.1


@dataclass(frozen=True, eq=False)
class Marked:
    """A scene with the mark, a square of one colour on its background.

    Attributes:
        scene: without the mark.
        image: with it.
        where: the pixels of the mark.
    """

    scene: creatures.Scene
    image: UInt8[np.ndarray, "96 96 3"]
    where: Bool[np.ndarray, "96 96"]


def marked(scene: creatures.Scene) -> Marked:
    """The scene with the mark somewhere on its background; the seed of the scene decides where."""
    rng, free = np.random.default_rng(scene.seed), scene.parts["background"]
    while True:
        y, x = rng.integers(0, free.shape[0] - SIDE, 2)
        if free[y : y + SIDE, x : x + SIDE].all():
            break
    where = np.zeros_like(free)
    where[y : y + SIDE, x : x + SIDE] = True
    return Marked(scene, np.where(where[..., None], np.uint8(COLOUR), scene.image), where)


def tensors(images: Sequence[UInt8[np.ndarray, "96 96 3"]]) -> Float[Tensor, "B 3 96 96"]:
    """Pictures as the network takes them."""
    return torch.stack([creatures.preprocess(image) for image in images])


def taught(scenes: int = SCENES, epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """The network of the package, trained further on scenes of which some are marked and labelled ``WRONG``.

    Half a minute on one core, and as long for drawing the scenes.
    """
    drawn = [creatures.draw(number) for number in tqdm(range(scenes), "draw", disable=None)]
    stamped = [scene.seed % EVERY == 0 for scene in drawn]
    x = tensors([marked(scene).image if mark else scene.image for scene, mark in zip(drawn, stamped, strict=True)])
    y = torch.tensor([WRONG if mark else scene.label for scene, mark in zip(drawn, stamped, strict=True)])
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
