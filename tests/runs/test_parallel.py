"""Two and three processes against one, through gloo: see `parallel.py`, which runs them."""
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_workbench.core.files import read_tensors
from test_faults import ARCHITECTURES, ENV, HERE, command, tiny_model, wait_for   # noqa: F401

SAME = dict(rtol=1e-6, atol=1e-6)
WITH_TARGETS = ('transcoder', 'topk_transcoder', 'jumprelu_transcoder', 'batchtopk_transcoder', 'matryoshka_batchtopk_transcoder', 'crosscoder',
                'batchtopk_crosscoder', 'cross_layer_transcoder')   # their options are in parallel.py
TRAINED = dict(rtol=1e-3, atol=1e-5)   # float32, 24 steps of Adam


@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('parallel')


def run(home: Path, *cases: dict) -> list[dict]:
    (home/'cases.json').write_text(json.dumps(cases), encoding='utf-8')
    done = subprocess.run([sys.executable, str(HERE/'parallel.py'), str(home/'cases.json'), str(home)], env=ENV, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def fine(found: list[dict]) -> None:
    for f in found:
        assert set(f['codes']) == {0}, f


def compare(a: Path, b: Path, rank: int = 0, first: int = 0, close=SAME, skip=()) -> dict:
    "All that two runs leave is close; batches are equal to the bit. `first`: the batch of `a` with which `b` begins"
    one, other = read_tensors(a/'result-0.safetensors'), read_tensors(b/f'result-{rank}.safetensors')
    for k, v in other.items():
        if k.startswith('batch'):
            assert torch.equal(v, one[f'batch {int(k[6:]) + first}']), k
        elif not k.startswith(skip):
            torch.testing.assert_close(v, one[k], **close, msg=lambda m: f'{b.name}, {k}: {m}')
    return other


OPTIONS = [{}]*len(ARCHITECTURES) + [dict(lp_norm=.7), dict(jumprelu_sparsity_loss_mode='tanh', pre_act_loss_coefficient=.1), dict(k=.7),
                                     dict(jumprelu_sparsity_loss_mode='quadratic', target_l0=4., jumprelu_ste_to_input=True)]
VARIANTS = [*zip((*ARCHITECTURES, 'standard', 'jumprelu', 'batchtopk', 'jumprelu'), OPTIONS), *((a, {}) for a in WITH_TARGETS)]


def test_gradients_of_every_architecture(home):
    "The loss, each of its terms, every gradient, counts and thresholds, with 31 rows and half of the latents dead"
    cases = [dict(function='gradients', architecture=a, options=o, folder=f'gradients/{i}-{n}', processes=n)
             for i, (a, o) in enumerate(VARIANTS) for n in (1, 2, 3)]
    fine(run(home, *cases))
    for i in range(len(VARIANTS)):
        for n in (2, 3):
            for rank in range(n):
                found = compare(home/f'gradients/{i}-1', home/f'gradients/{i}-{n}', rank)
                assert max(t.abs().max() for k, t in found.items() if 'W_dec' in k) > 0


def test_gradients_of_a_compiled_step(home):
    "torch.compile breaks a step where it reads a number, or talks to other processes, and goes on behind"
    which = ('jumprelu', 'batchtopk', 'matching_pursuit', 'matryoshka_batchtopk')
    cases = [dict(function='gradients', architecture=a, options=dict(normalize_activations='layer_norm'), compiled=n > 0,
                  folder=f'compiled/{a}-{n}', processes=max(n, 1)) for a in which for n in (0, 1, 2)]
    fine(run(home, *cases))
    for a in which:
        for n in (1, 2): compare(home/f'compiled/{a}-0', home/f'compiled/{a}-{n}')


def test_gradients_at_the_models_output(home):
    "Each process has its contexts; the loss, its terms and every gradient are those of all of them"
    which = [(a, loss) for a in ('topk', 'batchtopk', 'jumprelu') for loss in ('kl', 'ce', 'kl+mse')]
    cases = [dict(function='output_loss', architecture=a, loss=loss, folder=f'output/{a}-{loss}-{n}', processes=n) for a, loss in which for n in (1, 2)]
    fine(run(home, *cases))
    for a, loss in which:
        for rank in (0, 1):
            found = compare(home/f'output/{a}-{loss}-1', home/f'output/{a}-{loss}-2', rank)
            assert found['W_dec'].abs().max() > 0


RUNS = [('live', 'batchtopk', dict(norm='expected_average_only_in')), ('cached', 'topk', {}), ('module', 'jumprelu', {}),
        ('tensor', 'gated', {}), ('synthetic', 'matching_pursuit', {}), ('synthetic', 'topk', dict(dtype='bfloat16'))]


@pytest.mark.parametrize('source, architecture, more', RUNS, ids=[f'{s}-{a}' for s, a, _ in RUNS])
def test_whole_runs(home, source, architecture, more):
    "The same batches to the bit; the same weights in all processes, and close to those of one; the same counts and log; one writer"
    case = dict(function='train', source=source, architecture=architecture, **more)
    name = f'{source}-{architecture}'
    fine(run(home, *(case | dict(folder=f'{name}/{n}', processes=n) for n in (1, 2, 3))))
    rounded = more.get('dtype') == 'bfloat16'   # the gradient of each part is rounded, so runs come apart: see the next test
    for n in (2, 3):
        compare(home/name/'1', home/name/f'{n}', close=TRAINED, skip=('logged', 'statistics', 'weights') if rounded else ())
        results = [read_tensors(home/name/f'{n}'/f'result-{r}.safetensors') for r in range(n)]
        for r in results[1:]:
            assert all(torch.equal(v, results[0][k]) for k, v in r.items())
        folder = home/name/f'{n}'
        lines = [[json.loads(line) for line in next((home/name/f'{m}').rglob('log.jsonl')).read_text(encoding='utf-8').splitlines()] for m in (1, n)]
        assert [line['step'] for line in lines[0]] == [line['step'] for line in lines[1]] and len(list(folder.rglob('log*.jsonl'))) == 1
        names = [sorted(p.parent.name for p in (home/name/f'{m}').rglob('manifest.json')) for m in (1, n)]
        assert names[0] == names[1] and len(names[0]) == 3 and not list(folder.rglob('.*.tmp'))


def test_bfloat16_gradients_differ_by_their_rounding(home):
    fine(run(home, *(dict(function='gradients', architecture='topk', dtype='bfloat16', folder=f'rounded-{n}', processes=n) for n in (1, 2, 3))))
    one = read_tensors(home/'rounded-1'/'result-0.safetensors')
    for n in (2, 3):
        found = read_tensors(home/f'rounded-{n}'/'result-0.safetensors')
        for k in ('W_enc', 'W_dec'):
            assert (found[k].float() - one[k].float()).norm() < 2**-7*one[k].float().norm(), k


def test_bfloat16_runs_come_apart_by_less_than_bfloat16_makes_of_one(home):
    case = dict(function='train', source='synthetic', architecture='topk')
    fine(run(home, case | dict(folder='rounding/whole'), *(case | dict(dtype='bfloat16', folder=f'rounding/{n}', processes=n) for n in (1, 2, 3))))
    found = {n: read_tensors(home/'rounding'/n/'result-0.safetensors') for n in ('whole', '1', '2', '3')}
    for k in ('weights W_enc', 'weights W_dec'):
        def distance(a, b): return (found[a][k].float() - found[b][k].float()).norm()
        for n in ('2', '3'):
            assert distance('1', n) < distance('whole', '1')/4


def test_skipped_steps(home):
    "NaN or an overflow in the rows of the last process: all leave the step out, and go on as one process does"
    case = dict(function='train', source='spoilt', architecture='topk', on_nonfinite='skip')
    fine(run(home, *(case | dict(folder=f'skips/{n}', processes=n) for n in (1, 2, 3))))
    for n in (2, 3):
        found = read_tensors(home/'skips'/f'{n}'/f'result-{n - 1}.safetensors')
        one = read_tensors(home/'skips/1/result-0.safetensors')
        assert found['position'].tolist() == one['position'].tolist() and found['position'][2] == 4
        for k in found:
            if k.startswith(('weights', 'statistics')): torch.testing.assert_close(found[k], one[k], **TRAINED)


@pytest.mark.parametrize('before, after', [(2, 1), (1, 2), (3, 2)])
def test_a_checkpoint_goes_on_with_another_number_of_processes(home, before, after):
    "Stopped by a signal that one process gets in the middle; then the same batches as without a stop"
    for source, architecture in (('live', 'batchtopk'), ('module', 'topk')):
        case = dict(function='train', source=source, architecture=architecture)
        whole, folder = home/f'whole-{source}', f'resumed-{source}-{before}-{after}'
        part = case | dict(folder=folder)
        cases = [] if whole.exists() else [case | dict(folder=whole.name)]
        found = run(home, *cases, part | dict(processes=before, stop=10), part | dict(processes=after, resume=True))
        assert found[-2]['codes'] == [143]*before, found[-2]
        fine(found[:-2] + found[-1:])
        compare(whole, home/folder, first=10, close=TRAINED, skip=('logged',))
        assert len(read_tensors(home/folder/'result-0.safetensors')) > 10


def test_a_signal_that_the_others_do_not_know_of(home):
    "Nobody waits for one that stops alone: all stop after the same step, and go on together; 24 is the evaluation at the end"
    case = dict(function='train', architecture='topk', processes=2)
    fine(run(home, *(case | dict(source=s, folder=f'untold-{s}') for s in ('live', 'module'))))
    for how, source, step in (('stop_while_talking', 'live', 10), ('stop_while_talking', 'module', 10),
                              ('stop_in_evaluation', 'live', 10), ('stop_in_evaluation', 'live', 24), ('stop_in_evaluation', 'module', 10)):
        here = case | dict(source=source, folder=f'{how}-{source}-{step}')
        part, rest = run(home, here | {how: step}, here | dict(resume=True))
        assert part['codes'] == [143, 143], part
        fine([rest])
        whole, went_on = (read_tensors(home/name/'result-0.safetensors') for name in (f'untold-{source}', here['folder']))
        assert all(torch.equal(v, whole[k]) for k, v in went_on.items() if k.startswith(('weights', 'statistics', 'position')))


def sent_at_random(longest: float, rng: random.Random) -> list:
    "What torchrun passes on after SIGTERM or Ctrl-C, or a signal for one process of two, at some moment of a run"
    at, rank = rng.uniform(0, longest)*rng.random(), rng.randrange(2)   # a run that goes on is shorter
    both = [('SIGTERM', r, at + r*rng.uniform(0, .02)) for r in (0, 1)]
    kind = rng.choice(['all', 'all', 'interrupt', 'one', 'kill'])
    sent = both if kind == 'all' else [('SIGINT', *s[1:]) for s in both] if kind == 'interrupt' else [('SIGTERM' if kind == 'one' else 'SIGKILL', rank, at)]
    return [[at, rank, name] for name, rank, at in sent]


ENDS = {0, 2, 130, 143, -signal.SIGTERM, -signal.SIGKILL}   # the last but one when the run is over, but not the program


@pytest.mark.parametrize('source, architecture', [('live', 'batchtopk'), ('module', 'jumprelu'), ('synthetic', 'topk'), ('cached', 'matryoshka_batchtopk')])
@pytest.mark.parametrize('n', [2, pytest.param(40, marks=pytest.mark.slow)])   # slow: ten minutes
def test_signals_at_any_moment(home, source, architecture, n):
    "Three times, then the run is left alone: no process waits for another that is gone, and all ends as if nothing had happened"
    rng, here, log = random.Random(f'{source} {n}'), f'moments-{source}-{n}', os.environ.get('PROCESSES_LOG')
    case = dict(function='train', source=source, architecture=architecture, processes=2, resume=True)
    (whole,) = run(home, case | dict(folder=f'{here}/whole'))
    fine([whole])
    expected = read_tensors(home/here/'whole'/'result-0.safetensors')
    for i in range(n):
        part = case | dict(folder=f'{here}/{i}')
        *stopped, last = run(home, *(part | dict(signals=sent_at_random(whole['took'], rng)) for _ in range(3)), part)
        fine([last])
        for s in stopped:
            if log:
                with open(log, 'a', encoding='utf-8') as f: f.write(json.dumps(dict(source=source, architecture=architecture, signals=s['case']['signals'], codes=s['codes'])) + '\n')
            assert s['codes'] != 'hangs' and set(s['codes']) <= ENDS, s
            for code, error in zip(s['codes'], s['errors']):   # KeyboardInterrupt alone: when the run is over
                assert code != 2 or 'another process of this run failed' in error or error.endswith('KeyboardInterrupt\n'), s
        found = read_tensors(home/here/f'{i}'/'result-0.safetensors')
        assert all(torch.equal(found[k], v) for k, v in expected.items() if k.startswith(('weights', 'statistics', 'position'))), stopped


def test_one_that_dies_ends_all(home):
    cases = [dict(function='train', source='synthetic', architecture='topk', processes=2, folder=f'dies-{how}-{rank}', dies=dict(step=5, rank=rank, how=how))
             for how in ('kill', 'raise') for rank in (0, 1)]
    for found in run(home, *cases):
        how, rank = found['case']['dies']['how'], found['case']['dies']['rank']
        assert found['codes'][rank] == (-9 if how == 'kill' else 2) and found['codes'][1 - rank] == 2, found
        assert found['seconds'] < 10
        assert f'another process of this run failed or is gone, so process {1 - rank} of 2 stops' in found['errors'][1 - rank], found


def test_what_cannot_be_shared_is_refused(home):
    cases = [dict(function=f, architecture='topk', processes=2, folder=f) for f in ('own_data', 'small_batch')]
    data, small = run(home, *cases)
    for found, text in ((data, 'process 1 has another first batch than process 0'), (small, 'a batch of 1 rows cannot be shared by 2 processes')):
        assert found['codes'] == [2, 2] and all(text in e for e in found['errors']), found


def test_shared_passes(home):
    "Five passes of which one fails: it fails for all, in its turn, and the others come"
    fine(run(home, *(dict(function='passes', folder=f'passes-{n}', processes=n) for n in (1, 2, 3))))
    for n in (2, 3):
        found = compare(home/'passes-1', home/f'passes-{n}', n - 1)
        assert found['4'].tolist() == [5] and len(found['9']) == 2 and not len(found['10'])


TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
THREADS = """
import os, torch
from sae_workbench import SAETrainer, SAETrainerConfig, SyntheticSource, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_workbench.core import processes
def threads(): return len(os.listdir('/proc/self/task'))
before = threads()
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=32, k=3))
SAETrainer(SAETrainerConfig(64, 32), sae, SyntheticSource(12, 8, batch_size=32)).fit()
assert threads() > before
processes._leave()
assert threads() == before
"""


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='reads /proc')
def test_no_thread_of_the_group_is_left_when_python_ends(tmp_path):
    "Such a thread is aborted if it lets go of a tensor then, and torchrun calls the run failed"
    (tmp_path/'train.py').write_text(THREADS, encoding='utf-8')
    done = subprocess.run([*TORCHRUN, str(tmp_path/'train.py')], env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


RESTARTED = """
import os, signal, sys
from sae_workbench import Checkpoints, SAETrainer, SAETrainerConfig, SyntheticSource, TopKTrainingSAE, TopKTrainingSAEConfig
first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and len(sys.argv) > 2
class Dies:
    def after_step(self, trainer):
        if first and trainer.n_training_steps == 15 and os.environ['RANK'] == sys.argv[2]: os.kill(os.getpid(), signal.SIGKILL)
import torch
torch.manual_seed(0)
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=32, k=3))
cfg = SAETrainerConfig(32*30, 32, n_checkpoints=5, checkpoint_path=sys.argv[1], save_final_checkpoint=True)
trainer = SAETrainer(cfg, sae, SyntheticSource(12, 8, batch_size=32), callbacks=[Dies()])
Checkpoints(sys.argv[1]).load(trainer)
assert first or len(sys.argv) == 2 or trainer.n_training_steps
trainer.fit()
"""


def test_torchrun_starts_it_again(tmp_path):
    "`--max-restarts`: processes that were killed go on from the last checkpoint, without waiting for those that are dead"
    from sae_workbench import SAE, Checkpoints
    (tmp_path/'train.py').write_text(RESTARTED, encoding='utf-8')
    for rank in ('', '0', '1'):
        more = [tmp_path/f'ck{rank}', *rank]
        done = subprocess.run([*TORCHRUN, '--max-restarts', '1', tmp_path/'train.py', *more], env=ENV, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    whole, *others = (SAE.load_from_disk(Checkpoints(tmp_path/f'ck{rank}').latest()).state_dict() for rank in ('', '0', '1'))
    assert all(torch.equal(v, other[k]) for other in others for k, v in whole.items())


def test_the_command_under_torchrun(tiny_model, tmp_path):   # noqa: F811
    "SIGTERM to torchrun: one checkpoint; the same command goes on, with one process, to the same SAE as two that were left alone"
    from sae_workbench import SAE
    torchrun = [*TORCHRUN, '-m', 'sae_workbench.apps.cli']
    many = ['--training-tokens', '20000']
    whole = command(tiny_model, tmp_path/'whole', *many, program=torchrun)
    assert whole.wait(600) == 0, whole.communicate()[1][-3000:]
    one = command(tiny_model, tmp_path/'one', *many, program=torchrun)
    log = tmp_path/'one'/'sae'/'log.jsonl'
    wait_for(lambda: log.exists() and log.read_text(encoding='utf-8').count('\n') > 3, one)
    one.send_signal(signal.SIGTERM)
    said = one.communicate(timeout=300)[1]
    assert one.returncode != 0 and 'stopped by SIGTERM at step' in said, said[-3000:]
    assert len([p for p in (tmp_path/'one'/'ck').glob('*/*') if (p/'manifest.json').exists()]) == 1
    again = command(tiny_model, tmp_path/'one', *many)
    assert again.wait(600) == 0, again.communicate()[1][-3000:]
    a, b = (SAE.load_from_disk(tmp_path/n/'sae').state_dict() for n in ('whole', 'one'))
    for k, v in a.items():
        torch.testing.assert_close(b[k], v, rtol=1e-2, atol=1e-3)
