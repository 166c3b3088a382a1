"""Code that a page of the site shows fits its width: 88 columns."""
import re

import pytest
from sidebar import ROOT, cells, on_disk

COLUMNS = 88
UNSEEN = re.compile(r'^#\|\s*(hide|export|exporti|exports|default_exp|echo: false)', re.M)   # cells that no page shows
LESSONS = [name for name in on_disk() if re.match(r'nbs/(tutorials|guides)/|nbs/\w+\.ipynb', name)]


def wide(name: str) -> list[str]:
    "Lines of a notebook's visible cells that stick out; commands with an address are left alone, for addresses change"
    code = [''.join(c['source']) for c in cells(ROOT/name) if c['cell_type'] == 'code']
    lines = [line for source in code if not UNSEEN.search(source) for line in source.split('\n')]
    return [line for line in lines if len(line) > COLUMNS and not ('https://' in line and line.strip().startswith('!'))]


@pytest.mark.parametrize('name', LESSONS)
def test_code_is_not_wider_than_the_page(name):
    assert not wide(name)
