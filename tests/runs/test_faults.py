"""Runs that are killed, interrupted, short of disk, or started twice: see `faults.py`, which makes them."""
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sae_workbench import SAE, LanguageModelSAETrainingRunner, LoggingConfig, MixingBuffer, ModuleSource, SAETrainer, SAETrainerConfig, ShardSource, SyntheticSource
from sae_workbench import TensorSource, TopKTrainingSAE, TopKTrainingSAEConfig, TrainingSAE, train_together, write_cache

from sae_workbench.core.errors import ConfigError, DataError, SAEWorkbenchError
from sae_workbench.core.files import read_state, write_state
from sae_workbench.training.callbacks import read_log
from sae_workbench.training.checkpoint import Checkpoints, latest
from sae_workbench.training.preempt import Interrupted
from faults import NOTHING, logs, runner, sae_config

HERE = Path(__file__).parents[1]/'support'
ENV = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
ARCHITECTURES = ('standard', 'gated', 'jumprelu', 'topk', 'abstopk', 'batchtopk', 'matching_pursuit', 'matryoshka_batchtopk')
SOURCES = ('live', 'stream', 'shuffled_stream', 'cached', 'tensor', 'module', 'loader', 'synthetic', 'layers')
RUNS_A_MODEL = ('live', 'stream', 'shuffled_stream', 'module', 'loader', 'layers')


def run_cases(cases: list[dict], folder: Path, seed: int = 0) -> list[dict]:
    "What became of some cases, and no exception in any of them"
    (folder/'cases.json').write_text(json.dumps(cases), encoding='utf-8')
    done = subprocess.run([sys.executable, str(HERE/'faults.py'), str(folder/'cases.json'), str(folder), str(seed)], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def signals(source: str) -> list[dict]:
    "A signal in each phase: filling the buffer or the estimate of the norm, a step, an evaluation, a save, the last evaluation, the last save"
    phases = [('model', 3, 'SIGTERM')]*(source in RUNS_A_MODEL) + [('step', 11, 'SIGINT'), ('evaluation', 1, 'SIGTERM'), ('save', 30, 'SIGINT')]
    return [dict(where=w, n=n, sends=s) for w, n, s in phases]


MIXED = [dict(source=s, architecture=a, **o) for s, a, o in zip(SOURCES, (*ARCHITECTURES, 'standard'), (
    dict(norm='expected_average_only_in'), {}, {}, {}, {}, {}, {}, dict(dtype='bfloat16'), dict(norm='expected_average_only_in')))]


@pytest.mark.parametrize('third', range(3))
def test_disturbed_runs_end_like_undisturbed_ones(third, tmp_path):
    "Killed while saving, killed at some moment, stopped by signals in every phase: each time the run goes on to the same tensors, batches and log"
    cases = [c for c in MIXED[third::3]]
    kills = [c | dict(disturb=[dict(where='save', n=12 + 7*i), dict(where='half', n=3)], kills=1) for i, c in enumerate(cases)]
    stops = [c | dict(disturb=signals(c['source'])) for c in cases]
    for done in run_cases(kills + stops, tmp_path):
        assert done['codes'][-1] == 0, done['error']
        assert not done['unlike'], done
        expected = {-9} if 'kills' in done['case'] else {130, 143}
        for d, code in zip(done['case']['disturb'], done['codes']):
            assert code in expected, done
            assert code != 128 + getattr(signal, d.get('sends', 'SIGKILL')) or expected == {130, 143}


@pytest.mark.slow
def test_many_kills(tmp_path):
    "20 random kill points for each architecture and source, 200 kills inside saves; the results go to the docs"
    cases = [dict(source=s, architecture=a, kills=20) for s, a in product(SOURCES, ARCHITECTURES)]
    in_saves = [dict(where=('save', 'half')[n % 2], n=1 + n//2) for n in range(25)]
    cases += [c | dict(disturb=d) for c in MIXED for d in (in_saves, signals(c['source']))]
    def of(source):
        (tmp_path/source).mkdir()
        return run_cases([c for c in cases if c['source'] == source], tmp_path/source, seed=int(os.environ.get('FAULTS_SEED', 0)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = [d for found in pool.map(of, SOURCES) for d in found]
    log = [dict(d['case'], codes=d['codes'], unlike=d['unlike'], error=d['error']) for d in done]
    if (place := os.environ.get('FAULTS_LOG')):
        Path(place).write_text('\n'.join(map(json.dumps, log)) + '\n', encoding='utf-8')
    assert len(done) == len(cases) and not [d for d in log if d['unlike'] or d['error']]
    assert sum(d['codes'].count(-9) for d in log if 'kills' not in d and -9 in d['codes']) >= 200


# Damaged files and states

def small(folder, rows=640, **kw) -> SAETrainer:
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=32, k=3))
    return SAETrainer(SAETrainerConfig(rows, 32, checkpoint_path=folder and str(folder), **kw), sae, SyntheticSource(12, 8, batch_size=32))


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
    "A folder with the checkpoints of two steps"
    folder = tmp_path_factory.mktemp('saved')
    t = small(None)
    for _ in range(2):
        t.one_step()
        Checkpoints(folder).save(t)
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_passed_over(saved, data):
    "Any file of the latest one cut short, missing, or with a byte flipped"
    place = saved/'64'
    file = data.draw(st.sampled_from(sorted(place.iterdir())), 'file')
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1), 'at')
    how = data.draw(st.sampled_from(['cut', 'missing', 'flipped']), 'how')
    try:
        if how == 'missing':
            file.unlink()
        else:
            flipped = whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1:]
            file.write_bytes(whole[:at] if how == 'cut' else flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            t = small(None)
            found = Checkpoints(saved).load(t)
        if found.name == '64':   # white space in the manifest
            assert how == 'flipped' and file.name == 'manifest.json'
        else:
            assert (found.name, t.n_training_steps) == ('32', 1)
            assert len(caught) == 1 and file.name in str(caught[0].message)
    finally:
        file.write_bytes(whole)
    assert latest(saved).name == '64'


leaves = st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
tensors = st.builds(lambda n, dtype: torch.arange(n).to(dtype), st.integers(0, 4),
                    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]))
states = st.dictionaries(st.text(min_size=1, max_size=5), st.deferred(lambda: leaves | tensors | st.lists(leaves, max_size=3) | states), max_size=4)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=states)
def test_states_come_back_as_they_were(tmp_path, state):
    assert same(state, read_state(write_state(tmp_path/'state.safetensors', state)))


# Disk full

def limited(rows, folder, size, script="") -> list[str]:
    "Run a small trainer in a process that may not write files larger than `size`"
    code = f"""
import resource, sys, warnings
sys.path[:0] = [{str(HERE)!r}, {str(Path(__file__).parent)!r}]
from test_faults import small, Checkpoints
warnings.showwarning = lambda m, *a, **k: print('warned:', m)
t = small({str(folder)!r}, {rows}, n_checkpoints=4)
{script}
try: t.fit()
except OSError as e: print('failed:', type(e).__name__, e)
print('steps', t.n_training_steps, [p.name for p in Checkpoints({str(folder)!r}).all()], Checkpoints({str(folder)!r}).latest())
"""
    done = subprocess.run([sys.executable, '-c', code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FILL = """
class Fill:   # the disk is full from the third step on, until the 15th
    def after_step(self, trainer):
        if trainer.n_training_steps==5: {full}
        if trainer.n_training_steps==15: {free}
t.callbacks.insert(0, Fill())
"""


def test_a_file_too_large(tmp_path):
    "A limit on the size of files stands for a full disk where none can be mounted"
    set_limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, -1))"
    out = limited(640, tmp_path/'ck', 0, FILL.format(full=set_limit.format(2000), free=set_limit.format(-1)))
    check_full(out, tmp_path/'ck')


def check_full(out, folder):
    warned = [line for line in out if line.startswith('warned:')]
    assert len(warned) >= 1 and all('could not be written' in w and 'The run goes on' in w for w in warned), out
    assert out[-1].startswith('steps 20') and "'128'" in out[-1] and "'512'" in out[-1], out
    assert not list(folder.glob('.*.tmp'))


def test_a_full_disk(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(disk)], capture_output=True).returncode:
        pytest.skip('a file system can be mounted only by root; test_a_file_too_large stands for it')
    try:
        fill = f"open({str(disk/'filler')!r}, 'wb').write(bytes(1)) and __import__('subprocess').run(['dd', 'if=/dev/zero', 'of={disk/'filler'}'], capture_output=True)"
        out = limited(640, disk/'ck', 0, FILL.format(full=fill, free=f"__import__('os').unlink({str(disk/'filler')!r})"))
        check_full(out, disk/'ck')
        last = limited(640, disk/'last', 0, "t.checkpointing_final = [setattr(c, 'final', True) for c in t.callbacks if hasattr(c, 'final')]\n"
                       + FILL.format(full=fill, free='pass'))
        assert any(line.startswith('failed: SaveError') and 'the last good one is' in line for line in last), last
        assert "'128'" in last[-1] and not list((disk/'last').glob('.*.tmp'))
    finally:
        subprocess.run(['umount', str(disk)], check=True)


@pytest.mark.parametrize('final', [True, False])
def test_a_full_disk_for_the_output(final, tmp_path):
    "The checkpoints are on another disk, and the run ends once there is room; the log may have the last evaluation twice"
    def said(folder): return list(dict.fromkeys(map(json.dumps, logs(folder)['sae/log.jsonl'])))
    whole, disk = runner(TOPK, tmp_path/'whole', NOTHING), tmp_path/'run'/'sae'
    whole.run()
    disk.mkdir(parents=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(disk)], capture_output=True).returncode:
        pytest.skip('a file system can be mounted only by root')
    try:
        first = runner(TOPK, tmp_path/'run', NOTHING)
        first.cfg.save_final_checkpoint = final
        first.callbacks.append(At('after_step', 11, lambda trainer: subprocess.run(['dd', 'if=/dev/zero', f'of={disk}/filler'], capture_output=True)))
        with pytest.warns(UserWarning, match="the log's lines wait in memory"), pytest.raises(OSError, match='could not be written') as e: first.run()
        assert e.value.checkpoint.name == 'final_768' and not (disk/'cfg.json').exists()
        (disk/'filler').unlink()
        second = runner(TOPK, tmp_path/'run', NOTHING)
        for run in (second.run, first.resume):
            run()
            assert said(tmp_path/'run') == said(tmp_path/'whole')
            assert same(SAE.load_from_disk(disk).state_dict(), SAE.load_from_disk(tmp_path/'whole'/'sae').state_dict())
            (disk/'cfg.json').unlink()
    finally:
        subprocess.run(['umount', str(disk)], check=True)


# Two runs, threads, clocks

def test_a_second_run_in_a_folder_is_refused(tmp_path):
    t = small(tmp_path/'ck', n_checkpoints=4)
    class Second:
        def after_step(self, trainer):
            if trainer.n_training_steps != 10: return
            done = limited(640, tmp_path/'ck', 0, "import sae_workbench.core.errors as e\ntry: t.fit()\nexcept e.ConfigError as x: print('refused:', x)\nt = small(None)")
            refused.extend(line for line in done if line.startswith('refused:'))
    refused = []
    t.callbacks.append(Second())
    t.fit()
    assert len(refused) == 1 and f'is in use by process {os.getpid()}' in refused[0]


def contents(folder: Path) -> dict[str, bytes]: return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


class At:
    "Does something once, in a callback, after so many calls"
    def __init__(self, event, n, do):
        self.left, self.do = n, do
        setattr(self, event, self.call)

    def call(self, trainer, *args):
        self.left -= 1
        if not self.left: self.do(trainer)


TOPK = dict(architecture='topk', source='live', norm='expected_average_only_in')


def test_a_refused_run_writes_nothing_into_the_folder_of_another(tmp_path):
    "Not even into the log, which is behind what the checkpoint knows"
    whole, refused = runner(TOPK, tmp_path/'whole', NOTHING), []
    whole.run()
    def second(trainer):
        before = contents(tmp_path/'run')
        with pytest.raises(ConfigError, match=f'is in use by process {os.getpid()}'): runner(TOPK, tmp_path/'run', NOTHING).run()
        refused.append(contents(tmp_path/'run') == before)
    first = runner(TOPK, tmp_path/'run', NOTHING)
    first.callbacks.append(At('after_step', 17, second))
    first.run()
    assert refused == [True] and logs(tmp_path/'run') == logs(tmp_path/'whole')


@pytest.mark.parametrize('lost', ['sae', 'checkpoints', 'sae/log.jsonl', 'cut', 'note', 'damaged note'])
def test_lost_files_cost_no_run(lost, tmp_path):
    "Folders, logs and notes that somebody deletes while a run writes, or before it goes on"
    whole, run = runner(TOPK, tmp_path/'whole', NOTHING), runner(TOPK, tmp_path/'run', NOTHING)
    whole.run()
    def lose(trainer):
        notes = [*(tmp_path/'run').rglob('run.json')]
        if lost == 'cut': os.truncate(tmp_path/'run/sae/log.jsonl', 700)
        elif lost == 'note': notes[0].unlink()
        elif lost == 'damaged note': notes[0].write_text('{"config": ', encoding='utf-8')
        elif lost.endswith('jsonl'): (tmp_path/'run'/lost).unlink()
        else: shutil.rmtree(tmp_path/'run'/lost)
        if 'note' in lost: raise SystemExit
    run.callbacks.append(At('after_step', 17, lose))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if 'note' not in lost: run.run()
        else:
            with pytest.raises(SystemExit): run.run()
            run = runner(TOPK, tmp_path/'run', NOTHING)
            run.run()
            assert len([*(tmp_path/'run'/'checkpoints').iterdir()]) == 1
    assert same(run.trainer.sae.state_dict(), whole.trainer.sae.state_dict()) and (tmp_path/'run'/'sae'/'cfg.json').exists()
    steps = [line['step'] for line in read_log(tmp_path/'run'/'sae')]
    assert steps == [line['step'] for line in read_log(tmp_path/'whole'/'sae')][-len(steps):]


@pytest.mark.parametrize('what', [RuntimeError, SystemExit, KeyboardInterrupt, 'stop', 'fit'], ids=str)
@pytest.mark.parametrize('event', ['on_begin', 'on_start', 'on_step', 'after_step', 'on_log', 'on_end', 'on_close'])
def test_odd_callbacks_cost_no_run(event, what, undisturbed_run, tmp_path):
    "Whatever one does: the run goes on here and, from its folder, in another runner"
    def do(trainer):
        if isinstance(what, type): raise what
        getattr(trainer, what)()
    first = runner(TOPK, tmp_path, NOTHING)
    plain, odd = first.make_callbacks, At(event, 9 if event in ('on_step', 'after_step', 'on_log') else 1, do)
    first.make_callbacks = lambda: [odd, *plain()]   # before those that write
    with suppress(Exception, SystemExit, KeyboardInterrupt): first.run()
    first.resume()
    second = runner(TOPK, tmp_path, NOTHING)
    second.run()
    for run in (first, second): assert same(run.trainer.sae.state_dict(), undisturbed_run)


@pytest.fixture(scope='module')
def undisturbed_run(tmp_path_factory) -> dict:
    run = runner(TOPK, tmp_path_factory.mktemp('whole'), NOTHING)
    run.run()
    return run.trainer.sae.state_dict()


@pytest.mark.parametrize('event, told', [('on_end', 'at step 24'), ('on_close', 'when the run was complete')])
def test_a_signal_after_the_last_step(event, told, undisturbed_run, tmp_path):
    run = runner(TOPK, tmp_path, NOTHING)
    plain = run.make_callbacks
    run.make_callbacks = lambda: [At(event, 1, lambda trainer: os.kill(os.getpid(), signal.SIGTERM)), *plain()]
    with pytest.raises(Interrupted, match=f'stopped by SIGTERM {told}') as e: run.run()
    assert e.value.exit_code == 143 and (tmp_path/'sae'/'cfg.json').exists() == (event == 'on_close')
    again = runner(TOPK, tmp_path, NOTHING)
    again.run()
    assert same(again.trainer.sae.state_dict(), undisturbed_run)


def test_a_lock_dies_with_its_process(tmp_path):
    code = f"from sae_workbench.core.folders import only_one\nimport os\nwith only_one({str(tmp_path)!r}): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, '-c', code], env=ENV).returncode == -9
    small(tmp_path, n_checkpoints=1).fit()


def test_the_latest_is_that_of_the_latest_step_whatever_the_clock_says(tmp_path):
    t = small(None)
    for i in range(3):
        t.one_step()
        path = Checkpoints(tmp_path).save(t)
        os.utime(path, (10**9 - i, 10**9 - i))   # the clock went back
    assert latest(tmp_path).name == '96'


def test_in_a_thread(tmp_path):
    "No handler is touched, and another thread stops the run"
    before, errors = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], []
    t = small(tmp_path, rows=32*10**6)
    def fit():
        try: t.fit()
        except Interrupted as e: errors.append(e)
    thread = threading.Thread(target=fit)
    thread.start()
    while t.n_training_steps < 3: time.sleep(.01)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    t.stop()
    thread.join(30)
    assert len(errors) == 1 and latest(tmp_path).name == str(t.n_training_samples)


def test_a_signal_while_the_model_is_loaded(monkeypatch):
    "Nothing is there to be saved, and that is said"
    from sae_workbench import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
    def load(cfg):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    monkeypatch.setattr('sae_workbench.training.run_parts.load_run_model', load)
    cfg = LanguageModelSAERunnerConfig(sae=TopKTrainingSAEConfig(d_in=8, d_sae=32, k=3), dataset_path='x', checkpoint_path=None, output_path=None)
    before, begin = signal.getsignal(signal.SIGTERM), time.time()
    with pytest.raises(Interrupted, match='stopped by SIGTERM before the first step: there is nothing to save') as e:
        LanguageModelSAETrainingRunner(cfg)
    assert e.value.exit_code == 143 and time.time() - begin < 30 and signal.getsignal(signal.SIGTERM) == before


def test_handlers_are_put_back_after_an_exception():
    before, t = signal.getsignal(signal.SIGTERM), small(None)
    class Fails:
        def after_step(self, trainer):
            assert signal.getsignal(signal.SIGTERM) != before
            raise RuntimeError('something else')
    t.callbacks.append(Fails())
    with pytest.raises(RuntimeError): t.fit()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_stops_at_once_and_a_torn_step_is_not_gone_on_from(tmp_path):
    t = small(tmp_path, n_checkpoints=4)
    class Twice:
        def on_step(self, trainer, output):
            if trainer.n_training_steps == 9:
                for _ in range(2): os.kill(os.getpid(), signal.SIGINT)
    t.callbacks.append(Twice())
    with pytest.raises(KeyboardInterrupt) as e: t.fit()
    assert not isinstance(e.value, Interrupted) and t.n_training_steps == 10   # that step is complete
    def torn(*args):
        for _ in range(2): os.kill(os.getpid(), signal.SIGINT)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(t.optimizer, 'step', torn)
        with pytest.raises(KeyboardInterrupt): t.fit()
    with pytest.raises(Exception, match='cut off in the middle'): t.fit()
    again = small(tmp_path, n_checkpoints=4)
    Checkpoints(tmp_path).load(again)
    whole = small(None)
    assert torch.equal(again.fit().W_dec, whole.fit().W_dec)


# The command line

# Files of others in the folder

def test_only_what_the_run_wrote_is_deleted(tmp_path):
    "keep_last and the cleaning at the start leave alone what merely has a similar name"
    for name in ('96', '2024'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'mine.txt').write_text('mine', encoding='utf-8')
    (tmp_path/'.notes.tmp').write_text('mine', encoding='utf-8')
    (tmp_path/'.96.123.tmp').mkdir()   # of a killed run
    small(tmp_path, n_checkpoints=4, keep_last_checkpoints=2).fit()
    assert [p.name for p in Checkpoints(tmp_path).all()] == ['512', '384']
    assert {p.name for p in tmp_path.iterdir()} >= {'96', '2024', '.notes.tmp'} and not (tmp_path/'.96.123.tmp').exists()


def test_a_place_where_nothing_can_be_written_is_told_at_once(tmp_path):
    (tmp_path/'file').write_text('', encoding='utf-8')
    (tmp_path/'link').symlink_to(tmp_path/'nowhere'/'below')
    for place in ('file', 'file/below', 'link'):
        with pytest.raises(ConfigError, match='is not a folder'): small(tmp_path/place)


def test_a_program_that_goes_elsewhere(tmp_path, monkeypatch):
    "Relative folders are meant from where the run was made"
    monkeypatch.chdir(tmp_path)
    run = runner(dict(architecture='topk', source='live'), Path('run'), NOTHING)
    class Moves:
        def after_step(self, trainer): os.chdir(trainer.n_training_steps % 2 and tmp_path/'elsewhere' or tmp_path)
    (tmp_path/'elsewhere').mkdir()
    run.callbacks.append(Moves())
    run.run()
    assert not list((tmp_path/'elsewhere').iterdir()) and {p.name for p in (tmp_path/'run'/'sae').iterdir()} >= {'cfg.json', 'log.jsonl'}
    assert len([*(tmp_path/'run'/'checkpoints').glob('*/*/manifest.json')]) == 3   # keep_last_checkpoints


@pytest.mark.parametrize('changed', ['order', 'end', 'model'])
def test_a_run_on_something_else_than_before_is_refused(changed, tmp_path):
    "The model and the data came as objects: no option names them"
    from datasets import Dataset
    from faults import NOTHING, Model, runner, texts
    case = dict(architecture='topk', source='live')
    run = runner(case, tmp_path, NOTHING)
    run.callbacks.append(Asks(5))
    with pytest.raises(Interrupted): run.run()
    rows, model = texts(), Model()
    if changed == 'order': rows[1:] = rows[:0:-1]
    if changed == 'end': rows[50:] = rows[:10]
    if changed == 'model': model.embed.weight.data[7] += 1
    other = LanguageModelSAETrainingRunner(run.cfg, Dataset.from_list(rows), model)
    with pytest.raises(DataError, match='the saved position belongs to'): other.run()
    assert other.trainer is None and latest(next((tmp_path/'checkpoints').iterdir())).name == '192'


def test_other_activations_in_memory_or_in_a_cache_are_refused(tmp_path):
    x = torch.randn(50, 4)
    y = x.flip(0)
    for name, rows in (('x', x), ('y', y)): write_cache(TensorSource(rows, rows=10), tmp_path/name, max_rows=50)
    shutil.copytree(tmp_path/'x', tmp_path/'moved')
    for a, same_data, other in [(TensorSource(x), TensorSource(x.clone()), TensorSource(y)),
                                (ShardSource(tmp_path/'x'), ShardSource(tmp_path/'moved'), ShardSource(tmp_path/'y'))]:
        same_data.load_state_dict(a.state_dict())
        with pytest.raises(DataError, match='of other activations'): other.load_state_dict(a.state_dict())


class Asks:
    def __init__(self, step): self.step = step
    def after_step(self, trainer):
        if trainer.n_training_steps == self.step + 1: trainer.stop('a test')


# Errors of others: of the source, the model, an evaluator, a callback

class FailsOnce(torch.nn.Embedding):
    "A model that fails at its n-th call, half of the batches of a buffer made already"
    def __init__(self, n):
        super().__init__(20, 8, _weight=torch.randn(20, 8, generator=torch.Generator().manual_seed(0)))
        self.n = n

    def forward(self, tokens):
        self.n -= 1
        if not self.n: raise MemoryError('out of memory')
        return super().forward(tokens)


class Raises:
    def __init__(self, event, step, error=OSError):
        self.error = error
        setattr(self, event, lambda t, *a: self.check(t.n_training_steps == step))
    def check(self, now):
        if now: raise self.error('the network is away')


def failing(folder, model=0, evaluation=None, callbacks=(), architecture='topk') -> SAETrainer:
    torch.manual_seed(0)
    tokens = torch.randint(20, (90, 7), generator=torch.Generator().manual_seed(1))
    source = MixingBuffer(ModuleSource(torch.nn.Sequential(FailsOnce(model + 1 if model else 0)), '0', tokens, batch_size=8, shuffle=True), 128, 32)
    def evaluator(sae, data, scaler):
        draws = torch.rand(1).item()
        if trainer.n_training_steps == evaluation: raise RuntimeError('out of memory')
        return dict(draws=draws)
    cfg = SAETrainerConfig(640, 32, checkpoint_path=str(folder), n_batches_for_norm_estimate=3,
                           logger=LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=2))
    sae = TrainingSAE.from_dict(sae_config(dict(architecture=architecture, norm='expected_average_only_in')).to_dict())
    trainer = SAETrainer(cfg, sae, source, evaluator, callbacks=callbacks)
    return trainer


@pytest.mark.parametrize('how', [dict(model=9), dict(model=14), dict(evaluation=7), dict(callbacks=[Raises('on_log', 5)]), dict(callbacks=[Raises('on_log', 7)]),
                                 dict(callbacks=[Raises('after_step', 8)]), dict(callbacks=[Raises('after_step', 8, SystemExit)]), *(dict(callbacks=[Raises('on_step', n)]) for n in (6, 5, 7))],
                         ids=['model 9', 'model 14', 'evaluation', 'log 5', 'log 7', 'after step', 'sys.exit', 'step 6', 'step 5 with a log', 'step 7 with an evaluation'])
def test_an_error_between_two_steps_loses_nothing(how, tmp_path):
    whole = failing(tmp_path/'whole')
    whole.fit()
    first = failing(tmp_path/'run', **how)
    with pytest.raises((OSError, RuntimeError, MemoryError, DataError, SystemExit)) as e: first.fit()
    assert 'The last good checkpoint is' in e.value.__notes__[0] and e.value.checkpoint == latest(tmp_path/'run')
    second = failing(tmp_path/'run')
    assert Checkpoints(tmp_path/'run').load(second)
    for t in (second, first):   # another process, and this one
        for cb in t.callbacks:
            for event in ('on_log', 'after_step', 'on_step'): vars(cb).pop(event, None)
        t.evaluator = second.evaluator
        t.fit()
        assert same(*[{k: v for k, v in x.state_dict().items() if k != 'callbacks'} for x in (t, whole)])


def noisy(t: SAETrainer, where=None) -> SAETrainer:
    "Its loss draws a number; the step at 352 rows fails, in the forward pass, the backward pass or the optimiser"
    def fail(*args): raise MemoryError('out of memory')
    def forward(step_input):
        out, now = type(t.sae).training_forward_pass(t.sae, step_input), t.n_training_samples == 352
        out.loss = out.loss*(1 + torch.rand(()))
        if where == 'forward' and now: fail()
        if where == 'backward' and now: out.loss.register_hook(fail)
        if where == 'optimiser' and now: t.optimizer.register_step_post_hook(fail)
        return out
    t.sae.training_forward_pass = forward
    return t


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_an_error_inside_a_step_loses_nothing_unless_weights_have_changed(architecture, tmp_path):
    whole = noisy(failing(tmp_path/'whole', architecture=architecture))
    whole.fit()
    for where in ('forward', 'backward', 'optimiser'):
        first = noisy(failing(tmp_path/where, architecture=architecture), where)
        with pytest.raises(MemoryError) as e: first.fit()
        if where == 'optimiser':
            assert not latest(tmp_path/where)
            with pytest.raises(SAEWorkbenchError, match='cut off in the middle'): first.fit()
            continue
        assert e.value.checkpoint == latest(tmp_path/where) and latest(tmp_path/where).name == '352'
        second = failing(tmp_path/where, architecture=architecture)
        assert Checkpoints(tmp_path/where).load(second)
        for t in (noisy(second), noisy(first)):   # another process, and this one
            t.fit()
            assert same(*[{k: v for k, v in x.state_dict().items() if k != 'callbacks'} for x in (t, whole)])


def test_the_others_of_train_together_write_checkpoints(tmp_path):
    a, b = small(tmp_path/'a'), small(tmp_path/'b')
    b.callbacks.append(Raises('after_step', 5))
    with pytest.raises(OSError): train_together([a, b])
    assert [latest(tmp_path/n).name for n in 'ab'] == ['160', '160']


@pytest.mark.parametrize('state', [{'x': {1, 2}}, {'x': {1: 2}}, {'x': {'': 2}}, {'x': [torch.ones(2)]}], ids=['set', 'key', 'empty key', 'tensors in a list'])
def test_a_callback_without_a_plain_state_costs_no_checkpoint(state, tmp_path):
    class Mine:
        def state_dict(self): return state
    t = small(tmp_path)
    t.callbacks.append(Mine())
    with pytest.warns(UserWarning, match="without the state of the callback Mine-0"): Checkpoints(tmp_path).save(t)
    second = small(tmp_path)
    assert Checkpoints(tmp_path).load(second)


@pytest.fixture(scope='module')
def tiny_model(tmp_path_factory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM
    from sae_workbench.activations.tokens import word_tokenizer
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    sizes = dict(vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    word_tokenizer(' '.join(f'w{i}' for i in range(27))).save_pretrained(folder)
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(30, (400, 16), generator=g).tolist()
    (folder/'data.jsonl').write_text('\n'.join(json.dumps(dict(tokens=r)) for r in rows), encoding='utf-8')
    return folder


PROGRAM = [sys.executable, '-c', 'from sae_workbench.apps.cli import main; main()']


def command(tiny_model: Path, place: Path, *more, program=PROGRAM, terminal=None) -> subprocess.Popen:
    args = ['train', '--architecture', 'topk', '--d-in', '16', '--d-sae', '64', '--k', '4', '--model-name', str(tiny_model),
            '--model-class-name', 'AutoModelForCausalLM', '--hook-name', 'model.layers.0', '--dataset-path', str(tiny_model/'data.jsonl'),
            '--context-size', '16', '--training-tokens', '120000', '--train-batch-size-tokens', '64', '--store-batch-size-prompts', '8',
            '--n-batches-in-buffer', '16', '--n-eval-batches', '1', '--checkpoint-path', str(place/'ck'), '--output-path', str(place/'sae'),
            '--lr', '0.001', '--resume', *more]
    def take():
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)   # the terminal is this session's
        signal.signal(signal.SIGHUP, signal.SIG_DFL)   # the suite itself may run under nohup
    where = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) if terminal is None else dict(
        stdin=terminal, stderr=terminal, stdout=terminal, start_new_session=True, preexec_fn=take)
    return subprocess.Popen([*program, *args], env=ENV, text=True, **where)


def wait_for(condition, process, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < end, process.communicate()[1][-2000:]
        time.sleep(.005)


def test_the_same_command_goes_on(tiny_model, tmp_path):
    one = command(tiny_model, tmp_path/'one')
    log = tmp_path/'one'/'sae'/'log.jsonl'
    wait_for(lambda: log.exists() and log.read_text(encoding='utf-8').count('\n') > 40, one)
    one.send_signal(signal.SIGTERM)
    said = one.communicate(timeout=240)[1]
    assert one.returncode == 143 and 'stopped by SIGTERM at step' in said, said[-2000:]
    other = command(tiny_model, tmp_path/'one', '--lr', '0.01')
    said = other.communicate(timeout=240)[1]
    assert other.returncode == 2 and 'lr: 0.001 in the checkpoint, 0.01 now' in said, said[-2000:]
    again, whole = command(tiny_model, tmp_path/'one'), command(tiny_model, tmp_path/'whole')
    for p in (again, whole):
        said = p.communicate(timeout=240)[1]
        assert p.returncode == 0, said[-2000:]
    a, b = (SAE.load_from_disk(tmp_path/n/'sae') for n in ('whole', 'one'))
    for k, v in a.state_dict().items():
        assert torch.equal(v, b.state_dict()[k]), k
    lines = [[{k: v for k, v in json.loads(line).items() if k != 'seconds'} for line in (tmp_path/n/'sae'/'log.jsonl').read_text(encoding='utf-8').splitlines()] for n in ('whole', 'one')]
    assert lines[0] == lines[1] and len(lines[0]) > 50


# Weights & Biases

def test_the_wandb_run_is_gone_on_with(tmp_path, monkeypatch):
    "What is asked of W&B's client; offline it writes its own files"
    import wandb
    from sae_workbench import LoggingConfig
    from sae_workbench.training.wandb_log import WandBLogger
    asked, init = [], wandb.init
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    monkeypatch.setenv('WANDB_SILENT', 'true')
    monkeypatch.setattr(wandb, 'init', lambda **kw: asked.append(kw) or init(**kw))
    def trainer(): return small(tmp_path/'ck', logger=LoggingConfig(log_to_wandb=True))
    first = trainer()
    class Stops:
        def after_step(self, trainer):
            if trainer.n_training_steps == 12: trainer.stop()
    first.callbacks.append(Stops())
    with pytest.raises(Interrupted): first.fit()
    second = trainer()
    Checkpoints(tmp_path/'ck').load(second)
    second.fit()
    assert [a['resume'] for a in asked] == ['allow', 'must']
    assert asked[0]['id'] is None and asked[1]["id"] == next(cb for cb in first.callbacks if isinstance(cb, WandBLogger)).id


def test_nobody_reads_what_is_said(tiny_model, tmp_path):
    "The reader of the progress bar is gone, as after `2>&1 | head`: the run goes on to its end"
    process = command(tiny_model, tmp_path, '--training-tokens', '40000')
    wait_for(lambda: 'EV' in process.stderr.readline(200), process)
    process.stderr.close()   # from now on it writes to a broken pipe
    assert process.wait(240) == 0 and (tmp_path/'sae'/'sae_weights.safetensors').is_file()


def test_the_terminal_is_closed(tiny_model, tmp_path):
    "SIGHUP, and nothing can be printed any more: a checkpoint, from which the same command goes on"
    try:
        master, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 120, 0, 0))
        process = command(tiny_model, tmp_path, terminal=terminal)
    except (OSError, subprocess.SubprocessError) as e:
        pytest.skip(f'no terminals here: {e}')
    os.close(terminal)
    wait_for(lambda: b'EV' in os.read(master, 4096), process)
    os.close(master)
    process.send_signal(signal.SIGHUP)   # the kernel sends one, too, but not in every sandbox
    assert process.wait(240) == 128 + signal.SIGHUP
    assert [p for p in (tmp_path/'ck').glob('*/*') if (p/'manifest.json').exists()]
    again = command(tiny_model, tmp_path)
    said = again.communicate(timeout=240)[1]
    assert again.returncode == 0, said[-2000:]


# States that are not the trainer's

class Counts(TopKTrainingSAE):
    "An SAE whose loss depends on two buffers, one of them in no file of weights"
    def __init__(self, cfg, use_error_term=False):
        super().__init__(cfg, use_error_term)
        self.register_buffer('saved', torch.zeros(()))
        self.register_buffer('unsaved', torch.zeros(()), persistent=False)

    def training_forward_pass(self, step_input):
        out = super().training_forward_pass(step_input)
        self.saved += 1
        self.unsaved += 2
        out.loss = out.loss + (self.saved + self.unsaved)*1e-3*self.W_dec.square().mean()
        return out


class Crops(torch.utils.data.Dataset):
    "Inputs that are random, in the worker that reads them"
    def __len__(self): return 60
    def __getitem__(self, i): return torch.rand(8) + i


@pytest.mark.parametrize('workers', [dict(), dict(num_workers=2), dict(num_workers=2, persistent_workers=True)], ids=str)
def test_buffers_and_workers_go_on_as_they_were(workers, tmp_path):
    def make(name):
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(Crops(), batch_size=7, shuffle=True, **workers)
        source = MixingBuffer(ModuleSource(torch.nn.Sequential(torch.nn.Identity()), '0', loader), 128, 32)
        sae = Counts(TopKTrainingSAEConfig(d_in=8, d_sae=32, k=3))
        t = SAETrainer(SAETrainerConfig(640, 32, checkpoint_path=str(tmp_path/name)), sae, source)
        Checkpoints(tmp_path/name).load(t)
        loaders.append(source.source.inputs)
        return t
    loaders = []
    whole = make('whole')
    whole.fit()
    for step in (5, 14):
        t = make('run')
        t.callbacks.append(Asks(step))
        with pytest.raises(Interrupted): t.fit()
    t = make('run')
    t.fit()
    assert same({**t.sae.state_dict(), 'unsaved': t.sae.unsaved}, {**whole.sae.state_dict(), 'unsaved': whole.sae.unsaved}) and t.sae.unsaved == 40
    assert torch.equal(next(t.data_provider), next(whole.data_provider))
    for loader in loaders: loader.rewind()   # workers that are collected as garbage take ten seconds to end
