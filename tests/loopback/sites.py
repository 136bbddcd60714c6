"""The hosts that the proxy plays: file servers, Google Drive and the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml

from .proxy import Reply, Request, Site, file_reply, page

Content = bytes | Path


def read(content: Content) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


@dataclass
class FileServer:
    """A plain web server: path -> file."""

    files: dict[str, Content] = field(default_factory=dict)

    def __call__(self, request: Request) -> Reply:
        content = self.files.get(unquote(request.path))
        return page("404 Not Found", status=404) if content is None else file_reply(content)


DRIVE, DRIVE_FILES = "drive.google.com", "drive.usercontent.google.com"

QUOTA = (
    '<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>'
    '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try accessing '
    "the file again later. If it does not work, wait up to 24 hours.</p>"
)


@dataclass
class Drive:
    """Google Drive: a redirect, a page that asks whether to download what was not searched for viruses, the file.

    Attributes:
        files: Id -> name and content.
        quota: Ids of files that were downloaded too often.
        plain: Whether files are small enough to come without the page.
        folders: Id of a folder -> ids of files and folders in it.
    """

    files: dict[str, tuple[str, Content]] = field(default_factory=dict)
    quota: set[str] = field(default_factory=set)
    plain: bool = False
    folders: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sites(self) -> dict[str, Site]:
        return {DRIVE: self.redirect, DRIVE_FILES: self.download}

    def redirect(self, request: Request) -> Reply:
        file_id = "".join(request.query.get("id", []))
        if request.path == "/embeddedfolderview" and file_id in self.folders:
            return self.view(file_id)
        if request.path != "/uc" or file_id not in self.files:
            return page("Google Drive - Page Not Found", status=404)
        where = f"https://{DRIVE_FILES}/download?id={file_id}&export=download"
        return Reply(b"", 303, {"Location": where, "Content-Type": "application/binary"})

    def view(self, folder: str) -> Reply:
        links = []
        for one in self.folders[folder]:
            name = self.files[one][0] if one in self.files else one
            where = f"file/d/{one}/view?usp=drive_web" if one in self.files else f"drive/folders/{one}"
            links.append(f'<div class="flip-entry"><a href="https://{DRIVE}/{where}"><div>{name}</div></a></div>')
        return page(folder, "".join(links))

    def download(self, request: Request) -> Reply:
        file_id = "".join(request.query.get("id", []))
        if request.path != "/download" or file_id not in self.files:
            return page("Error 404 (Not Found)!!1", status=404)
        name, content = self.files[file_id]
        if file_id in self.quota:
            return page("Google Drive - Quota exceeded", QUOTA)
        if not self.plain and request.query.get("confirm") != ["t"]:
            hidden = {
                "id": file_id,
                "export": "download",
                "confirm": "t",
                "uuid": "0b3195ca-fe00-4000-8000-000000000000",
            }
            inputs = "".join(f'<input type="hidden" name="{key}" value="{value}">' for key, value in hidden.items())
            return page(
                "Google Drive - Virus scan warning",
                "<p>Google Drive can't scan this file for viruses.</p>"
                f'<form id="download-form" action="https://{DRIVE_FILES}/download" method="get">'
                f'<input type="submit" value="Download anyway"/>{inputs}</form>',
            )
        reply = file_reply(content)
        reply.headers["Content-Disposition"] = f"attachment; filename=\"{name}\"; filename*=UTF-8''{quote(name)}"
        del reply.headers["ETag"]
        return reply


HUB, HUB_FILES = "huggingface.co", "cas-bridge.xethub.hf.co"
_LARGE = (".safetensors", ".parquet", ".pth", ".bin", ".model")


@dataclass
class Repo:
    """A repository of models or data sets."""

    files: dict[str, Content] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        names = json.dumps({path: self.blob(path) for path in sorted(self.files)})
        return hashlib.sha1(names.encode()).hexdigest()

    def blob(self, path: str) -> str:
        content = read(self.files[path])
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def facts(self, path: str) -> dict[str, Any]:
        """Say what a listing says of a file."""
        content = read(self.files[path])
        found: dict[str, Any] = {"oid": self.blob(path), "size": len(content)}
        if path.endswith(_LARGE):
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found

    @property
    def card(self) -> dict[str, Any]:
        text = read(self.files.get("README.md", b"")).decode()
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        return (yaml.safe_load(front[1]) if front else None) or {}

    @property
    def tags(self) -> list[str]:
        card = self.card
        bases = card.get("base_model") or []
        bases = [bases] if isinstance(bases, str) else bases
        kinds = [f"base_model:{base}" for base in bases]
        kinds += [f"base_model:{card['base_model_relation']}:{base}" for base in bases if "base_model_relation" in card]
        return [*(card.get("tags") or []), *kinds]


@dataclass
class Hub:
    """The hub: information, listings, files through a redirect where they are large, search, uploads.

    Attributes:
        models, datasets: Repositories by id.
        token: Token that uploads must carry.
    """

    models: dict[str, Repo] = field(default_factory=dict)
    datasets: dict[str, Repo] = field(default_factory=dict)
    token: str = "hf_loopback"

    @property
    def sites(self) -> dict[str, Site]:
        return {HUB: self, HUB_FILES: self.stored}

    def add_folder(self, repo: str, folder: Path, kind: str = "models") -> Repo:
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        made = Repo({path.relative_to(folder).as_posix(): path for path in paths})
        getattr(self, kind)[repo] = made
        return made

    def __call__(self, request: Request) -> Reply:
        path = unquote(request.path).strip("/")
        for pattern, answer in self._routes():
            found = re.fullmatch(pattern, path)
            if found:
                return answer(request, **found.groupdict())
        return Reply(b"this hub does not know the address", 501)

    def stored(self, request: Request) -> Reply:
        """The host of large files: ``/<models|datasets>/<owner>/<name>/<path>``."""
        kind, owner, name, path = unquote(request.path).strip("/").split("/", 3)
        repo = getattr(self, kind)[f"{owner}/{name}"]
        return file_reply(repo.files[path], tag=repo.facts(path)["lfs"]["oid"])

    def _routes(self) -> Iterable[tuple[str, Callable[..., Reply]]]:
        repo, at = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
        yield r"api/(?P<kind>models|datasets)", self._search
        yield r"api/whoami-v2", self._who
        yield r"api/agent-harnesses", lambda _: _json({"standardEnvVars": [], "harnesses": {}})
        yield r"api/repos/create", self._create
        yield rf"api/{repo}(/revision/{at})?", self._information
        yield rf"api/{repo}/tree/{at}(/(?P<under>.+))?", self._tree
        yield rf"api/{repo}/paths-info/{at}", self._paths
        yield rf"api/{repo}/preupload/{at}", self._before_upload
        yield rf"api/{repo}/commit/{at}", self._commit
        yield rf"((?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/{at}/(?P<path>.+)", self._resolve

    def _find(self, kind: str | None, repo: str, revision: str | None) -> Repo | Reply:
        found: Repo | None = getattr(self, kind or "models").get(repo)
        if found is None:
            return _refused(401, "RepoNotFound", "Invalid username or password.")
        if revision not in (None, "main", found.commit):
            return _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _search(self, request: Request, kind: str) -> Reply:
        wanted = [tag for one in request.query.get("filter", []) for tag in one.split(",")]
        found = [
            self._about(kind, name, repo)
            for name, repo in getattr(self, kind).items()
            if all(tag in repo.tags for tag in wanted)
        ]
        return _json(found)

    def _about(self, kind: str, name: str, repo: Repo, blobs: bool = False) -> dict[str, Any]:
        siblings = [{"rfilename": path} | (_sibling(repo.facts(path)) if blobs else {}) for path in sorted(repo.files)]
        return {
            "_id": "0" * 24, "id": name, "sha": repo.commit, "private": False, "gated": False, "disabled": False,
            "downloads": 0, "likes": 0, "tags": repo.tags, "siblings": siblings, "cardData": repo.card,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            **({"modelId": name} if kind == "models" else {}),
        }  # fmt: skip

    def _information(self, request: Request, kind: str, repo: str, revision: str | None) -> Reply:
        found = self._find(kind, repo, revision)
        if isinstance(found, Reply):
            return found
        return _json(self._about(kind, repo, found, blobs="blobs" in request.query))

    def _tree(self, request: Request, kind: str, repo: str, revision: str, under: str | None) -> Reply:
        found = self._find(kind, repo, revision)
        if isinstance(found, Reply):
            return found
        deep = "".join(request.query.get("recursive", [])).lower() in ("true", "1")
        entries = list(_entries(found, under or "", deep))
        if under and not entries:
            return _refused(404, "EntryNotFound", f"{under} does not exist on {revision}")
        return _json(entries)

    def _paths(self, request: Request, kind: str, repo: str, revision: str) -> Reply:
        found = self._find(kind, repo, revision)
        if isinstance(found, Reply):
            return found
        if request.headers.get("content-type", "").startswith("application/json"):
            wanted = json.loads(request.body)["paths"]
        else:
            wanted = parse_qs(request.body.decode()).get("paths", [])
        every = [*_entries(found, "", True)]
        return _json([entry for entry in every if entry["path"] in wanted])

    def _resolve(self, request: Request, kind: str | None, repo: str, revision: str, path: str) -> Reply:
        found = self._find(kind, repo, revision)
        if isinstance(found, Reply):
            return found
        commit = {"X-Repo-Commit": found.commit}
        if path not in found.files:
            reply = _refused(404, "EntryNotFound", "Entry not found")
            reply.headers |= commit
            return reply
        facts = found.facts(path)
        if "lfs" not in facts:
            reply = file_reply(found.files[path], "text/plain; charset=utf-8", facts["oid"])
            reply.headers |= commit
            return reply
        where = f"https://{HUB_FILES}/{kind or 'models'}/{repo}/{quote(path)}"
        linked = {"X-Linked-Size": str(facts["size"]), "X-Linked-ETag": f'"{facts["lfs"]["oid"]}"'}
        return Reply(b"", 302, {"Location": where, **commit, **linked})

    # --- uploads: every file comes with the commit itself --------------------------------------------------------

    def _allowed(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.token}"

    def _who(self, request: Request) -> Reply:
        if not self._allowed(request):
            return _refused(401, "", "Invalid credentials in Authorization header")
        return _json({"type": "user", "name": "someone", "fullname": "Someone", "orgs": []})

    def _create(self, request: Request) -> Reply:
        if not self._allowed(request):
            return _refused(401, "", "Invalid username or password.")
        asked = json.loads(request.body)
        name = "/".join(filter(None, (asked.get("organization") or "someone", asked["name"])))
        of_kind = self.datasets if asked.get("type") == "dataset" else self.models
        there = name in of_kind
        of_kind.setdefault(name, Repo())
        reply = _json({"url": f"https://{HUB}/{name}"})
        reply.status = 409 if there else 200
        return reply

    def _before_upload(self, request: Request, kind: str, repo: str, revision: str) -> Reply:
        if not self._allowed(request):
            return _refused(401, "", "Invalid username or password.")
        asked = json.loads(request.body)["files"]
        return _json(
            {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
        )

    def _commit(self, request: Request, kind: str, repo: str, revision: str) -> Reply:
        found = self._find(kind, repo, revision)
        if isinstance(found, Reply):
            return found
        if not self._allowed(request):
            return _refused(401, "", "Invalid username or password.")
        for line in map(json.loads, request.body.splitlines()):
            if line["key"] == "file":
                found.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        where = f"https://{HUB}/{repo}/commit/{found.commit}"
        return _json({"success": True, "commitOid": found.commit, "commitUrl": where, "hookOutput": ""})


def _entries(repo: Repo, under: str, deep: bool) -> Iterable[dict[str, Any]]:
    folders: set[str] = set()
    for path in sorted(repo.files):
        if under and not path.startswith(f"{under}/"):
            continue
        parents = [str(one) for one in PurePosixPath(path).parents if str(one) != "."]
        inside = [one for one in reversed(parents) if len(one) > len(under)]
        for folder in inside if deep else inside[:1]:
            if folder not in folders:
                folders.add(folder)
                yield {"type": "directory", "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0, "path": folder}
        if deep or not inside:
            yield {"type": "file", "path": path, **repo.facts(path)}


def _sibling(facts: dict[str, Any]) -> dict[str, Any]:
    large = facts.get("lfs")
    found: dict[str, Any] = {"size": facts["size"], "blobId": facts["oid"]}
    if large:
        found["lfs"] = {"sha256": large["oid"], "size": large["size"], "pointerSize": large["pointerSize"]}
    return found


def _json(content: Any) -> Reply:
    return Reply(json.dumps(content).encode(), 200, {"Content-Type": "application/json; charset=utf-8"})


def _refused(status: int, code: str, message: str) -> Reply:
    headers = {"X-Error-Message": message, "Content-Type": "application/json; charset=utf-8"}
    if code:
        headers["X-Error-Code"] = code
    return Reply(json.dumps({"error": message}).encode(), status, headers)
