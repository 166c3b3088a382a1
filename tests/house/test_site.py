"""The documentation site in a real browser: every page opens quietly and is drawn, at two widths, and the search finds what it should.

Building the site takes a minute: run with `-m slow`. SAE_WORKBENCH_SITE names a site that is built already.
"""
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from dataclasses import fields
from html import unescape
from pathlib import Path

import pytest
from docs import KATEX_CDN, broken_links
from lab import CHROMIUM, chromium
from sidebar import ROOT, listed

import sae_workbench
from sae_workbench import (GatedTrainingSAEConfig, JumpReLUTrainingSAEConfig, LanguageModelSAERunnerConfig, LoggingConfig, SAETrainerConfig,
                           StandardTrainingSAEConfig, TopKTrainingSAEConfig)
from sae_workbench.core.old_options import OLD_OPTIONS

CONFIGS = (LanguageModelSAERunnerConfig, SAETrainerConfig, LoggingConfig, StandardTrainingSAEConfig, GatedTrainingSAEConfig,
           JumpReLUTrainingSAEConfig, TopKTrainingSAEConfig)

DESKTOP, PHONE = dict(width=1280, height=900), dict(width=390, height=844)
PAGES = [str(Path(name).with_suffix('.html')) for name in listed()]
OLD_NAMES = 'nbs/guides/old_names.html'
GUIDE = 'nbs/guides/migration.html'
GLOSSARY = 'nbs/guides/glossary.html'
FOUND = {   # any of these tells what to write instead
    'expansion_factor': (f'{OLD_NAMES}#expansion_factor', f'{GUIDE}#expansion_factor'),
    'SAETrainingRunner': (f'{OLD_NAMES}#saetrainingrunner', f'{GUIDE}#saetrainingrunner', 'nbs/training/runner.html#saetrainingrunner'),
    'b_dec_init_method': (f'{OLD_NAMES}#b_dec_init_method',),
    'use_ghost_grads': (f'{OLD_NAMES}#use_ghost_grads',),
    'ghost grads': (f'{OLD_NAMES}#ghost-grads', f'{GUIDE}#ghost-grads'),
    'HookedSAETransformer': (f'{OLD_NAMES}#hookedsaetransformer', f'{GUIDE}#saes-in-a-model'),
    'use_error_term': (f'{OLD_NAMES}#use_error_term', f'{GUIDE}#saes-in-a-model'),
    'sae.cfg.hook_layer': (f'{OLD_NAMES}#sae.cfg.hook_layer',),
    'LMSparseAutoencoderSessionloader': (f'{OLD_NAMES}#lmsparseautoencodersessionloader',),
    'from_pretrained tuple': (f'{OLD_NAMES}#from_pretrained-tuple-sae-cfg-sparsity',),
    'load_from_pretrained': (f'{OLD_NAMES}#load_from_pretrained',),
    'set_decoder_norm_to_unit_norm': (f'{OLD_NAMES}#set_decoder_norm_to_unit_norm',),
    'gpu': (f'{GLOSSARY}#gpu',),
    'multi gpu': (f'{GLOSSARY}#multi-gpu-torchrun',),
    'colab': (f'{GLOSSARY}#colab',),
    'dead latents': (f'{GLOSSARY}#dead-latents-dead-features',),
    'explained variance': (f'{GLOSSARY}#explained-variance',),
    'max activating examples': (f'{GLOSSARY}#max-activating-examples-top-examples',),
    'own text file': ('nbs/tutorials/your_own_text.html',),
    'topk': ('nbs/saes/topk.html',),
    'steering': ('nbs/tutorials/steering.html',),
}
UNDRAWN = """() => {
    const bad = [], size = e => e.getBoundingClientRect(), seen = e => e.getClientRects().length;
    document.querySelectorAll('main img').forEach(e => { if (seen(e) && !(e.complete && e.naturalWidth)) bad.push('image ' + e.src); });
    document.querySelectorAll('.plotly-graph-div').forEach(e => {
        const drawn = e.querySelector('.main-svg');
        if (seen(e) && !(drawn && size(drawn).width > 50 && size(drawn).height > 50)) bad.push('figure ' + e.id);
    });
    return bad;
}"""
TOO_WIDE = """() => {
    const bad = [], width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) bad.push('the page: ' + document.documentElement.scrollWidth);
    document.querySelectorAll('main img, .plotly-graph-div .main-svg').forEach(e => {
        const box = e.getBoundingClientRect();
        if (box.width > width) bad.push(e.tagName + ' ' + (e.src || e.closest('[id]').id) + ': ' + box.width);
    });
    return bad;
}"""
FAINT = r"""() => {
    const parse = c => { const n = c.match(/[\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
    const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1);
    const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b; };
    const paper = e => {
        const layers = [];
        for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c[3]) layers.push(c);
            if (c[3] === 1) break;
        }
        return layers.reverse().reduce((below, c) => over(c, below), [255, 255, 255, 1]);
    };
    const bad = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || e.closest('svg, script, style, [disabled], .katex-mathml') || !e.getClientRects().length) continue;
        const style = getComputedStyle(e), below = paper(e);
        if (style.visibility === 'hidden' || +style.opacity === 0) continue;
        const ink = over(parse(style.color), below), [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
        const px = parseFloat(style.fontSize), large = px >= 24 || (px >= 18.66 && +style.fontWeight >= 700);
        const ratio = (a + .05)/(b + .05);
        if (ratio < (large ? 3 : 4.5)) bad[`${style.color} on ${below.slice(0, 3).map(Math.round)}`] = ratio.toFixed(2) + ' ' + walker.currentNode.data.trim().slice(0, 40);
    }
    return bad;
}"""   # texts below the contrast that WCAG 2 asks for at level AA: 4.5, or 3 for large letters
STICKS_OUT = """() => [...document.querySelectorAll('main pre')].filter(e => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1
    && !e.innerText.includes('!pip install')).map(e => e.scrollWidth + ': ' + e.innerText.slice(0, 60))"""
CUT_OFF = """() => [...document.querySelectorAll('main table')].filter(e => {
    if (!e.getClientRects().length || e.getBoundingClientRect().right <= document.documentElement.clientWidth + 1) return false;
    for (let box = e; box && box.tagName !== 'MAIN'; box = box.parentElement)
        if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX) && box.getBoundingClientRect().right <= document.documentElement.clientWidth + 1) return false;
    return true;
}).map(e => e.innerText.slice(0, 60))"""   # tables that leave the window, and that nothing scrolls
FIGURES = """() => [...document.querySelectorAll('.plotly-graph-div')].map(e => {
    const style = s => [...e.querySelectorAll(s)].map(e => getComputedStyle(e));
    return { paper: style('.main-svg')[0].backgroundColor, plot: style('.bglayer .bg').some(s => +s.fillOpacity), texts: style('text').map(s => s.fill) };
})"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope='session')
def site() -> Path:
    "The folder of the built site"
    if ready := os.environ.get('SAE_WORKBENCH_SITE'):
        return (ROOT/ready).resolve()
    done = subprocess.run([sys.executable, 'tools/docs.py', '--renderer', 'smalldocs'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT/'_docs'


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='session')
def address(site):
    "The site, served on this machine"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='session')
def browser():
    pytest.importorskip('playwright.sync_api')
    if CHROMIUM is None:
        pytest.skip('no chromium')
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    "A window that notes errors, and what it asks of other machines"
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.errors, page.asked = [], []
    page.on('console', lambda m: page.errors.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: page.errors.append(str(e)))

    def elsewhere(route):
        page.asked.append(route.request.url)
        route.fulfill(status=200, body='')

    page.route(lambda url: not url.startswith((address, 'data:')), elsewhere)
    yield page
    context.close()


def first_hit(page, text: str) -> str:
    "Where the first result of a search leads"
    page.evaluate("document.querySelectorAll('.navbar .search-result').forEach(e => e.remove())")   # those of the search before
    page.locator('.navbar .smalldocs-search input:visible').fill(text)
    return page.locator('.navbar .search-result').first.get_attribute('href')


def test_no_link_is_broken(site):
    assert not broken_links(site)


def test_every_public_name_leads_to_its_reference(site):
    api = (site/'nbs'/'api.html').read_text(encoding='utf-8')
    links = {unescape(name): link for link, name in re.findall(r'<a href="([^"]+)"><code>([^<]+)</code></a>', api.replace('<wbr>', ''))}
    place = {n: f"{module.replace('.', '/')}.html#{n.lower()}" for n, module in sae_workbench.MODULE_OF.items()}
    assert links['SAETransformerBridge'] == 'analysis/bridge.html'   # a class that is made when it is asked for
    assert not {n: links.get(n) for n in sae_workbench.__all__ if n != 'SAETransformerBridge' and links.get(n) != place[n]}


def test_parameters_of_an_inherited_init_are_told(site):
    html = (site/'nbs'/'saes'/'transcoder.html').read_text(encoding='utf-8')
    entry = re.split('<h3[^>]*>TopKSkipTranscoder</h3>', html)[1].split('<h3')[0]
    assert '<code>cfg</code>' in entry and '<code>use_error_term</code>' in entry.replace('<wbr>', '')


def test_options_are_explained(site):
    "Every option of every config has its type and what it means"
    rows = {p.relative_to(site).as_posix(): re.findall(r'<tr>\s*<td[^>]*><code>((?:[^<]|<wbr>)*)</code></td>(.*?)</tr>', p.read_text(encoding='utf-8'), re.S)
            for folder in ('saes', 'training') for p in site.glob(f'nbs/{folder}/*.html')}
    assert sum(map(len, rows.values())) > 300
    assert not {page: bare for page, found in rows.items() if (bare := [name for name, rest in found if not re.sub(r'<[^>]+>|\s', '', rest)])}
    assert 'Active latents per row' in (site/'nbs'/'saes'/'topk.html').read_text(encoding='utf-8')


def test_llms_txt_names_every_page(site):
    text = (site/'llms.txt').read_text(encoding='utf-8')
    names = [p.replace('.html', '.llms.md') for p in PAGES]
    assert not [n for n in names if f'/{n})' not in text or not (site/n).is_file()]


@pytest.mark.parametrize('name', PAGES)
def test_page(name, page, address):
    "No error, nothing from elsewhere, images and figures drawn, legible light and dark, nothing wider than the window of a phone"
    page.goto(address + name)
    if page.locator('.plotly-graph-div').count():
        page.wait_for_function("() => [...document.querySelectorAll('.plotly-graph-div')].every(e => !e.getClientRects().length || e.querySelector('.main-svg'))", timeout=20_000)
    assert not page.evaluate(UNDRAWN)
    assert not page.evaluate(FAINT)
    page.locator('.quarto-color-scheme-toggle:visible').first.click()
    page.wait_for_timeout(500)   # colours change over a moment
    assert not page.evaluate(FAINT), 'in the dark'
    page.set_viewport_size(PHONE)
    for _ in range(20):   # figures follow the window, in their own time
        page.wait_for_timeout(200)
        if not (wide := page.evaluate(TOO_WIDE)):
            break
    assert not wide
    assert not page.errors
    assert not [url for url in page.asked if not url.startswith(KATEX_CDN)]   # unless .assets/katex is there


@pytest.mark.parametrize('name', [name for name in PAGES if '/tutorials/' in name or '/guides/' in name])
def test_code_outputs_and_tables_fit(name, page, address):
    "Code fits a desktop's page; on a phone outputs wrap, and what a table has beyond the window is reached by scrolling"
    page.set_viewport_size(dict(width=1440, height=900))
    page.goto(address + name)
    assert not page.evaluate(STICKS_OUT)
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(300)
    assert not page.evaluate(STICKS_OUT.replace("'main pre'", "'main .cell-output pre:not(.sourceCode)'"))
    assert not page.evaluate(CUT_OFF)


def test_public_names_and_what_they_mean_fit_a_phone(page, address):
    page.set_viewport_size(PHONE)
    page.goto(address + 'nbs/api.html')
    widths = page.evaluate("() => [...document.querySelectorAll('main table')].map(e => e.getBoundingClientRect().right)")
    assert len(widths) > 5 and max(widths) <= PHONE['width'], widths
    assert page.evaluate("() => Math.min(...[...document.querySelectorAll('main td:first-child')].map(e => e.getBoundingClientRect().width))") > 100


@pytest.mark.parametrize('name', ['nbs/tutorials/which_architecture.html', 'nbs/tutorials/train_your_first_sae.html'])
def test_panels_stand_one_below_the_other_on_a_phone(name, page, address):
    widths = """() => [...document.querySelectorAll('.plotly-graph-div')].filter(e => e.querySelectorAll('.cartesianlayer > .subplot').length > 1)
        .map(e => [...e.querySelectorAll('.bglayer rect, .plot rect')].length && [...e._fullLayout._subplots.cartesian].map(id => e._fullLayout._plots[id].xaxis._length))"""
    page.set_viewport_size(PHONE)
    page.goto(address + name)
    page.wait_for_function("() => [...document.querySelectorAll('.plotly-graph-div')].every(e => e.querySelector('.main-svg'))", timeout=20_000)
    page.wait_for_timeout(500)
    panels = page.evaluate(widths)
    assert panels and all(width > 150 for figure in panels for width in figure)
    page.set_viewport_size(DESKTOP)
    page.wait_for_timeout(1500)
    assert len(page.evaluate(widths)) == len(panels)


@pytest.mark.parametrize('name', ['nbs/saes/topk.html', 'nbs/saes/transcoder.html', 'nbs/training/config.html'])
def test_the_table_of_contents_shows_whole_names(name, page, address):
    page.set_viewport_size(dict(width=1440, height=900))
    page.goto(address + name)
    cut = "() => [...document.querySelectorAll('#TOC a')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"
    assert page.locator('#TOC a').count() > 3 and not page.evaluate(cut)


@pytest.mark.parametrize('text', FOUND)
def test_search_lands_on_the_answer(text, page, address):
    page.goto(address + 'nbs/index.html')
    assert first_hit(page, text).endswith(FOUND[text])
    page.locator('.navbar .search-result').first.click()
    page.wait_for_function("names => names.some(n => location.href.endsWith(n))", arg=FOUND[text])
    if '#' in page.url:
        page.wait_for_function('document.getElementById(decodeURIComponent(location.hash.slice(1)))', timeout=10_000)   # while the page loads


def test_search_forgives_mistypings(page, address):
    page.goto(address + 'nbs/index.html')
    assert first_hit(page, 'explaned variance')


@pytest.mark.parametrize('text', ['topk', 'own text file', 'config'])
def test_search_on_a_phone(text, page, address):
    "The hits begin below the box and are as wide, end within the window, and are not of one page only"
    page.set_viewport_size(PHONE)
    page.goto(address + 'nbs/index.html')
    page.locator('.navbar-toggler').first.click()
    page.wait_for_timeout(600)
    first_hit(page, text)
    box, hits = page.locator('.navbar .smalldocs-search').bounding_box(), page.locator('.navbar .smalldocs-search-results').bounding_box()
    assert (hits['x'], hits['width']) == pytest.approx((box['x'], box['width']), abs=2) and box['width'] > 330
    assert hits['y'] >= box['y'] and hits['y'] + hits['height'] <= PHONE['height']
    seen = [hit for hit in page.locator('.navbar .search-result').all() if hit.bounding_box()['y'] < hits['y'] + hits['height']]
    assert len({hit.get_attribute('href').split('#')[0] for hit in seen}) >= 4


def test_excerpts_show_whole_words(page, address):
    page.goto(address + 'nbs/index.html')
    first_hit(page, 'own text file')
    text = page.locator('.navbar .search-result-text').first.inner_text().lower()
    assert 'text file' in text


def test_code_that_goes_on_beyond_the_edge_is_shaded_there(page, address):
    page.set_viewport_size(PHONE)
    page.goto(address + 'nbs/tutorials/train_your_first_sae.html')
    code = page.locator('main pre.sourceCode').filter(has_text='held_out = TokenContexts').first
    look = code.evaluate("e => [e.scrollWidth > e.clientWidth, getComputedStyle(e).overflowX, getComputedStyle(e).backgroundAttachment]")
    assert look == [True, 'auto', 'local, scroll']


@pytest.mark.parametrize('dark', [False, True])
def test_search_results_are_legible(dark, page, address):
    page.goto(address + 'nbs/index.html')
    if dark:
        page.locator('.quarto-color-scheme-toggle:visible').first.click()
        page.wait_for_timeout(500)
    first_hit(page, 'dead latents')
    assert page.locator('.navbar .search-result-text mark').count()
    assert not page.evaluate(FAINT)


def test_search_finds_every_option_that_is_gone(page, address):
    page.goto(address + 'nbs/index.html')
    there = {f.name for c in CONFIGS for f in fields(c)}
    names = sorted({o.name for o in OLD_OPTIONS} - there)
    assert len(names) > 30
    hits = {n: first_hit(page, n) for n in names}
    assert not {n: hit for n, hit in hits.items() if not hit.endswith((f'{OLD_NAMES}#{n}', f'{GUIDE}#{n}'))}


def test_tabs_of_the_migration_guide(page, address):
    page.goto(address + 'nbs/guides/migration.html')
    tabs = page.locator('.panel-tabset').filter(has_text='decoder_init_norm').first
    before, now = tabs.locator('.tab-pane').all()
    assert 'decoder_heuristic_init_norm' in before.inner_text() and before.is_visible() and not now.is_visible()
    tabs.get_by_role('tab', name='Now').click()
    assert 'decoder_init_norm=0.1' in now.inner_text() and now.is_visible() and not before.is_visible()


def test_no_link_is_left_as_markdown(site):
    prose = {page: re.sub(r'(?s)<(pre|script|style|code)\b.*?</\1>', '', page.read_text(encoding='utf-8')) for page in site.rglob('*.html')}
    assert not [f'{page.name}: {found[0]}' for page, text in prose.items() for found in re.finditer(r'.{0,60}\]\([^)\s]*\)', text)]


def test_light_and_dark(page, address):
    "The page and its figures follow the theme, when it is switched and when it was chosen before"
    def shade(color): return sum(map(float, re.findall(r'[\d.]+', color)[:3]))/3
    def paper(): return shade(page.evaluate('getComputedStyle(document.body).backgroundColor'))

    def drawn():
        page.wait_for_function("document.querySelectorAll('.plotly-graph-div .xtick text').length > 9")
        page.wait_for_timeout(500)
        return page.evaluate(FIGURES)

    def legible():
        for f in drawn():
            assert f['paper'] == 'rgba(0, 0, 0, 0)' and not f['plot']   # the page shows through
            assert all(abs(shade(color) - paper()) > 120 for color in f['texts']), f

    page.goto(address + 'nbs/tutorials/ground_truth.html')
    legible()
    assert paper() > 200
    switch = page.locator('.quarto-color-scheme-toggle:visible').first
    switch.click()
    legible()
    assert paper() < 80
    page.goto(address + 'nbs/saes/topk.html')
    legible()
    assert paper() < 80
    switch.click()
    legible()
    assert paper() > 200
