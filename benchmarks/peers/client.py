"""Our side of a measurement of a peer; see `serve.py` for what is said."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

SCRIPTS = {path.stem: path for path in Path(__file__).parent.glob("hf_*.py")}


class Peer:
    """A peer's process, waiting to be asked for timings.

    Attributes:
      name: of the peer.
      versions: of its packages.
      parameters: how many numbers its model has.
      programs: what is known of each program before it is timed.
    """

    def __init__(self, name: str, python: str, script: str | os.PathLike[str], settings: Mapping[str, Any]):
        """Starts the process, and waits until it has compiled and once run what `settings` ask for.

        Raises:
          ValueError: when the process ends instead; what it said is on the standard error.
        """
        self.name = name
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, os.fspath(script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        first = self._answer()
        self.versions, self.parameters, self.programs = first["versions"], first["parameters"], first["programs"]

    def seconds(self, program: str, times: int = 1) -> float:
        """Has the peer run a program; its own count of the seconds of one run, the mean of `times`."""
        with contextlib.suppress(BrokenPipeError):  # the missing answer says it better
            print(json.dumps({"run": program, "times": times}), file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)  # its answers have ended, so it is about to
        self.close()
        raise ValueError(
            f"the peer {self.name} ended with status {self._process.returncode}; expected an answer. "
            "Its standard error is above; benchmarks/README.md says what its interpreter needs installed."
        )


def interpreters(given: list[str], environ: Mapping[str, str], names: Collection[str] = SCRIPTS) -> dict[str, str]:
    """The interpreter of each peer.

    Args:
      given: `NAME=PATH`.
      environ: `BENCHMARK_PEER_NAME` holds a path, the name in upper case; what is given takes precedence.
      names: the peers there are.

    Raises:
      ValueError: for an unknown peer, a path that is no program, and no peer at all.
    """
    found = {name: environ[key] for name in names if (key := f"BENCHMARK_PEER_{name.upper()}") in environ}
    for text in given:
        name, _, path = text.partition("=")
        if name not in names or not path:
            raise ValueError(
                f"the peer interpreter is {text!r}; expected NAME=PATH with a NAME of {', '.join(sorted(names))}."
            )
        found[name] = path
    for name, path in found.items():
        if shutil.which(path) is None:
            raise ValueError(f"the interpreter of {name} is {path!r}; expected a program. Correct the path.")
    if not found:
        raise ValueError(
            "peers were asked for but no interpreter is known; expected --peer-python NAME=PATH or BENCHMARK_PEER_NAME "
            f"in the environment, NAME one of {', '.join(sorted(names))}."
        )
    return found
