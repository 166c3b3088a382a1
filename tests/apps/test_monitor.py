"""The monitors in a real JupyterLab and a real browser: train, pause, resume, change, stop, go on; follow runs of other processes."""
import contextlib
import os
import re
import subprocess
import sys

import lab
import pytest

pytestmark = pytest.mark.skipif(bool(lab.MISSING), reason=f"not installed: {', '.join(lab.MISSING)}")

SETUP = '''
import time, torch
from datasets import Dataset
from pathlib import Path
import sae_workbench as sw
from sae_workbench.activations.example_data import toy_model
from sae_workbench.activations.tokens import word_tokenizer
words = 'the cat dog bird sat ran flew on under a mat tree and then home again'
tok = word_tokenizer(words)
model = toy_model(2, 16, tokenizer=tok, d_mlp=32, n_ctx=16).eval()
g, vocab = torch.Generator().manual_seed(0), words.split()
texts = Dataset.from_dict({'text': [' '.join(vocab[i] for i in torch.randint(len(vocab), (40,), generator=g)) for _ in range(200)]})
class Slow(sw.Callback):
    "Makes a step take a moment, so that a hand can keep up"
    seconds = .05
    def after_step(self, trainer): time.sleep(self.seconds)
slow = Slow()
def runner_in(folder, **kw):
    return sw.LanguageModelSAETrainingRunner(sw.LanguageModelSAERunnerConfig(
        sae=sw.StandardTrainingSAEConfig(d_in=16, d_sae=64, l1_coefficient=.05), hook_name='blocks.0.hook_resid_post', context_size=16,
        is_dataset_tokenized=False, training_tokens=256*1500, train_batch_size_tokens=256, store_batch_size_prompts=16, lr=1e-3, n_eval_batches=2,
        logger=sw.LoggingConfig(wandb_log_frequency=5, eval_every_n_wandb_logs=40), verbose=False,
        output_path=folder + '/sae', checkpoint_path=folder + '/checkpoints', **kw), texts, model)
runner = runner_in('a')
runner.callbacks.append(slow)
'''
USABLE = '''sum(range(10)), monitor.state'''
EXACT = '''
import shutil
slow.seconds = 0
shutil.copytree('a', 'b')                                            # as another process would find it
runner.resume()
other = runner_in('b', resume='auto')
other.run()
again = runner_in('c')
again.callbacks.append(sw.CoefficientChanges(sw.changes_of(sw.read_log('a/sae/log.jsonl'))))
again.run()
same = [all(torch.equal(x, y) for x, y in zip(runner.sae.parameters(), r.sae.parameters())) for r in (other, again)]
print('same', same, 'steps', runner.trainer.n_training_steps, 'changes', len(runner.trainer.changes.applied), monitor.state)
'''


def first_line(page) -> str: return page.evaluate("document.querySelector('.js-plotly-plot .scatterlayer .js-line')?.getAttribute('d') || ''")


def step_of(page) -> int:
    found = re.search(r'at step ([\d,]+)', page.locator('.sae-state').first.inner_text())
    return int(found[1].replace(',', '')) if found else -1


def fits(page) -> bool:
    "Whether nothing of the widget is wider than its place"
    wide = """[...document.querySelectorAll('.sae-monitor, .sae-monitor .js-plotly-plot')].map(e => [e.scrollWidth, e.clientWidth,
        e.querySelector('.main-svg').getBoundingClientRect().width, e.parentElement.clientWidth])"""
    return all(inner <= own + 1 and drawn <= outer + 1 for inner, own, drawn, outer in page.evaluate(wide))


def test_a_hand_at_the_monitor(tmp_path):
    path = lab.write_notebook(tmp_path/'monitor.ipynb', [SETUP, 'monitor = sw.TrainingMonitor(runner)\nmonitor', USABLE, EXACT])
    with lab.notebook(path, height=1100) as nb:
        page = nb.page
        nb.run(0, 180)
        nb.run(1)
        button = lambda name: page.locator('button.jupyter-button', has_text=name)
        state = page.locator('.sae-state').first
        state.wait_for()
        assert state.inner_text() == 'ready'
        assert [b.inner_text().strip() for b in page.locator('.sae-monitor button').all()] == ['Train', 'Stop and save']
        first_panel = page.locator('.sae-monitor .sae-title', has_text=re.compile('^Loss')).bounding_box()['y'] - page.locator('.sae-monitor').bounding_box()['y']
        button('Train').click()
        lab.until(lambda: not page.wait_for_timeout(200) and first_line(page))
        seen = {first_line(page)}
        lab.until(lambda: not page.wait_for_timeout(200) and (seen.add(first_line(page)) or len(seen) > 4))   # the plot moves
        assert nb.run(2) == "(45, 'training')"                                                                # the notebook is free

        panel = page.locator('.sae-monitor .js-plotly-plot').first
        now = panel.bounding_box()['y'] - page.locator('.sae-monitor').bounding_box()['y']
        assert abs(now - first_panel) < 12   # nothing moved when figures and numbers came
        assert (panel.locator('.xtitle').text_content(), panel.locator('.ytitle').text_content()) == ('step', 'loss, logarithmic')
        bar = page.locator('.sae-monitor [role=progressbar]')

        button('Pause').click()
        lab.until(lambda: not page.wait_for_timeout(100) and state.inner_text().startswith('paused'))
        paused_at = step_of(page)
        page.wait_for_timeout(1500)
        assert step_of(page) == paused_at and state.inner_text().startswith('paused')
        assert nb.run(2) == "(45, 'paused')"
        assert button('Resume').count() == 1 and button('Train').count() == button('Pause').count() == 0   # one hand, one word
        assert 0 <= int(bar.get_attribute('aria-valuenow')) - 100*paused_at//1500 <= 1

        handle = page.locator('.widget-hslider', has_text='l1').get_by_role('slider').first
        handle.focus()
        for _ in range(5):
            page.keyboard.press('ArrowRight')
        page.keyboard.press('Tab')
        page.get_by_text('l1 will be').wait_for()
        nb.keep('monitor_paused_1280')
        button('Resume').click()
        page.get_by_text(re.compile(r'l1 is [\d.]+ from step')).wait_for()
        lab.until(lambda: not page.wait_for_timeout(100) and step_of(page) > paused_at + 20)
        nb.keep('monitor_1280')
        page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
        nb.keep('monitor_dark_1280')
        page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
        page.set_viewport_size(dict(width=390, height=2600))
        lab.until(lambda: not page.wait_for_timeout(300) and fits(page), 30)
        nb.keep('monitor_390')
        page.set_viewport_size(dict(width=1280, height=1100))
        lab.until(lambda: not page.wait_for_timeout(300) and fits(page), 30)

        button('Stop and save').click()
        lab.until(lambda: not page.wait_for_timeout(100) and state.inner_text().startswith('stopped'))
        stopped_at = step_of(page)
        page.get_by_text('runner.resume() goes on here').wait_for()
        assert any(p.name == str(256*stopped_at) for p in (tmp_path/'a'/'checkpoints').glob('*/*'))
        assert 0 < stopped_at < 1500

        said = nb.run(3, 300)
        assert re.search(r'same \[True, True\] steps 1500 changes [1-5] done', said), said
        lab.until(lambda: not page.wait_for_timeout(200) and state.inner_text().startswith('done') and fits(page))
        nb.keep('monitor_done_1280')
        nb.command('docmanager:save')
        page.wait_for_timeout(1500)
    saved = path.read_text(encoding='utf-8')
    assert saved.count('<svg') >= 6   # the still picture of the whole run


ELSEWHERE = '''
import sys, time, torch
import sae_workbench as sw
from sae_workbench.activations.synthetic import SyntheticSource
from sae_workbench.training.callbacks import JSONLLogger
folder, k, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
sae = sw.TopKTrainingSAE(sw.TopKTrainingSAEConfig(d_in=16, d_sae=64, k=k))
class Slow(sw.Callback):
    def after_step(self, trainer): time.sleep(.05)
cfg = sw.SAETrainerConfig(64*steps, 64, lr=3e-3, logger=sw.LoggingConfig(wandb_log_frequency=5))
sw.SAETrainer(cfg, sae, SyntheticSource(d_in=16, n_features=32, batch_size=64), callbacks=[JSONLLogger(folder + '/log.jsonl'), Slow()]).fit()
'''
FOLLOW = "import sae_workbench as sw\nmonitor = sw.LogMonitor('first', every=.5)\nmonitor"
COMPARE = "both = sw.LogMonitor('first', 'second', names=['k=4', 'k=8'], x='samples', every=.5)\nboth"
CLOSE = "for m in (monitor, both): m.close()\nmonitor, both"


@contextlib.contextmanager
def run_elsewhere(folder, k: int, steps: int):
    "A run in a process of its own, which writes the log of a folder"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(lab.ROOT), os.environ.get('PYTHONPATH')])))
    process = subprocess.Popen([sys.executable, '-c', ELSEWHERE, str(folder), str(k), str(steps)], env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_runs_of_other_processes(tmp_path):
    path = lab.write_notebook(tmp_path/'logs.ipynb', [FOLLOW, COMPARE, CLOSE])
    with contextlib.ExitStack() as stack, lab.notebook(path, height=1500) as nb:
        def losses(cell):
            "The lines of the first panel"
            found = nb.cell(cell).locator('.js-plotly-plot').first.locator('.scatterlayer .js-line')
            return tuple(found.evaluate_all("found => found.map(e => e.getAttribute('d')).filter(Boolean)"))

        def steps(cell, i=0):
            found = re.search(r'step ([\d,]+)', nb.cell(cell).locator('.sae-state').nth(i).inner_text())
            return int(found[1].replace(',', ''))

        def until(holds, seconds=60): lab.until(lambda: not nb.page.wait_for_timeout(100) and holds(), seconds)

        nb.run(0)
        state = nb.cell(0).locator('.sae-state')
        state.first.wait_for()
        assert state.inner_text() == 'first: step 0, not begun'   # it stands there before the run
        first = stack.enter_context(run_elsewhere(tmp_path/'first', 4, 800))
        until(lambda: losses(0))
        seen = {losses(0)[0]}
        until(lambda: seen.add(losses(0)[0]) or len(seen) > 3)   # the plot moves
        before = steps(0)
        until(lambda: steps(0) > before + 50)
        assert first.poll() is None   # while the run goes on

        nb.run(1)
        until(lambda: len(losses(1)) == 1)
        second = stack.enter_context(run_elsewhere(tmp_path/'second', 8, 300))
        until(lambda: len(losses(1)) == 2)   # a line for each run, of the second one when it has begun
        assert nb.cell(1).locator('.js-plotly-plot').first.locator('.legendtext').all_text_contents() == ['k=4', 'k=8']
        seen = {losses(1)}
        until(lambda: seen.add(losses(1)) or min(len(set(paths)) for paths in zip(*seen)) > 2)   # both move
        nb.keep('monitor_logs_1280')
        assert second.wait(120) == 0 and first.wait(120) == 0
        until(lambda: (steps(0), steps(1), steps(1, 1)) == (799, 799, 299))   # their last lines
        assert nb.run(2) == '(LogMonitor: first at step 799, LogMonitor: k=4 at step 799, k=8 at step 299)'
        nb.command('docmanager:save')
        nb.page.wait_for_timeout(1500)
    assert path.read_text(encoding='utf-8').count('<svg') >= 12   # the still pictures of both
