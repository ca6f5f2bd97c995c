# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A Hugging Face Hub on this machine, as far as pushing and loading models goes: no test reaches the real one.

    with FakeHub() as hub:
        subprocess.run(command, env=hub.environment(home))
        hub.repos["user/valley-tiny"].files["config.json"]

What is asked of it is in `hub.requests`. A repository `refuse-403` cannot be created, and one `break-500` takes no
commit; the numbers are the status.
"""

import base64
import dataclasses
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard


TOKEN, USER = "hf_ofTheTests", "user"
# The Hub knows more of them; these are what its own page on licences lists first, and those of this project's data.
LICENSES = {
    "apache-2.0",
    "mit",
    "openrail",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "llama2",
    "llama3",
    "other",
}
ROUTES = []


@dataclasses.dataclass
class Repo:
    """A repository: every commit is a whole tree of path to bytes, and the last one is main."""

    private: bool
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=lambda: {"0" * 40: {}})

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]

    def tree(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.head if revision in ("main", "HEAD") else revision)


class FakeHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process whose Hub this is, with an empty cache in `home`. A proxy that nobody serves bars the rest."""
        unset = ("HF_", "HUGGING", "TRANSFORMERS_", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(unset)}
        nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        return {
            **{name: value for name, value in kept.items() if not name.lower().endswith("_proxy")},
            **nowhere,
            "no_proxy": "127.0.0.1",
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }


def route(method: str, pattern: str):
    """Serve a method and path; groups of the pattern are the arguments."""

    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Refusal(Exception):
    """An answer other than 200. Clients tell from `X-Error-Code` what kind it is."""

    def __init__(self, status: int, content: str | dict, **headers: str):
        self.status, self.content = status, {"error": content} if isinstance(content, str) else content
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *args):
        pass

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for wanted, pattern, function in ROUTES:
                if wanted == method and (match := pattern.fullmatch(path)):
                    return self.reply(200, *function(self, **match.groupdict()))
            raise Refusal(404, f"{self.command} {path} is nothing that this Hub knows")
        except Refusal as refusal:
            self.reply(refusal.status, refusal.content, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(self, status: int, content: dict | list | bytes, headers: dict[str, str] | None = None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self):
        return json.loads(self.body)

    @property
    def signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_token(self):
        if not self.signed_in:
            raise Refusal(401, "Invalid username or password.")

    def repo(self, name: str) -> Repo:
        repo = self.server.repos.get(name)
        if repo is None or repo.private and not self.signed_in:  # one answer, so that nobody learns of private names
            raise Refusal(401 if not self.signed_in else 404, "Repository not found", X_Error_Code="RepoNotFound")
        return repo

    def tree(self, name: str, revision: str) -> dict[str, bytes]:
        tree = self.repo(name).tree(revision)
        if tree is None:
            raise Refusal(404, f"Invalid rev id: {revision}", X_Error_Code="RevisionNotFound")
        return tree


REPO = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[\w.-]+)"


@route("GET", "/api/whoami-v2")
def whoami(request):
    request.check_token()
    return ({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}},)


@route("POST", "/api/repos/create")
def create(request):
    request.check_token()
    asked = request.json()
    if refused := re.match(r"refuse-(\d+)", asked["name"]):
        raise Refusal(int(refused[1]), "You don't have the rights to create a model under this namespace")
    name = f"{asked.get('organization') or USER}/{asked['name']}"
    private = asked.get("private") or asked.get("visibility") == "private"
    url = {"url": f"{request.server.url}/{name}", "name": name}
    if name in request.server.repos:
        raise Refusal(409, url)
    request.server.repos[name] = Repo(private)
    return (url,)


@route("POST", "/api/validate-yaml")
def validate_yaml(request):
    """After the Hub's pages on model cards and licences: what a card of ours could do wrong. The Hub knows more."""
    data, errors = ModelCard(request.json()["content"]).data.to_dict(), []
    if data.get("license", "other") not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    if data.get("base_model_relation") not in (None, "adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of adapter, finetune, merge, quantized')
    for field, pattern in (("base_model", r"[\w.-]+/[\w.-]+"), ("datasets", r"[\w./-]+"), ("language", r"[a-z]{2,3}")):
        values = data.get(field) or []
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(pattern, value):
                errors.append(f'"{field}" with value "{value}" is not valid')
    if errors:
        raise Refusal(400, {"errors": [{"message": error} for error in errors], "warnings": []})
    return ({"errors": [], "warnings": []},)


@route("POST", f"/api/models/{REPO}/preupload/{REVISION}")
def preupload(request, name, revision):
    request.check_token()
    tree = request.tree(name, revision)
    files = []
    for file in request.json()["files"]:
        path = file["path"]
        large = path.endswith((".safetensors", ".bin", "tokenizer.json"))
        entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        files.append({**entry, "oid": blob_id(tree[path]) if path in tree and not large else None})
    return ({"files": files},)


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def large_file_batch(request, name):
    request.check_token()
    request.repo(name)
    objects = []
    for entry in request.json()["objects"]:
        upload = {"upload": {"href": f"{request.server.url}/storage/{entry['oid']}"}}
        objects.append(entry if entry["oid"] in request.server.large_files else {**entry, "actions": upload})
    return ({"transfer": "basic", "objects": objects},)


@route("PUT", "/storage/(?P<oid>[0-9a-f]{64})")
def store(request, oid):
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, "The content does not have the promised sha256")
    request.server.large_files[oid] = request.body
    return (b"",)


@route("POST", f"/api/models/{REPO}/commit/{REVISION}")
def commit(request, name, revision):
    request.check_token()
    if broken := re.search(r"/break-(\d+)", name):
        raise Refusal(int(broken[1]), "The Hub could not commit that")
    repo = request.repo(name)
    files = dict(repo.files)
    for line in request.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = request.server.large_files[value["oid"]]
        elif entry["key"] == "deletedFile":
            files.pop(value["path"])
    oid = hashlib.sha1(request.body + repo.head.encode()).hexdigest()
    repo.commits[oid] = files
    return ({"success": True, "commitOid": oid, "commitUrl": f"{request.server.url}/{name}/commit/{oid}"},)


@route("GET", f"/api/models/{REPO}(/revision/{REVISION})?")
def model_info(request, name, revision):
    tree = request.tree(name, revision or "main")
    repo = request.repo(name)
    siblings = [{"rfilename": path} for path in sorted(tree)]
    sha = repo.head if revision in (None, "main") else revision
    return ({"_id": "0", "id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings},)


@route("GET", rf"/api/models/{REPO}/tree/{REVISION}(/(?P<folder>.+))?")
def list_tree(request, name, revision, folder):
    tree = request.tree(name, revision)
    prefix = f"{folder}/" if folder else ""
    inside = [path for path in sorted(tree) if path.startswith(prefix)]
    if folder and not inside:
        raise Refusal(404, f"{folder} does not exist on {revision}", X_Error_Code="EntryNotFound")
    return ([{"type": "file", "path": path, "size": len(tree[path]), "oid": blob_id(tree[path])} for path in inside],)


@route("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
def resolve(request, name, revision, path):
    tree = request.tree(name, revision)
    sha = request.repo(name).head if revision == "main" else revision
    if path not in tree:
        raise Refusal(404, f"{path} does not exist", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
    return tree[path], {"ETag": f'"{blob_id(tree[path])}"', "X-Repo-Commit": sha}


def blob_id(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
