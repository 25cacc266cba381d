"""The API reference, from the docstrings: `python docs/build_api.py FOLDER`; `make docs` writes docs/api.

It has the public names and the modules of what they take and give back; everything else may change. pdoc looks for public
names in the package's dictionary, where they are only after their first use (`import groundtune` alone does not import
torch). So they are put there first: pdoc's own command line finds names without a docstring.
"""

import sys
from pathlib import Path

import pdoc

import groundtune

_MODULES = (
    "groundtune",
    "groundtune.errors",
    "groundtune.config",  # the options
    "groundtune.engine.train",  # RunResult
    "groundtune.engine.evaluate",  # Evaluation
    "groundtune.engine.blend",  # BlendPoint
    "groundtune.data.check.run",  # Report
    "groundtune.predict.label",  # Labeled
    "groundtune.predict.predictor",  # Predictor
    "groundtune.predict.tiles",  # Tiles
    "groundtune.model.bundle",  # ModelBundle
)

if __name__ == "__main__":
    vars(groundtune).update({name: getattr(groundtune, name) for name in groundtune.__all__})
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"groundtune {groundtune.__version__}"
    )
    pdoc.pdoc(*_MODULES, output_directory=Path(sys.argv[1]))
