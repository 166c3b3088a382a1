"""Code that a page of the site shows fits its width, 88 columns, and what goes on in the next line begins where its neighbours do."""
import io
import re
import tokenize

import pytest
from sidebar import ROOT, cells, on_disk

COLUMNS = 88
UNSEEN = re.compile(r'^#\|\s*(hide|export|exporti|exports|default_exp|echo: false)', re.M)   # cells that no page shows
WIDE = {'nbs/migrate/rewrite.ipynb'}   # it quotes a script of others
LESSONS = [name for name in on_disk() if name not in WIDE]
FENCED = re.compile(r'^```python\n(.*?)^```', re.M | re.S)


def shown(name: str) -> list[str]:
    "The code of a notebook's visible cells"
    code = (''.join(c['source']) for c in cells(ROOT/name) if c['cell_type'] == 'code')
    return [source for source in code if not UNSEEN.search(source)]


def wide(name: str) -> list[str]:
    "Lines of a notebook's visible cells, and of the Python in its prose, that stick out; commands with an address are left alone, for addresses change"
    prose = (''.join(c['source']) for c in cells(ROOT/name) if c['cell_type'] == 'markdown')
    fenced = [block for source in prose for block in FENCED.findall(source)]
    lines = [line for source in shown(name) + fenced for line in source.split('\n')]
    return [line for line in lines if len(line) > COLUMNS and not ('https://' in line and line.strip().startswith('!'))]


@pytest.mark.parametrize('name', LESSONS)
def test_code_is_not_wider_than_the_page(name):
    assert not wide(name)


PASSED_OVER = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def ragged(source: str) -> list[str]:
    "Lines that begin with an item of a bracket, and not at the column of the line before them in it"
    found, brackets, before, line = [], [], '', 0   # a bracket is the column of its lines
    for token in tokenize.generate_tokens(io.StringIO(re.sub(r'^(\s*)(!(?!=)|%\w).*$', r'\1pass', source, flags=re.M)).readline):
        if token.type in PASSED_OVER:
            continue
        if token.start[0] != line and brackets and token.string not in ')]}':
            column = token.start[1]
            if brackets[-1] is None:
                brackets[-1] = column
            elif before == ',' and column != brackets[-1]:
                found.append(token.line.rstrip())
        line, before = token.end[0], token.string
        if token.type == tokenize.OP and token.string in '([{':
            brackets.append(None)
        elif token.type == tokenize.OP and token.string in ')]}':
            brackets.pop()
    return found


def test_what_is_ragged():
    assert ragged('f(a,\n    b,\n        c)') == ['        c)']
    assert not ragged('f(a,\n  b(c,\n      d),\n  e)\nx = """\n   ,\n y"""')


@pytest.mark.parametrize('name', LESSONS)
def test_items_below_each_other_begin_at_one_column(name):
    assert not [line for source in shown(name) for line in ragged(source)]
