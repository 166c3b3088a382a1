"""A hub on localhost: what huggingface_hub's client asks for, answered from a dict of files. Uploads are taken as the hub takes them:
large files first, by their hash, then all of them at once with the commit."""
import base64
import hashlib
import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

COMMIT = '0123456789abcdef0123456789abcdef01234567'
LARGE = 1000   # bytes from which a file is named by its SHA-256, as the hub does for large files
TOKEN = 'hf_of_the_fake_hub'


def etag(data: bytes) -> str:
    "The name that the hub gives to a file's contents"
    return hashlib.sha256(data).hexdigest() if len(data) >= LARGE else hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def reply(data, status: int = 200, **headers) -> tuple[int, dict, bytes]:
    return status, {'Content-Type': 'application/json'} | headers, json.dumps(data).encode()


class FakeHub:
    """Serves `{repo: {file: bytes}}` while the `with` block runs; `asked` lists the requests, `commits` the commits.

    `faults` says what goes wrong: `{'POST commit': [503, 'drop']}` answers the first request that has both words with 503, and
    drops the connection of the second; 'lose' does what is asked and then drops the connection; a function is called, then it is dropped.
    A branch is the repository `owner/name@branch`.
    """
    def __init__(self, repos: dict[str, dict[str, bytes]] | None = None, gated: tuple[str, ...] = (), readonly: tuple[str, ...] = ()):
        self.repos, self.gated, self.readonly, self.asked = repos or {}, gated, readonly, []
        self.objects, self.commits, self.faults = {}, [], {}

    def __enter__(self) -> 'FakeHub':
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = 'HTTP/1.1', True

            def log_message(self, *args): pass
            def do_HEAD(self): self.answer()
            def do_GET(self): self.answer()
            def do_POST(self): self.answer()
            def do_PUT(self): self.answer()

            def body(self) -> bytes:
                if self.headers.get('Transfer-Encoding') != 'chunked':
                    return self.rfile.read(int(self.headers.get('Content-Length', 0)))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b''.join(parts)

            def answer(self):
                path, body = unquote(urlsplit(self.path).path).strip('/'), self.body()
                hub.asked.append(f'{self.command} {path}')
                fault = hub.fault(f'{self.command} {path}')
                if fault == 'drop':
                    return self.drop()
                token = self.headers.get('Authorization', '').removeprefix('Bearer ')
                status, headers, data = hub.respond(self.command, path, 'recursive=true' in self.path.lower(), body, token) \
                    if fault in (None, 'lose') else (fault, {}, b'')
                if fault == 'lose':
                    return self.drop()
                self.send_response(status)
                for k, v in ({'Content-Length': str(len(data)), 'X-Repo-Commit': COMMIT} | headers).items():
                    self.send_header(k, v)
                self.end_headers()
                if self.command != 'HEAD':
                    self.wfile.write(data)

            def drop(self):
                self.close_connection = True

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, args=(.02,), daemon=True).start()
        return self

    def __exit__(self, *exc) -> None:
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def used_here(self, cache, token: str | None = TOKEN):
        "This process asks the fake hub instead of the real one, with a cache of its own"
        from huggingface_hub import constants, file_download, utils
        forget = getattr(utils, 'close_session', None) or utils.reset_sessions   # before version 1; a session knows whether it is offline
        names = dict(ENDPOINT=self.url, HF_HUB_OFFLINE=False, HF_HUB_CACHE=str(cache), HF_HUB_DISABLE_XET=True,
                     HF_TOKEN_PATH=str(cache) + '.no_token', HUGGINGFACE_CO_URL_TEMPLATE=self.url + '/{repo_id}/resolve/{revision}/{filename}')
        env = {k: v for k, v in os.environ.items() if k not in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_HUB_OFFLINE')} | ({'HF_TOKEN': token} if token else {})
        template = 'HUGGINGFACE_CO_URL_TEMPLATE'   # older versions keep a second copy of it
        with patch.multiple(constants, **names), patch.dict(os.environ, env, clear=True), \
                patch.object(file_download, template, names[template], create=True):
            forget()
            yield self
        forget()

    def fault(self, request: str):
        for words, waiting in self.faults.items():
            if waiting and all(w in request for w in words.split()):
                fault = waiting.pop(0)
                if not callable(fault):
                    return fault
                fault()
                return 'drop'

    def respond(self, method: str, path: str, deep: bool, body: bytes, token: str) -> tuple[int, dict, bytes]:
        "Status, headers and body of a request"
        parts = path.split('/')
        writes = method in ('POST', 'PUT') and path != 'api/validate-yaml'
        if (writes or path == 'api/whoami-v2') and parts[0] != 'objects' and token != TOKEN:
            return reply(dict(error='Invalid username or password.'), 401)
        if path == 'api/whoami-v2':
            return reply(dict(type='user', name='me', orgs=[]))
        if path == 'api/validate-yaml':
            return reply(dict(errors=[], warnings=[]))
        if path == 'api/repos/create':
            return self.create(json.loads(body))
        if parts[0] == 'objects':
            return self.put(parts[1], body)
        if path.endswith('.git/info/lfs/objects/batch'):
            return self.batch(json.loads(body))
        api = parts[:2] == ['api', 'models']
        repo, rest = '/'.join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if repo in self.gated:
            return 403, {'X-Error-Code': 'GatedRepo'}, b''
        if repo not in self.repos:
            return 401, {'X-Error-Code': 'RepoNotFound', 'X-Error-Message': 'Repository not found'}, b''
        if writes and repo in self.readonly:
            return reply(dict(error='You have no rights to write here.'), 403)
        revision, name = rest[1], '/'.join(rest[2:])
        if rest[0] == 'branch':
            self.repos.setdefault(f'{repo}@{revision}', dict(self.repos[repo]))
            return reply({})
        key = f'{repo}@{revision}' if f'{repo}@{revision}' in self.repos else repo
        if key == repo and revision not in ('main', COMMIT):
            return 404, {'X-Error-Code': 'RevisionNotFound'}, b''
        if rest[0] == 'revision':
            return reply(dict(id=repo, sha=COMMIT, siblings=[dict(rfilename=n) for n in self.repos[key]]))
        if rest[0] in ('preupload', 'commit'):
            return getattr(self, rest[0])(key, body)
        return self.tree(self.repos[key], name, deep) if api else self.file(self.repos[key], name)

    def file(self, files: dict[str, bytes], name: str) -> tuple[int, dict, bytes]:
        if name not in files:
            return 404, {'X-Error-Code': 'EntryNotFound'}, b''
        return 200, {'ETag': f'"{etag(files[name])}"'}, files[name]

    def tree(self, files: dict[str, bytes], under: str, deep: bool) -> tuple[int, dict, bytes]:
        below = {n: d for n, d in files.items() if not under or n.startswith(f'{under}/')}
        entries = [dict(type='file', path=n, size=len(d), oid=etag(d)) for n, d in below.items()
                   if deep or '/' not in n.removeprefix(under).strip('/')]
        if not below and under:
            return 404, {'X-Error-Code': 'EntryNotFound'}, b''
        return reply(entries)

    def create(self, asked: dict) -> tuple[int, dict, bytes]:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.repos:
            return reply(dict(error='You already created this model repo', url=f'{self.url}/{repo}'), 409)
        self.repos[repo] = {'.gitattributes': b''}
        return reply(dict(url=f'{self.url}/{repo}'))

    def preupload(self, key: str, body: bytes) -> tuple[int, dict, bytes]:
        "Which files go first, and what the repository has under their names"
        there = self.repos[key]
        return reply(dict(files=[dict(path=f['path'], uploadMode='lfs' if f['size'] >= LARGE else 'regular', shouldIgnore=False)
                                 | (dict(oid=etag(there[f['path']])) if f['path'] in there else {}) for f in json.loads(body)['files']]))

    def batch(self, asked: dict) -> tuple[int, dict, bytes]:
        "Where large files go; those that are there already go nowhere"
        where = {o['oid']: {} if o['oid'] in self.objects else dict(actions=dict(upload=dict(href=f"{self.url}/objects/{o['oid']}"))) for o in asked['objects']}
        return reply(dict(transfer='basic', objects=[o | where[o['oid']] for o in asked['objects']]))

    def put(self, oid: str, body: bytes) -> tuple[int, dict, bytes]:
        if hashlib.sha256(body).hexdigest() != oid:
            return reply(dict(error='the hash does not fit'), 400)
        self.objects[oid] = body
        return 200, {}, b''

    def commit(self, key: str, body: bytes) -> tuple[int, dict, bytes]:
        "All files of a commit, or none"
        (header, *lines), new, gone = [json.loads(line) for line in body.splitlines()], {}, set()
        for kind, line in ((line['key'], line['value']) for line in lines):
            if kind == 'deletedFile':
                gone.add(line['path'])
                continue
            if 'oid' in line and line['oid'] not in self.objects:
                return reply(dict(error=f"{line['path']} was not uploaded"), 400)
            new[line['path']] = self.objects[line['oid']] if 'oid' in line else base64.b64decode(line['content'])
        self.repos[key] = {n: d for n, d in (self.repos[key] | new).items() if n not in gone}
        self.commits.append((key, header['value']['summary'], sorted(new)))
        repo = key.partition('@')[0]
        return reply(dict(commitUrl=f"{self.url}/{repo}/commit/{COMMIT}", commitOid=COMMIT, success=True))
