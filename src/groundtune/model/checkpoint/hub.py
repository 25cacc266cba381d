"""Models on the Hugging Face Hub: download once into the usual cache, resumable, and upload.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` hold, as everywhere with `huggingface_hub`.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, errors, snapshot_download

from groundtune.errors import CheckpointError
from groundtune.model.checkpoint.files import in_one_line

_FILES = ["*.json", "*.safetensors", "vocab.txt"]
_ANSWERS = {
    401: "it does not exist, or needs a token; set HF_TOKEN",
    403: "access is not granted; ask for it on the model's page, and set HF_TOKEN",
    404: "it does not exist on the Hub",
}


def looks_like_hub_id(name: str) -> bool:
    """Whether a name has the form "owner/model" of the Hub, and not that of a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.pth)(?<!\.pt)", name) is not None


def snapshot(name: str) -> Path:
    """Download a model, "owner/model", or find it in the cache; its folder, or a `CheckpointError` with the reason."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_FILES, "pytorch_model.bin"]))
        return folder
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        answered = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if not isinstance(answered, errors.HfHubHTTPError):
            raise CheckpointError(
                f"The model {name!r} is not in the cache, or not wholly, and the Hub cannot be reached (or HF_HUB_OFFLINE "
                "is set). Connect once, copy the model's folder here and name its path, or use the built-in --model nano."
            ) from error
        status = answered.response.status_code
        why = _ANSWERS.get(status, f"the Hub answered {status}; try again later")
        why += ". A local folder or file of this name does not exist either."
        raise CheckpointError(f"Cannot download the model {name!r}: {why}") from error
    except (errors.HFValidationError, errors.HTTPError, OSError, RuntimeError) as error:
        why = f"{in_one_line(error, 1)}. Run the command again; what is there already is kept."
        raise CheckpointError(f"Cannot download the model {name!r}: {why}") from error


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a model, which is made if need be; the commit's address, or a `CheckpointError` with the reason."""
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model of groundtune")
        )
    except (errors.HFValidationError, errors.HTTPError, OSError, ValueError) as error:
        why = f"{in_one_line(error, 1)}. Is HF_TOKEN set, with the right to write?"
        raise CheckpointError(f"Cannot upload to {name!r}: {why}") from error
