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
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"The model {name!r} is not in the cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is set). Connect once, "
            "copy the model's folder here and name its path, or use the built-in --model nano."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = {
            401: "it does not exist or needs a token (HF_TOKEN)",
            403: "access is not granted",
            404: "it does not exist",
        }
        raise CheckpointError(
            f"Cannot download the model {name!r}: {why.get(status, f'the Hub answered {status}')}. A local folder or file "
            "of this name does not exist either."
        ) from error
    except (HFValidationError, HTTPError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"Cannot download the model {name!r}: {reason}. Run the command again to go on."
        ) from error


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"Cannot upload to {name!r}: {reason}. Is HF_TOKEN set, with the right to write?"
        ) from error
