"""The notebooks of the project, in the order of the site's sidebar: reading order is import order."""
import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def website(root: Path = ROOT) -> dict:
    "What `_quarto.yml` says of the site"
    return yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['website']


def listed(root: Path = ROOT) -> list[str]:
    "Notebooks named in `_quarto.yml`'s sidebar, from top to bottom"
    def walk(items):
        for item in items:
            if isinstance(item, str):
                yield item
            elif 'contents' in item:
                yield from walk(item['contents'])
            elif 'href' in item:
                yield item['href']
    return [name for name in walk(website(root)['sidebar']['contents']) if name.endswith('.ipynb')]


def sections(root: Path = ROOT) -> list[tuple[str, list[str]]]:
    "The sidebar's sections with their notebooks; what stands in none comes under Start"
    found = {}
    for item in website(root)['sidebar']['contents']:
        alone = isinstance(item, str)
        found.setdefault('Start' if alone else item['section'], []).extend([item] if alone else item['contents'])
    return list(found.items())


def on_disk(root: Path = ROOT) -> list[str]:
    "Notebooks of the folder `nbs`, less hidden ones and checkpoints"
    found = (p.relative_to(root) for p in (root/'nbs').rglob('*.ipynb'))
    return sorted(p.as_posix() for p in found if not any(part.startswith(('.', '_')) for part in p.parts))


def cells(notebook: Path) -> list[dict]:
    "The cells of a notebook"
    return json.loads(notebook.read_text(encoding='utf-8'))['cells']


def heading(notebook: Path) -> tuple[str, str]:
    "The title of a notebook, which the sidebar, the page and the search show, and what it says below: what the page is about"
    title, _, about = ''.join(cells(notebook)[0]['source']).partition('\n')
    return title.removeprefix('# '), about.strip().lstrip('> ')


def module_of(notebook: Path) -> str | None:
    "The module that a notebook exports, such as `core.errors`; None for one that only tells"
    for cell in cells(notebook):
        found = re.search(r'^#\|\s*default_exp\s+(\S+)', ''.join(cell['source']), re.M)
        if found and cell['cell_type'] == 'code':
            return found[1]
    return None
