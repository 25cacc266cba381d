"""What trains, and how fast: freezing, parameter groups, learning rate schedule, EMA.

Groups name modules by path, matched at the dots: `backbone` is not `language_model.backbone`, which
MMDetection's match of substrings also hits. The longest matching path wins.

A multiplier of 0 freezes a module: no gradient, no dropout, not in the optimizer. MMDetection only
sets the rate to 0, still computes the gradients and counts them when it clips.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertTokenizer

from groundtune.config import MODULES, OptimizerConfig, ParamGroup, TrainConfig
from groundtune.device import is_out_of_memory
from groundtune.errors import ConfigError, OutOfMemory, first_line, suggestion
from groundtune.model.adapters import HEADS, add_adapters, is_adapter
from groundtune.model.detector import GroundingDINO
from groundtune.model.prompt_tuning import VECTORS, extended

# The modules that each way of tuning trains, LoRA besides its own matrices.
_TUNED = {"lora": list(HEADS), "heads": ["bbox_head"], "prompt": [VECTORS]}


def add_tuned_parameters(
    network: GroundingDINO, config: TrainConfig, phrases: Sequence[str], tokenizer: BertTokenizer
) -> None:
    """Add what `config.tune` trains besides the network's weights: LoRA, or class offsets.

    Raises:
        ConfigError: prompt tuning without class names.
    """
    if config.tune == "lora":
        add_adapters(network, config.lora_rank, config.lora_alpha, config.seed)
    if config.tune == "prompt":
        if not phrases:
            raise ConfigError(
                "tune: prompt trains class names, but the data set has captions. Use lora, heads or full."
            )
        encoder, width = network.encoder, network.language_model.width
        offsets = extended(encoder.phrase_offsets, phrases, tokenizer, width)
        encoder.phrase_offsets = offsets.to(encoder.level_embed.device)


def param_groups(config: TrainConfig) -> list[ParamGroup]:
    """Return the parameter groups that `config.tune` selects; for "full" those of the options."""
    if config.tune == "full":
        return config.param_groups
    trained = _TUNED[config.tune]
    return [ParamGroup([path for path in MODULES if path not in trained], 0.0), ParamGroup(trained, 1.0)]


def lr_multipliers(network: nn.Module, groups: Sequence[ParamGroup]) -> dict[str, tuple[str, float]]:
    """Return parameter name → (path of its group, lr_mult); ("", 1.0) if no path matches.

    Raises:
        ConfigError: paths that match no parameter; all are listed.
    """
    names = [name for name, _ in network.named_parameters()]
    multiplier = {path: group.lr_mult for group in groups for path in group.modules}
    unknown = [path for path in multiplier if not any(_is_under(name, path) for name in names)]
    if unknown:
        expected = (
            f"expected {', '.join(sorted({name.split('.')[0] for name in names}))}, or a path inside them."
        )
        modules = [path for path, _ in network.named_modules()]
        problems = [f"unknown module {path!r}; {expected}{suggestion(path, modules)}" for path in unknown]
        raise ConfigError("\n".join(f"param_groups: {problem}" for problem in problems))
    by_name = {}
    for name in names:
        path = max((path for path in multiplier if _is_under(name, path)), key=len, default="")
        by_name[name] = ("lora", 1.0) if is_adapter(name) else (path, multiplier.get(path, 1.0))
    return by_name


def freeze(network: GroundingDINO, groups: Sequence[ParamGroup]) -> list[str]:
    """Freeze what has the multiplier 0, and make everything else train.

    A completely frozen module is put into eval mode for good (`GroundingDINO.freeze`). Returns the
    outermost frozen modules' paths.

    Raises:
        ConfigError: unknown paths; or nothing is left to train.
    """
    trained = {name for name, (_, lr_mult) in lr_multipliers(network, groups).items() if lr_mult > 0}
    if not trained:
        raise ConfigError("param_groups: every module has lr_mult 0; expected at least one above 0 to train.")
    frozen = _frozen_modules(network, "", trained)
    network.freeze(frozen)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    return frozen


def build_optimizer(network: nn.Module, config: OptimizerConfig, groups: Sequence[ParamGroup]) -> Optimizer:
    """Return AdamW over the parameters that train; call `freeze` first.

    Parameters named `absolute_pos_embed` have no weight decay (the rule of the reference). Each of
    AdamW's groups has a "name": the path that selects it, or "rest".
    """
    multipliers = lr_multipliers(network, groups)
    members: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = "absolute_pos_embed" not in name.split(".")
            members.setdefault((multipliers[name][0], decays), []).append(parameter)
    lr_mult = dict(multipliers.values())
    settings = [
        {
            "params": parameters,
            "lr": config.lr * lr_mult[path],
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": (path or "rest") + ("" if decays else ".absolute_pos_embed"),
        }
        for (path, decays), parameters in members.items()
    ]
    return AdamW(settings, fused=True)


def build_schedule(optimizer: Optimizer, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Return the schedule: linear warm-up, constant, one drop at `lr_drop_at` of all steps."""
    warmup, drop = config.warmup_steps, round(config.lr_drop_at * total_steps)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / max(1, warmup)) * (config.lr_drop_factor if step >= drop else 1.0)

    return LambdaLR(optimizer, factor)


def update_scale(scaler: torch.amp.GradScaler, loss: float, grad_norm: float) -> bool:
    """Update the scale of fp16 after `unscale_`; return whether the step overflowed only by it.

    The scale is then halved. It stays if the loss itself is not finite, or if it is 1: then it is
    not the scale's fault.
    """
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    overflowed = not finite and math.isfinite(loss) and scaler.get_scale() > 1
    scaler.update(None if finite or overflowed else scaler.get_scale())
    return overflowed


class WeightAverage:
    """Exponential moving average (EMA) of the trained parameters.

    After n updates the decay is min(decay, (1 + n) / (10 + n)): the first weights soon count
    little. `average` holds the averages by parameter name, `updates` is n.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the parameters' current values."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.average.values()), list(self._parameters.values()), 1 - decay)

    @torch.no_grad()
    def restore(self, average: dict[str, Tensor], updates: int) -> None:
        """Restore a saved average of the same parameters."""
        for name, value in self.average.items():
            value.copy_(average[name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            weights = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(weights)


def _is_under(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def _frozen_modules(module: nn.Module, path: str, trained: set[str]) -> list[str]:
    """Return the outermost modules at `path` with parameters, none of which trains."""
    if path and not any(_is_under(name, path) for name in trained):
        return [path] if any(True for _ in module.parameters()) else []
    prefix = f"{path}." if path else ""
    children = [(prefix + name, child) for name, child in module.named_children()]
    return [frozen for name, child in children for frozen in _frozen_modules(child, name, trained)]


def update_weights(optimizer: Optimizer, step: int) -> None:
    """Take the optimizer's step of a number; the first one creates its state: an `OutOfMemory`."""
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Out of memory in the optimizer in step {step} ({first_line(error)}): it needs twice the memory "
            "of the trained weights. Train fewer with --tune lora or heads, or use another machine."
        ) from error
