"""Fine-tune Grounding DINO on your own boxes.

    import groundtune as gt
    model = gt.load("nano")
    run = gt.train(model, "data/cat", epochs=20)
    detections = model.predict("cat.jpg", ["cat", "sofa"])

The public names are those of `groundtune.api`, which is imported at their first use, so that
`import groundtune` does not import torch.
"""

from typing import TYPE_CHECKING, Any

from groundtune._version import __version__ as __version__

if TYPE_CHECKING:
    from groundtune.api import (
        Model,
        blend,
        check,
        compare_runs,
        convert,
        evaluate,
        export,
        label,
        load,
        push_to_hub,
        train,
        write_report,
    )

__all__ = [
    "Model",
    "blend",
    "check",
    "compare_runs",
    "convert",
    "evaluate",
    "export",
    "label",
    "load",
    "push_to_hub",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'groundtune' has no attribute {name!r}")
    from groundtune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
