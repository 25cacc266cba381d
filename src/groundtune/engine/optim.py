"""What trains, and how fast: freezing, AdamW's parameter groups, the schedule, and the moving average of the weights.

Groups name modules by path, matched at the dots (semantics 19): `backbone` is the backbone and never
`language_model.backbone`, which MMDetection's substring match also hit. The longest matching path wins.

A multiplier of 0 means frozen, not slow (semantics 18): no gradient, no dropout, not in the optimizer. MMDetection only sets
the rate to 0 and still pays for the gradients and lets them into the clip.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertTokenizer

from groundtune.config import MODULES, OptimizerConfig, ParamGroup, TrainConfig
from groundtune.errors import ConfigError
from groundtune.model.adapters import HEADS, add_adapters, is_adapter
from groundtune.model.detector import GroundingDINO
from groundtune.model.prompt_tuning import VECTORS, extended

_ADAPTED = {"lora": list(HEADS), "heads": ["bbox_head"], "prompt": [VECTORS]}  # beside LoRA's own matrices


def adapt(
    network: GroundingDINO, config: TrainConfig, class_names: Sequence[str], tokenizer: BertTokenizer
) -> None:
    """Puts into the network what `config.adapt` trains beside its own weights: LoRA's matrices, or offsets of the classes.

    Raises:
        ConfigError: there are no classes whose names could be learned.
    """
    if config.tune == "lora":
        add_adapters(network, config.lora_rank, config.lora_alpha, config.seed)
    if config.tune == "prompt":
        if not class_names:
            raise ConfigError(
                "adapt: prompt learns class names, and captions have none. Use lora, heads or full."
            )
        encoder, width = network.encoder, network.language_model.width
        encoder.phrase_offsets = extended(encoder.phrase_offsets, class_names, tokenizer, width).to(
            encoder.level_embed.device
        )


def groups_of(config: TrainConfig) -> list[ParamGroup]:
    """The parameter groups that `config.adapt` stands for; of "full" those of the options."""
    if config.tune == "full":
        return config.param_groups
    trained = _ADAPTED[config.tune]
    return [ParamGroup([path for path in MODULES if path not in trained], 0.0), ParamGroup(trained, 1.0)]


def lr_multipliers(network: nn.Module, param_groups: Sequence[ParamGroup]) -> dict[str, tuple[str, float]]:
    """Finds each parameter's group.

    Returns:
        Parameter name → (path that matched it, lr_mult); ("", 1.0) for a parameter that no path matches, and ("lora", 1.0)
        for an adapter's.

    Raises:
        ConfigError: paths that match no parameter (all of them, with suggestions) or that stand in several groups.
    """
    names = [name for name, _ in network.named_parameters()]
    multiplier: dict[str, float] = {}
    problems = []
    for group in param_groups:
        for path in group.modules:
            if path in multiplier:
                problems.append(f"param_groups: {path!r} stands in more than one group; keep one of them.")
            elif not any(_is_under(name, path) for name in names):
                problems.append(_unknown(path, names))
            multiplier[path] = group.lr_mult
    if problems:
        raise ConfigError("\n".join(problems))
    found = {}
    for name in names:
        if is_adapter(name):
            found[name] = ("lora", 1.0)
            continue
        path = max((path for path in multiplier if _is_under(name, path)), key=len, default="")
        found[name] = (path, multiplier.get(path, 1.0))
    return found


def freeze(network: GroundingDINO, param_groups: Sequence[ParamGroup]) -> list[str]:
    """Freezes whatever has the multiplier 0 and makes everything else train.

    A module all of whose parameters are frozen also goes to eval mode and stays there (`GroundingDINO.freeze`). Inside a
    module that is frozen in part, the frozen submodules do, and loose parameters only lose their gradient.

    Returns:
        The frozen modules' paths, the outermost ones only.

    Raises:
        ConfigError: as `lr_multipliers`; or nothing is left to train.
    """
    multipliers = lr_multipliers(network, param_groups)
    if not any(lr_mult > 0 for _, lr_mult in multipliers.values()):
        raise ConfigError(
            "param_groups: every module has lr_mult 0, nothing is left to train. Give one a multiplier."
        )
    trained = {name for name, (_, lr_mult) in multipliers.items() if lr_mult > 0}
    frozen = _frozen_modules(network, "", trained)
    network.freeze(frozen)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    return frozen


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, param_groups: Sequence[ParamGroup]
) -> tuple[Optimizer, list[Tensor]]:
    """AdamW over the parameters that train; call `freeze` first.

    Parameters named `absolute_pos_embed` have no weight decay, all others do (the reference's rule). Each of AdamW's groups
    carries "name": the path that made it ("rest" for parameters that no path matches).

    Returns:
        The optimizer, and the list of all parameters in it.
    """
    if config.type != "AdamW":
        raise ConfigError(f"optimizer.type: {config.type!r} is not known; it must be AdamW.")
    multipliers = lr_multipliers(network, param_groups)
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = "absolute_pos_embed" not in name.split(".")
            groups.setdefault((multipliers[name][0], decays), []).append(parameter)
    by_path = dict(multipliers.values())
    settings = [
        {
            "params": parameters,
            "lr": config.lr * by_path[path],
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": (path or "rest") + ("" if decays else ".absolute_pos_embed"),
        }
        for (path, decays), parameters in groups.items()
    ]
    return AdamW(settings, fused=True), [
        parameter for parameters in groups.values() for parameter in parameters
    ]


def build_schedule(optimizer: Optimizer, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up, then flat, then one drop at the share `lr_drop_at` of all steps; step it after each optimizer step."""
    warmup, drop = config.warmup_steps, round(config.lr_drop_at * total_steps)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / max(1, warmup)) * (config.lr_drop_factor if step >= drop else 1.0)

    return LambdaLR(optimizer, factor)


class WeightAverage:
    """Exponential moving average (EMA) of the trained parameters.

    The decay ramps up as min(decay, (1 + n) / (10 + n)) over the updates n, so that the first values are forgotten soon.

    Attributes:
        average: parameter name → its average, same shape, type and device.
        updates: number of updates so far.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters' present values in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.average.values()), list(self._parameters.values()), 1 - decay)

    @torch.no_grad()
    def restore(self, average: dict[str, Tensor], updates: int) -> None:
        """Takes up an average that was kept before, of the same parameters."""
        for name, value in self.average.items():
            value.copy_(average[name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network's weights are the averages; afterwards its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            own = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(own)


def _is_under(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def _unknown(path: str, names: Sequence[str]) -> str:
    top = sorted({name.split(".")[0] for name in names})
    every = sorted(
        {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}
    )
    close = difflib.get_close_matches(path, every, n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"param_groups: no module is called {path!r}; there are {', '.join(top)} and paths inside them.{hint}"
    )


def _frozen_modules(module: nn.Module, path: str, trained: set[str]) -> list[str]:
    """The outermost modules under `path` that have parameters, none of which trains."""
    if path and not any(_is_under(name, path) for name in trained):
        return [path] if any(True for _ in module.parameters()) else []
    prefix = f"{path}." if path else ""
    return [
        found
        for name, child in module.named_children()
        for found in _frozen_modules(child, prefix + name, trained)
    ]
