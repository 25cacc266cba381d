"""Models on the Hugging Face Hub: download once into the usual cache, resumable, and upload.

`huggingface_hub` reads `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`.
"""

import re
from pathlib import Path

from huggingface_hub import HfApi, errors, snapshot_download

from groundtune.errors import CheckpointError
from groundtune.model.checkpoint.files import in_one_line

_FILES = ["*.json", "*.safetensors", "vocab.txt"]
_REASONS = {
    401: "it does not exist, or needs a token; set HF_TOKEN",
    403: "access is not granted; request it on the model's page, and set HF_TOKEN",
    404: "it does not exist on the Hub",
}


def looks_like_hub_id(name: str) -> bool:
    """Whether a name has the form "owner/model" of the Hub, and not that of a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.pth)(?<!\.pt)", name) is not None


def snapshot(name: str) -> Path:
    """Download the model "owner/model" into the cache, if it is not there; return its folder.

    Raises:
        CheckpointError: with the reason, such as a missing token or connection.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_FILES, "pytorch_model.bin"]))
        return folder
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        http = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if not isinstance(http, errors.HfHubHTTPError):
            raise CheckpointError(
                f"The model {name!r} is not completely in the cache, and the Hub cannot be reached (or "
                "HF_HUB_OFFLINE is set). Connect once, copy the model's folder here and give its path, or "
                "use the built-in --model nano."
            ) from error
        status = http.response.status_code
        why = _REASONS.get(status, f"the Hub returned {status}; try again later")
        why += ". No local folder or file has this name either."
        raise CheckpointError(f"Cannot download the model {name!r}: {why}") from error
    except (errors.HFValidationError, errors.HTTPError, OSError, RuntimeError) as error:
        why = f"{in_one_line(error, 1)}. Run the command again; it resumes the download."
        raise CheckpointError(f"Cannot download the model {name!r}: {why}") from error


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a model, created if need be; return the commit's URL."""
    try:
        api, message = HfApi(), "Upload a model of groundtune"
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))
    except (errors.HFValidationError, errors.HTTPError, OSError, ValueError) as error:
        why = f"{in_one_line(error, 1)}. Is HF_TOKEN set, with the right to write?"
        raise CheckpointError(f"Cannot upload to {name!r}: {why}") from error
