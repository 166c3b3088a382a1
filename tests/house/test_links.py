"""Links of the notebooks work on GitHub, in Jupyter and on the site, and settings.ini decides the addresses."""
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import addresses
import pytest
from anchors import anchors, slug
from docs import without_dead_links, without_namesakes
from sidebar import ROOT, cells, listed, on_disk

LINK = re.compile(r'\]\(([^)\s]+)\)|\b(?:href|src)="([^"]+)"')
AWAY = re.compile(r'[a-z][a-z+.-]*:|//')


def texts(name: str):
    "What a notebook's page shows: its prose, and what its code shows as Markdown or HTML"
    for cell in cells(ROOT/name):
        if cell['cell_type'] == 'markdown':
            yield ''.join(cell['source'])
        shown = (out.get('data', {}) for out in cell.get('outputs', []))
        yield from (''.join(data[kind]) for data in shown for kind in ('text/markdown', 'text/html') if kind in data)


def links(name: str) -> list[str]:
    "Links of a notebook to other places of the project; private names have no page, and the site leaves theirs out"
    found = (m[1] or m[2] for text in texts(name) for m in LINK.finditer(text))
    return sorted({link for link in found if not AWAY.match(link)})


def target(name: str, link: str) -> Path:
    "The file that GitHub and Jupyter open: both read a link relative to the notebook's folder"
    path = unquote(link.partition('#')[0])
    return ((ROOT/name).parent/path).resolve() if path else ROOT/name


PAIRS = [(name, link) for name in on_disk() for link in links(name)]


def test_links_open_on_github_and_in_jupyter():
    assert len(PAIRS) > 300
    assert not [pair for pair in PAIRS if not target(*pair).is_file()]


def test_links_to_notebooks_become_pages_of_the_site():
    "Quarto and smalldocs turn a link to a notebook into one to its page, and copy what _quarto.yml lists as resources"
    pages, images = {ROOT/name for name in listed()}, ROOT/'nbs'/'images'
    assert not [pair for pair in PAIRS if target(*pair) not in pages and images not in target(*pair).parents]


def test_links_lead_to_anchors():
    "A heading, a documented name or an id of the page that is linked to"
    there = {pair: unquote(pair[1].partition('#')[2]) for pair in PAIRS if '#' in pair[1]}
    assert len(there) > 100
    assert not [pair for pair, anchor in there.items() if anchor not in anchors(target(*pair))]


def test_anchors_are_those_of_the_site():
    "Every kind of them, and none that a page does not have"
    assert slug('What a [link](x.ipynb#a) and `some_code` *cost*, in 2 steps') == 'what-a-link-and-some_code-cost-in-2-steps'
    assert slug('2 ways: `cfg.k`') == 'ways-cfg.k'
    optim, base, page = (anchors(ROOT/'nbs'/name) for name in ('training/optim.ipynb', 'saes/base.ipynb', 'analysis/page.ipynb'))
    assert {'saeoptimizer', 'saeoptimizer.step', 'sae.encode', 'sae.d_head', 'the-data'} <= optim | base | page
    assert not {'schedules-and-adam', 'saeoptimizer.state_dict', '_bars', 'nowhere'} & (optim | base | page)


def test_names_without_an_entry_are_not_linked():
    site = 'https://sae.example.org/'
    text = f'[`checked`]({site}core/arguments.html#checked), [`_private`]({site}core/arguments.html#_private), [`from_sae`]({site}activations/store.html#from_sae)'
    assert without_dead_links(text, site) == f'[`checked`]({site}core/arguments.html#checked), `_private`, `from_sae`'


def test_a_parameter_is_not_its_namesake():
    site, row = 'https://sae.example.org/', '"| [`nearest`]({0}core/errors.html#nearest) | [`Sized`]({0}core/x.html#sized) |\\n"'
    assert without_namesakes(row.format(site), site) == '"| `nearest` | [`Sized`](https://sae.example.org/core/x.html#sized) |\\n"'


def test_readme_leads_to_files():
    found = (m[1] or m[2] for m in LINK.finditer((ROOT/'README.md').read_text(encoding='utf-8')))
    there = [link for link in found if not AWAY.match(link)]
    assert len(there) > 20
    assert not [link for link in there if not (ROOT/unquote(link.partition('#')[0])).is_file()]


def test_badges_open_their_own_notebook():
    repository, _ = addresses.decided()
    start = repository.replace('https://github.com', 'https://colab.research.google.com/github')
    badges = {name: re.findall(r'\((https://colab[^)]*\.ipynb)\)', ''.join(texts(name))) for name in on_disk()}
    assert not [name for name, found in badges.items() if found not in ([], [f'{start}/blob/main/{name}'])]
    assert {name for name, found in badges.items() if found} == {name for name in on_disk() if '/tutorials/' in name}


def test_the_addresses_are_those_of_the_settings():
    assert addresses.written() == addresses.decided()
    assert not addresses.follow(check=True), 'run python tools/addresses.py'
    owners = {m[1] for path in addresses.files() for m in re.finditer(r'github\.com(?:/github)?/([\w.-]+)/sae-workbench\b', path.read_text(encoding='utf-8'))}
    assert owners == {addresses.decided()[0].split('/')[-2]}


@pytest.fixture
def copy(tmp_path) -> Path:
    "The files that name an address, and the settings"
    for path in [ROOT/'settings.ini', *addresses.files()]:
        new = tmp_path/path.relative_to(ROOT)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, new)
    return tmp_path


@pytest.mark.parametrize('settings', [{'user': 'ada'}, {'user': 'ada', 'doc_host': 'https://sae.example.org', 'doc_baseurl': '/nbs'}])
def test_all_pages_follow_the_settings(copy, settings):
    old, text = addresses.written(), (copy/'settings.ini').read_text(encoding='utf-8')
    for key, value in settings.items():
        text = re.sub(rf'^{key} = .*$', f'{key} = {value}', text, flags=re.M)
    (copy/'settings.ini').write_text(text, encoding='utf-8')
    changed = addresses.follow(copy)
    assert {'_quarto.yml', 'pyproject.toml', 'README.md', 'nbs/index.ipynb', 'nbs/tutorials/steering.ipynb'} <= set(changed)
    assert addresses.written(copy) == addresses.decided(copy) == (
        'https://github.com/ada/sae-workbench', settings.get('doc_host', 'https://ada.github.io/sae-workbench'))
    left = [path for path in addresses.files(copy) for address in addresses.spellings(*old) if address in path.read_text(encoding='utf-8')]
    assert not left
    assert not addresses.follow(copy)
