"""Downloads from a small hub on loopback. No other host is contacted."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from d3cli.__main__ import main
from tests.conftest import BUILTIN_PATH
from tests.copies import stranger
from tests.forks import Ended, Forks

COMMIT = "1" * 40
OLDER = "2" * 40


class Hub(ThreadingHTTPServer):
    """Serves the built-in model as ``someone/fox``, counts downloads, and can misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {file.name: file.read_bytes() for file in BUILTIN_PATH.iterdir()}
        self.older = {"v1": OLDER, "refs/pr/7": OLDER, OLDER: OLDER}  # revisions besides main
        self.files["pytorch_model.bin"] = b"a pickle that must not be fetched"
        self.fetched: Counter[str] = Counter()
        self.cut: str | None = None  # the connection breaks in the middle of this file
        self.gated = False
        self.overloaded = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if self.server.overloaded:
            self.reply(503, {}, b"")
            return
        commit = self.commit_of(path)
        if commit is None:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        if path == "/api/models/someone/fox" or path.startswith("/api/models/someone/fox/revision"):
            siblings = [{"rfilename": name} for name in self.server.files]
            card = {"base_model": "someone/vixen"}
            self.reply_json(
                {"id": "someone/fox", "sha": commit, "siblings": siblings, "cardData": card}
            )
        elif path.startswith("/api/models/someone/fox/tree/"):
            self.reply_json([self.tree_entry(name) for name in sorted(self.server.files)])
        elif path.startswith("/someone/fox/resolve/"):
            self.reply_file(path.rpartition("/")[2], commit)
        else:
            self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"")

    def commit_of(self, path: str) -> str | None:
        """The commit that a request is about; None for an unknown revision."""
        for part in ("/revision/", "/tree/", "/resolve/"):
            _, found, rest = path.partition(part)
            if found:
                known = {"main": COMMIT, COMMIT: COMMIT} | self.server.older
                fits = [name for name in known if f"{rest}/".startswith(f"{name}/")]
                return known[fits[0]] if fits else None
        return COMMIT

    def tree_entry(self, name: str) -> dict:
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": self.etag(name)}

    def etag(self, name: str) -> str:
        data = self.server.files[name]
        if name.endswith(".safetensors"):
            return sha256(data).hexdigest()
        return sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def reply_json(self, value: object) -> None:
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def reply_file(self, name: str, commit: str) -> None:
        if self.server.gated:
            self.reply(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b"")
            return
        if name not in self.server.files:
            self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        data = self.server.files[name]
        headers = {"ETag": f'"{self.etag(name)}"', "X-Repo-Commit": commit}
        if wanted := self.headers.get("Range"):  # a safetensors header, before the download
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            self.reply(206, headers, data[int(first) : int(last) + 1])
            return
        if self.command == "GET":
            self.server.fetched[name] += 1
        if self.command == "GET" and self.server.cut == name:
            self.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.reply(200, headers, data)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def in_a_process(hub: Hub, cache: Path, *arguments: str) -> Ended:
    """Runs `d3 generate` with the hub's address in the environment, as a user would."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "0",
        "D3_MAX_TOKENS": "3",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "d3cli", "generate", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def d3_in_a_child(url: str, cache: str, *arguments: str) -> None:
    """Runs `d3` in a process that has imported huggingface_hub already; changes its settings.

    Where it would wait, it tells for how long instead.
    """
    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    constants.HF_HUB_CACHE = cache
    constants.HF_HUB_OFFLINE = False
    time.sleep = lambda seconds: print(f"waits {seconds:.0f} s", file=sys.stderr)
    sys.argv = ["d3", *arguments]
    main()


Run = Callable[..., Ended]


@pytest.fixture
def run_d3(hub: Hub, forks: Forks, tmp_path: Path) -> Run:
    """Runs `d3` with the test's hub and an empty cache."""
    env = {"D3_MAX_TOKENS": "3", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    function = f"{__name__}.{d3_in_a_child.__name__}"
    return lambda *arguments: forks.call(function, hub.url, str(tmp_path), *arguments, env=env)


@pytest.fixture
def generate(run_d3: Run) -> Run:
    """Runs `d3 generate` in the same way."""
    return lambda *arguments: run_d3("generate", *arguments)


def test_a_model_is_downloaded_once_and_then_used_offline(
    hub: Hub, generate: Run, tmp_path: Path
) -> None:
    first = in_a_process(hub, tmp_path, "someone/fox", "Hello.")
    assert first.code == 0, first.err
    assert first.out.strip()
    assert "%" not in first.err  # no progress bars without a terminal
    assert hub.fetched["model.safetensors"] == 1
    assert hub.fetched["pytorch_model.bin"] == 0
    hub.fetched.clear()
    again = generate("someone/fox", "Hello.", "--offline")
    assert again.out == first.out
    assert not hub.fetched


def test_a_broken_download_continues_with_the_missing_files(hub: Hub, generate: Run) -> None:
    hub.cut = "model.safetensors"
    broken = generate("someone/fox", "Hello.")
    assert broken.code == 1
    assert broken.out == ""
    assert "error: downloading someone/fox failed" in broken.err
    assert "Traceback" not in broken.err
    offline = generate("someone/fox", "Hello.", "--offline")
    assert "not complete in the local cache" in offline.err
    hub.cut = None
    hub.fetched.clear()
    resumed = generate("someone/fox", "Hello.")
    assert resumed.code == 0, resumed.err
    assert hub.fetched == {"model.safetensors": 1}


def test_a_gated_model_says_where_to_accept_its_terms(hub: Hub, generate: Run) -> None:
    hub.gated = True
    result = generate("someone/fox", "Hello.")
    assert result.code == 1
    assert "error: someone/fox is gated" in result.err
    assert "hf auth login" in result.err


def test_a_model_that_the_hub_does_not_have(generate: Run) -> None:
    result = generate("someone/wolf", "Hello.")
    assert result.code == 2
    assert "error: the hub has no model someone/wolf" in result.err


@pytest.mark.parametrize("state", ["down", "overloaded"])
def test_a_hub_that_is_down_is_reported_at_once(hub: Hub, generate: Run, state: str) -> None:
    if state == "overloaded":
        hub.overloaded = True
    else:
        hub.shutdown()
        hub.server_close()
    result = generate("someone/fox", "Hello.")
    assert result.code == 1
    assert "someone/fox is not in the local cache, and the hub cannot be reached: " in result.err
    assert ("HTTP error 503" in result.err) == (state == "overloaded")
    waits = [line.split()[1] for line in result.err.splitlines() if line.startswith("waits")]
    assert sum(map(int, waits)) <= 2  # huggingface_hub alone waits for half a minute


def test_a_model_that_will_not_fit_is_refused_before_its_weights_are_downloaded(
    hub: Hub, generate: Run
) -> None:
    config = json.loads(hub.files["config.json"])
    # A context of a billion tokens: the KV cache alone would take terabytes.
    hub.files["config.json"] = json.dumps(config | {"max_position_embeddings": 10**9}).encode()
    result = generate("someone/fox", "Hello.", "--max-tokens", "999999999")
    assert result.code == 1
    assert "error: someone/fox needs about" in result.err
    assert "--force loads it anyway" in result.err
    assert hub.fetched == {"config.json": 1}


def test_a_model_that_cannot_skip_is_refused_before_its_weights_are_downloaded(
    hub: Hub, generate: Run
) -> None:
    hub.files["config.json"] = json.dumps({"model_type": "mamba"}).encode()
    result = generate("someone/fox", "Hello.")
    assert result.code == 1
    assert "cannot skip layers" in result.err
    assert hub.fetched == {"config.json": 1}


def test_a_repository_of_gguf_files_says_how_to_get_one(hub: Hub, generate: Run) -> None:
    del hub.files["model.safetensors"], hub.files["config.json"]
    for name in ("fox.F16.gguf", "fox.Q4_K_M.gguf", "mmproj-Q4_K_M.gguf"):
        hub.files[name] = b"GGUF"
    result = generate("someone/fox", "Hello.")
    assert result.code == 1
    assert "error: someone/fox holds only GGUF files" in result.err
    assert "run: hf download someone/fox fox.Q4_K_M.gguf; then run this again" in result.err
    assert "someone/vixen" in result.err
    assert not hub.fetched


def test_a_repository_of_an_adapter_names_its_base_model(hub: Hub, generate: Run) -> None:
    del hub.files["model.safetensors"], hub.files["config.json"]
    hub.files["adapter_model.safetensors"] = b""
    result = generate("someone/fox", "Hello.")
    assert result.code == 1
    assert "error: someone/fox holds an adapter (adapter_model.safetensors)" in result.err
    assert "base model, someone/vixen" in result.err


def test_a_repository_without_safetensors_names_what_it_holds(hub: Hub, generate: Run) -> None:
    del hub.files["model.safetensors"]
    result = generate("someone/fox", "Hello.")
    assert result.code == 1
    assert "error: someone/fox has no safetensors, only pytorch_model.bin" in result.err


def test_verify_finds_one_flipped_bit_in_the_cache(
    tmp_path: Path, generate: Run, run_d3: Run
) -> None:
    first = generate("someone/fox", "Hi.")
    assert first.code == 0, first.err
    verified = run_d3("models", "verify", "someone/fox")
    assert verified.code == 0, verified.err
    assert verified.out == "someone/fox: all 6 files match their checksums\n"
    [weights] = tmp_path.glob("models--*/snapshots/*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.resolve().write_bytes(data)
    unverified = generate("someone/fox", "Hi.", "--offline")
    assert unverified.code == 0, unverified.err
    again = run_d3("models", "verify", "someone/fox")
    assert again.code == 1
    assert "model.safetensors is not the file that was published" in again.err


@pytest.mark.parametrize("revision", ["v1", "refs/pr/7", OLDER])
def test_a_revision_is_fetched_once_and_then_used_offline(
    hub: Hub, generate: Run, run_d3: Run, tmp_path: Path, revision: str
) -> None:
    first = generate("someone/fox", "Hello.", "--revision", revision)
    assert first.code == 0, first.err
    assert f"model: someone/fox at {revision}" in first.err
    assert f"d3 calibrate someone/fox --revision {revision}" in first.err
    assert [path.name for path in tmp_path.glob("models--*/snapshots/*")] == [OLDER]
    hub.fetched.clear()
    again = generate("someone/fox", "Hello.", "--revision", revision, "--offline")
    assert again.out == first.out
    assert not hub.fetched
    assert run_d3("models", "verify", "someone/fox", "--revision", revision).code == 0
    # The default branch is another revision, and not in the cache.
    other = generate("someone/fox", "Hello.", "--offline")
    assert other.code == 1
    assert "error: someone/fox is not complete in the local cache" in other.err


def test_a_revision_that_the_hub_does_not_have(generate: Run) -> None:
    result = generate("someone/fox", "Hello.", "--revision", "v9")
    assert result.code == 2
    assert "error: someone/fox has no --revision v9" in result.err
    offline = generate("someone/fox", "Hello.", "--revision", "v9", "--offline")
    assert "someone/fox at v9 is not in the local cache" in offline.err
    assert "hf download someone/fox --revision v9" in offline.err


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "-x"])
def test_a_revision_that_cannot_be_one(generate: Run, revision: str) -> None:
    result = generate("someone/fox", "Hello.", f"--revision={revision}")
    assert result.code == 2
    assert "which cannot be a revision" in result.err


@pytest.mark.parametrize("command", [("generate",), ("models", "verify")])
def test_only_models_of_the_hub_have_revisions(
    run_d3: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for name in ("demo", str(stranger(tmp_path / "fox"))):
        prompt = ["Hello."] if command == ("generate",) else []
        result = run_d3(*command, name, *prompt, "--revision", "v1")
        assert result.code == 2
        assert "has no revisions, so --revision cannot choose one" in result.err
