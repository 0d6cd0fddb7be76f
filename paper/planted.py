"""Networks with a circuit whose weights are set by hand, hidden among units with random ones.

A circuit is a small ReLU network that computes a function of a few inputs. It is put at random places of a larger
network, whose other units read random inputs and reach the circuit's units and the outputs weakly: each of them adds
little, all of one layer together about as much (in size) as the circuit. What else they do is one of four:

* ``quiet``: nothing else.
* ``others``: they feed the logits of the other classes strongly.
* ``detour``: two units of the lowest layer each add more than the circuit, and two take it away again, spread over all
  the random units of the layer above, so that no single route through them is large.
* ``twins``: on every layer two units of one value reach a unit of the circuit above with large weights that cancel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

HIDINGS = ("quiet", "others", "detour", "twins")
NOISE, GAIN, CLASSES, INPUTS = 0.07, 5.0, 4, 16
"""Of the weak weights' sum, of the logit, and how many classes and inputs there are."""
Rows = list[list[float]]
Layers = list[tuple[Rows, list[float]]]


@dataclass(frozen=True)
class Circuit:
    """A function of a few inputs, and ReLU layers that compute it.

    Attributes:
        inputs: how many.
        layers: weights and biases from the inputs up.
        out: weights of the top layer's units in the result.
        truth: the function.
        bias: of the result.
        steps: inputs are multiples of one over this, from 0 to 1: 1 gives bits.
    """

    inputs: int
    layers: Layers
    out: list[float]
    truth: Callable[[Tensor], Tensor]
    bias: float = 0.0
    steps: int = 1

    def deepened(self, depth: int) -> Layers:
        """The layers with relays above, so many in all; the top one has a single unit, whose value is the result."""
        assert depth > len(self.layers)
        relays: Layers = [([[1.0]], [0.0])] * (depth - len(self.layers) - 1)
        return [*self.layers, ([self.out], [self.bias]), *relays]


CIRCUITS = {
    "AND": Circuit(2, [([[1, 1]], [-1])], [1], lambda x: (x.sum(1) == 2).double()),
    "OR": Circuit(2, [([[1, 1], [1, 1]], [0, -1])], [1, -1], lambda x: (x.sum(1) > 0).double()),
    "XOR": Circuit(2, [([[1, -1], [-1, 1]], [0, 0])], [1, 1], lambda x: (x.sum(1) == 1).double()),
    "comparison": Circuit(
        2, [([[1, -1]], [0]), ([[8], [8]], [0, -1])], [1, -1], lambda x: (x[:, 0] > x[:, 1]).double(), steps=4
    ),
    "max": Circuit(2, [([[1, -1], [0, 1]], [0, 0])], [1, 1], lambda x: x.amax(1), steps=4),
    "comparison AND XOR": Circuit(
        4,
        [([[1, -1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]], [0, 0, 0]), ([[1, 0, 0], [1, 0, 0], [0, 1, 1]], [0, -1, 0])],
        [1, -1, 1],
        lambda x: ((x[:, 0] > x[:, 1]) & (x[:, 2] != x[:, 3])).double(),
        bias=-1,
    ),
}


@dataclass(frozen=True)
class Planted:
    """A network with a circuit in it.

    Attributes:
        model: the network; its first logit is ``GAIN`` times the circuit's result, and a little noise.
        circuit: the circuit.
        layers: the circuit's layers, relays among them.
        places: for every layer of the network the places of the circuit's units.
        inputs: the places of the circuit's inputs.
    """

    model: nn.Sequential
    circuit: Circuit
    layers: Layers
    places: list[Tensor]
    inputs: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count inputs"]:
        """Inputs, of which the circuit's are drawn anew until its result is at least a half."""
        steps, found = self.circuit.steps, torch.empty(0, INPUTS, dtype=torch.float64)
        while len(found) < count:
            x = torch.randint(steps + 1, (4 * count, INPUTS), generator=generator).double() / steps
            found = torch.cat([found, x[self.circuit.truth(x[:, self.inputs]) >= 0.5]])
        return found[:count]

    def values(self, x: Float[Tensor, "B inputs"]) -> list[Float[Tensor, "B units"]]:
        """The values of the circuit's units by themselves, without what the rest of the network adds."""
        values, at = [], x[:, self.inputs]
        for weight, bias in self.layers:
            at = (at @ at.new_tensor(weight).T + at.new_tensor(bias)).relu()
            values.append(at)
        return values

    def units(self, x: Float[Tensor, "B inputs"]) -> list[list[set[int]]]:
        """For every input, layer by layer, the places of the circuit's units that are active."""
        active = [value > 0 for value in self.values(x)]
        return [[set(p[a[b]].tolist()) for p, a in zip(self.places, active, strict=True)] for b in range(len(x))]

    def error(self, x: Float[Tensor, "B inputs"]) -> float:
        """How far the first logit is from the circuit's function at most, in units of ``GAIN``."""
        with torch.no_grad():
            return float((self.model(x)[:, 0] / GAIN - self.circuit.truth(x[:, self.inputs])).abs().max())


def planted(circuit: Circuit, hiding: str, width: int, depth: int, seed: int) -> Planted:
    """A network of so many layers of one width with the circuit hidden in it."""
    generator = torch.Generator().manual_seed(seed)
    layers = circuit.deepened(depth)
    orders = [torch.randperm(width, generator=generator) for _ in layers]
    sizes = [len(bias) for _, bias in layers]
    inputs = torch.randperm(INPUTS, generator=generator)[: circuit.inputs]
    places = [order[:n] for order, n in zip(orders, sizes, strict=True)]
    others = [order[n:] for order, n in zip(orders, sizes, strict=True)]
    linears: list[nn.Linear] = []
    below = inputs
    for place, (weight, bias) in zip(places, layers, strict=True):
        linear = _random(linears[-1].out_features if linears else INPUTS, width, generator)
        linear.weight.data[place] *= NOISE / 2**0.5
        linear.weight.data[place[:, None], below] = torch.tensor(weight, dtype=torch.float64)
        linear.bias.data[place] = torch.tensor(bias, dtype=torch.float64)
        linears.append(linear)
        below = place
    linears.append(_head(below, hiding, width, generator))
    if hiding == "detour":
        _detour(linears, others, places)
    if hiding == "twins":
        _twins(linears, others, places)
    parts = [part for linear in linears[:-1] for part in (linear, nn.ReLU())]
    return Planted(nn.Sequential(*parts, linears[-1]).eval(), circuit, layers, places, inputs)


def _head(below: Tensor, hiding: str, width: int, generator: torch.Generator) -> nn.Linear:
    """The logits: the first one takes the circuit's result."""
    head = _random(width, CLASSES, generator)
    head.weight.data *= GAIN
    head.weight.data[: 1 if hiding == "others" else CLASSES] *= NOISE / 2**0.5
    head.weight.data[0, below] = GAIN
    return head


def _random(n: int, m: int, generator: torch.Generator) -> nn.Linear:
    """Weights that keep the size of what goes through; biases are zero."""
    linear = nn.Linear(n, m, dtype=torch.float64)
    linear.weight.data = torch.randn(m, n, generator=generator, dtype=torch.float64) * (2 / n) ** 0.5
    linear.bias.data.zero_()
    return linear


def _detour(linears: list[nn.Linear], others: list[Tensor], places: list[Tensor]) -> None:
    """Two units of the lowest layer add, two take away; each pair goes through half of the random units above it."""
    first, second, third = linears[:3]
    up, down = others[0][:2], others[0][2:4]
    half = len(others[1]) // 2
    above_up, above_down = others[1][:half], others[1][half : 2 * half]
    first.weight.data[others[0][:4]] = 0
    first.bias.data[others[0][:4]] = 1
    for ends, starts in ((above_up, up), (above_down, down)):
        second.weight.data[ends] = 0
        second.weight.data[ends[:, None], starts] = 1
    for ends, sign in ((above_up, 1), (above_down, -1)):
        third.weight.data[places[2][0], ends] = sign * 1.5 / half


def _twins(linears: list[nn.Linear], others: list[Tensor], places: list[Tensor]) -> None:
    """Two units of value 1 on every layer, each read from the first one of the layer below.

    One adds 2 to a unit of the circuit above, the other takes it away.
    """
    for layer, linear in enumerate(linears[:-1]):
        one, other = pair = others[layer][-2:]
        linear.weight.data[pair] = 0
        if layer:
            linear.weight.data[pair, others[layer - 1][-2]] = 1
        else:
            linear.bias.data[pair] = 1
        above = places[layer + 1][0] if layer + 1 < len(places) else 0
        size = 2.0 if layer + 1 < len(places) else 2 * GAIN
        linears[layer + 1].weight.data[above, one], linears[layer + 1].weight.data[above, other] = size, -size
