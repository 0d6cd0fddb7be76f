"""One call of a torch function: its arguments, whether it writes in place, its value at zero signals.

A *signal* is a tensor that depends on the explained input; while a network is recorded, those and only those require
grad.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from functools import cache, lru_cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HOMES = (torch, torch.Tensor, F, torch._C._nn, torch.special, torch.linalg, torch.sparse)
WRITERS = frozenset({"__setitem__", "__set__"}) | frozenset(
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "matmul")
)
INPLACE_POSITION: dict[Callable[..., Any], int] = {
    function: list(inspect.signature(function).parameters).index("inplace")
    for function in vars(F).values()
    if inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters
}


def leaves(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    found = []
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, _NESTS) else ():
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, _NESTS):
            found += leaves(item)
    return found


def storage_of(t: Tensor) -> int:
    """The address of the memory that a tensor shares with its views; 0 for a sparse one."""
    return t.untyped_storage().data_ptr() if t.layout == torch.strided else 0


def version_of(t: Tensor) -> int:
    """How often something wrote to a tensor or its views; of those of inference mode torch does not count it."""
    return 0 if t.is_inference() else t._version


def replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the nested value with ``change`` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    if not isinstance(value, _NESTS):
        return value
    items = [
        change(item) if isinstance(item, Tensor) else replaced(item, change) if isinstance(item, _NESTS) else item
        for item in value
    ]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def copied(value: Any) -> Any:
    """A copy of nested arguments, to which a model may write; what cannot be copied (and a module) stays itself."""
    known: dict[int, Any] = {}

    def copy_of(item: Any) -> Any:
        if type(item) is dict:
            return {key: copy_of(inner) for key, inner in item.items()}
        if type(item) in (tuple, list):
            return type(item)(map(copy_of, item))
        if isinstance(item, Tensor):
            return known.setdefault(id(item), item.detach().clone().requires_grad_(item.requires_grad))
        if isinstance(item, torch.nn.Module):
            return item
        try:
            return copy.deepcopy(item, known)
        except Exception:
            return item

    return copy_of(value)


_NESTS = (tuple, list, dict)


@lru_cache(256)
def _said_by(func: Callable[..., Any]) -> tuple[str, bool, bool]:
    """A function's plain name, whether that says that it writes, and whether its schema says so."""
    name = getattr(func, "__name__", "")
    ours = (getattr(func, "__module__", None) or "torch").partition(".")[0] == "torch"
    writes = name in WRITERS if name.startswith("__") else ours and name.endswith("_")
    overload = getattr(func, "default", func)
    schema = overload._schema if isinstance(overload, torch._ops.OpOverload) else None
    by_schema = schema is not None and schema.is_mutable
    if schema is not None and schema.name.startswith("aten::") and schema.name.endswith("_"):
        by_schema = False
    return str(name or func).strip("_"), writes, by_schema


class Call:
    """One call of a torch function; the tensors that require grad are its signals.

    Attributes:
        func: the function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        carry: which factor of a product of two signals carries on: ``first``, ``second``, ``half``, or None (refuse).
        tensors: every tensor argument, as often as it is passed.
        name: the function's plain name, such as ``relu``; operators and in-place forms lose their underscores.
        mutates: whether the call writes to its first tensor argument.
        writes_by_schema: whether the function is an operator that writes to some argument, other than torch's own
            in-place forms.
    """

    __slots__ = ("_signals", "args", "carry", "func", "kwargs", "mutates", "name", "tensors", "writes_by_schema")

    def __init__(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        carry: str | None = None,
        tensors: list[Tensor] | None = None,
    ) -> None:
        self.func, self.args, self.kwargs, self.carry = func, args, kwargs, carry
        self.tensors = leaves(args) + leaves(kwargs) if tensors is None else tensors
        self._signals: list[Tensor] | None = None
        said = _said_by.__wrapped__ if getattr(func, "__closure__", None) else _said_by  # nothing of a user's is kept
        self.name, writes, self.writes_by_schema = said(func)
        self.mutates = writes or bool(self.argument(INPLACE_POSITION.get(func, len(args)), "inplace"))

    def __call__(self) -> Any:
        """Run the function; one that returns nothing (item assignment) yields the tensor it wrote to."""
        output = self.func(*self.args, **self.kwargs)
        return self.first if output is None and self.mutates else output

    @property
    def signals(self) -> list[Tensor]:
        """Every argument that depends on the input, as often as it is passed."""
        if self._signals is None:
            self._signals = [t for t in self.tensors if t.requires_grad]
        return self._signals

    @property
    def first(self) -> Tensor:
        """The first tensor argument: the one that an in-place call writes to."""
        return self.tensors[0]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at that position or of that name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def on(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call on changed tensors."""
        tensors = [change(t) for t in self.tensors]
        if all(map(operator.is_, tensors, self.tensors)):
            return self
        changed = iter(tensors)

        def following(_: Tensor) -> Tensor:
            return next(changed)

        args, kwargs = replaced(self.args, following), replaced(self.kwargs, following)
        return Call(self.func, args, kwargs, self.carry, tensors)

    def out_of_place(self) -> Call:
        """The same operation, writing to none of its arguments."""
        if not self.mutates:
            return self
        if self.func in INPLACE_POSITION:
            position = INPLACE_POSITION[self.func]
            kwargs = {key: value for key, value in self.kwargs.items() if key != "inplace"}
            return Call(self.func, self.args[:position] + self.args[position + 1 :], kwargs, self.carry)
        name = self.func.__name__
        if name.startswith("__i"):
            return Call(getattr(torch.Tensor, f"__{name[3:]}"), self.args, self.kwargs, self.carry)
        home = next(home for home in HOMES if getattr(home, name, None) is self.func)
        return Call(getattr(home, name[:-1]), self.args, self.kwargs, self.carry)

    def at_zero(self) -> Any:
        """The value with every signal set to zero: the constant of an affine operation. Nothing is written to."""
        written = self.first if self.mutates else None

        def zeroed(t: Tensor) -> Tensor:
            if t.requires_grad:
                return torch.zeros_like(t, requires_grad=False)
            return t.clone() if t is written else t

        with torch.no_grad():
            return self.on(zeroed)()


def written(call: Call, output: Tensor) -> Tensor:
    """Hand the output over as the call would have: an in-place call writes it to its argument."""
    return call.first.copy_(output) if call.mutates else output


@cache
def inside(function: FunctionType) -> FunctionType:
    """A Python function of torch that runs its body under the mode, instead of handing itself over as a whole."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    seen = {**function.__globals__, **dict.fromkeys(checks, lambda *_: False)}
    inner = FunctionType(function.__code__, seen, function.__name__, function.__defaults__, function.__closure__)
    inner.__kwdefaults__ = function.__kwdefaults__
    return inner
