"""The creatures: what is drawn is what the masks and the label say, and the shipped network sees it."""

from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from relupath.creatures import ATTRIBUTES, CLASSES, FIRST_UNSEEN_SEED, PARTS, draw, network, parts_of, preprocess

DECISIVE = {part for pair in ATTRIBUTES.values() for part in pair}
WEIGHTS = files("relupath") / "creatures.safetensors"


@pytest.fixture(scope="module")
def scenes():
    return [draw(seed) for seed in range(FIRST_UNSEEN_SEED, FIRST_UNSEEN_SEED + 300)]


@pytest.fixture(scope="module")
def counterfactuals():
    """The eight classes of the same seeds."""
    return [[draw(seed, label) for label in range(8)] for seed in range(12)]


@pytest.fixture(scope="module")
def model():
    net = network()
    net.load_state_dict(load_file(WEIGHTS), strict=True)
    return net.eval()


def grown(mask, by):
    """The pixels at most `by` away from the mask, along both axes."""
    wide = np.pad(mask, by)
    return np.lib.stride_tricks.sliding_window_view(wide, (2 * by + 1, 2 * by + 1)).any(axis=(2, 3))


def test_same_seed_same_pixels(scenes):
    for scene in scenes[:10]:
        again = draw(scene.seed)
        assert np.array_equal(scene.image, again.image)
        assert scene.label == again.label
        assert all(np.array_equal(scene.parts[part], again.parts[part]) for part in PARTS)


def test_other_seed_other_pixels(scenes):
    assert all(not np.array_equal(one.image, other.image) for one, other in pairwise(scenes))


def test_picture_format(scenes):
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == np.uint8
        assert scene.image.std() > 15


def test_masks_partition_the_picture(scenes):
    for scene in scenes:
        assert tuple(scene.parts) == PARTS
        assert np.array_equal(sum(mask.astype(int) for mask in scene.parts.values()), np.ones((96, 96), int))


def test_decisive_parts_are_those_of_the_label_and_clearly_visible(scenes):
    for scene in scenes:
        assert {part for part in DECISIVE if scene.parts[part].any()} == set(parts_of(scene.label))
        assert all(scene.parts[part].sum() >= 60 for part in parts_of(scene.label))


def test_every_creature_has_head_eye_body_and_legs(scenes):
    for scene in scenes:
        assert all(scene.parts[part].sum() >= 30 for part in ("head", "eye", "body", "legs", "muzzle", "background"))


def test_classes_are_all_combinations_of_parts():
    assert len(set(CLASSES)) == 8
    assert len({parts_of(label) for label in range(8)}) == 8
    for label in range(8):
        assert all(part in pair for part, pair in zip(parts_of(label), ATTRIBUTES.values(), strict=True))


@pytest.mark.parametrize("label", [-1, 8])
def test_unknown_class_is_refused(label):
    with pytest.raises(ValueError, match="expected a label from 0 to 7"):
        draw(0, label)


def test_all_labels_are_reached_about_equally_often(scenes):
    counts = np.bincount([scene.label for scene in scenes], minlength=8)
    assert (np.abs(counts - 300 / 8) < 4 * np.sqrt(300 / 8)).all()


def test_masks_change_only_where_the_decisive_parts_are(counterfactuals):
    """Two scenes of one seed: the other masks differ only where, or next to where, a decisive part is."""
    for scenes in counterfactuals:
        for one, other in pairwise(scenes):
            swapped = set(parts_of(one.label)) ^ set(parts_of(other.label))
            touched = grown(np.any([scene.parts[part] for scene in (one, other) for part in swapped], axis=0), by=3)
            for part in set(PARTS) - swapped:
                assert not ((one.parts[part] ^ other.parts[part]) & ~touched).any(), (one.seed, part)


def test_pixels_far_from_the_creature_do_not_depend_on_the_label(counterfactuals):
    for scenes in counterfactuals:
        far = ~grown(np.any([~scene.parts["background"] for scene in scenes], axis=0), by=9)  # the reach of the shading
        assert far.sum() > 1000
        assert all(np.array_equal(scene.image[far], scenes[0].image[far]) for scene in scenes)


def test_explicit_label_of_the_seed_is_the_default(scenes):
    for scene in scenes[:5]:
        assert np.array_equal(draw(scene.seed, scene.label).image, scene.image)


def test_label_is_independent_of_the_distractors(scenes):
    """No distractor correlates with an attribute beyond chance (4 deviations)."""
    distractors = {
        "facing": [np.argwhere(s.parts["eye"]).mean(0)[1] > np.argwhere(s.parts["body"]).mean(0)[1] for s in scenes],
        "legs": [s.parts["legs"].sum() for s in scenes],
        "sky": [s.image[0].mean() for s in scenes],
        "ground": [s.image[-1].mean() for s in scenes],
        "patterned": [s.parts["pattern"].any() for s in scenes],
        "red head": [s.image[s.parts["head"]][:, 0].mean() for s in scenes],
        "green head": [s.image[s.parts["head"]][:, 1].mean() for s in scenes],
        "blue head": [s.image[s.parts["head"]][:, 2].mean() for s in scenes],
    }
    for position, pair in enumerate(ATTRIBUTES.values()):
        attribute = np.array([pair.index(parts_of(scene.label)[position]) for scene in scenes], dtype=float)
        for name, values in distractors.items():
            correlation = np.corrcoef(attribute, np.array(values, dtype=float))[0, 1]
            assert abs(correlation) < 4 / np.sqrt(len(scenes)), (pair, name)


@pytest.mark.parametrize(("position", "other"), [(0, 4), (1, 2), (2, 1)])
def test_colours_do_not_give_an_attribute_away(position, other, counterfactuals):
    """The two forms of a part have the same mean colour, up to a small share of its spread over the scenes."""
    one, two = (
        np.array(
            [scenes[label].image[scenes[label].parts[parts_of(label)[position]]].mean(0) for scenes in counterfactuals]
        )
        for label in (0, other)
    )
    assert (np.abs(one - two).mean(0) < 0.2 * one.std(0)).all()


def test_preprocess_is_centred():
    assert torch.equal(preprocess(np.full((96, 96, 3), 255, np.uint8)), torch.full((3, 96, 96), 2.0))
    assert torch.equal(preprocess(np.zeros((96, 96, 3), np.uint8)), torch.full((3, 96, 96), -2.0))


def test_network_is_a_plain_relu_network():
    kinds = {type(layer).__name__ for layer in network().modules()}
    assert kinds == {"Sequential", "Conv2d", "ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "Flatten", "Linear"}
    assert list(dict(network().named_children())) == ["features", "classifier"]


def test_shipped_weights_are_small():
    assert len(WEIGHTS.read_bytes()) <= 2 * 2**20


@torch.inference_mode()
def test_shipped_network_recognises_unseen_scenes(model, scenes):
    logits = model(torch.stack([preprocess(scene.image) for scene in scenes]))
    right = logits.argmax(1) == torch.tensor([scene.label for scene in scenes])
    assert right.float().mean() >= 0.97
