"""Look up the pinned packages in the databases of known vulnerabilities, with pip-audit.

A finding fails. Without a network, or with an index without that data, it warns and passes.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".audit"
SECONDS = 30  # for each of two steps


def skipped(why: str) -> int:
    line = "!" * 78
    message = f"!! THE AUDIT WAS SKIPPED, known vulnerabilities were NOT looked for: {why}"
    print(f"{line}\n{message}\n{line}", file=sys.stderr)
    return 0


def main(place: Path = PLACE, pins: Path = ROOT / "constraints.txt") -> int:
    """Audit the pins; the exit code, 1 where there are findings."""
    program, answer = place / "bin/pip-audit", ""
    try:
        if not program.is_file():
            venv.create(place, with_pip=True, clear=True)
            install = [
                place / "bin/pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "pip-audit>=2.9",
            ]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=SECONDS)
        look_up = [
            program,
            "-r",
            pins,
            "--disable-pip",
            "--no-deps",
            "--format",
            "json",
            "--progress-spinner",
            "off",
        ]
        done = subprocess.run(look_up, capture_output=True, text=True, timeout=SECONDS)
        answer = done.stderr
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired as error:
        return skipped(f"{Path(error.cmd[0]).name} took more than {SECONDS} s")
    except subprocess.CalledProcessError as error:
        return skipped(f"pip-audit cannot be installed: {error.stderr.strip().splitlines()[-1:]}")
    except (OSError, ValueError, KeyError) as error:
        return skipped(f"pip-audit gave no answer: {answer.strip().splitlines()[-1:] or error}")
    known = [package for package in packages if "skip_reason" not in package]
    found = [(package, one) for package in known for one in package["vulns"]]
    for package, one in found:
        fixed = ", ".join(one["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {one['id']}, mended in {fixed}", file=sys.stderr)
    if not known:
        return skipped(f"the database knows none of the {len(packages)} packages")
    print(
        f"{len(found)} known vulnerabilities in {len(known)} of {len(packages)} packages; the others it does "
        "not know."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
