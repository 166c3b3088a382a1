"""Write README.md from nbs/index.ipynb (nbdev's own command needs the Quarto binary).

    python tools/readme.py
"""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->'
HIDDEN = re.compile(r'^#\|\s*(hide|export|default_exp|include: false)', re.M)
ECHO_OFF = re.compile(r'^#\|\s*echo: false', re.M)


def markdown(source: str) -> str:
    "A Markdown cell; paths relative to nbs/ become relative to the README"
    source = re.sub(r'\]\((?![a-z]+:|#|/)', '](nbs/', source)
    return re.sub(r'(<img\b[^>]*?\ssrc=")(?![a-z]+:|/)', r'\1nbs/', source)


def output(data: dict) -> str:
    "What a cell showed: Markdown as it is, text indented"
    if 'text/markdown' in data:
        return ''.join(data['text/markdown']).strip()
    lines = ''.join(data.get('text/plain', '')).rstrip().splitlines()
    return '\n'.join(f'    {line}' for line in lines)


def parts(notebook: dict):
    "The README's paragraphs"
    yield NOTE
    for cell in notebook['cells']:
        source = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown':
            yield markdown(source)
        elif cell['cell_type'] == 'code' and not HIDDEN.search(source):
            if not ECHO_OFF.search(source):
                yield '```python\n' + re.sub(r'^#\|.*\n', '', source, flags=re.M) + '\n```'
            for out in cell.get('outputs', []):
                yield output(out.get('data', {'text/plain': out.get('text', '')}))


def make(root: Path = ROOT) -> str:
    "The text of README.md"
    notebook = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    return '\n\n'.join(filter(None, parts(notebook))) + '\n'


if __name__ == '__main__':
    (ROOT/'README.md').write_text(make(), encoding='utf-8')
