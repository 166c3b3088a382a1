"""Texts in files are UTF-8, whatever the locale: every call that opens a text names its encoding, in notebooks, tests, tools and benchmarks."""
import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ('nbs', 'tests', 'tools', 'benchmarks')


def text_calls(source: str) -> Iterator[ast.Call]:
    "Calls that open a text without naming its encoding"
    plain = re.sub(r'^(\s*)(%{1,2}[a-z]|!(?!=)).*$', r'\1pass', source, flags=re.MULTILINE)   # Jupyter's own lines
    for n in ast.walk(ast.parse(plain)):
        if isinstance(n, ast.Call) and opens_text(n) and 'encoding' not in {k.arg for k in n.keywords}:
            yield n


def opens_text(n: ast.Call) -> bool:
    "Whether a call reads or writes a text: `open(…)`, `path.open('w')`, `os.fdopen(…)`, `path.read_text()`, `path.write_text(…)`"
    if isinstance(n.func, ast.Attribute) and n.func.attr in ('read_text', 'write_text'):
        return True
    parts = [part for a in (*n.args, *(k.value for k in n.keywords if k.arg == 'mode')) for part in ast.walk(a)]
    texts = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
    modes = [m for m in texts if re.fullmatch('[rwxabt+]{1,3}', m)]
    if any('b' in m for m in modes):
        return False
    if isinstance(n.func, ast.Name):
        return n.func.id == 'open'
    return n.func.attr == 'fdopen' or n.func.attr == 'open' and bool(modes) if isinstance(n.func, ast.Attribute) else False


def sources(path: Path) -> Iterator[tuple[str, str]]:
    "The code of a script, or of each cell of a notebook, with a name"
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.py':
        yield str(path.relative_to(ROOT)), text
    else:
        for cell in json.loads(text)['cells']:
            if cell['cell_type'] == 'code':
                yield f"{path.relative_to(ROOT)}#{cell['id']}", ''.join(cell['source'])


@pytest.mark.parametrize('place', PLACES)
def test_every_text_is_opened_with_an_encoding(place):
    files = [p for p in sorted((ROOT/place).rglob('*')) if p.suffix in ('.py', '.ipynb') and '.ipynb_checkpoints' not in p.parts]
    assert files
    assert not [f'{name}: {ast.unparse(n)}' for p in files for name, text in sources(p) for n in text_calls(text)]


@pytest.mark.parametrize('code, found', [
    ("open(p)", True), ("open(p, 'rb')", False), ("open(p, mode='r+b')", False), ("open(p, 'r+b' if x else 'w+b')", False), ("open(p, 'w', encoding='utf-8')", False), ("p.open('w')", True),
    ("p.read_text()", True), ("p.write_text('b')", True), ("os.open(p, os.O_RDONLY)", False), ("self.open()", False), ("if x:\n    %time f()", False)])
def test_what_counts_as_opening_a_text(code, found):
    assert bool([*text_calls(code)]) is found


def test_files_in_a_locale_without_utf8(tmp_path):
    "What is written with non-ASCII texts in it comes back: config, card, recipe, log"
    code = f"""
import json, sys
from pathlib import Path
from sae_workbench import SAE, SAEMetadata, StandardSAE, StandardSAEConfig
from sae_workbench.core.files import read_json, write_json
from sae_workbench.training.callbacks import read_log
home = Path({str(tmp_path)!r})
name = '\\u6570\\u636e/\\u00e9'
assert sys.flags.utf8_mode == 0
sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=16, metadata=SAEMetadata(dataset_path=name)))
sae.save_pretrained(home/'sae')
cfg = json.loads((home/'sae'/'cfg.json').read_text(encoding='utf-8'))
(home/'sae'/'cfg.json').write_text(json.dumps(cfg, ensure_ascii=False), encoding='utf-8')
for load in (SAE.load_from_disk, SAE.from_pretrained):
    assert load(home/'sae').cfg.metadata.dataset_path == name
assert name in (home/'sae'/'README.md').read_text(encoding='utf-8')
(home/'a.json').write_text(json.dumps(dict(text=name), ensure_ascii=False), encoding='utf-8')
assert read_json(home/'a.json') == read_json(write_json(home/'b.json', dict(text=name)))
(home/'log.jsonl').write_text(json.dumps(dict(step=1, text=name), ensure_ascii=False) + '\\n', encoding='utf-8')
assert read_log(home/'log.jsonl')[0]['text'] == name
print('done')
"""
    env = os.environ | dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONPATH=str(ROOT), PYTHONIOENCODING='utf-8')
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, encoding='utf-8')
    assert done.stdout == 'done\n', done.stderr
