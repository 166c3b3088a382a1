"""Every writer, with every error of the operating system at every one of its calls: afterwards the old artefact is there or the new one, and the error says which file it is about."""
import builtins
import errno
import fcntl
import io
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sae_workbench import SAE, SAEMetadata, SAETrainer, SAETrainerConfig, ShardSource, StandardSAE, StandardSAEConfig, SyntheticSource
from sae_workbench import TensorSource, TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig, write_cache
from sae_workbench.core import files
from sae_workbench.core.errors import LoadError, SAEWorkbenchError
from sae_workbench.core.files import read_json, write_json, write_text
from sae_workbench.core.folders import settle
from sae_workbench.core.serial import read_plain, write_plain
from sae_workbench.apps.evals_command import write_records
from sae_workbench.synthetic import HierarchyConfig, SyntheticModel, SyntheticModelConfig
from sae_workbench.training.callbacks import JSONLLogger, read_log
from sae_workbench.training.checkpoint import Checkpoints

ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.EACCES]
CALLS = [(os, n) for n in ('open', 'fsync', 'replace', 'rename', 'mkdir', 'unlink', 'rmdir', 'chmod', 'link')]
CALLS += [(builtins, 'open'), (io, 'open'), (fcntl, 'flock'), (files, 'save_file')]


class Failing:
    "Counts the calls of the system that write, and fails at one of them"
    def __init__(self, at: int, number: int): self.left, self.number, self.failed = at, number, False

    def error(self, path=None) -> OSError:
        self.failed = True
        return OSError(self.number, os.strerror(self.number), *([str(path)] if path else []))

    def now(self) -> bool:
        self.left -= 1
        return self.left == 0

    def around(self, name: str, plain: Callable) -> Callable:
        def call(*args, **kwargs):
            path = args[0] if args and isinstance(args[0], (str, Path)) else None   # the system names no file for a descriptor
            if name != 'open' or self.writes(args, kwargs):
                if self.now(): raise self.error(path)
            file = plain(*args, **kwargs)
            if name == 'open' and hasattr(file, 'write') and self.now(): return Full(file, self)
            return file
        return call

    def writes(self, args, kwargs) -> bool:
        mode = kwargs.get('mode', args[1] if len(args) > 1 else 'r')
        return bool(mode & (os.O_CREAT | os.O_RDWR | os.O_WRONLY)) if isinstance(mode, int) else bool(set(mode) & set('wax+'))


class Full:
    "A file that opens and cannot be written to"
    def __init__(self, file, failing): self.file, self.failing = file, failing
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, data): raise self.failing.error()


@contextmanager
def failing(at: int, number: int) -> Iterator[Failing]:
    "Inside the block the nth call fails"
    f, plain = Failing(at, number), [getattr(m, n) for m, n in CALLS]
    for (m, n), p in zip(CALLS, plain): setattr(m, n, f.around(n, p))
    try: yield f
    finally:
        for (m, n), p in zip(CALLS, plain): setattr(m, n, p)


# Writers: what to write (old or new), and how to read which of the two is there

def an_sae(new: bool) -> SAE:
    torch.manual_seed(int(new))
    metadata = SAEMetadata(hook_name=f'layer_{int(new)}')
    return (StandardSAE if new else TopKSAE)(StandardSAEConfig(d_in=8, d_sae=16, metadata=metadata) if new else TopKSAEConfig(d_in=8, d_sae=16, k=2, metadata=metadata))


def which_sae(folder: Path) -> str:
    found, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(folder/'sae')
    parts = {type(found) is StandardSAE, torch.equal(found.W_dec, an_sae(True).W_dec)}
    if sparsity is not None: parts.add(bool(sparsity[0]))
    if (card := folder/'sae'/'README.md').exists(): parts.add('layer_1' in card.read_text(encoding='utf-8'))
    assert len(parts) == 1, parts
    return 'new' if parts.pop() else 'old'


def save_model(folder: Path, new: bool): an_sae(new).save_model(folder/'sae')


def save_pretrained(folder: Path, new: bool): an_sae(new).save_pretrained(folder/'sae', log_sparsity=torch.full((16,), float(new)))


def a_cache(folder: Path, new: bool):
    place = folder/f'acts-{int(new)}'   # a cache is never written over
    write_cache(TensorSource(torch.full((30, 4), float(new)), epochs=1), place, rows_per_shard=10)


def which_cache(folder: Path) -> str:
    assert torch.equal(torch.cat([*ShardSource(folder/'acts-0', epochs=1)]), torch.zeros(30, 4))
    try: rows = torch.cat([*ShardSource(folder/'acts-1', epochs=1)])
    except LoadError: return 'old'
    assert torch.equal(rows, torch.ones(30, 4))
    return 'new'


TRAINER = []


def a_checkpoint(folder: Path, new: bool):
    if not TRAINER:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2))
        TRAINER.append(SAETrainer(SAETrainerConfig(640, 32), sae, SyntheticSource(12, 8, batch_size=32)))
    TRAINER[0].n_training_samples = 64 if new else 32
    Checkpoints(folder/'ck').save(TRAINER[0], must=True)


def which_checkpoint(folder: Path) -> str: return {'32': 'old', '64': 'new'}[Checkpoints(folder/'ck').latest().name]


def a_plain_file(folder: Path, new: bool): write_plain(folder/'run.yaml', dict(new=new))


def which_plain_file(folder: Path) -> str: return 'new' if read_plain(folder/'run.yaml')['new'] else 'old'


def a_text(folder: Path, new: bool): write_text(folder/'page.html', 'new' if new else 'old')


def a_json(folder: Path, new: bool): write_json(folder/'a.json', dict(new=new))


def results(folder: Path, new: bool):
    record = dict(unique_id='a', eval_cfg=dict(context_size=1, dataset='d'), metrics=dict(new=new), feature_metrics={})
    write_records([record], folder/'evals')


def which_results(folder: Path) -> str:
    settle(folder/'evals')
    said = {read_json(folder/'evals'/'a_1_d.json')['metrics']['new'], 'True' in (folder/'evals'/'all_eval_results.csv').read_text(encoding='utf-8')}
    assert len(said) == 1
    return 'new' if said.pop() else 'old'


def a_synthetic_model(folder: Path, new: bool):
    trees = None if new else HierarchyConfig(total_root_nodes=2, branching_factor=2, max_depth=1)
    SyntheticModel(SyntheticModelConfig(num_features=8 if new else 6, hidden_dim=4, hierarchy=trees, seed=0)).save(folder/'model')


def which_synthetic_model(folder: Path) -> str:
    model = SyntheticModel.load_from_disk(folder/'model')
    assert (model.hierarchy is None) == (model.cfg.num_features == 8) == (not (folder/'model'/'hierarchy.json').exists())
    return 'new' if model.hierarchy is None else 'old'


WRITERS = dict(
    synthetic_model=(a_synthetic_model, which_synthetic_model),
    save_model=(save_model, which_sae), save_pretrained=(save_pretrained, which_sae), cache=(a_cache, which_cache), checkpoint=(a_checkpoint, which_checkpoint),
    config=(a_plain_file, which_plain_file), text=(a_text, lambda f: (f/'page.html').read_text(encoding='utf-8')),
    json=(a_json, lambda f: 'new' if read_json(f/'a.json')['new'] else 'old'), results=(results, which_results))


@pytest.mark.parametrize('name', WRITERS)
def test_old_or_new_whatever_fails(name, tmp_path):
    "Each call fails once, with one error after the other"
    fail_everywhere(name, tmp_path, lambda at: [ERRORS[at % len(ERRORS)]])


@pytest.mark.slow
@pytest.mark.parametrize('name', WRITERS)
def test_old_or_new_whatever_fails_and_how(name, tmp_path):
    "Each call fails with each of the errors"
    fail_everywhere(name, tmp_path, lambda at: ERRORS)


def fail_everywhere(name: str, tmp_path: Path, numbers: Callable[[int], list[int]]):
    write, which = WRITERS[name]
    write(tmp_path/'start', False)
    assert which(tmp_path/'start') == 'old'
    ended, calls = set(), 0
    for at in range(1, 400):
        for number in numbers(at):
            folder = tmp_path/'try'
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path/'start', folder)
            error = None
            with failing(at, number) as f, warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try: write(folder, True)
                except Exception as e: error = e
            where = f'{name}, call {at}, {errno.errorcode[number]}: {type(error).__name__} {error}'
            assert isinstance(error, (SAEWorkbenchError, OSError, type(None))), where
            assert error is None or str(folder) in str(error), where
            found = which(folder)
            assert found == 'new' if error is None else found in ('old', 'new'), where
            write(folder, True)   # the next one ends well, and leaves nothing behind
            assert which(folder) == 'new' and not [*folder.rglob('*.tmp')], where
            ended.add(found)
        if not f.failed: break
        calls = at
    assert ended == {'old', 'new'} and calls >= 3, (ended, calls)


def test_a_log_keeps_its_lines_whatever_fails(tmp_path):
    "A line that cannot be written waits; there is no half line"
    class Trainer:
        n_training_steps = 0
    for at in range(1, 20):
        log = JSONLLogger(tmp_path/f'{at}.jsonl')
        log.on_log(Trainer, dict(a=1.))
        with failing(at, errno.ENOSPC) as f, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            log.on_log(Trainer, dict(a=2.))
        log.on_log(Trainer, dict(a=3.))
        assert [line['a'] for line in read_log(log.path)] == [1., 2., 3.]
        if not f.failed: break
    assert at >= 3


LEAK = """
import os, resource, sys, warnings
import torch
from sae_workbench import SAETrainer, SAETrainerConfig, SyntheticSource, TopKTrainingSAE, TopKTrainingSAEConfig
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
warnings.showwarning = lambda m, *a, **k: print('warned:', m)
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=16, d_sae=64, k=4))
t = SAETrainer(SAETrainerConfig(32*40, 32, n_checkpoints=3, checkpoint_path=sys.argv[1]), sae, SyntheticSource(20, 16, batch_size=32))
held = []
class Leak:
    def after_step(self, trainer):
        if trainer.n_training_steps == 15:
            try:
                while True: held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError: pass
            if sys.argv[2] == 'error': raise RuntimeError('the error of the run')
        if trainer.n_training_steps == 25:
            while held: os.close(held.pop())
t.callbacks.insert(0, Leak())
try: t.fit()
except RuntimeError as e:
    while held: os.close(held.pop())
    print(e, e.__notes__)
print(t.n_training_steps, sorted(p for p in os.listdir(sys.argv[1]) if p[0] != '.'))
"""


@pytest.mark.parametrize('how', ['error', 'leak'])
def test_file_descriptors_that_are_used_up(how, tmp_path):
    "A run that fails so still writes its last checkpoint; one that does not fail passes over the checkpoint and goes on"
    done = subprocess.run([sys.executable, '-c', LEAK, str(tmp_path/'ck'), how], capture_output=True, encoding='utf-8',
                          env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[2])))
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    if how == 'error':
        assert said == [f"the error of the run ['The last good checkpoint is {tmp_path/'ck'/'480'}']"] and last == "15 ['320', '480', 'run.json']"
    else:
        assert len(said) == 1 and 'could not be written' in said[0] and 'The run goes on' in said[0]
        assert last == "40 ['320', '960', 'run.json']"
