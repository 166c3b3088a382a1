"""The dashboard in a real browser: it searches, sorts and turns pages, and nothing of the data runs."""
import json
import re
import subprocess

import pytest
import torch
from lab import CHROMIUM, FLAGS

from sae_workbench import RowLatents, dashboard, latent_stats
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
