"""freeze: what it takes, what it leaves alone, what it names, what it refuses and with which sentence."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relupath
from asserts import assert_close, assert_complete, assert_same_model, assert_untouched, refusal
from nets import Lambda, build, example, inputs, mlp, randomise
from relupath import Frozen, Path, freeze, freeze_each, linear_model
from relupath._places import Operation
from relupath._units import Layer
from relupath.errors import (
    IncompleteError,
    InputError,
    ModelError,
    RelupathError,
    TrainingModeError,
    UnknownLayerError,
    UnsupportedOperation,
    UsageError,
)


def lin(i, o):
    return nn.Linear(i, o)


def net(function, seed=0, **parts):
    """A small network from its forward function; ``fc`` maps 5 to 4, ``tail`` 4 to 3."""
    return randomise(Lambda(function, fc=lin(5, 4), tail=lin(4, 3), **parts), seed)


def given_input(batch=2):
    return example((5,), 4, batch)


def names(frozen):
    return [layer.name for layer in frozen.layers]


def assert_exact(model, x, c=0):
    """To the bit, complete, and with the derivative that finite differences give."""
    frozen = freeze(model, x)
    with torch.no_grad():
        assert torch.equal(frozen.output, model(x.clone()))
    assert_complete(frozen, c)
    whole = linear_model(frozen, c)
    with torch.no_grad():
        nearby = x + 1e-7 * example(x.shape[1:], 77, len(x))
        moved = (model(nearby.clone()) - model(x.clone()))[:, c]
    assert (whole(nearby) - whole.value - moved).abs().max() <= 1e-6 * moved.abs().max() + 1e-14
    return frozen


def assert_exact_or_refused(model, x, word):
    """No third way: never a silent wrong answer, never an error of torch's own."""
    sentence = refusal(lambda: assert_exact(model, x), UnsupportedOperation)
    assert sentence is None or word in sentence


# --- the model is untouched ---


@pytest.mark.parametrize("name", ["vgg", "resnet", "dense", "pieces"])
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference_mode"])
def test_the_model_is_untouched(name, mode):
    model, x = build(name), inputs(name)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 > 0)
        if index % 3 == 1:
            parameter.grad = torch.ones_like(parameter)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    reference = freeze(model, x)
    expected = linear_model(reference, 0)
    before = model(x).detach().clone()
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[mode]
    with assert_untouched(model), context():
        frozen = freeze(model, x)
        frozen.check(0)
        part = linear_model(frozen, 0)
    assert len(calls) == 6, "freeze twice, the plain forward, two that check the constants, one the output"
    assert_same_model(part, expected)
    assert torch.equal(model(x), before)
    model(x).sum().backward()


def test_an_input_made_in_inference_mode():
    model = mlp(0)
    with torch.inference_mode():
        x = inputs("mlp")
        frozen = freeze(model, x)
    assert_complete(frozen, 0)
    assert_same_model(linear_model(frozen, 0), linear_model(freeze(model, inputs("mlp")), 0))


def test_the_input_is_untouched():
    def forward(m, x):
        x += 1
        x.relu_()
        return m.tail(m.fc(x))

    x = given_input().requires_grad_()
    kept = x.detach().clone()
    frozen = freeze(net(forward), x)
    assert torch.equal(x, kept)
    assert x.grad is None
    assert x.is_leaf
    assert torch.equal(frozen.inputs[0].output, kept)
    assert_complete(frozen, 0)
    assert x.grad is None


def test_a_model_that_raises_half_way_is_untouched_and_works_after():
    def forward(m, x):
        h = F.relu(m.fc(x))
        if m.broken:
            raise KeyError("half way")
        return m.tail(h)

    model = net(forward)
    model.broken = True
    with assert_untouched(model), pytest.raises(KeyError, match="half way"):
        freeze(model, given_input())
    model.broken = False
    assert_exact(model, given_input())
    refused = net(lambda m, x: torch.sin(m.fc(x)))
    with assert_untouched(refused), pytest.raises(UnsupportedOperation):
        freeze(refused, given_input())


@pytest.mark.parametrize("where", ["module", "tensor"])
def test_hooks_that_change_gradients_do_not_change_the_weight(where):
    """Guided back-propagation leaves such hooks behind; W is a derivative of the forward pass alone, or refused."""

    def forward(m, x):
        h = F.relu(m.fc(x))
        if where == "tensor" and h.requires_grad:
            h.register_hook(lambda grad: grad * 0.5)
        return m.tail(m.middle(h))

    model = net(forward, middle=nn.ReLU())
    expected = linear_model(freeze(model, given_input()), 0) if where == "module" else None
    if where == "module":
        model.middle.register_full_backward_hook(lambda _m, grads, _out: (grads[0] * 0.5,))
    sentence = refusal(lambda: assert_exact(model, given_input()), UnsupportedOperation, IncompleteError)
    if sentence is None and expected is not None:
        assert_same_model(linear_model(freeze(model, given_input()), 0), expected)
    elif sentence is not None:
        refused = refusal(lambda: linear_model(freeze(model, given_input()), 0), UnsupportedOperation)
        assert where == "tensor" or refused, "the hook is noticed by check() and not by linear_model()"


def test_attributes_that_the_forward_sets_are_put_back():
    def forward(m, x):
        m.seen = h = F.relu(m.fc(x))
        m.tail.last = h
        m.steps += 1
        return m.tail(h)

    model = net(forward)
    model.steps = 0
    with assert_untouched(model):
        frozen = freeze(model, given_input())
    assert_complete(frozen, 0)
    assert model.steps == 0
    assert not hasattr(model, "seen")
    assert not hasattr(model.tail, "last")


def test_hooks_of_the_user_run_and_stay():
    model, seen = mlp(0), []
    handles = [
        model[1].register_forward_hook(lambda _m, _a, out: seen.append(out.shape)),
        model[0].register_forward_pre_hook(lambda _m, args: (args[0] * 2,)),
    ]
    with assert_untouched(model):
        assert_exact(model, inputs("mlp"))
    assert seen
    assert len(model[1]._forward_hooks) == 1
    for handle in handles:
        handle.remove()


def test_buffers_that_the_forward_rebinds_are_put_back():
    def forward(m, x):
        m.count = m.count + 1
        return m.tail(F.relu(m.fc(x))) * m.scale

    model = net(forward, count=torch.zeros(()), scale=torch.tensor(2.0))
    count = model.count
    with assert_untouched(model):
        frozen = freeze(model, given_input())
        assert_complete(frozen, 0)
    assert model.count is count


@pytest.mark.parametrize(
    "write",
    [
        lambda m, h: m.count.add_(1),
        lambda m, h: m.mean.mul_(0.9).add_(0.1 * h.mean(0)),
        lambda m, h: m.mean.copy_(h[0]),
        lambda m, h: m.mean.__setitem__(0, 3.0),
        lambda m, h: m.scale.mul_(2.0),
        lambda m, h: m.mean[:2].zero_(),
        lambda m, h: m.fc.bias.data.add_(1.0),
        lambda m, h: torch.nn.init.zeros_(m.fc.weight),
    ],
)
def test_what_the_forward_writes_to_the_model_is_undone_or_refused(write):
    def forward(m, x):
        h = m.fc(x)
        y = m.tail(F.relu(h)) * m.scale
        write(m, h)
        return y

    model = net(forward, count=torch.zeros(()), mean=torch.ones(4).double(), scale=torch.tensor(2.0).double())
    with assert_untouched(model):
        sentence = refusal(lambda: assert_complete(freeze(model, given_input()), 0), UnsupportedOperation)
    assert sentence is None or "must stay as it is" in sentence


@pytest.mark.parametrize("which", ["parameter", "signal"])
def test_assigning_data_is_exact_or_refused(which):
    """Cosine heads write ``self.weight.data = normalize(self.weight.data)`` in forward."""

    def forward(m, x):
        h = F.relu(m.fc(x))
        if which == "parameter":
            m.tail.weight.data = F.normalize(m.tail.weight.data, dim=1)
        else:
            h.data = (2 * h).data.clone()
        return m.tail(h)

    model = net(forward)
    weight = model.tail.weight.detach().clone()

    def exact():
        frozen = freeze(model, given_input())
        assert torch.equal(model.tail.weight, weight)
        assert torch.equal(frozen.output, model(given_input()))
        assert_complete(frozen, 0)

    sentence = refusal(exact, UnsupportedOperation)
    assert sentence is None or "data" in sentence or "must stay as it is" in sentence


def test_random_numbers_in_the_forward_do_not_move_the_random_state():
    model = net(lambda m, x: m.tail(F.relu(m.fc(x)) + 0.1 * torch.randn(4).double()))
    torch.manual_seed(3)
    expected = model(given_input())
    torch.manual_seed(3)
    with assert_untouched(model):
        frozen = freeze(model, given_input())
    assert torch.equal(frozen.output, expected)
    assert_complete(frozen, 0)


@pytest.mark.parametrize("name", ["vgg", "resnet", "mlp"])
def test_weights_are_not_copied(name):
    """What the graph keeps for its derivatives is the parameters' own storage."""
    model, x = build(name), inputs(name)
    frozen = freeze(model, x)
    own = {p.data_ptr() for p in model.parameters()} | {b.data_ptr() for b in model.buffers()}
    todo, seen, kept = [frozen.top.edge.node], set(), []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [parent for parent, _ in node.next_functions]
        name_of_node = node.name()
        field = {"ConvolutionBackward0": "_saved_weight", "AddmmBackward0": "_saved_mat2"}.get(name_of_node)
        if field:
            kept.append(getattr(node, field).data_ptr())
        if name_of_node == "NativeBatchNormBackward0":
            kept += [node._saved_weight.data_ptr(), node._saved_running_mean.data_ptr()]
    assert kept
    assert set(kept) <= own
    assert all(p.data_ptr() in own for p in model.parameters())


def test_a_frozen_network_is_freed_with_its_last_reference():
    frozen = freeze(mlp(0), inputs("mlp"))
    linear_model(frozen, 0)
    kept = [weakref.ref(t) for t in (frozen.layers[0].output, frozen.top.output, frozen.layers[0], frozen)]
    del frozen
    gc.collect()
    assert [reference() for reference in kept] == [None] * 4


def test_training_mode_is_refused_with_what_to_do():
    for flip in (lambda m: m, lambda m: m.classifier[0], lambda m: m.features):
        model = build("vgg")
        flip(model).train()
        with assert_untouched(model), pytest.raises(TrainingModeError, match="training mode") as caught:
            freeze(model, inputs("vgg"))
        assert "call model.eval() first" in str(caught.value)
        assert "dropout is random" in str(caught.value)
    model = build("vgg")
    model.classifier[0].train()
    with pytest.raises(TrainingModeError, match=r"classifier\.0"):
        freeze(model, inputs("vgg"))


# --- inputs, args, outputs ---


def test_several_inputs_have_weights_of_their_own():
    model = net(lambda m, u, v: m.tail(F.relu(m.fc(u) + m.other(v))), other=lin(3, 4))
    u, v = given_input(), example((3,), 9)
    frozen = freeze(model, (u, v))
    assert [layer.name for layer in frozen.inputs] == ["x0", "x1"]
    whole = linear_model(frozen, 1)
    assert [w.shape for w in whole.weight] == [(2, 5), (2, 3)]
    a, b = u.clone().requires_grad_(), v.clone().requires_grad_()
    for got, expected in zip(whole.weight, torch.autograd.grad(model(a, b)[:, 1].sum(), [a, b]), strict=True):
        assert_close(got, expected)
    assert_complete(frozen, 1)
    assert_complete(freeze(model, (u, torch.zeros_like(v))), 1)
    with pytest.raises(InputError):
        whole(u)


def test_an_input_that_is_not_used_has_zero_weight():
    model = net(lambda m, u, v: m.tail(F.relu(m.fc(u))))
    frozen = freeze(model, (given_input(), example((3,), 9)))
    assert (linear_model(frozen, 0).weight[1] == 0).all()
    assert_complete(frozen, 0)


def test_further_arguments_are_constant():
    def forward(m, x, shift, *, scale=1.0, mask=None):
        h = F.relu(m.fc(x) + shift) * scale
        return m.tail(torch.where(mask, h, torch.full_like(h, 0.3)))

    model = net(forward)
    shift = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, True])
    frozen = freeze(model, given_input(), shift, kwargs={"scale": 2.0, "mask": mask})
    assert torch.equal(frozen.output, model(given_input(), shift, scale=2.0, mask=mask))
    assert_complete(frozen, 0)
    assert shift.grad is None
    assert len(frozen.inputs) == 1
    x = given_input().requires_grad_()
    (expected,) = torch.autograd.grad(model(x, shift, scale=2.0, mask=mask)[:, 0].sum(), x)
    assert_close(linear_model(frozen, 0).weight, expected)


def test_an_output_can_be_picked():
    model = net(lambda m, x: {"logits": m.tail(F.relu(m.fc(x))), "aux": [x, 2 * x]})
    frozen = freeze(model, given_input(), output=lambda out: out["logits"])
    assert_complete(frozen, 0)
    hidden = freeze(net(lambda m, x: (m.fc(x), m.tail(F.relu(m.fc(x))))), given_input(), output=lambda out: out[0] * 2)
    assert_complete(hidden, 0)
    assert hidden.output.shape == (2, 4)
    with pytest.raises(ModelError, match=r"returns dict, not a tensor: pick one with output="):
        freeze(model, given_input())


def test_a_part_that_is_not_explained_may_be_anything_after_the_output():
    """The sine in another branch is refused although it does not matter: it runs in the same forward."""
    model = net(lambda m, x: (m.tail(F.relu(m.fc(x))), torch.sin(x)))
    sentence = refusal(
        lambda: assert_complete(freeze(model, given_input(), output=lambda out: out[0]), 0), UnsupportedOperation
    )
    assert sentence is None or "sin" in sentence


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.ones(2, 5, dtype=torch.long), "floating point"),
        (torch.ones(5).double(), r"shape \(samples, ...\).*got \[5\]"),
        (torch.ones(()).double(), r"got \[\]"),
        (torch.ones(0, 5).double(), "at least one sample"),
        (torch.ones(2, 0).double(), r"got \[2, 0\]"),
        (torch.full((2, 5), float("nan")).double(), "NaN or infinite"),
        (torch.tensor([[1.0, 2, 3, 4, float("inf")]]).double(), "NaN or infinite"),
        ((torch.ones(2, 5).double(), torch.ones(3, 3).double()), "samples"),
        ((torch.ones(2, 5).double(), torch.ones(2, 3, dtype=torch.long)), "floating point"),
    ],
)
def test_inputs_that_cannot_be_explained_are_refused(x, sentence):
    with pytest.raises(InputError, match=sentence):
        freeze(mlp(0, (5, 4, 3)), x)


@pytest.mark.parametrize("x", [[[1.0, 2.0]], None, 3.0, ([1.0],), ()], ids=str)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_tensor_is_refused_in_words(x):
    with pytest.raises(InputError, match="tensor"):
        freeze(mlp(0, (2, 2)), x)


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [
        (lambda m, x: None, "returns NoneType"),
        (lambda m, x: [m.fc(x)], "returns list"),
        (lambda m, x: m.fc(x).sum(), r"\(samples, ..., classes\); got \[\]"),
        (lambda m, x: m.fc(x)[:, 0], r"got \[2\]"),
        (lambda m, x: m.fc(x).view(4, 2), r"got \[4, 2\]"),
        (lambda m, x: m.fc(x)[:1], r"got \[1, 4\]"),
        (lambda m, x: torch.ones(2, 3).double(), "does not depend on x"),
        (lambda m, x: m.tail(torch.zeros(2, 4).double()), "does not depend on x"),
        (lambda m, x: m.fc(x) / torch.zeros(4).double(), "NaN or infinite"),
        (lambda m, x: m.fc(x) * 1e200 * 1e200, "NaN or infinite"),
    ],
)
def test_outputs_that_cannot_be_explained_are_refused(forward, sentence):
    with pytest.raises(ModelError, match=sentence):
        freeze(net(forward), given_input())


def test_a_model_without_parameters_or_layers():
    frozen = freeze(nn.Flatten().eval(), example((2, 3), 0))
    assert frozen.layers == ()
    assert_complete(frozen, 4)
    assert (linear_model(frozen, 4).bias == 0).all()
    alone = freeze(nn.ReLU().eval(), example((4,), 0))
    assert len(alone.layers) == 1
    assert_complete(alone, 0)


def test_the_input_itself_may_be_the_output():
    frozen = freeze(nn.Identity().eval(), example((4,), 0))
    assert torch.equal(linear_model(frozen, 1).weight, torch.eye(4).double()[[1, 1]])
    assert_complete(frozen, 1)


def test_memory_format_of_the_input_does_not_matter():
    model = build("vgg")
    x = inputs("vgg").to(memory_format=torch.channels_last)
    frozen = freeze(model, x)
    assert torch.equal(frozen.output, model(x))
    assert_same_model(linear_model(frozen, 0), linear_model(freeze(model, x.contiguous()), 0))
    expanded = inputs("vgg")[:1].expand(2, -1, -1, -1)
    whole = linear_model(freeze(model, expanded), 0)
    assert torch.equal(whole.weight[0], whole.weight[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    model, x = mlp(0).to(dtype), inputs("mlp").to(dtype)
    frozen = freeze(model, x)
    assert torch.equal(frozen.output, model(x))
    frozen.check(0)
    exact = linear_model(freeze(mlp(0), inputs("mlp")), 0)
    assert_close(linear_model(frozen, 0).weight, exact.weight)


# --- batches ---


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.fc(x) - m.fc(x).mean(0),
        lambda m, x: m.fc(x.flip(0)),
        lambda m, x: m.fc(x) + m.fc(x).max(),
        lambda m, x: m.fc(torch.cat([x[1:], x[:1]])),
        lambda m, x: m.fc(x) + torch.relu(m.fc(x)).sum(0, keepdim=True),
    ],
)
def test_samples_that_influence_each_other_are_noticed(forward):
    with pytest.raises(IncompleteError, match="influence each other"):
        freeze(net(forward), given_input(3)).check(0)
    assert_complete(freeze(net(forward), given_input(1)), 0)


# --- names ---


def test_layers_bear_the_names_of_their_modules():
    assert names(freeze(build("vgg"), inputs("vgg"))) == ["features.1", "features.3", "features.6", "classifier.2"]
    assert names(freeze(build("resnet"), inputs("resnet"))) == [
        "relu", "layer1.0.relu", "layer1.0.relu#2", "layer1.1.relu", "layer1.1.relu#2",
    ]  # fmt: skip
    assert names(freeze(build("dense"), inputs("dense"))) == [":relu", ":relu#2", ":relu#3"]
    assert names(freeze(build("squeeze"), inputs("squeeze")))[1:4] == [
        "features.3.squeeze_activation", "features.3.expand1x1_activation", "features.3.expand3x3_activation",
    ]  # fmt: skip


@pytest.mark.parametrize("follower", [nn.Identity, nn.Dropout, lambda: nn.Sequential(nn.Identity())])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_that_hands_an_activation_on_does_not_take_its_name(follower, inplace):
    model = nn.Sequential(lin(5, 4), nn.ReLU(inplace), follower(), lin(4, 3), nn.Sequential(nn.ReLU(inplace)))
    assert names(freeze(randomise(model, 0), given_input())) == ["1", "4.0"]


def test_functions_bear_the_name_of_the_module_that_calls_them():
    block = Lambda(lambda m, x: F.relu(m.inner(F.relu(x))) + torch.tanh(x), inner=lin(4, 4))
    model = net(lambda m, x: m.tail(m.block(m.block(m.fc(x))).relu()), block=block)
    frozen = freeze(model, given_input())
    assert names(frozen) == [
        "block:relu", "block:relu#2", "block:tanh", "block#2:relu", "block#2:relu#2", "block#2:tanh", ":relu",
    ]  # fmt: skip
    assert len(set(names(frozen))) == len(frozen.layers)
    assert_complete(frozen, 0)


def test_names_follow_the_order_of_execution():
    model = net(lambda m, x: m.tail(m.late(m.early(m.fc(x)))), early=nn.ReLU(), late=nn.LeakyReLU(0.1))
    assert list(dict(model.named_modules()))[1:] == ["fc", "tail", "early", "late"]
    assert names(freeze(model, given_input())) == ["early", "late"]


def test_a_module_under_two_names_has_the_first():
    relu = nn.ReLU()
    model = randomise(nn.Sequential(lin(5, 4), relu, lin(4, 4), relu, lin(4, 3)), 0)
    frozen = freeze(model, given_input())
    assert names(frozen) == ["1", "1#2"]
    assert frozen.layer(relu) is frozen.layers[0]
    assert frozen.layer((relu, 2)) is frozen.layers[1]
    shared = lin(4, 4)
    assert_exact(randomise(nn.Sequential(lin(5, 4), shared, nn.ReLU(), shared, shared), 0), given_input())


def test_a_layer_can_be_asked_for_in_every_way():
    model = build("resnet")
    frozen = freeze(model, inputs("resnet"))
    relu = model.layer1[0].relu
    third = frozen.layers[2]
    for way in ("layer1.0.relu#2", 2, -3, (relu, 2), third):
        assert frozen.layer(way) is third
    assert frozen.layer(relu) is frozen.layer((relu, 1)) is frozen.layer("layer1.0.relu")
    assert isinstance(third, Layer)
    assert third.shape == (3, 3, 3)
    for way in ("layer1.0.relu#3", "layer1.0", 5, -6, (relu, 3), (relu, 0), nn.ReLU(), model.fc, "", "relu "):
        with pytest.raises(UnknownLayerError, match="layer"):
            frozen.layer(way)
    with pytest.raises(UnknownLayerError, match=r"'layer1\.0\.relu', 'layer1\.0\.relu#2'"):
        frozen.layer("layer1.0.rely")
    with pytest.raises(UnknownLayerError):
        frozen.layer(freeze(model, inputs("resnet")).layers[0])


def test_layers_can_be_chosen():
    model = build("resnet")
    block = model.layer1[0]
    for which in (
        ["layer1.0.bn1", "layer1.0", "layer1.0.relu#2"],
        [block.bn1, block, (block.relu, 2)],
        [(block.bn1, 1), "layer1.0", "layer1.0.relu#2"],
    ):
        frozen = freeze(model, inputs("resnet"), layers=which)
        assert names(frozen) == ["layer1.0.bn1", "layer1.0.relu#2", "layer1.0"]
        assert frozen.layer(block) is frozen.layer("layer1.0")
        assert_complete(frozen, 0)
    path = Path.of([("layer1.0.bn1", (1, None, None)), ("layer1.0", (0, None, None))])
    assert (linear_model(frozen, 0, path).weight != 0).any()
    assert freeze(model, inputs("resnet"), layers=[]).layers == ()
    some = freeze(build("dense"), inputs("dense"), layers=[":relu#2", ":cat", "fc"])
    assert names(some) == [":cat", ":relu#2", "fc"]


def test_a_layer_that_is_written_afterwards_keeps_its_value():
    """bn, then relu in place, then += : each recorded output is what it was when its module returned."""
    model, x = build("resnet"), inputs("resnet", batch=1)
    seen = {}
    for name in ("layer1.0.bn1", "layer1.0.bn2", "layer1.0.conv1"):
        model.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out.clone()}))
    frozen = freeze(model, x, layers=list(seen) or ["layer1.0.bn1", "layer1.0.bn2", "layer1.0.conv1"])
    for name, value in seen.items():
        assert torch.equal(frozen.layer(name).output, value)
        everything = linear_model(frozen, 0, Path.of([(name, (None, None, None))]))
        (v,) = frozen.vjp({frozen.top: frozen.functional(0).gradient}, [frozen.layer(name)])
        assert_close(everything.value, (v * value).flatten(1).sum(1))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (["features.99"], "no module or operation named 'features.99' ran"),
        (["features.1", "features.1#2"], "'features.1#2'"),
        ([nn.ReLU()], "not part of the model"),
        ([":relu"], "':relu'"),
    ],
)
def test_layers_that_do_not_run_are_refused(layers, sentence):
    with pytest.raises(UnknownLayerError, match=sentence):
        freeze(build("vgg"), inputs("vgg"), layers=layers)


def test_a_layer_that_is_no_signal_is_refused():
    model = net(lambda m, x: m.tail(m.fc(x)) + m.table(torch.tensor([0])), table=nn.Embedding(2, 3))
    with pytest.raises(UnknownLayerError, match="not one that depends on the input"):
        freeze(model, given_input(), layers=["table"])
    with pytest.raises(UnknownLayerError, match="returns tuple"):
        freeze(net(lambda m, x: m.pair(x)[0], pair=Lambda(lambda m, x: (x * 2, x))), given_input(), layers=["pair"])


def test_operations_and_sources_are_named():
    frozen = freeze(build("resnet"), inputs("resnet"))
    assert all(isinstance(op, Operation) for op in frozen.operations)
    assert {op.kind for op in frozen.operations} == {"affine", "piece"}
    assert ("conv2d", "layer1.0.conv1", "affine") in [op[:3] for op in frozen.operations]
    assert ("relu", "layer1.0.relu#2", "piece") in [op[:3] for op in frozen.operations]
    assert all(op.line.startswith("nets.py:") for op in frozen.operations)
    assert "fc.bias" in [source.name for source in frozen.sources]
    assert any(source.name.startswith("layer1.1.bn2") for source in frozen.sources)
    assert isinstance(frozen, Frozen)
    assert frozen.batch == 2
    assert len(repr(frozen)) < 3000


# --- in place, views, sharing ---

IN_PLACE = {
    "add after relu": lambda m, x: m.tail(_after(F.relu(m.fc(x)), lambda h: h.add_(1))),
    "iadd of a signal after relu": lambda m, x: m.tail(_after(F.relu(m.fc(x)), lambda h: h.__iadd__(x[:, :4]))),
    "mul after relu": lambda m, x: m.tail(_after(F.relu(m.fc(x)), lambda h: h.mul_(3))),
    "relu after relu": lambda m, x: m.tail(_after(F.relu(m.fc(x)), lambda h: h.relu_())),
    "set an item after relu": lambda m, x: m.tail(_after(F.relu(m.fc(x)), lambda h: h.__setitem__((0, 1), 2.0))),
    "zero after relu": lambda m, x: m.tail(_after(F.relu(m.fc(x)), lambda h: h[:, 1:2].zero_())),
    "fill": lambda m, x: m.tail(_after(m.fc(x), lambda h: h[:, 0].fill_(0.7))),
    "relu on a slice": lambda m, x: m.tail(_after(m.fc(x), lambda h: h[:, 1:3].relu_())),
    "functional relu on a slice": lambda m, x: m.tail(_after(m.fc(x), lambda h: F.relu(h[:, 1:3], inplace=True))),
    "relu on a view": lambda m, x: m.tail(F.relu(m.fc(x).view(-1, 2, 2), inplace=True).flatten(1)),
    "relu on a transposed view": lambda m, x: m.tail(_after(m.fc(x), lambda h: h.t().relu_())),
    "two views of one base": lambda m, x: m.tail(_after(m.fc(x), lambda h: (h[:, :2].relu_(), h[:, 1:].add_(1)))),
    "an old view after the base is written": lambda m, x: _old_view(m, m.fc(x)),
    "a view written, the base read": lambda m, x: _base_read(m, m.fc(x)),
    "chunks": lambda m, x: m.tail(_after(m.fc(x), lambda h: h.chunk(2, 1)[0].relu_())),
    "unbind": lambda m, x: m.tail(_after(m.fc(x), lambda h: h.unbind(1)[2].mul_(2))),
    "split": lambda m, x: m.tail(torch.cat([p.relu_() for p in m.fc(x).split(2, 1)], 1)),
    "input written": lambda m, x: m.tail(F.relu(m.fc(x.add_(1)))),
    "a slice of the input written": lambda m, x: m.tail(F.relu(m.fc(_after(x, lambda h: h[:, 0].mul_(2))))),
    "constant canvas": lambda m, x: m.tail(_after(torch.ones(len(x), 4).double(), lambda b: b[:, 1].copy_(x[:, 0]))),
    "constant canvas by item": lambda m, x: m.tail(
        _after(torch.ones(len(x), 2, 2).double(), lambda b: b[:, 1].__setitem__((slice(None), 0), x[:, 0])).flatten(1)),
    "canvas filled twice": lambda m, x: m.tail(_after(torch.zeros(len(x), 4).double(), lambda b: (
        b.__setitem__((slice(None), slice(0, 2)), F.relu(x[:, :2])), b.__setitem__((slice(None), 1), x[:, 4])))),
    "accumulate into zeros": lambda m, x: m.tail(_sum_into(torch.zeros(len(x), 4).double(), m.fc(x), x[:, 1:])),
    "product with a constant written later": lambda m, x: m.tail(_late_constant(m.fc(x))),
    "max pool, then its input is written": lambda m, x: m.tail(_pool_then_write(m.fc(x))),
    "relu6 in place after add": lambda m, x: m.tail(F.relu6(m.fc(x).add_(2), inplace=True)),
    "masked_fill_ by the signal": lambda m, x: m.tail(_after(m.fc(x), lambda h: h.masked_fill_(h > 0, 0.25))),
    "setitem by a mask": lambda m, x: m.tail(_after(m.fc(x), lambda h: h.__setitem__(h < 0, 0.0))),
    "swap by copy_": lambda m, x: m.tail(_after(m.fc(x), lambda h: h.copy_(h.flip(1)))),
}  # fmt: skip


def _after(h, write):
    write(h)
    return h


def _old_view(m, h):
    view = h[:, 1:3]
    h.relu_()
    return m.tail(h) + view.sum(1, keepdim=True)


def _base_read(m, h):
    view = h.view(-1, 2, 2)
    view[:, 0].relu_()
    return m.tail(h) + view.sum((1, 2))[:, None]


def _sum_into(total, *parts):
    for part in parts:
        total += part
    return total


def _late_constant(h):
    scale = torch.tensor([1.0, 2.0, -1.0, 0.5]).double()
    y = h * scale
    scale.zero_()
    return y + scale


def _pool_then_write(h):
    pooled = F.max_pool1d(h.unsqueeze(1), 2).repeat(1, 1, 2).squeeze(1)
    h.mul_(-3)
    return pooled + h


@pytest.mark.parametrize("case", IN_PLACE)
def test_in_place_operations_are_exact_or_refused(case):
    assert_exact_or_refused(net(IN_PLACE[case]), given_input(), "cannot be explained exactly")


@pytest.mark.parametrize(
    "case",
    ["add after relu", "relu on a slice", "relu on a view", "an old view after the base is written", "constant canvas",
     "canvas filled twice", "accumulate into zeros", "input written", "setitem by a mask", "two views of one base"],
)  # fmt: skip
def test_common_in_place_idioms_are_exact(case):
    assert_exact(net(IN_PLACE[case]), given_input())


@pytest.mark.parametrize("case", ["add after relu", "mul after relu", "zero after relu", "set an item after relu"])
def test_a_relu_written_afterwards_keeps_its_value_and_its_paths(case):
    model, x = net(IN_PLACE[case]), given_input()
    frozen = freeze(model, x)
    with torch.no_grad():
        a = F.relu(model.fc(x))
    assert torch.equal(frozen.layers[0].output, a)
    parts = [linear_model(frozen, 0, Path.of([(frozen.layers[0].name, (i,))])) for i in range(4)]
    for i, part in enumerate(parts):
        dead = (a[:, i] == 0).nonzero().flatten()
        assert (part.weight[dead] == 0).all()
    assert_close(sum(p.weight for p in parts), linear_model(frozen, 0).weight)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "detach", "data"])
def test_a_part_run_without_gradient_is_not_silently_constant(how):
    """W must be the derivative: a cut is seen through, or refused; only detach() may be the user's own choice."""

    def forward(m, x):
        if how in ("no_grad", "inference_mode"):
            with getattr(torch, how)():
                h = F.relu(m.fc(x))
        else:
            h = F.relu(m.fc(x))
            h = h.detach() if how == "detach" else h.data
        return m.tail(h + x[:, :4])

    if how == "detach":
        assert_complete(freeze(net(forward), given_input()), 0)
    else:
        sentence = refusal(lambda: assert_exact(net(forward), given_input()), UnsupportedOperation, ModelError)
        assert sentence is None or any(word in sentence for word in ("relu", "data", "inference"))


def test_a_whole_forward_without_gradient_is_exact_or_refused():
    @torch.no_grad()
    def forward(m, x):
        return m.tail(F.relu(m.fc(x)))

    sentence = refusal(lambda: assert_exact(net(forward), given_input()), ModelError)
    assert sentence is None or "does not depend on x" in sentence


def test_frozen_parameters_and_grads_do_not_matter():
    model, x = mlp(0), inputs("mlp")
    expected = linear_model(freeze(model, x), 0)
    model.requires_grad_(False)
    assert_same_model(linear_model(freeze(model, x), 0), expected)
    assert all(not p.requires_grad for p in model.parameters())


def test_reparametrised_weights():
    model = randomise(nn.Sequential(lin(5, 4), nn.ReLU(), lin(4, 3)), 0)
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    model.eval()
    with assert_untouched(model):
        assert_exact(model, given_input())


def test_weights_shared_between_layers():
    model = net(lambda m, x: m.tail(F.relu(m.fc(F.relu(F.linear(m.fc(x), m.fc.weight.t()))))))
    frozen = assert_exact(model, given_input())
    assert names(frozen) == [":relu", ":relu#2"]


def test_dense_connections_with_relu_in_place_on_what_is_kept():
    """In-place ReLU on a tensor that is concatenated again afterwards changes that too."""

    def forward(m, x):
        features = [m.fc(x)]
        features.append(F.relu(features[0], inplace=True) @ m.fc.weight)
        return m.tail(torch.cat(features, 1)[:, 2:6])

    assert_exact(net(forward), given_input())


def test_control_flow_on_values():
    def forward(m, x):
        h = m.fc(x)
        for _ in range(int(h.argmax()) % 3 + 1):
            h = F.relu(h) if h.sum() > -1e9 else h * 0
        return m.tail(h[:, torch.argsort(h[0].detach())])

    assert_exact(net(forward), given_input(1))


def test_a_frozen_network_can_be_asked_many_times():
    frozen = freeze(build("resnet"), inputs("resnet"))
    first = linear_model(frozen, 0)
    frozen.check(1)
    for _ in range(3):
        assert_same_model(linear_model(frozen, 0), first)


def test_frozen_networks_of_one_model_do_not_disturb_each_other():
    model = build("resnet")
    a, b = freeze(model, inputs("resnet", 0)), freeze(model, inputs("resnet", 1))
    expected = linear_model(freeze(model, inputs("resnet", 0)), 0)
    linear_model(b, 0)
    assert_same_model(linear_model(a, 0), expected)


@pytest.mark.parametrize("layers", [None, ["layer1.0", "layer1.0.bn1", "relu"]])
def test_nothing_that_is_handed_out_requires_grad(layers):
    frozen = freeze(build("resnet"), inputs("resnet"), layers=layers)
    account = frozen.check(0)
    part = linear_model(frozen, 0, Path.of([(frozen.layers[0].name, (0, None, None))]))
    handed = [frozen.output, *(layer.output for layer in (*frozen.layers, *frozen.inputs))]
    handed += [source.constant for source in frozen.sources]
    handed += [part.weight, part.bias, part.value, account.value, account.bias, account.bias_from_sources]
    handed += [account.weight_part, account.error, *frozen.vjp({frozen.top: frozen.output}, frozen.layers)]
    assert not any(t.requires_grad for t in handed)


# --- products ---


def test_vector_jacobian_products_between_layers():
    model, x = build("mlp"), inputs("mlp")
    frozen = freeze(model, x)
    low, high = frozen.layers
    gate = (high.output > 0).double()
    v = torch.randn(2, 5, dtype=torch.float64)
    (got,) = frozen.vjp({high: v}, [low])
    assert_close(got, (v * gate) @ model[2].weight)
    (nothing,) = frozen.vjp({low: torch.ones(2, 7).double()}, [high])
    assert (nothing == 0).all()
    assert nothing.shape == (2, 5)
    assert [t.shape for t in frozen.vjp({}, [low, high])] == [(2, 7), (2, 5)]
    assert frozen.vjp({high: v}, []) == []
    (itself,) = frozen.vjp({low: torch.ones(2, 7).double()}, [low])
    assert (itself == 1).all()


def test_below_says_which_layer_depends_on_which():
    frozen = freeze(build("squeeze"), inputs("squeeze"))
    below = frozen.below(frozen.layers)
    by_name = {layer.name: {low.name for low in lows} for layer, lows in below.items()}
    assert by_name["features.1"] == set()
    assert by_name["features.3.expand1x1_activation"] == {"features.1", "features.3.squeeze_activation"}
    assert by_name["features.3.expand3x3_activation"] == {"features.1", "features.3.squeeze_activation"}
    assert by_name["output"] == set(names(frozen))


def test_levels_go_down_and_never_depend_on_themselves():
    for name in ("resnet", "squeeze", "dense"):
        frozen = freeze(build(name), inputs(name))
        levels, below = frozen.levels(frozen.layers), frozen.below(frozen.layers)
        assert sorted(l.name for level in levels for l in level) == sorted(names(frozen))
        for height, level in enumerate(levels):
            for layer in level:
                assert not below[layer] & set(level)
                assert all(_level(levels, low) > height for low in below[layer])
    squeeze = freeze(build("squeeze"), inputs("squeeze"))
    assert [len(level) for level in squeeze.levels(squeeze.layers)] == [1, 2, 1, 2, 1, 1]
    assert squeeze.levels([]) == ()


def _level(levels, layer):
    return next(height for height, level in enumerate(levels) if layer in level)


# --- completeness finds what is lost ---


def test_a_lost_bias_is_an_error_and_not_a_silent_wrong_answer():
    import dataclasses

    frozen = freeze(build("resnet"), inputs("resnet"))
    for lost in range(len(frozen.sources)):
        kept = frozen.sources[:lost] + frozen.sources[lost + 1 :]
        with pytest.raises(IncompleteError, match="the model was not understood"):
            dataclasses.replace(frozen, sources=kept).check(lambda y: y @ torch.tensor([1.0, -2, 3, 0.5]).double())


def test_all_errors_are_of_one_family():
    for error in (InputError, ModelError, TrainingModeError, UnsupportedOperation, IncompleteError, UnknownLayerError):
        assert issubclass(error, RelupathError)


# --- many inputs, one recording at a time ---


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return example((6,), i, 1)[0], i


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_tensor_is_recorded_in_batches(size):
    model, x = mlp(0), inputs("mlp", batch=5)
    frozens = list(freeze_each(model, x, size, layers=iter(["1"])))
    assert [frozen.batch for frozen in frozens] == [min(size, 5 - start) for start in range(0, 5, size)]
    for frozen, part in zip(frozens, x.split(size), strict=True):
        expected = freeze(model, part, layers=["1"])
        assert names(frozen) == ["1"]
        assert torch.equal(frozen.inputs[0].output, part)
        assert torch.equal(linear_model(frozen, 0).weight, linear_model(expected, 0).weight)


def test_a_tensor_is_recorded_sample_by_sample_and_batches_as_they_come():
    model = mlp(0)
    assert [frozen.batch for frozen in relupath.freeze_each(model, inputs("mlp", batch=3))] == [1, 1, 1]
    loader = torch.utils.data.DataLoader(Pairs(), batch_size=2)
    found = [frozen.inputs[0].output for frozen in freeze_each(model, loader)]
    assert [len(x) for x in found] == [2, 2, 1]
    assert torch.equal(torch.cat(found), torch.cat([x for x, _ in loader]))
    assert [frozen.batch for frozen in freeze_each(model, loader, 1)] == [1] * 5
    assert [frozen.batch for frozen in freeze_each(model, (x for x, _ in loader))] == [2, 2, 1]


def test_the_options_of_freeze_are_passed_on():
    model = net(lambda m, x: {"logits": m.tail(m.first(x) * m.second(x))}, first=lin(4, 4), second=lin(4, 4))
    options = {"inputs": ["fc"], "output": lambda out: out["logits"], "carry": "half"}
    model.function = lambda m, x: {"logits": m.tail(m.first(h := m.fc(x)) * m.second(h))}
    (one,), expected = freeze_each(model, given_input(), 2, **options), freeze(model, given_input(), **options)
    assert [layer.name for layer in one.inputs] == ["fc"]
    assert torch.equal(linear_model(one, 0).weight, linear_model(expected, 0).weight)


def test_a_recording_is_gone_when_the_next_one_is_made():
    kept, alive = [], []

    class Watching(nn.Linear):
        def forward(self, x):
            alive.append(sum(reference() is not None for reference in kept))
            return super().forward(x)

    model = nn.Sequential(Watching(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    for frozen in freeze_each(model.eval(), inputs("mlp", batch=4)):
        kept += [weakref.ref(frozen), weakref.ref(frozen.layers[0].output)]
        del frozen
    assert alive == [0, 0, 0, 0]
    assert len(kept) == 8

    def explain(frozen):
        kept.append(weakref.ref(frozen))
        return frozen.output

    assert len(list(map(explain, freeze_each(model, inputs("mlp"))))) == 2
    assert alive[4:] == [0, 0]


def test_a_stream_that_is_closed_half_way_leaves_the_model_as_it_was():
    model, x = build("vgg"), inputs("vgg", batch=3)
    before = model(x)
    with assert_untouched(model):
        stream = freeze_each(model, x)
        frozen = next(stream)
        del stream
    assert torch.equal(model(x), before)
    assert_complete(frozen, 0)


def test_a_refused_input_does_not_end_the_stream():
    model, x = build("mlp"), inputs("mlp", batch=3)
    x[1] = torch.nan
    stream = freeze_each(model, x)
    next(stream)
    with pytest.raises(InputError, match="NaN"):
        next(stream)
    assert torch.equal(next(stream).inputs[0].output, x[2:])


def test_nothing_runs_before_it_is_asked_for():
    def batches():
        yield inputs("mlp")
        raise KeyError("the second was asked for")

    stream = freeze_each(mlp(0), batches())
    assert next(stream).batch == 2
    with pytest.raises(KeyError, match="the second"):
        next(stream)


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "there is nothing to record"),
        (torch.zeros(0, 6), r"batch 0 must have shape \(samples, \.\.\.\) with a sample; got \[0, 6\]"),
        (torch.tensor(1.0), r"got \[\]"),
        ([torch.ones(1, 6).double(), "x"], "batch 1 must be a tensor, or begin with one"),
        ([{"x": torch.ones(1, 6)}], "got dict"),
        ([()], "got tuple"),
        ({"x": torch.ones(1, 6)}, "such as a DataLoader; got dict"),
        ("photo.jpg", "such as a DataLoader; got str"),
        (3, "such as a DataLoader; got int"),
        ([torch.full((1, 6), torch.nan).double()], "NaN"),
        (torch.ones(2, 6).to_sparse(), "dense"),
    ],
)
def test_what_is_no_stack_of_inputs_is_refused(batches, sentence, unchecked):
    with pytest.raises(InputError, match=sentence):
        list(freeze_each(mlp(0), batches))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_a_batch_size_is_a_whole_number(size, unchecked):
    with pytest.raises(UsageError, match="batch_size must be a whole number, at least 1, or None; got"):
        freeze_each(mlp(0), inputs("mlp"), size)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_frozen_network_says_that_it_cannot_be_copied(copied):
    frozen = freeze(mlp(0), example((6,), 1))
    with pytest.raises(TypeError, match="freeze the model again"):
        copied(frozen)
