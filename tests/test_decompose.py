"""The decomposition tree: at every depth its leaves add up, in value, bias and map, and every path is what it says."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from asserts import assert_adds_up, assert_nodes_are_their_paths, assert_untouched, nodes
from cases import architectures
from nets import Lambda, build, deep, example, inputs, layered, randomise
from relupath import Beam, Node, Path, channels, decompose, find_paths, freeze, locations, logit
from relupath.errors import IncompleteError, PathError, RelupathError


@settings(max_examples=7)
@given(architectures(), st.integers(0, 1000), st.integers(1, 3))
def test_trees_of_networks_with_skips_sum(architecture, seed, width):
    frozen = freeze(layered(**architecture), example((architecture["widths"][0],), seed, 1))
    if not frozen.layers:
        return
    tree = decompose(frozen, 0, width=width).expand(9)
    assert_adds_up(tree)
    assert_nodes_are_their_paths(tree, frozen, 0, 0)


def test_a_chain_has_no_routes_around_a_layer_and_a_skip_has():
    kinds = {}
    for name in ("vgg", "resnet"):
        tree = decompose(freeze(build(name), inputs(name, batch=1)), 0, width=3).expand(2)
        kinds[name] = {node.kind for node in nodes(tree)}
    assert kinds["vgg"] == {"path", "rest", "bias"}
    assert kinds["resnet"] == {"path", "rest", "bias", "by-pass"}


@pytest.mark.parametrize("form", ["channels last", "transposed"])
def test_trees_on_layers_in_any_order_in_memory_add_up(form):
    if form == "channels last":
        parts = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)]
        model = randomise(nn.Sequential(*parts), 0).to(memory_format=torch.channels_last)
        frozen = freeze(model, example((2, 5, 5), 0, 2).to(memory_format=torch.channels_last))
    else:
        body = nn.ModuleList([nn.Conv1d(2, 4, 3), nn.Linear(4, 3), nn.Linear(12, 3)])
        net = Lambda(
            lambda m, x: m.body[2](m.body[1](m.body[0](x).transpose(1, 2).relu()).relu().flatten(1)), body=body
        )
        frozen = freeze(randomise(net, 0), example((2, 6), 0, 2))
    assert not frozen.layers[0].output.is_contiguous()
    tree = decompose(frozen, 0, width=2, sample=1).expand(3)
    assert_adds_up(tree)
    assert_nodes_are_their_paths(tree, frozen, 0, 1)


def test_a_tree_of_a_network_that_writes_to_views_adds_up():
    def forward(m, x):
        h = m.body[0](x).relu()
        h[:, 1] += 0.7
        return m.body[2](m.body[1](h).relu())

    body = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)])
    frozen = freeze(randomise(Lambda(forward, body=body), 0), example((5,), 0, 1))
    tree = decompose(frozen, 0, width=2).expand(3)
    assert_adds_up(tree)
    assert_nodes_are_their_paths(tree, frozen, 0, 0)


class Around(nn.Module):
    """A small skip beside a hidden layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.k = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) + 0.15 * self.k(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_small_route_around_counts_in_every_precision(dtype):
    model = randomise(Around(), 1).to(dtype).eval()
    tree = decompose(freeze(model, example((6,), 4, 1).to(dtype)), 0)
    whole, part = (sum(float(w.double().sum()) for w in node.contribution) for node in (tree, tree.children[-1]))
    assert tree.children[-1].kind == "by-pass"
    assert part != 0
    tiny = 16 * torch.finfo(dtype).eps * max(abs(child.value) for child in tree.children)
    assert abs(sum(child.value for child in tree.children) - tree.value) <= tiny
    assert abs(sum(float(w.double().sum()) for c in tree.children for w in c.contribution) - whole) <= 4 * tiny


def test_a_level_that_does_not_add_up_is_refused(monkeypatch):
    monkeypatch.setattr("relupath._decompose.by_pass", lambda *_: False)
    tree = decompose(freeze(build("resnet"), inputs("resnet", batch=1)), 0, width=3)
    with pytest.raises(IncompleteError, match=r"does not add up to the node above \(relative error"):
        tree.expand(4)


def test_the_bias_node_is_what_the_constants_between_two_layers_add():
    model = build("mlp", 2)
    frozen = freeze(model, inputs("mlp", 2, batch=1))
    tree = decompose(frozen, 1, width=2)
    assert {child.kind: child.value for child in tree.children}["bias"] == pytest.approx(model[4].bias[1].item())
    child = tree.children[0]
    (place,) = child.path.steps[0].units
    gate = frozen.slopes("3")[0][place].item()
    below = {grandchild.kind: grandchild for grandchild in child.children}
    weight = model[4].weight[1][place].item()
    assert below["bias"].value == pytest.approx(weight * gate * model[2].bias[place].item())
    assert below["bias"].bias == below["bias"].value
    assert not below["bias"].contribution[0].any()


def test_units_come_by_size_and_the_rest_together():
    frozen = freeze(build("mlp", 3), inputs("mlp", 3, batch=1))
    units = [child for child in decompose(frozen, 0, width=99).children if child.kind == "path"]
    few = decompose(frozen, 0, width=1)
    assert [child.value for child in units] == sorted((child.value for child in units), key=abs, reverse=True)
    assert [child.path for child in few.children[:1]] == [child.path for child in units[:1]]
    assert few.children[1].kind == "rest"
    assert few.children[1].value == pytest.approx(sum(child.value for child in units[1:]))
    assert all(child.kind != "rest" for child in decompose(frozen, 0, width=99).children)


def test_nodes_are_computed_when_they_are_looked_at():
    frozen = freeze(build("vgg"), inputs("vgg", batch=1))
    tree = decompose(frozen, 0)
    assert not tree.is_expanded
    first = tree.children
    assert tree.is_expanded
    assert tree.children is first
    assert not any(child.is_expanded for child in first)


def test_the_first_node_is_where_a_beam_begins():
    frozen = freeze(build("vgg", 4), inputs("vgg", 4, batch=1))
    best = max((child for child in decompose(frozen, 0).children if child.kind == "path"), key=lambda n: n.value)
    assert find_paths(frozen, 0, Beam(1, depth=1)).paths[0] == best.path


def test_layers_and_partitions_are_chosen():
    frozen = freeze(build("vgg", 4), inputs("vgg", 4, batch=1))
    tree = decompose(frozen, 0, layers=[0, 2], partition={0: locations, 2: channels}, width=1).expand(5)
    deep = max((node for node in nodes(tree)), key=lambda node: len(node.path))
    assert deep.path.layers == (frozen.layers[0].name, frozen.layers[2].name)
    assert deep.path.steps[0].units[0][0] is None
    assert_adds_up(tree)


def test_a_dead_network_is_its_bias():
    model = build("mlp")
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1)
    tree = decompose(freeze(model, inputs("mlp", batch=1)), 0)
    assert tree.children == ()
    assert tree.value == pytest.approx(tree.bias)


# --- printing and JSON ---


def test_a_tree_prints_and_goes_to_json_and_back():
    frozen = freeze(build("resnet", 1), inputs("resnet", 1, batch=1))
    tree = decompose(frozen, logit(2), partition=channels, width=2).expand(2)
    text = str(tree)
    assert text.splitlines()[0].startswith("logit 2  ")
    assert text.count("\n") + 1 == len(list(nodes(tree)))
    assert "bias that enters here" in text
    assert "routes around the layer" in text
    assert "the rest of " in text
    again = Node.from_json(tree.to_json())
    assert str(again) == text
    assert json.loads(tree.to_json()) == again.to_dict()
    assert [(n.kind, n.path, n.value, n.bias) for n in nodes(again)] == [
        (n.kind, n.path, n.value, n.bias) for n in nodes(tree)
    ]
    assert all(node.contribution is None for node in nodes(again))
    assert all(leaf.children == () for leaf in again.leaves())


@pytest.mark.parametrize("text", [
    "no json", "[]", "{}", '{"format": "relupath.tree/2"}', '{"format": "relupath.tree/1"}',
    '{"format": "relupath.tree/1", "kind": "path", "path": {}, "value": 1, "bias": 0, "children": null}',
    '{"format": "relupath.tree/1", "kind": "path", "path": null, "value": "a", "bias": 0, "children": [3]}',
])  # fmt: skip
def test_what_is_no_tree_is_refused(text):
    with pytest.raises(PathError, match=r"not a (tree|path)"):
        Node.from_json(text)


# --- refusals, and the model as it was ---


@pytest.mark.parametrize(("asked", "said"), [
    ({"width": 0}, "width must be a whole number of at least 1; got 0"),
    ({"sample": 2}, "sample 2 is not in the batch of 2"),
    ({"sample": -1}, "sample -1 is not in the batch"),
    ({"sample": True}, "sample True is not in the batch of 2"),
    ({"sample": 1.0}, "sample 1.0 is not in the batch of 2"),
    ({"width": True}, "width must be a whole number"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(asked, said):
    frozen = freeze(build("vgg"), inputs("vgg"))
    with pytest.raises(PathError, match=said):
        decompose(frozen, **asked)


def test_a_model_changed_since_is_refused():
    model = build("mlp")
    tree = decompose(freeze(model, inputs("mlp", batch=1)), 0)
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(RelupathError, match="freeze again"):
        tree.expand(2)


def test_the_model_is_as_before():
    model = build("resnet")
    with assert_untouched(model):
        decompose(freeze(model, inputs("resnet")), 0).expand(2)


def test_a_tree_of_another_kind_is_refused():
    text = decompose(freeze(build("mlp"), inputs("mlp")), 0).to_json()
    assert Node.from_json(text).kind == "path"
    for kind in ("7", '"shrub"'):
        with pytest.raises(PathError, match="not a tree"):
            Node.from_json(text.replace('"kind": "path"', f'"kind": {kind}'))


def test_single_precision_splits_as_double_precision_does_however_deep():
    x = example((32,), 1, 1)
    single = decompose(freeze(deep(torch.float32), x.float()), 2, width=1)
    double = decompose(freeze(deep(torch.float64), x), 2, width=1)
    for _ in range(130):
        rest, same = single.children[1], double.children[1]
        single, double = single.children[0], double.children[0]
        assert single.path == double.path
        assert single.value == pytest.approx(double.value, rel=1e-4)
        assert rest.value == pytest.approx(same.value, rel=1e-3, abs=1e-3 * abs(single.value))
    assert not single.children
    assert 0 < abs(single.value) < 1e-38


@pytest.mark.parametrize("name", ["vgg", "resnet", "squeeze"])
def test_a_tree_that_begins_at_a_path_is_the_tree_below_that_node(name):
    frozen = freeze(build(name), inputs(name, batch=2))
    tree = decompose(frozen, [0, 1], width=2, sample=1).expand(2)
    for node in [n for n in nodes(tree) if n.kind in ("path", "rest") and n.children][:3]:
        again = decompose(frozen, [0, 1], width=2, sample=1, path=node.path)
        assert again.path == node.path
        size = sum(abs(child.value) for child in node.children) + abs(tree.value)
        for one, other in zip([again, *again.children], [node, *node.children], strict=True):
            assert one.path == other.path
            assert one is again or one.kind == other.kind
            assert abs(one.value - other.value) <= 1e-10 * size
            assert abs(one.bias - other.bias) <= 1e-9 * size


def test_a_tree_cannot_begin_at_a_unit_that_is_not_there():
    frozen = freeze(build("vgg"), inputs("vgg", batch=1))
    layer = frozen.layers[-1].name
    with pytest.raises(PathError, match="is not in layer"):
        decompose(frozen, 0, path=Path.of([(layer, (10**6,))]))
