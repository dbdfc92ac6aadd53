"""A client process: tests send it snippets, so that they need not import everything anew for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any


class ClientError(Exception):
    """What went wrong in the client's process: the error's type in `kind`, and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Client:
    """A process with the real client libraries and hf_evcap, logged in as alice."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, snippet: str, **values: Any) -> Any:
        """Runs a snippet there; what it assigns to `result` comes back."""
        request = {"snippet": textwrap.dedent(snippet), "values": values}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer["error"], answer["message"])
        return answer["result"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


def run(snippet: str, values: dict[str, Any]) -> dict[str, Any]:
    namespace = {"result": None, **values}
    try:
        exec(compile(snippet, "<snippet>", "exec"), namespace)
    except BaseException as error:  # noqa: BLE001 - the test is told which
        return {"error": type(error).__name__, "message": str(error)}
    return {"result": namespace["result"]}


def main() -> None:
    import hf_evcap  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what snippets print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request["snippet"], request["values"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
