"""Public networks, everything random: a stratified dozen, and with --runslow every one of the zoo."""

import itertools
import re

import pytest
import timm
import torch
import torchvision
from torch import nn

import zoo
import zoo_models
from asserts import assert_complete
from nets import Lambda, randomise
from relupath import freeze
from relupath.errors import UnsupportedOperation
from zoo_models import make

TABLE = zoo.read(zoo.TABLE)
DOZEN = {
    ("torchvision", "squeezenet1_1"): "concatenations, pooling with a ceiling",
    ("torchvision", "resnet18"): "skip connections, batch norm",
    ("torchvision", "shufflenet_v2_x0_5"): "channels split and shuffled",
    ("torchvision", "mobilenet_v3_small"): "squeeze and excite, Hardswish",
    ("torchvision", "convnext_tiny"): "GELU, layer norm, layer scales",
    ("torchvision", "swin_t"): "attention in shifted windows",
    ("timm", "nfnet / test_nfnet"): "standardised weights, no norms",
    ("timm", "levit / levit_128s"): "attention with batch norm and Hardswish",
    ("timm", "mambaout / test_mambaout"): "gated convolutions",
    ("timm", "efficientvim / efficientvim_m1"): "products of two signals",
    ("transformers", "vit"): "attention by PyTorch's function",
    ("transformers", "resnet"): "ReLU after the sum",
    ("transformers", "convnext"): "depthwise convolutions",
    ("transformers", "gpt2"): "GELU spelled out, tokens",
    ("transformers", "llama"): "RMS norm in float32, rotations, SwiGLU",
    ("transformers", "opt (eager)"): "attention spelled out, ReLU",
}
CARRIED = {"efficientvim / efficientvim_m1"}
FLOAT32_INSIDE = {"llama"}
ZOO = [(collection, name) for collection in zoo.COLLECTIONS for name in zoo.names_of(collection, TABLE)]


def assert_explained(row, carry="default", tolerance="1e-10"):
    """Complete by two routes, the bare model's output to the bit, autograd's gradient, constants that stay."""
    assert row.carry == carry, row.remarks
    assert row.tolerance == tolerance
    assert float(row.error) <= float(tolerance)
    assert float(row.widened or row.error) <= 1e-10
    assert row.same == "yes"
    assert "W x is only" not in row.remarks, "so little of the output is W x that completeness says nothing"


@pytest.mark.parametrize(("collection", "name"), DOZEN)
def test_public_networks_are_explained_exactly(collection, name):
    small = {"side": 64} if collection == "torchvision" else {}
    row = zoo.examine(make(collection, name, **small))
    carry = "second" if name in CARRIED else "default"
    assert_explained(row, carry, "1e-04" if name in FLOAT32_INSIDE else "1e-10")
    assert "tested" not in row.remarks


def test_vision_transformers_of_torchvision_are_complete():
    make = torchvision.models.vision_transformer.VisionTransformer
    model = randomise(make(32, 8, 2, 2, 16, 32, num_classes=5), 5).eval()
    x = torch.linspace(0, 300, 2 * 3 * 32 * 32, dtype=torch.float64).view(2, 3, 32, 32).sin()
    assert_complete(freeze(model, x), 2)


def test_a_public_network_that_cannot_be_explained_exactly_is_refused():
    case = make("timm", "iformer_t")
    what = r"^scaled_dot_product_attention in module 'stages\S+' \(iformer\.py:\d+\) .* output=\.\.\.\)\.$"
    with pytest.raises(UnsupportedOperation, match=what):
        case.freeze("second")
    assert zoo.examine(case).carry == "refused"


def linear_with(middle):
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.tail(middle(m.fc(x).relu())), fc=nn.Linear(5, 4), tail=nn.Linear(4, 3))
    return zoo_models.randomise(zoo_models.Case("net", model, zoo_models.pictures(2, 5)))


def test_the_zoo_sees_what_is_wrong():
    assert_explained(zoo.examine(linear_with(lambda h: h)))
    cut = zoo.examine(linear_with(lambda h: h + h.detach()))  # autograd's gradient is not the model's
    assert (cut.carry, float(cut.gradient) > 0.1) == ("WRONG", True)
    calls = itertools.count()
    moving = zoo.examine(linear_with(lambda h: h + next(calls)))
    assert (moving.carry, "changes from call to call" in moving.remarks) == ("WRONG", True)
    stepping = zoo.examine(linear_with(lambda h: h + int(1000 * h.max())))
    assert (stepping.carry, stepping.remarks.startswith("moved")) == ("WRONG", True)


def test_the_committed_table_holds_what_is_claimed():
    assert zoo.text(TABLE) == zoo.TABLE.read_text(encoding="utf-8")
    assert list(TABLE["torchvision"]) == torchvision.models.list_models(module=torchvision.models)
    for row in TABLE["torchvision"].values():
        assert_explained(row)
    assert [name.split(" / ")[0] for name in TABLE["timm"]] == timm.list_modules()
    assert set(TABLE["transformers"]) >= {"vit", "resnet", "convnext", "gpt2", "llama", "opt"}
    for row in [*TABLE["timm"].values(), *TABLE["transformers"].values()]:
        if row.carry == "refused":
            assert re.match(r"\w+ in module '\S+' \(\w+\.py:\d+\) cannot be explained exactly: ", row.remarks)
        else:
            assert row.carry in ("default", "second")
            assert_explained(row, row.carry, row.tolerance)
    refused = [row.model for row in TABLE["timm"].values() if row.carry == "refused"]
    assert len(refused) <= 0.05 * len(TABLE["timm"])


@pytest.mark.slow
@pytest.mark.parametrize(("collection", "name"), ZOO)
def test_the_whole_zoo_is_as_the_table_says(collection, name):
    row, written = zoo.examine(make(collection, name)), TABLE[collection][name]
    assert (row.carry, row.layers, row.remarks) == (written.carry, written.layers, written.remarks)
    if row.carry != "refused":
        assert_explained(row, row.carry, written.tolerance)
