"""A hub on localhost: what huggingface_hub's client asks for, answered from a dict of files."""
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = '0123456789abcdef0123456789abcdef01234567'
LARGE = 1000   # bytes from which a file is named by its SHA-256, as the hub does for large files


def etag(data: bytes) -> str:
    "The name that the hub gives to a file's contents"
    return hashlib.sha256(data).hexdigest() if len(data) >= LARGE else hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


class FakeHub:
    "Serves `{repo: {file: bytes}}` while the `with` block runs; `asked` lists the requests"
    def __init__(self, repos: dict[str, dict[str, bytes]], gated: tuple[str, ...] = ()):
        self.repos, self.gated, self.asked = repos, gated, []

    def __enter__(self) -> 'FakeHub':
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *args): pass
            def do_HEAD(self): self.answer()
            def do_GET(self): self.answer()

            def answer(self):
                path = unquote(urlsplit(self.path).path).strip('/')
                hub.asked.append(f'{self.command} {path}')
                status, headers, body = hub.respond(path, 'recursive=true' in self.path.lower())
                self.send_response(status)
                for k, v in ({'Content-Length': str(len(body)), 'X-Repo-Commit': COMMIT} | headers).items():
                    self.send_header(k, v)
                self.end_headers()
                if self.command == 'GET':
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc) -> None:
        self.server.shutdown()
        self.server.server_close()

    def respond(self, path: str, deep: bool) -> tuple[int, dict, bytes]:
        "Status, headers and body of a request"
        parts = path.split('/')
        api = parts[:2] == ['api', 'models']
        repo, rest = '/'.join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if repo in self.gated:
            return 403, {'X-Error-Code': 'GatedRepo'}, b''
        if repo not in self.repos:
            return 401, {'X-Error-Code': 'RepoNotFound', 'X-Error-Message': 'Repository not found'}, b''
        revision, name = rest[1], '/'.join(rest[2:])
        if revision not in ('main', COMMIT):
            return 404, {'X-Error-Code': 'RevisionNotFound'}, b''
        return self.tree(self.repos[repo], name, deep) if api else self.file(self.repos[repo], name)

    def file(self, files: dict[str, bytes], name: str) -> tuple[int, dict, bytes]:
        if name not in files:
            return 404, {'X-Error-Code': 'EntryNotFound'}, b''
        return 200, {'ETag': f'"{etag(files[name])}"'}, files[name]

    def tree(self, files: dict[str, bytes], under: str, deep: bool) -> tuple[int, dict, bytes]:
        below = {n: d for n, d in files.items() if not under or n.startswith(f'{under}/')}
        entries = [dict(type='file', path=n, size=len(d), oid=etag(d)) for n, d in below.items()
                   if deep or '/' not in n.removeprefix(under).strip('/')]
        if not below:
            return 404, {'X-Error-Code': 'EntryNotFound'}, b''
        return 200, {'Content-Type': 'application/json'}, json.dumps(entries).encode()
