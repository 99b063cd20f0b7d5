"""A list of a folder's files with sizes and checksums, to tell damage before anything is read.

The libraries below check some of what they read, not all: a flipped bit in an array would pass for a number.
"""

import json
import pathlib
import zlib

SEAL = "files.json"
_CHUNK = 1 << 24


def seal(folder: pathlib.Path) -> None:
    """Writes the list of all files in `folder` into it, as `files.json`."""
    found = {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / SEAL).write_text(json.dumps(found, indent=1))


def damage(folder: pathlib.Path) -> list[str]:
    """What differs from the list in `folder`: missing and changed files. Nothing for a folder without a list."""
    if not (folder / SEAL).exists():
        return []
    try:
        expected = json.loads((folder / SEAL).read_text())
    except ValueError:
        return [f"changed {SEAL}"]
    found = []
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            found.append(f"missing {name}")
        elif _digest(path) != digest:
            found.append(f"changed {name}")
    return found


def _digest(path: pathlib.Path) -> list[int]:
    """Size and CRC-32 of a file, read in pieces."""
    size, checksum = 0, 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return [size, checksum]
