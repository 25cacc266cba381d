"""Download images from http(s) addresses, within limits of size and time.

Only addresses that the user gives are read, never those in data sets. GROUNDTUNE_OFFLINE=1 in the
environment forbids them.
"""

import io
import os
import re
import string
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, unquote

from groundtune._version import __version__
from groundtune.data.images import IMAGE_SUFFIXES
from groundtune.errors import DataError

_SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps")
_MAX_MEGABYTES, _MAX_SECONDS, _SILENT_SECONDS = 200, 60, 10
_VIDEO_TYPE = re.compile(r"(video|audio|multipart)/|.*(mpegurl|dash\+xml)")


def is_address(name: str) -> bool:
    """Return whether a name is an address, such as https://…, and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE) is not None


def check_address(address: str) -> None:
    """Raise a `DataError` if such addresses are not read, or GROUNDTUNE_OFFLINE forbids it."""
    if address.partition("://")[0].lower() not in _SCHEMES:
        raise DataError(f"Cannot read {address}: expected a path, or one of {'://, '.join(_SCHEMES)}://.")
    if os.environ.get("GROUNDTUNE_OFFLINE", "0") not in ("", "0"):
        raise DataError(f"Cannot read {address}: GROUNDTUNE_OFFLINE is set. Unset it, or give a file.")


def path_of(address: str) -> Path:
    """Return the host and the path of an address, from which results get their names."""
    return Path(unquote(re.split("[?#]", address.partition("://")[2])[0]).replace("\0", ""))


def fetch(address: str) -> io.BytesIO | None:
    """Download an image; None if the address gives a video or, without a length, a live stream.

    Raises:
        DataError: the address cannot be read, or exceeds the limits.
    """
    check_address(address)
    if not address.lower().startswith("http"):
        return None
    deadline, content = time.monotonic() + _MAX_SECONDS, io.BytesIO()
    try:
        escaped = quote(address, safe=string.punctuation)  # letters beyond ASCII
        request = urllib.request.Request(escaped, headers={"User-Agent": f"groundtune/{__version__}"})
        with urllib.request.urlopen(request, timeout=_SILENT_SECONDS) as response:
            if not response.url.lower().startswith("http"):  # urllib refuses redirects to files, not to FTP
                raise ValueError(f"it redirects to {response.url}")
            kind, suffix = response.headers.get_content_type(), path_of(address).suffix.lower()
            is_image = kind.startswith("image/") or suffix in IMAGE_SUFFIXES or response.length
            if _VIDEO_TYPE.match(kind) or not is_image:
                return None
            while part := response.read1(2**16):
                content.write(part)
                if content.tell() > _MAX_MEGABYTES * 2**20 or time.monotonic() > deadline:
                    limits = f"over {_MAX_MEGABYTES} MB or {_MAX_SECONDS} s"
                    raise ValueError(f"it takes {limits}, save it first")
    except (OSError, HTTPException, ValueError) as error:
        raise DataError(f"Cannot read {address}: {error}. Expected the address of an image.") from error
    return content
