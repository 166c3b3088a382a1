"""Code that a page of the site shows fits its width: 88 columns."""
import re

import pytest
from sidebar import ROOT, cells, on_disk

COLUMNS = 88
UNSEEN = re.compile(r'^#\|\s*(hide|export|exporti|exports|default_exp|echo: false)', re.M)   # cells that no page shows
WIDE = {'nbs/migrate/rewrite.ipynb'}   # it quotes a script of others
LESSONS = [name for name in on_disk() if name not in WIDE]
FENCED = re.compile(r'^```python\n(.*?)^```', re.M | re.S)


def wide(name: str) -> list[str]:
    "Lines of a notebook's visible cells, and of the Python in its prose, that stick out; commands with an address are left alone, for addresses change"
    sources = [(c['cell_type'], ''.join(c['source'])) for c in cells(ROOT/name)]
    code = [source for kind, source in sources if kind == 'code' and not UNSEEN.search(source)]
    fenced = [block for kind, source in sources if kind == 'markdown' for block in FENCED.findall(source)]
    lines = [line for source in code + fenced for line in source.split('\n')]
    return [line for line in lines if len(line) > COLUMNS and not ('https://' in line and line.strip().startswith('!'))]


@pytest.mark.parametrize('name', LESSONS)
def test_code_is_not_wider_than_the_page(name):
    assert not wide(name)
