"""Fuzzes `d3 serve` from its own OpenAPI document, with schemathesis.

    pip install -e ".[fuzz]"
    python scripts/fuzz_serve.py --examples 200

Starts a server with the built-in model, and lets schemathesis send requests that fit the document
and requests that do not. Fails on a status of 500 and on a response that the document does not
describe. The document is narrowed first: to the model that is served, else most requests would end
with "no such model", and to replies of a few tokens. Exits with schemathesis' code.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"


LENGTHS = ("max_tokens", "max_completion_tokens")


def narrowed(value: Any, model: str) -> Any:
    """The document with one model to choose from, and short replies."""
    if isinstance(value, list):
        return [narrowed(item, model) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: narrowed(item, model) for key, item in value.items()}
    fields = found.get("properties")
    if isinstance(fields, dict) and "model" in fields:
        fields["model"] = {"type": "string", "enum": [model]}
        short = {"type": "integer", "minimum": 1, "maximum": 8}
        for name in LENGTHS:
            if name in fields:
                fields[name] = short
        found["required"] = sorted({*found.get("required", []), "model", "max_tokens"})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200, help="for each operation")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    tool = shutil.which("schemathesis")
    if tool is None:
        print('schemathesis is not installed: pip install -e ".[fuzz]"', file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "d3cli", "serve", "--port", "0", "--timeout", "60"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"listening on (\S+)", line)))
        root = url.removesuffix("/v1")
        document = json.load(urlopen(f"{root}/openapi.json"))
        model = json.load(urlopen(f"{url}/models"))["data"][0]["id"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "openapi.json"
            path.write_text(json.dumps(narrowed(document, model)))
            fuzzing = subprocess.run(
                [
                    *(tool, "run", str(path), "--url", root),
                    *("--checks", CHECKS, "--max-examples", str(args.examples)),
                    *("--seed", str(args.seed), "--phases", "examples,coverage,fuzzing"),
                    *("--request-timeout", "60"),
                ],
                check=False,
            )
    finally:
        server.terminate()
        ended = server.wait(120)
    print(f"the server ended with {ended}")
    return fuzzing.returncode or ended


if __name__ == "__main__":
    sys.exit(main())
