"""A real JupyterLab and a real headless Chromium, for tests of widgets.

Needs jupyterlab, playwright and a Chromium. SAE_SCREENSHOTS=FOLDER keeps pictures of what was seen.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
SETTINGS = ('--allow-root --no-browser --ip=127.0.0.1 --IdentityProvider.token= --ServerApp.password= --LabApp.news_url=None '
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --expose-app-in-browser').split()


MISSING = [name for name in ('jupyterlab', 'playwright', 'ipykernel') if find_spec(name) is None] + ['chromium'] * (CHROMIUM is None)


def write_notebook(path: Path, cells: list[str]) -> Path:
    kernel = dict(name='python3', display_name='Python 3', language='python')
    made = [dict(cell_type='code', id=f'c{i}', metadata={}, source=s, execution_count=None, outputs=[]) for i, s in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)), encoding='utf-8')
    return path


@contextmanager
def server(folder: Path):
    "JupyterLab on a folder, which also takes its settings and its log; yields the address"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    own = {n: str(folder/f'.{n.lower()}') for n in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR')}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'PLOTLY_RENDERER')} | own | dict(PYTHONPATH=paths)
    settings = Path(own['JUPYTER_CONFIG_DIR'], 'lab/user-settings/@jupyterlab/apputils-extension')
    settings.mkdir(parents=True)
    (settings/'notification.jupyterlab-settings').write_text('{"fetchNews": "false"}', encoding='utf-8')
    with open(folder/'lab.log', 'w', encoding='utf-8') as log:
        lab = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *SETTINGS, f'--port={port}', f'--ServerApp.root_dir={folder}'], env=env, cwd=folder, stdout=log, stderr=log)
        try:
            until(lambda: socket.socket().connect_ex(('127.0.0.1', port)) == 0, 60)
            yield f'http://127.0.0.1:{port}'
        finally:
            lab.terminate()
            try:
                lab.wait(20)
            except subprocess.TimeoutExpired:
                lab.kill()


def until(what, seconds: float = 60) -> None:
    end = time.time() + seconds
    while not what():
        if time.time() > end:
            raise TimeoutError
        time.sleep(.1)


class Notebook:
    "A notebook that is open in the browser"
    def __init__(self, page): self.page = page

    def command(self, name: str) -> None: self.page.evaluate('name => jupyterapp.commands.execute(name)', name)

    def keep(self, name: str) -> None:
        "A picture, if somebody wants to see it"
        if folder := os.environ.get('SAE_SCREENSHOTS'):
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=f'{folder}/{name}.png')

    def cell(self, n: int): return self.page.locator('.jp-Notebook .jp-CodeCell').nth(n)

    def run(self, n: int, seconds: float = 120) -> str:
        "Run a cell, wait for its end, and return its output as text"
        cell = self.cell(n)
        cell.locator('.jp-InputArea-editor').click()
        for _ in range(20):   # one that comes while the page still wires itself up can be lost
            self.command('notebook:run-cell')
            self.page.wait_for_timeout(500)
            if cell.locator('.jp-InputPrompt').inner_text().strip() not in ('[ ]:', ''):
                break
        until(lambda: not self.page.wait_for_timeout(100) and cell.locator('.jp-InputPrompt').inner_text().strip(' []:').isdigit(), seconds)
        self.page.wait_for_timeout(300)
        found = cell.locator('.jp-OutputArea-output')
        return '\n'.join(found.all_inner_texts())


@contextmanager
def chromium():
    "A browser without a window"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p, closing(p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)) as browser:
        yield browser


@contextmanager
def notebook(path: Path, width: int = 1280, height: int = 900):
    "Open a notebook in a JupyterLab of its own; errors in the page and requests to other machines fail the test"
    with server(path.parent) as address, chromium() as browser:
        page = browser.new_page(viewport=dict(width=width, height=height))
        errors, outside = [], []
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.on('request', lambda r: outside.append(r.url) if not r.url.startswith((address, address.replace('http', 'ws'), 'data:', 'blob:')) else None)
        page.goto(f'{address}/lab/tree/{path.name}?reset')
        page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=60_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
        if page.locator('.jp-SideBar .lm-mod-current').count():   # fold the file browser away
            page.keyboard.press('Control+b')
        try:
            yield Notebook(page)
        except BaseException:
            Notebook(page).keep(f'{path.stem}_failed')
            raise
        assert not errors and not outside, (errors, outside)
