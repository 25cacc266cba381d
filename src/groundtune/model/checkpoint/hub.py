"""Models on the Hugging Face Hub: download once into the usual cache, resumable, and upload.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` hold, as everywhere with `huggingface_hub`.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from groundtune.errors import CheckpointError

_FILES = ["*.json", "*.safetensors", "vocab.txt"]
_OLD_WEIGHTS = ["pytorch_model.bin"]


def looks_like_hub_id(name: str) -> bool:
    """Whether a name has the form "owner/model" of the Hub, and not that of a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None and not name.endswith(
        (".pth", ".pt")
    )


def snapshot(name: str) -> Path:
    """Download a model's files, or find them in the cache.

    Args:
        name: "owner/model".

    Returns:
        The folder with its files.

    Raises:
        CheckpointError: it does not exist, may not be read, or cannot be reached and is not in the cache.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=_FILES + _OLD_WEIGHTS))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        answered = error if isinstance(error, HfHubHTTPError) else error.__cause__
        status = answered.response.status_code if isinstance(answered, HfHubHTTPError) else None
        raise CheckpointError(_reason(name, status)) from error
    except (HFValidationError, HTTPError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"Cannot download the model {name!r}: {_first_line(error)}. Run the command again; what is there already is kept."
        ) from error


def _reason(name: str, status: int | None) -> str:
    """Why a model cannot be had, by the Hub's answer; None: there was no answer."""
    if status is None:
        return (
            f"The model {name!r} is not in the cache, or not wholly, and the Hub cannot be reached (or HF_HUB_OFFLINE is "
            "set). Connect once, copy the model's folder here and name its path, or use the built-in --model nano."
        )
    why = {
        401: "it does not exist, or needs a token; set HF_TOKEN",
        403: "access is not granted; ask for it on the model's page, and set HF_TOKEN",
        404: "it does not exist on the Hub",
    }
    return (
        f"Cannot download the model {name!r}: {why.get(status, f'the Hub answered {status}; try again later')}. A local "
        "folder or file of this name does not exist either."
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def upload(folder: Path, name: str, private: bool) -> str:
    """Create the model on the Hub where it does not exist, and upload a folder.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: it cannot be reached, or the token does not allow it.
    """
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model of groundtune"))
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot upload to {name!r}: {_first_line(error)}. Is HF_TOKEN set, with the right to write?"
        ) from error
