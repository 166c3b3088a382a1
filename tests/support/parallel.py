"""Runs of one and of several processes that talk through gloo: `parallel.py CASES.json FOLDER` prints a JSON line for each case.

Torch is imported once; each process of a case is a fork. A case names a function below, what it gets, and on how many processes it runs.
"""
import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch._dynamo   # else every child imports it at its first step
import torch.distributed as dist

import faults
import sae_workbench.saes
from sae_workbench import MixingBuffer, SAETrainer, SAETrainerConfig, SyntheticSource, TensorSource, TrainingSAE
from sae_workbench.activations.shared_passes import share_passes
from sae_workbench.core.files import write_tensors
from sae_workbench.core.processes import processes
from sae_workbench.core.registry import get_sae_training_class
from sae_workbench.training.callbacks import JSONLLogger
from sae_workbench.training.checkpoint import Checkpoints
from sae_workbench.training.feed import BatchFeed
from sae_workbench.training.model_loss import ModelLoss, Place
from sae_workbench.training.parallel import shared_pass
from sae_workbench.training.preempt import Interrupted
from sae_workbench.training.train_state import TrainState
from sae_workbench.saes.training import TrainStepInput

torch.set_num_threads(1)
ROWS = 31   # not divisible: the parts of a batch differ in size
WITH_TARGETS = {   # rows are what is read and what is to be written, or several views
    'transcoder': dict(l1_coefficient=.1, d_out=6, skip=True), 'topk_transcoder': dict(k=3, d_out=6, skip=True),
    'jumprelu_transcoder': dict(l0_coefficient=.1, jumprelu_bandwidth=.5, d_out=6), 'batchtopk_transcoder': dict(k=3, d_out=6),
    'matryoshka_batchtopk_transcoder': dict(k=3, matryoshka_widths=[8, 32], d_out=6, skip=True),
    'crosscoder': dict(l1_coefficient=.1, d_views=[3, faults.D_IN - 3]), 'batchtopk_crosscoder': dict(k=3, d_views=[3, faults.D_IN - 3]),
    'cross_layer_transcoder': dict(activation='batchtopk', k=6, n_layers=2, d_out=6, skip=True)}


def sae_of(case: dict, dtype='float64') -> TrainingSAE:
    torch.manual_seed(0)
    if case['architecture'] in WITH_TARGETS:
        config = get_sae_training_class(case['architecture'])[1]
        return TrainingSAE.from_dict(config(d_in=faults.D_IN, d_sae=faults.D_SAE, dtype=dtype, **WITH_TARGETS[case['architecture']]).to_dict())
    options = dict(faults.OPTIONS[case['architecture']], **case.get('options', {}))
    return TrainingSAE.from_dict(faults.sae_config(case | dict(dtype=dtype)).to_dict() | options)


def gradients(case: dict, folder: Path) -> dict:
    "Losses, gradients and counts of one batch, where half of the latents are dead"
    team, sae = processes(), sae_of(case, case.get('dtype', 'float64'))
    if case.get('compiled'): sae.compile_step(backend='eager')
    x = torch.randn(ROWS, sum(sae.row_blocks), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(sae.dtype)
    dead, (read, target) = torch.arange(faults.D_SAE) % 2 == 0, sae.split(team.part(x))
    out = shared_pass(sae, TrainStepInput(read, {'l1': .3, 'l0': .3}, dead, 5, target=target), team)
    out.loss.backward()
    team.sum_gradients(sae.parameters())
    sae.after_optimizer_step()
    return dict(sae.named_buffers()) | {n: p.grad for n, p in sae.named_parameters()} | dict(
        loss=out.loss.detach(), counts=team.sum(out.firing_counts()), **{f'loss {k}': v.detach() for k, v in out.losses.items()})


class LM(torch.nn.Module):
    "A language model whose predictions depend on all that was read"
    tokenizer = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.stream, self.out = torch.nn.Embedding(20, faults.D_IN), torch.nn.Identity(), torch.nn.Linear(faults.D_IN, 20)
    def forward(self, tokens): return self.out(self.stream(self.embed(tokens).cumsum(1)).tanh())


def output_loss(case: dict, folder: Path) -> dict:
    "The same at the model's output, for contexts that differ in how many of their tokens count"
    team, sae = processes(), sae_of(case)
    tokens = torch.randint(0, 20, (7, 9), generator=torch.Generator().manual_seed(1))
    loss = ModelLoss(LM().double(), [Place('stream')], case['loss'], excluded=torch.tensor([0, 1, 2]))
    state = TrainState(SAETrainerConfig(7*9, 7*9), sae, loss)
    out = loss(state, tokens, team)
    out.loss.backward()
    team.sum_gradients(sae.parameters())
    return {n: p.grad for n, p in sae.named_parameters() if p.grad is not None} | dict(
        loss=out.loss.detach(), counts=team.sum(out.firing_counts()), **{f'loss {k}': v.detach() for k, v in out.losses.items()})


class Keeps:
    "Keeps the batches, and what is logged"
    def __init__(self, folder): self.folder, self.logged = folder, []
    def on_begin(self, trainer): (self.folder/f'began-{trainer.team.rank}').touch()
    def on_log(self, trainer, metrics): self.logged.append({k: v for k, v in metrics.items()})


class Spoilt:
    "Some batches hold NaN, one a row so large that its loss overflows"
    def __init__(self): self.n, self.data = 0, SyntheticSource(n_features=12, d_in=faults.D_IN, batch_size=faults.BATCH)
    def __iter__(self): return self
    def __next__(self):
        x, self.n = next(self.data), self.n + 1
        if self.n in (3, 4, 11): x[-1, 0] = float('nan')
        if self.n == 7: x[-1] = 1e30
        return x


def source_of(case: dict):
    "A source of batches, which the processes share out where it runs a model"
    if case['source'] == 'synthetic':
        return SyntheticSource(n_features=12, d_in=faults.D_IN, batch_size=faults.BATCH)
    if case['source'] == 'spoilt':
        return Spoilt()
    if case['source'] == 'tensor':
        return MixingBuffer(TensorSource(torch.randn(400, faults.D_IN, generator=torch.Generator().manual_seed(2)), rows=50, shuffle=True), 128, faults.BATCH)
    tokens = torch.tensor([t['tokens'] for t in faults.texts()])
    return MixingBuffer(share_passes(faults.ModuleSource(faults.Model(), 'layer', tokens, batch_size=7, shuffle=True), processes()), 128, faults.BATCH)


class StopsAfter:
    def __init__(self, step): self.step = step
    def after_step(self, trainer):
        if trainer.n_training_steps == self.step and trainer.team.rank == trainer.team.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)   # one process is told, the last one


class StopsWhileTalking:
    "The last process gets its signal between what it told the others and what it heard from them"
    def __init__(self, step): self.step = step
    def on_begin(self, trainer):
        team, talk = trainer.team, trainer.team.lowest
        def lowest(n):
            found = talk(n)
            if trainer.n_training_steps == self.step and team.rank == team.size - 1: os.kill(os.getpid(), signal.SIGTERM)
            return found
        team.lowest = lowest


class StopsInEvaluation:
    "Only the process that evaluates is told"
    def __init__(self, step): self.step = step
    def on_begin(self, trainer):
        evaluator = trainer.evaluator
        def evaluate(*args):
            if trainer.n_training_steps >= self.step: os.kill(os.getpid(), signal.SIGTERM)
            return evaluator(*args)
        trainer.evaluator = evaluate


class Dies:
    def __init__(self, step, rank, how): self.step, self.rank, self.how = step, rank, how
    def after_step(self, trainer):
        if trainer.n_training_steps == self.step and trainer.team.rank == self.rank:
            if self.how == 'kill': os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError('something of mine')


STOPS = [('stop', StopsAfter), ('stop_while_talking', StopsWhileTalking), ('stop_in_evaluation', StopsInEvaluation)]
SEEN: list[torch.Tensor] = []
plain_next = BatchFeed.read


def noted(self, skip=None):
    SEEN.append(plain_next(self, skip).clone())
    return SEEN[-1]


BatchFeed.read = noted


def train(case: dict, folder: Path) -> dict:
    "A whole run, or a part of it: weights, statistics, batches, what was logged"
    own = case['source'] in ('live', 'cached')
    keeps = Keeps(folder)
    more = [make(case[name]) for name, make in STOPS + [('dies', lambda d: Dies(**d))] if name in case]
    if own:
        r = faults.runner(case, folder, faults.NOTHING)
        r.make_callbacks = lambda make=r.make_callbacks: make() + [keeps, *more]
        r.run()
        t = r.trainer
    else:
        cfg = SAETrainerConfig(faults.STEPS*faults.BATCH, faults.BATCH, checkpoint_path=str(folder/'checkpoints'),
                               logger=faults.LoggingConfig(**faults.LOGGER), on_nonfinite=case.get('on_nonfinite', 'stop'), **faults.LOOP)
        torch.manual_seed(processes().rank)   # the first one's weights are everybody's
        sae = TrainingSAE.from_dict(faults.sae_config(case).to_dict())
        def evaluator(sae, data, scaler): return {'eval/drawn': torch.rand(1).item(), 'eval/norm': sae.W_dec.norm().item()}
        t = SAETrainer(cfg, sae, source_of(case), evaluator, callbacks=[JSONLLogger(folder/'log.jsonl'), keeps, *more])
        if case.get('resume'):
            Checkpoints(folder/'checkpoints').load(t)
        t.fit()
    out = {f'weights {k}': v for k, v in t.sae.state_dict().items()} | {f'statistics {k}': torch.as_tensor(v) for k, v in t.statistics.state_dict().items()}
    for i, line in enumerate(keeps.logged): out |= {f'logged {i} {k}': torch.tensor(float(v)) for k, v in line.items()}
    return out | {f'batch {i}': b for i, b in enumerate(SEEN)} | dict(position=torch.tensor([t.n_training_steps, t.n_training_samples, t.skips.total]))


def own_data(case: dict, folder: Path) -> dict:
    "Processes that draw data of their own"
    source = SyntheticSource(n_features=12, d_in=faults.D_IN, batch_size=faults.BATCH, seed=processes().rank)
    SAETrainer(SAETrainerConfig(64, 32), sae_of(case, 'float32'), source).fit()


def small_batch(case: dict, folder: Path) -> dict:
    SAETrainer(SAETrainerConfig(2, 1), sae_of(case, 'float32'), SyntheticSource(n_features=12, d_in=faults.D_IN, batch_size=1)).fit()


def passes(case: dict, folder: Path) -> dict:
    "The rows of a source, with NaN in one batch, and a saved position gone back to"
    from sae_workbench.core.errors import NonFiniteError
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    x[9] = float('nan')
    def source(): return share_passes(faults.ModuleSource(torch.nn.Sequential(torch.nn.Identity()), '0', x, batch_size=2, epochs=1), processes())
    s, out, at = source(), [], {}
    for i in range(11):
        if i == 3: at = s.state_dict()
        try: out.append(next(s).clone())
        except NonFiniteError as e: out.append(torch.tensor([float(str(e).split('batch ')[1].split()[0])]))
        except StopIteration: out.append(torch.zeros(0))
    s = source()
    s.load_state_dict(at)
    assert torch.equal(next(s), out[3])
    return {f'{i}': o for i, o in enumerate(out)}


def child(case: dict, folder: Path, rank: int, size: int) -> None:
    code = 99
    try:
        warnings.simplefilter('ignore')
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(folder/f'stderr-{rank}.txt', 'a', encoding='utf-8') as err:
            os.dup2(err.fileno(), 2)
        if size > 1:
            os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
            dist.init_process_group('gloo', init_method=f'file://{folder}/meet-{size}-{os.getppid()}-{case["number"]}', rank=rank, world_size=size)
        out = globals()[case['function']](case, folder)
        if out: write_tensors(folder/f'result-{rank}.safetensors', {k: v.contiguous() for k, v in out.items()})
        code = 0
    except Interrupted as e:
        print(e, file=sys.stderr)
        code = e.exit_code
    except BaseException as e:
        traceback.print_exc()
        code = 2
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(case: dict, folder: Path) -> dict:
    "One case; `signals` are [seconds after all processes have begun to train, rank, name], sent from outside"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob('began-*'): old.unlink()
    pids, size, signals, began = [], case.get('processes', 1), sorted(case.get('signals', [])), None
    for rank in range(size):
        if not (pid := os.fork()): child(case, folder, rank, size)
        pids.append(pid)
    begin, codes = time.time(), {}
    ended = {}
    while len(codes) < size:
        if began is None and len([*folder.glob('began-*')]) == size: began = time.time()
        while began and signals and time.time() - began > signals[0][0]:
            _, rank, name = signals.pop(0)
            if rank not in codes: os.kill(pids[rank], getattr(signal, name))
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pids.index(pid)], ended[pids.index(pid)] = os.waitstatus_to_exitcode(status), time.time() - begin
        elif time.time() - begin > 100:
            for p in {*pids} - {pids[r] for r in codes}:
                os.kill(p, signal.SIGKILL)
                os.waitpid(p, 0)
            return dict(case=case, codes='hangs')
        else:
            time.sleep(.005)
    errors = [(folder/f'stderr-{r}.txt').read_text(encoding='utf-8')[-1500:] for r in range(size)]
    return dict(case=case, codes=[codes[r] for r in range(size)], errors=errors, seconds=max(ended.values()) - min(ended.values()),
                took=time.time() - (began or begin))


if __name__ == '__main__':
    cases, home = json.loads(Path(sys.argv[1]).read_text(encoding='utf-8')), Path(sys.argv[2])
    for i, case in enumerate(cases):
        folder = home/case['folder']
        if case.get('source') == 'cached' and not (folder.parent/'acts').exists(): faults.cache(folder.parent)
        print(json.dumps(run(case | dict(number=i), folder)), flush=True)
