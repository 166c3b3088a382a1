"""The widgets in a real JupyterLab and a real Chromium: what a person would do with the mouse and the keyboard.

Needs jupyterlab and playwright (`pip install "sae_workbench[browser]"`) and a Chromium; skipped without them.
SAE_SCREENSHOTS=FOLDER keeps pictures of what was seen.
"""
import contextlib
import json
import re
import time

import pytest
from lab import MISSING, Notebook, chromium, server, write_notebook

CHOOSER = """
import time
from sae_workbench import choose_architecture
chooser = choose_architecture()
measure = chooser.measure
chooser.measure = lambda: (time.sleep(2), measure())   # meanwhile JupyterLab has other inputs answered in a second thread
chooser
"""
EXPLORER = """
import torch
from sae_workbench import explore, SAEMetadata
from sae_workbench.activations.example_data import toy_model
from sae_workbench.saes.topk import TopKSAE, TopKSAEConfig
torch.manual_seed(0)
model = toy_model(n_layers=2, d_model=32)
sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=300, k=4, metadata=SAEMetadata(hook_name='blocks.1.hook_resid_pre')))
evil = '<img src=x onerror="document.title=1/0"> The cat sat on the mat. '
explorer = explore(sae, model, [evil * 40], n_tokens=4000, latent_labels='labels.json')
explorer
"""

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The address of a JupyterLab with the notebooks"
    folder = tmp_path_factory.mktemp('lab')
    for name, source in dict(chooser=CHOOSER, explorer=EXPLORER).items():
        write_notebook(folder/f'{name}.ipynb', [source.strip()])
    with server(folder) as address:
        yield address


@pytest.fixture(scope='module')
def browser():
    with chromium() as browser:
        yield browser


@contextlib.contextmanager
def opened(lab, browser, name: str, selector: str, width: int = 1280):
    "The notebook, run; errors of the page and requests that leave the machine fail the test"
    context = browser.new_context(viewport=dict(width=width, height=1500 if width > 600 else 2600))
    context.grant_permissions(['clipboard-read', 'clipboard-write'], origin=lab)
    page, errors, outside = context.new_page(), [], []
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('request', lambda r: outside.append(r.url) if not re.match(r'http://127\.0\.0\.1|ws://127\.0\.0\.1|data:|blob:', r.url) else None)
    try:
        page.goto(f'{lab}/lab/workspaces/{name}{width}/tree/{name}.ipynb?reset')
        page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=90_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=90_000, state='attached')
        if page.locator('.jp-SideBar .lm-mod-current').count():   # fold the file browser away
            page.keyboard.press('Control+b')
        for _ in range(30):   # a press can be lost while the page still wires itself up
            for accept in page.locator('.jp-Dialog .jp-mod-accept').all():   # which kernel
                accept.click()
                page.wait_for_timeout(1500)
            page.locator('.jp-Notebook .jp-CodeCell').first.click()
            page.keyboard.press('Control+Enter')
            page.wait_for_timeout(1500)
            if page.locator('.jp-InputPrompt').first.inner_text().strip() not in ('[ ]:', ''):
                break
        page.wait_for_selector(selector, timeout=90_000)
        yield page
        assert not errors and not outside, (errors, outside)
    except Exception:
        keep(page, f'{name}_failed')
        raise
    finally:
        context.close()


def keep(page, name: str) -> None: Notebook(page).keep(name)


def curve(page) -> str:
    "The line that is drawn"
    return page.locator('.js-plotly-plot .scatterlayer path.js-line').first.get_attribute('d')


def until(page, holds, seconds: float = 20) -> None:
    "Wait for something"
    end = time.time() + seconds
    while not holds():
        assert time.time() < end, 'it did not happen'
        page.wait_for_timeout(50)


def counts(page) -> dict:
    "What the page holds, after a collection"
    session = page.context.new_cdp_session(page)
    session.send('HeapProfiler.collectGarbage')
    found = session.send('Memory.getDOMCounters')
    session.detach()
    return found


CLEAR = 'e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).fill].some(c => /rgba\\(0, 0, 0, 0\\)|none/.test(c)) || getComputedStyle(e).fillOpacity === "0"'


def test_choose_an_architecture(lab, browser):
    with opened(lab, browser, 'chooser', '.sae-chooser .js-plotly-plot .scatterlayer path.js-line') as page:
        wrong, k = page.locator('.opt-sae-k .sae-bad'), page.locator('.opt-sae-k input[type=text]')
        before = curve(page)
        keep(page, 'chooser_1280')
        assert page.locator('.sae-chooser .js-plotly-plot .bg').first.evaluate(CLEAR) and page.locator('.sae-chooser .main-svg').first.evaluate(CLEAR)
        page.get_by_text('Which one? Three questions').click()   # they lead to one
        yes = page.locator('.sae-guide').get_by_role('button', name='yes')
        page.locator('.sae-guide').get_by_role('button', name='no').nth(1).click()
        yes.nth(2).click()
        page.get_by_role('button', name='Take jumprelu').click()
        until(page, lambda: page.locator('select[title=architecture]').input_value() == 'jumprelu')
        keep(page, 'chooser_guide_1280')
        page.locator('select[title=architecture]').select_option('topk')
        until(page, lambda: 'sae=TopKTrainingSAEConfig' in page.locator('.sae-code').first.inner_text())
        page.get_by_text('Which one? Three questions').click()
        k.fill('5000')   # a mistake, and its error at the field
        wrong.wait_for()
        assert 'k=5000 is more than d_sae=4096' in wrong.inner_text()
        page.locator('.opt-lr input').fill('-1')
        until(page, lambda: '2 mistakes' in page.locator('.sae-summary').inner_text())
        keep(page, 'chooser_mistakes_1280')
        page.locator('.opt-lr input').fill('')
        k.fill('32')
        until(page, lambda: wrong.count() == 0)
        until(page, lambda: curve(page) != before)   # the plot follows
        before = curve(page)
        page.locator('.opt-sae-k input[type=range]').focus()
        for _ in range(20):
            page.keyboard.press('ArrowRight')
        assert k.input_value() == '51'   # 10 to the power of log10(32) + 20/100, to two digits: at once, without the kernel
        until(page, lambda: curve(page) != before and 'k=51,' in page.locator('.sae-code').first.inner_text())

        page.locator('.sae-copy').first.click()   # the config goes along
        until(page, lambda: page.locator('.sae-copy').first.inner_text() == 'Copied')
        names = {}
        exec(page.evaluate('navigator.clipboard.readText()'), names)
        assert names['cfg'].sae.k == int(k.input_value())

        page.get_by_role('tab', name='Command line').click()
        until(page, lambda: '--architecture topk' in page.locator('.sae-code:visible').inner_text())
        page.locator('select[title=architecture]').select_option('jumprelu')
        page.locator('.opt-sae-jumprelu_bandwidth input[type=text]').wait_for()
        until(page, lambda: page.locator('.js-plotly-plot .scatterlayer path.js-line').count() == 2)
        keep(page, 'chooser_jumprelu_1280')

        page.locator('textarea[title="old config"]').fill("LanguageModelSAERunnerConfig(architecture='gated', d_in=512, expansion_factor=4, l1_coefficient=5)")
        page.get_by_role('button', name='Read').click()
        until(page, lambda: page.locator('select[title=architecture]').input_value() == 'gated')
        until(page, lambda: page.locator('.opt-sae-d_sae input:visible').input_value() == '2048')
        page.get_by_role('button', name='Measure a step').click()
        until(page, lambda: 'measured on this machine' in page.locator('.sae-chooser').inner_text())
        keep(page, 'chooser_old_1280')


WATCH = """e => {   // what a field shows, at every frame, and what hands put into it
    [window.shown, window.entered] = [[], [e.value]];
    e.closest('.sae-entry').addEventListener('input', () => entered.push(e.value));
    const look = () => { shown.push(e.value); requestAnimationFrame(look); };
    look();
}"""
STRANGE = '[...new Set(shown)].filter(v => !entered.includes(v))'


def test_hands_that_are_fast(lab, browser):
    "An answer that is late never writes over what has been typed since"
    with opened(lab, browser, 'chooser', '.sae-chooser .js-plotly-plot .scatterlayer path.js-line') as page:
        k, slider, code = page.locator('.opt-sae-k input[type=text]'), page.locator('.opt-sae-k input[type=range]'), page.locator('.sae-code').first

        def type_k(text, delay):
            k.click()
            k.press('Control+a')
            k.press_sequentially(text, delay=delay)

        def arrives(*wanted):
            until(page, lambda: code.count() and all(w in code.inner_text() for w in wanted))

        k.evaluate(WATCH)
        for delay in (0, 20, 60, 150, 400):
            type_k('1000', delay)   # on the way the default, 100, which the config leaves out
            arrives('k=1000,')
            type_k('37', 0)
            arrives('k=37,')
        type_k('30', 0)
        slider.focus()
        for _ in range(80):   # past 100, where one press is less than the two digits of the text
            page.keyboard.press('ArrowRight')
        assert k.input_value() == '190'
        arrives('k=190,')
        assert page.evaluate(STRANGE) == []

        page.locator('textarea[title="old config"]').fill('sae: {architecture: topk, d_in: 256, d_sae: 8192, k: 8}')
        page.get_by_role('button', name='Measure a step').click()   # the kernel is busy, then reads a config
        page.get_by_role('button', name='Read').click()
        slider.focus()
        page.keyboard.press('ArrowLeft')
        type_k('2345', 40)
        arrives('k=2345,', 'd_in=256,')
        assert page.evaluate(STRANGE) == [] and k.input_value() == '2345'

        last = {}
        for i in range(10):   # from field to field
            last = {'sae-k': f'{11 + i}', 'sae-d_in': f'{200 + i}', 'sae-d_sae': f'{3000 + i}', 'lr': f'0.0{i}1', 'seed': f'{7 + i}', 'training_tokens': f'{10**6 + i}'}
            for name, text in last.items():
                page.locator(f'.opt-{name} input[type=text]').fill(text)
        arrives(*[f"{name.removeprefix('sae-')}={text}," for name, text in last.items()])
        assert all(page.locator(f'.opt-{name} input[type=text]').input_value() == text for name, text in last.items())


def test_labels(lab, browser):
    "What is typed stays while one looks around, is in the list and in the file, and is text"
    label = '<img src=x onerror="document.title=1/0"> ding dong dd'   # d is a key of JupyterLab
    with opened(lab, browser, 'explorer', '.sae-explorer .sae-grid tbody tr') as page:
        title, field, head = page.title(), page.locator('.sae-page input.label'), page.locator('.sae-page .title')
        latent = head.inner_text().removeprefix('Latent ')
        field.click()
        field.press_sequentially(label)
        until(page, lambda: page.locator(f'.sae-grid tr[data-id="{latent}"] td').last.inner_text() == label)
        assert field.input_value() == label and field.evaluate('e => e === document.activeElement')   # nothing was drawn anew
        keep(page, 'explorer_label_1280')
        page.locator('.sae-page .pairs a').first.click()
        until(page, lambda: head.inner_text() != f'Latent {latent}')
        assert field.input_value() == ''
        page.get_by_role('button', name=f'Back to {latent}').click()
        until(page, lambda: head.inner_text() == f'Latent {latent}')
        assert field.input_value() == label
        page.locator('input[placeholder="a token or a number"]').fill('ding dong')
        until(page, lambda: page.locator('.sae-grid').first.locator('tbody tr').count() == 1)
        kept = page.evaluate("async () => (await jupyterapp.serviceManager.contents.get('labels.json')).content")
        assert json.loads(kept) == {'labels': {latent: label}}
        assert page.title() == title and not page.locator('.sae-explorer img').count()
        page.locator('.jp-Notebook .jp-CodeCell').first.click()   # the cell again, as another day
        page.keyboard.press('Control+Enter')
        until(page, lambda: page.locator('.sae-page input.label').count() == 1 and page.locator('.sae-page input.label').input_value() == label, 90)


def test_chooser_does_not_grow(lab, browser):
    with opened(lab, browser, 'chooser', '.sae-chooser .js-plotly-plot .scatterlayer path.js-line') as page:
        select, k = page.locator('select[title=architecture]'), page.locator('.opt-sae-k input[type=text]')

        def choose(name, cls):
            select.select_option(name)
            until(page, lambda: f'sae={cls}TrainingSAEConfig' in page.locator('.sae-code').first.inner_text())

        def turn(n):
            for i in range(n):
                choose(*(('jumprelu', 'JumpReLU'), ('gated', 'Gated'))[i % 2])
                choose('topk', 'TopK')
                k.fill(str(20 + i % 7))
                until(page, lambda: f'k={20 + i % 7},' in page.locator('.sae-code').first.inner_text())

        turn(10)
        before = counts(page)
        turn(70)   # 210 changes
        after = counts(page)
        assert after['nodes'] < 1.2*before['nodes'] and after['jsEventListeners'] < 1.2*before['jsEventListeners'], (before, after)


def test_explore_latents(lab, browser):
    with opened(lab, browser, 'explorer', '.sae-explorer .sae-grid tbody tr') as page:
        rows, title = page.locator('.sae-grid').first.locator('tbody tr'), page.title()
        keep(page, 'explorer_1280')
        search = page.locator('input[placeholder="a token or a number"]')
        search.fill('17')
        until(page, lambda: rows.count() == 1)
        rows.first.click()   # its page opens
        until(page, lambda: page.locator('.sae-page .title').inner_text() == 'Latent 17')
        near = page.locator('.sae-page .pairs a').first   # a neighbour's page, and back
        other = near.inner_text()
        near.click()
        until(page, lambda: page.locator('.sae-page .title').inner_text() == f'Latent {other}')
        page.get_by_role('button', name='Back to 17').click()
        until(page, lambda: page.locator('.sae-page .title').inner_text() == 'Latent 17')
        search.fill('t')   # hits are marked, in the table and on the page
        until(page, lambda: {'TD', 'SPAN'} <= set(page.evaluate(MARKED)))
        keep(page, 'explorer_search_1280')
        search.fill('17')
        until(page, lambda: page.evaluate(MARKED) == [])
        search.fill('')
        until(page, lambda: rows.count() == 100)
        head = page.locator('.sae-grid').first.get_by_role('button', name='max')
        head.click()   # sort
        until(page, lambda: page.locator('.sae-grid').first.locator('th[aria-sort=descending]').count() == 1)
        until(page, lambda: numbers(rows, 3) == sorted(numbers(rows, 3), reverse=True))
        page.get_by_role('button', name='Similar to').click()
        until(page, lambda: rows.first.get_attribute('data-id') == '17')
        rows.first.focus()   # by keyboard
        page.keyboard.press('ArrowDown')
        page.keyboard.press('Enter')
        second = rows.nth(1).get_attribute('data-id')
        until(page, lambda: page.locator('.sae-page .title').inner_text() == f'Latent {second}')

        page.get_by_role('tab', name='Text').click()   # which latents fire on a text
        page.locator('textarea[title=text]').fill('The <b>cat</b> sat')
        page.get_by_role('button', name='Read').click()
        tokens = page.locator('.sae-tokens span')
        until(page, lambda: tokens.count() == len('The <b>cat</b> sat') + 1)
        fires = page.locator('.sae-grid').nth(1).locator('tbody tr')
        until(page, lambda: fires.count() > 4)   # more than fire on one token
        few = fires.count()
        density = page.locator('.widget-hslider', has_text='Density up to').get_by_role('slider')   # dense latents are left out, until one asks for them
        assert 'left out' in page.locator('.sae-explorer').inner_text()
        density.press('ArrowRight')
        until(page, lambda: fires.count() > few)
        everywhere = fires.count()
        tokens.nth(5).click()
        until(page, lambda: 0 < fires.count() < everywhere)
        tokens.nth(7).focus()
        page.keyboard.press('Enter')
        until(page, lambda: tokens.nth(7).get_attribute('aria-pressed') == 'true')
        fires.first.click()
        chosen = fires.first.get_attribute('data-id')
        keep(page, 'explorer_text_1280')

        page.get_by_role('tab', name='Steer').click()
        until(page, lambda: f'Latent {chosen}' in page.locator('.sae-explorer').inner_text())
        page.get_by_label('Begin with').fill('The cat')
        page.get_by_role('button', name='Write').click()
        page.locator('.sae-pair').wait_for(timeout=60_000)
        assert page.locator('.sae-text').count() == 2
        keep(page, 'explorer_steer_1280')
        page.get_by_label('Begin with').fill('')
        page.get_by_role('button', name='Write').click()
        until(page, lambda: 'no text to begin with' in page.locator('.sae-explorer').inner_text())
        assert page.title() == title   # nothing of the data ran

        def turn(n):
            for i in range(n):
                search.fill(str(i % 9))
                until(page, lambda: rows.count() == 1)
                rows.first.click()
            until(page, lambda: page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').count() == 1, 60)

        page.get_by_role('tab', name='Page').click()
        turn(20)
        before = counts(page)
        turn(200)
        after = counts(page)
        assert after['nodes'] < 1.2*before['nodes'] and after['jsEventListeners'] < 1.2*before['jsEventListeners'], (before, after)


MARKED = """() => [...(CSS.highlights.get('sae-hits') ?? [])].filter(r => r.toString().toLowerCase() === 't')
    .map(r => r.startContainer.parentElement.tagName)"""


def numbers(rows, column: int) -> list[float]:
    "A column of a table"
    return [float(t) for t in rows.evaluate_all('(rs, k) => rs.map(r => r.cells[k].textContent)', column)]


@pytest.mark.parametrize('name, selector', [('chooser', '.sae-chooser .js-plotly-plot path.js-line'), ('explorer', '.sae-explorer .sae-grid tbody tr')])
def test_a_phone(lab, browser, name, selector):
    with opened(lab, browser, name, selector, width=390) as page:
        widget = page.locator(f'.sae-{name}')
        assert widget.evaluate('e => e.scrollWidth <= e.clientWidth + 1')
        for plot in page.locator('.js-plotly-plot').all():   # fits its panel
            until(page, lambda: plot.evaluate('e => e.querySelector(".main-svg").clientWidth <= e.parentElement.clientWidth'))
        page.locator('.jp-Cell-inputWrapper').first.evaluate('e => e.style.display = "none"')
        keep(page, f'{name}_390')
