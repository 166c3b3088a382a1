"""The dashboard in a real browser: it searches, sorts and turns pages, and nothing of the data runs."""
import json
import re
import subprocess

import pytest
import torch
from lab import CHROMIUM, FLAGS, MISSING, chromium

from sae_workbench import RowLatents, SAEMetadata, TopKSAE, TopKSAEConfig, dashboard, latent_stats
from sae_workbench.activations.example_data import toy_model
from sae_workbench.analysis.examples import TextLatents
from sae_workbench.analysis.latents import pick
from sae_workbench.analysis.page import read_labels
from sae_workbench.saes.standard import StandardSAE, StandardSAEConfig

DUMP = '--headless --window-size=1200,900 --virtual-time-budget=4000 --enable-logging=stderr --dump-dom'.split()
EVIL = '<script>document.title = "hacked"</script><img src=x onerror="document.title=\'hacked\'">'
ACTIONS = """
const log = [], rows = () => [...document.querySelectorAll('#index tbody tr')].filter(r => !r.hidden).map(r => r.id);
const shown = () => [...document.querySelectorAll('main section')].filter(s => !s.hidden).map(s => s.id);
const type = t => { search.value = t; search.dispatchEvent(new Event('input')); };
const search = document.getElementById('search'), heads = document.querySelectorAll('#index th');
log.push(shown());
heads[0].click(); log.push(rows());
heads[3].click(); log.push(rows());
type('thing 7'); log.push(rows());
type('2'); log.push(rows());
type(''); log.push(rows().length);
document.getElementById('row-4').click();
setTimeout(() => { log.push(shown()); document.body.append('RESULT' + JSON.stringify(log) + 'END' + document.title); }, 200);
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium')
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope='module')
def stats():
    "Latent i is 1 + i on row i, and 1 on the next"
    sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=8))
    for p in sae.parameters():
        p.data.zero_()
    sae.W_enc.data, sae.W_dec.data = torch.eye(8), torch.eye(8)
    acts = torch.diag(torch.arange(1., 9)) + torch.eye(8).roll(1, 0)
    return latent_stats(RowLatents(sae, acts, labels=[f'thing {i} שלום' for i in range(7)] + ['thing 7' + EVIL]))


def dom(path, folder) -> tuple[str, str]:
    "The document after its script has run, and what the console said"
    done = subprocess.run([CHROMIUM, *FLAGS, *DUMP, f'--user-data-dir={folder}', path.as_uri()], capture_output=True, text=True, timeout=60)
    return done.stdout, '\n'.join(line for line in done.stderr.splitlines() if 'CONSOLE' in line)


def test_opens_quietly(stats, tmp_path):
    text, console = dom(dashboard(stats, tmp_path/'page.html', range(6)), tmp_path/'profile')
    assert not console
    assert re.search('<title>(.*?)</title>', text)[1] != 'hacked' and '6 pages' in text
    assert len(re.findall(r'<section id="latent-\d+">', text)) == 1   # the others are hidden


def test_search_sort_and_turn_pages(stats, tmp_path):
    path = dashboard(stats, tmp_path/'page.html', [3, 1, 7, 4, 2, 6], title='all well')
    policy = re.compile('<meta http-equiv="Content-Security-Policy".*?>')
    assert len(policy.findall(path.read_text(encoding='utf-8'))) == 1
    path.write_text(policy.sub('', path.read_text(encoding='utf-8')).replace('</body>', f'<script>{ACTIONS}</script></body>'), encoding='utf-8')   # escaping alone protects now
    text, console = dom(path, tmp_path/'profile')
    assert not console
    result, title = re.search(r'RESULT(\[.*\])END(.*?)<', text).groups()
    row = [f'row-{i}' for i in range(8)]
    expected = [['latent-3'], [row[i] for i in (1, 2, 3, 4, 6, 7)], [row[i] for i in (7, 6, 4, 3, 2, 1)], [row[7], row[6]], [row[2]], 6, ['latent-4']]
    assert (json.loads(result), title) == (expected, 'all well')


def test_the_policy_stops_scripts(stats, tmp_path):
    path = dashboard(stats, tmp_path/'page.html', [1])
    path.write_text(path.read_text(encoding='utf-8').replace('</main>', f'{EVIL}</main>'), encoding='utf-8')   # as if something had not been escaped
    text, console = dom(path, tmp_path/'profile')
    assert '<title>hacked' not in text and 'Content Security Policy' in console


HITS = "[...(CSS.highlights.get('sae-hits') ?? [])].map(range => range.toString())"


@pytest.fixture(scope='module')
def page():
    "A page of a real browser, in which the file's own policy holds"
    with chromium() as browser:
        context = browser.new_context(viewport=dict(width=1440, height=900), accept_downloads=True)
        yield context.new_page()


def text_stats():
    "Latents on a text, with neighbours that are not chosen for a page"
    torch.manual_seed(0)
    model = toy_model(2, 16)
    sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=48, k=4, metadata=SAEMetadata(hook_name='blocks.0.hook_resid_post')))
    ids = torch.tensor(model.tokenizer('The cat sat on the mat. '*60)['input_ids'][:1280]).view(10, 128)
    return latent_stats(TextLatents(sae, model, ids, window=(80, 40)))


@needs_browser
def test_links_hits_and_context(page, tmp_path):
    stats = text_stats()
    path = dashboard(stats, tmp_path/'page.html', n=4)
    page.goto(path.as_uri())
    first = page.locator('main section:visible')
    assert first.locator('.pairs code[style*="rgba(205,85,0"]').count() and first.locator('.pairs code[style*="rgba(0,115,250"]').count()
    links = first.locator('.pairs a')
    assert links.count() == 8   # all neighbours
    brief = page.locator(f"aside#{links.evaluate_all('ls => ls.map(l => l.hash.slice(1)).find(id => document.getElementById(id).tagName === `ASIDE`)')}")
    page.locator(f".pairs a[href='#{brief.get_attribute('id')}']:visible").click()
    brief.wait_for(state='visible')
    assert page.locator('main section:visible').count() == 0 and 'short page' in brief.inner_text()
    page.go_back()
    first.wait_for()

    assert page.evaluate(HITS) == []
    page.locator('#search').fill('SAT')   # of three tokens: bytes
    shown = page.evaluate(HITS)
    assert shown and set(shown) == {'sat'}
    page.locator('#search').fill('12')
    assert page.evaluate(HITS) == []
    page.locator('#search').fill('.*')
    assert page.evaluate(HITS) == []

    page.locator('#search').fill('')
    context = first.locator('details').first
    assert context.locator('.far').first.is_hidden()
    context.locator('summary').click()
    assert context.locator('.far').first.is_visible()


@needs_browser
def test_labels_are_kept(page, tmp_path):
    stats, evil = text_stats(), '<b id="evil">x</b> & "y"'
    a, b = pick(stats, 2)
    path = dashboard(stats, tmp_path/'page.html', [a, b], labels={b: 'from Python'})
    page.goto(path.as_uri())
    label, name = page.locator(f'#latent-{a} input.label'), page.locator(f'#row-{a} .called')
    assert page.locator(f'#row-{b} .called').inner_text() == 'from Python'
    label.fill(evil)
    assert name.inner_text() == evil
    label.press('ArrowRight')   # moves in the field, and does not turn the page
    assert label.is_visible()
    page.locator('#search').fill('evil')
    assert page.locator('#index tbody tr:visible').count() == 1
    page.reload()   # kept by the browser
    assert (label.input_value(), name.inner_text()) == (evil, evil)
    with page.expect_download() as saved:
        page.locator('#keep').click()
    saved.value.save_as(tmp_path/'labels.json')
    assert read_labels(tmp_path/'labels.json', stats.sae) == {a: evil, b: 'from Python'}

    again = dashboard(stats, tmp_path/'again.html', [a], labels=tmp_path/'labels.json')   # to Python and back
    page.evaluate('localStorage.clear()')
    page.goto(again.as_uri())
    assert label.input_value() == evil
    (tmp_path/'more.json').write_text(json.dumps({str(a): 'new', 'x': 1}), encoding='utf-8')
    page.locator('#load').set_input_files(tmp_path/'more.json')
    page.get_by_text('1 label read').wait_for()
    assert (label.input_value(), page.locator('#evil').count()) == ('new', 0)
    page.locator('#load').set_input_files(again)
    page.get_by_text('not a file of labels').wait_for()
