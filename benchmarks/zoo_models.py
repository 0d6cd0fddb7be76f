"""Public networks, everything random: of torchvision, timm and Transformers, each with two inputs that it takes."""

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from tqdm import tqdm

import relupath

FEWER = {
    "deepseek_vit_412m": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2},
}
"""What large models are built with to need less memory and time (the table says so)."""
VISION = {
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "deit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 1]},
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 1], "groups_width": 8},
    "convnext": {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [2, 1]},
    "convnextv2": {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [2, 1]},
    "mobilenet_v2": {"depth_multiplier": 0.35},
}
ROWS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
TEXT = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32, **ENDS},
    "llama": {**ROWS, "intermediate_size": 64, "num_key_value_heads": 2},
    "opt": {**ROWS, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 32},
    "mistral": {**ROWS, "intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {**ROWS, "intermediate_size": 64, "num_key_value_heads": 2},
    "gemma": {**ROWS, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {**ROWS, "intermediate_size": 64},
}
"""Small configurations of Transformers: image classifiers, and language models of which the next token is explained."""


class Case(NamedTuple):
    """A model, two inputs that it takes, and what ``freeze`` needs to be told of it."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, Tensor]
    options: Mapping[str, Any] = MappingProxyType({})
    remark: str = ""

    def freeze(self, carry: str | None = None, which: int = 0) -> relupath.Frozen:
        """The model, frozen at one of its inputs."""
        return relupath.freeze(self.model, self.inputs[which], carry=carry, **self.options)

    def plain(self, x: Tensor) -> Tensor:
        """What the model gives by itself."""
        return self.options.get("output", lambda out: out)(self.model(x))


def randomise(case: Case, seed: int = 1) -> Case:
    """Random biases and statistics, and random numbers of order one wherever initialisation leaves a constant.

    Layer scales of 1e-6, norms whose weight starts at zero and statistics far from the signal's would hide whole blocks
    from the check. The statistics of batch norms are therefore random around those of the signal.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor, scale: float) -> Tensor:
        return torch.randn(t.shape, generator=generator) * scale

    def positive(t: Tensor) -> Tensor:
        return torch.rand(t.shape, generator=generator) + 0.5

    def adjust(norm: nn.modules.batchnorm._BatchNorm, args: tuple[Tensor, ...]) -> None:
        mean, std = args[0].mean(), args[0].std()
        norm.running_mean.copy_(mean + std * normal(norm.running_mean, 0.5))
        norm.running_var.copy_(std.square() * positive(norm.running_var))

    model = case.model.double().eval().requires_grad_(False)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None]
    with torch.no_grad():
        for name, t in model.named_parameters():
            if name.endswith("bias"):
                t.copy_(normal(t, 0.1))
            elif t.numel() and bool((t == t.flatten()[0]).all()):
                matrix = name.endswith("weight") and sum(side > 1 for side in t.shape) > 1
                t.copy_(normal(t, t[0].numel() ** -0.5) if matrix else positive(t))
        hooks = [norm.register_forward_pre_hook(adjust) for norm in norms]
        case.plain(case.inputs[0])
        for hook in hooks:
            hook.remove()
    return case


def pictures(samples: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Two random inputs."""
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, samples, *shape, generator=generator, dtype=torch.float64, device="cpu")
    return first, second


def torchvision_case(name: str, side: int = 224, **options: object) -> Case:
    """A classifier of torchvision."""
    fixed = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):
        fixed["image_size"] = side
    model = torchvision.models.get_model(name, weights=None, **fixed, **options)
    return Case(name, model, pictures(1, 3, side, side))


def timm_case(name: str, **options: object) -> Case:
    """A model of timm, by name or as ``module / name``."""
    model_name = name.split(" / ")[-1]
    options = options or FEWER.get(model_name, {})
    model = timm.create_model(model_name, **options)
    channels, *sides = model.pretrained_cfg["input_size"]
    remark = ", ".join(f"{option}={value}" for option, value in options.items())
    return Case(name, model, pictures(1, channels, *sides), remark=remark and f"with {remark}")


def transformers_case(name: str) -> Case:
    """A small model of Transformers; ``(eager)`` spells attention out in place of PyTorch's function."""
    kind, _, eager = name.partition(" ")
    config = transformers.AutoConfig.for_model(kind, architectures=[], **VISION.get(kind, {}), **TEXT.get(kind, {}))
    attention = {"attn_implementation": "eager"} if eager else {}
    if kind in TEXT:
        model = transformers.AutoModelForCausalLM.from_config(config, **attention)
        tokens = torch.tensor([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 9, 3]])
        return Case(name, model, (tokens, tokens + 7), {"inputs": "embeddings", "output": next_token})
    config.image_size, config.patch_size, config.num_labels = 32, 4, 10
    model = transformers.AutoModelForImageClassification.from_config(config, **attention)
    return Case(name, model, pictures(2, 3, 32, 32), {"output": classes})


def next_token(out: transformers.utils.ModelOutput) -> Tensor:
    """The logits of the token that follows the last one."""
    return out.logits[:, -1]


def classes(out: transformers.utils.ModelOutput) -> Tensor:
    """The logits of an image classifier."""
    return out.logits


COLLECTIONS = {"torchvision": torchvision_case, "timm": timm_case, "transformers": transformers_case}


def make(collection: str, name: str, **options: object) -> Case:
    """A model with everything random, in double precision."""
    torch.manual_seed(0)
    return randomise(COLLECTIONS[collection](name, **options))


def parameters(collection: str, name: str) -> int:
    """How many parameters a model has, without making them if it can be made without."""
    try:
        with torch.device("meta"):
            model = COLLECTIONS[collection](name).model
    except (RuntimeError, NotImplementedError):
        model = COLLECTIONS[collection](name).model
    return sum(parameter.numel() for parameter in model.parameters())


def smallest() -> list[str]:
    """The smallest model of every module of timm."""
    found = []
    for module in tqdm(timm.list_modules(), file=sys.stderr):
        sizes = {name: parameters("timm", name) for name in timm.list_models(module=module)}
        found += [f"{module} / {min(sizes, key=sizes.get)}"] if sizes else []
    return found
