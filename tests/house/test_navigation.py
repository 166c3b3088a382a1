"""The site is named by what people do and not by the package's folders and modules."""
import re
from pathlib import Path

from sidebar import ROOT, cells, heading, listed, sections

from sae_workbench import MODULE_OF, _PUBLIC

FOLDERS = {p.name for p in (ROOT/'nbs').iterdir() if p.is_dir()}
NAMES = {'dictionary_learning', 'sparsify', 'circuit-tracer', 'bfloat16', 'ActivationsStore'}   # that people use


def test_titles_are_words():
    titles = {name: heading(ROOT/name)[0] for name in listed()}
    assert not [name for name, t in titles.items() if t not in NAMES and (t == Path(name).stem or not re.match(r'[A-Z]', t))]
    assert len(set(titles.values())) == len(titles)


def test_sections_are_not_folders():
    names = [section for section, _ in sections()]
    assert not {name.lower() for name in names} & (FOLDERS - {'tutorials', 'guides'})
    assert len(names) == len(set(names)) > 8


def test_a_section_is_one_folder():
    "So that reading order is import order from top to bottom"
    folders = {section: {name.split('/')[1] for name in names if name.count('/') == 2} for section, names in sections()}
    assert all(len(found) <= 1 for found in folders.values())


def test_the_reference_begins_with_sae():
    "What most scripts import comes first, the errors come last, under the headings of the sidebar"
    table = next(''.join(out['data']['text/markdown']) for c in cells(ROOT/'nbs/api.ipynb') for out in c.get('outputs', []) if 'text/markdown' in out.get('data', {}))
    names = re.findall(r'^\| \[`?(?:<code>)?(\w+)', table, re.M)
    assert names[0] == 'SAE' and all(n.endswith('Error') for n in names[-8:]) and len(names) > 100
    assert set(re.findall(r'^## (.+)$', table, re.M)) <= {section for section, _ in sections()}
    places = dict(re.findall(r'^\| \[`?(?:<code>)?(\w+)(?:</code>)?`?\]\(([^#)]+)\.ipynb', table, re.M))
    assert places == {name: MODULE_OF[name].replace('.', '/') for names in _PUBLIC.values() for name in names}, 'run python tools/nbs.py nbs/api.ipynb'
