"""A local stand-in of the Hugging Face Hub: the part of its HTTP interface that uploads and downloads of a snapshot use."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_test"


class StandIn:
    """Repositories in memory; ``log`` lists the requests."""

    def __init__(self):
        self.repositories, self.private, self.log = {}, set(), []

    def files(self, repository, revision):
        """Commit and files of a revision."""
        commits = self.repositories[repository]
        name = list(commits)[-1] if revision == "main" else revision
        return name, commits[name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Stay quiet."""

    @property
    def hub(self):
        return self.server.hub

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.log.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}s/{asked.get('organization', 'user')}/{asked['name']}"
            if name in self.hub.repositories:
                return self.answer({"error": "exists", "url": self.url(name)}, 409)
            self.hub.repositories[name] = {"0" * 40: {}}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self.answer({"url": self.url(name), "name": name, "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name, action = re.match(r"/api/((?:models|datasets)/[^/]+/[^/]+)/(preupload|commit)/", self.path).groups()
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        _, files = self.hub.files(name, "main")
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(body).hexdigest()
        self.hub.repositories[name][commit] = files
        return self.answer({"success": True, "commitOid": commit, "commitUrl": f"{self.url(name)}/commit/{commit}"})

    def do_GET(self):
        self.hub.log.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        resolve = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if resolve:
            name, revision = f"{'datasets' if resolve[1] else 'models'}/{resolve[2]}", resolve[3]
        elif api:
            name, revision = f"{api[1]}/{api[2]}", api[4] or "main"
        else:
            return self.answer({"error": "not found"}, 404)
        allowed = name not in self.hub.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.hub.repositories or not allowed:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if revision != "main" and revision not in self.hub.repositories[name]:
            return self.answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = self.hub.files(name, revision)
        if resolve:
            content = files.get(resolve[4])
            if content is None:
                return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return self.send(content, 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit})
        if api[3] == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.answer(listed)
        siblings = [{"rfilename": path} for path in files]
        return self.answer({"id": api[2], "sha": commit, "siblings": siblings, "private": False, "tags": []})

    do_HEAD = do_GET

    def url(self, name):
        return f"http://127.0.0.1:{self.server.server_port}/{name.removeprefix('models/')}"

    def answer(self, content, status=200, headers=()):
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **dict(headers)})

    def send(self, content, status, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def serve():
    """Run a stand-in; yields it and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
