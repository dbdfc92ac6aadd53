"""A Hub on loopback: enough of its HTTP protocol for the real `huggingface_hub` client, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


KINDS = ("model", "dataset", "space")
LFS_SUFFIXES = (".safetensors", ".parquet", ".faiss", ".bin", ".jpg", ".png")
TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}  # everybody writes into their own namespace only
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Blob:
    """Content of a file, and whether it lies in the large-file storage."""

    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    """A repo: commits with their files, and what branches, tags and pull requests point at."""

    kind: str
    repo_id: str
    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)  # (commit, title)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = self.store({".gitattributes": Blob(b"", False)}, "initial commit", None)

    def store(self, files: dict[str, Blob], title: str, parent: str | None) -> str:
        names = {path: blob.etag for path, blob in sorted(files.items())}
        commit = hashlib.sha1(json.dumps([self.repo_id, names, title, parent, len(self.commits)]).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.log.append((commit, title))
        return commit

    def resolve(self, revision: str) -> str | None:
        for refs in (self.branches, self.tags, self.pulls):
            if revision in refs:
                return refs[revision]
        return revision if revision in self.commits else None


@dataclass
class Fault:
    """What goes wrong at requests whose method and path match."""

    method: str
    path: str
    times: int = 1
    status: int | None = None  # answer with this status; otherwise stop halfway through the body
    code: str | None = None  # what the answer says of the reason, such as "GatedRepo"
    hold: bool = False  # stop halfway, and keep the connection open until the client is gone
    reached: threading.Event = field(default_factory=threading.Event)


class HubError(Exception):
    """An error as the Hub answers it."""

    def __init__(self, status: int, code: str | None, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.commit = status, code, message, commit


class HubServer:
    """
    The server. `url` goes into `HF_ENDPOINT`; `requests` is the list of `(method, path)` that came in.

    Large files are answered with a redirect to another host name, as the Hub's storage is.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorized_storage_requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage_url = f"http://localhost:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, **options: Any) -> Fault:
        """Plans a fault for the next requests of a method whose path matches a regular expression."""
        fault = Fault(method, path, **options)
        self.faults.append(fault)
        return fault

    def files(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        repo = self.repos[kind, repo_id]
        return {path: blob.data for path, blob in repo.commits[repo.resolve(revision)].items()}

    def titles(self, kind: str, repo_id: str) -> list[str]:
        """Titles of a repo's commits but the first, which the Hub makes itself."""
        return [title for _, title in self.repos[kind, repo_id].log[1:]]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # Frame

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.hub.requests.append((self.command, parts.path))
        self.body = b""
        self.fault = next(
            (f for f in self.hub.faults if f.times > 0 and f.method == self.command and re.search(f.path, parts.path)),
            None,
        )
        if self.fault is not None:
            self.fault.times -= 1
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if self.fault is not None and self.fault.status is None and self.command == "PUT":
                self.rfile.read(length // 2)
                return self._break_off()
            self.body = self._read_chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else b""
            self.body = self.body or self.rfile.read(length)
            if self.fault is not None and self.fault.status is not None:
                self.fault.reached.set()
                raise HubError(self.fault.status, self.fault.code, "The storage is full.")
            self._route(parts.path)
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            if error.commit:
                headers["X-Repo-Commit"] = error.commit
            self._send_json({"error": error.message}, error.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _read_chunks(self) -> bytes:
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _break_off(self) -> None:
        self.fault.reached.set()
        if self.fault.hold:
            self.connection.settimeout(60)
            try:
                while self.connection.recv(1 << 16):
                    pass
            except OSError:
                pass
        self.close_connection = True
        self.connection.close()

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.status is None:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            return self._break_off()
        self.wfile.write(data)

    def _send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # Who asks

    def _user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = TOKENS.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return user

    def _repo(self, kind: str, repo_id: str, write: bool = False, pull: bool = False) -> Repo:
        user, repo = self._user(), self.hub.repos.get((kind, repo_id))
        owner = repo_id.split("/")[0]
        if repo is None or (repo.private and user != owner):
            raise HubError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise HubError(401, None, "Invalid username or password.")
        if write and user != owner and not pull:
            raise HubError(403, None, "You don't have the rights to write to this repo")
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.resolve(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Where it goes

    def _route(self, path: str) -> None:
        hub, method = self.hub, "GET" if self.command == "HEAD" else self.command
        if path == "/api/whoami-v2":
            user = self._user()
            if user is None:
                raise HubError(401, None, "Invalid username or password.")
            return self._send_json({"type": "user", "id": user, "name": user, "orgs": [], "auth": {"type": "token"}})
        if path == "/api/validate-yaml":
            return self._validate_card(json.loads(self.body))
        if path == "/api/repos/create":
            return self._create_repo(json.loads(self.body))
        if match := re.fullmatch(r"/storage/(\w+)", path):
            return self._storage(method, match[1])
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repo((match[1] or "models/")[:-2], match[2], write=True, pull=True)
            return self._lfs_batch(json.loads(self.body))
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self._repo((match[1] or "models/")[:-2], match[2])
            return self._resolve(repo, unquote(match[3]), unquote(match[4]))
        match = re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([\w-]+)(?:/([^/]+))?(?:/(.+))?)?", path)
        if match is None:
            raise HubError(404, None, f"This test server has no {self.command} {path}")
        kind, repo_id, verb, revision, rest = match.groups()
        revision = unquote(revision or "main")
        write = method != "GET" and verb != "paths-info"
        with hub.lock:
            repo = self._repo(kind, repo_id, write, pull="create_pr" in self.query)
            handlers = {
                None: self._info,
                "revision": self._info,
                "tree": self._tree,
                "paths-info": self._paths_info,
                "refs": self._refs,
                "commits": self._commits,
                "branch": self._branch,
                "tag": self._tag,
                "preupload": self._preupload,
                "commit": self._make_commit,
            }
            if verb not in handlers:
                raise HubError(404, None, f"This test server has no {self.command} {path}")
            handlers[verb](repo, revision, unquote(rest or ""))

    # Repos

    def _create_repo(self, request: dict[str, Any]) -> None:
        user = self._user()
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        kind, owner = request.get("type") or "model", request.get("organization") or user
        repo_id = f"{owner}/{request['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if owner != user:
            raise HubError(403, None, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        if kind == "space" and request.get("sdk") not in ("gradio", "docker", "static"):
            raise HubError(400, None, "Invalid sdk")
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                return self._send_json({"error": "You already created this repo", "url": url}, 409)
            self.hub.repos[kind, repo_id] = Repo(kind, repo_id, request.get("visibility") == "private")
        self._send_json({"url": url, "name": repo_id})

    def _validate_card(self, request: dict[str, Any]) -> None:
        found = re.match(r"---\r?\n(.*?)\r?\n---", request["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error:
            return self._send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if not isinstance(metadata, dict):
            return self._send_json({"errors": [{"message": "metadata must be a mapping"}], "warnings": []}, 400)
        self._send_json({"errors": [], "warnings": []})

    def _info(self, repo: Repo, revision: str, rest: str) -> None:
        commit = self._commit(repo, revision)
        info = {
            "_id": commit[:24],
            "id": repo.repo_id,
            "modelId": repo.repo_id,
            "author": repo.repo_id.split("/")[0],
            "sha": commit,
            "private": repo.private,
            "disabled": False,
            "gated": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "createdAt": DATE,
            "lastModified": DATE,
            "siblings": [{"rfilename": path} for path in sorted(repo.commits[commit])],
        }
        self._send_json(info)

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": blob.git_oid, "size": len(blob.data), "path": path}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
        return entry

    def _listing(self, files: dict[str, Blob]) -> dict[str, dict[str, Any]]:
        entries = {path: self._entry(path, blob) for path, blob in files.items()}
        for path in files:
            folders = path.split("/")[:-1]
            for depth in range(len(folders)):
                folder = "/".join(folders[: depth + 1])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
        return entries

    def _tree(self, repo: Repo, revision: str, folder: str) -> None:
        commit = self._commit(repo, revision)
        entries = self._listing(repo.commits[commit])
        prefix = f"{folder}/" if folder else ""
        inside = [entry for path, entry in sorted(entries.items()) if path.startswith(prefix)]
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}", commit)
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            inside = [entry for entry in inside if "/" not in entry["path"][len(prefix) :]]
        self._send_json(inside, headers={"X-Repo-Commit": commit})

    def _paths_info(self, repo: Repo, revision: str, rest: str) -> None:
        entries = self._listing(repo.commits[self._commit(repo, revision)])
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        self._send_json([entries[path] for path in paths if path in entries])

    def _refs(self, repo: Repo, revision: str, rest: str) -> None:
        named = (("branches", "refs/heads/", repo.branches), ("tags", "refs/tags/", repo.tags))
        refs: dict[str, Any] = {
            key: [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in found.items()]
            for key, prefix, found in named
        }
        refs["converts"] = []
        refs["pullRequests"] = [{"name": name, "ref": name, "targetCommit": c} for name, c in repo.pulls.items()]
        self._send_json(refs)

    def _commits(self, repo: Repo, revision: str, rest: str) -> None:
        self._commit(repo, revision)
        rows = [
            {"id": commit, "title": title, "message": "", "date": DATE, "authors": [{"user": "alice"}]}
            for commit, title in reversed(repo.log)
        ]
        self._send_json(rows)

    def _branch(self, repo: Repo, name: str, rest: str) -> None:
        if self.command == "DELETE":
            repo.branches.pop(name, None)
            return self._send_json({})
        if name in repo.branches:
            raise HubError(409, None, f"Reference already exists: refs/heads/{name}")
        start = (json.loads(self.body or b"{}")).get("startingPoint", "main")
        repo.branches[name] = self._commit(repo, start)
        self._send_json({}, 201)

    def _tag(self, repo: Repo, revision: str, rest: str) -> None:
        name = json.loads(self.body)["tag"]
        if name in repo.tags:
            raise HubError(409, None, f"Reference already exists: refs/tags/{name}")
        repo.tags[name] = self._commit(repo, revision)
        self._send_json({}, 201)

    # Uploading

    def _preupload(self, repo: Repo, revision: str, rest: str) -> None:
        files = repo.commits[self._commit(repo, revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            present = files.get(file["path"])
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10 << 20
            answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append({**answer, "oid": present.etag if present else None})
        self._send_json({"files": answers})

    def _lfs_batch(self, request: dict[str, Any]) -> None:
        answers = []
        for wanted in request["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.storage_url}/storage/{wanted['oid']}"}}
            answers.append(answer)
        self._send_json({"transfer": "basic", "objects": answers})

    def _make_commit(self, repo: Repo, revision: str, rest: str) -> None:
        parent = self._commit(repo, revision)
        files = dict(repo.commits[parent])
        title = ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", parent) != parent:
                    raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise HubError(400, None, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                if value["path"] not in files:
                    raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"] + "/")}
        commit = repo.store(files, title, parent)
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        answer = {"commitOid": commit, "commitUrl": f"{self.hub.url}/{prefix}{repo.repo_id}/commit/{commit}"}
        if "create_pr" in self.query:
            number = len(repo.pulls) + 1
            repo.pulls[f"refs/pr/{number}"] = commit
            answer["pullRequestUrl"] = f"{self.hub.url}/{prefix}{repo.repo_id}/discussions/{number}"
        elif revision in repo.branches:
            repo.branches[revision] = commit
        elif revision in repo.pulls:
            repo.pulls[revision] = commit
        else:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        self._send_json(answer)

    # Downloading

    def _storage(self, method: str, oid: str) -> None:
        if self.headers.get("Authorization"):
            self.hub.authorized_storage_requests.append(oid)
        if method == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise HubError(400, None, "The object is not what its name says")
            self.hub.objects[oid] = self.body
            return self._send(b"")
        self._send_range(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = self._commit(repo, revision)
        blob = repo.commits[commit].get(path)
        if blob is None:
            raise HubError(404, "EntryNotFound", "Entry not found", commit)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if not blob.lfs:
            return self._send_range(blob.data, headers)
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        location = {"Location": f"{self.hub.storage_url}/storage/{blob.sha256}"}
        self._send(b"", 302, {**headers, **linked, **location})

    def _send_range(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {**headers, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(data, 200, {**headers, "Content-Length": str(len(data))})
        start, stop = int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else len(data)
        if start >= len(data):
            return self._send(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"})
        part = data[start:stop]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        self._send(part, 206, {**headers, "Content-Length": str(len(part))})
