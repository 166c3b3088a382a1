"""Small real runs that are disturbed, each in a process of its own: `faults.py CASES.json FOLDER` prints a JSON line for each case.

The cases are made in this process's children: it imports torch once, forks, and compares what they leave. A run is started again and again
until it ends by itself; then every tensor that decides the next step, the next batches and the log must be those of the run that nobody
disturbed. Nothing in the library knows of this: a child sends itself a signal inside the model, the optimiser, os.fsync or os.rename.
"""
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import torch._dynamo   # else every child imports it at its first step
from torch import nn
from torch.utils.data import DataLoader

import sae_workbench.saes
from sae_workbench import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LayerSources, LoggingConfig, MixingBuffer, ModuleSource
from sae_workbench import SAETrainer, SAETrainerConfig, SyntheticSource, TensorSource, TrainingSAE, train_together, write_cache
from sae_workbench.activations.sources import LanguageModelSource
from sae_workbench.activations.tokens import TokenContexts
from sae_workbench.core import files
from sae_workbench.core.files import read_tensors, write_tensors
from sae_workbench.training import optim
from sae_workbench.training.callbacks import JSONLLogger, read_log
from sae_workbench.training.checkpoint import Checkpoints
from sae_workbench.training.preempt import Interrupted

torch.set_num_threads(1)
D_IN, D_SAE, BATCH, STEPS, VOCAB = 8, 32, 32, 24, 20
OPTIONS = dict(standard=dict(l1_coefficient=.1, l1_warm_up_steps=10), gated=dict(l1_coefficient=.1, l1_warm_up_steps=10),
               jumprelu=dict(l0_coefficient=.1, l0_warm_up_steps=10, jumprelu_bandwidth=.5), topk=dict(k=3), abstopk=dict(k=3), batchtopk=dict(k=3),
               matching_pursuit=dict(max_iterations=3), matryoshka_batchtopk=dict(k=3, matryoshka_widths=[8, 32]))
SOURCES = ('live', 'stream', 'shuffled_stream', 'cached', 'tensor', 'module', 'loader', 'synthetic', 'layers')
LOGGER = dict(wandb_log_frequency=2, eval_every_n_wandb_logs=4)
LOOP = dict(lr=1e-2, lr_warm_up_steps=5, lr_decay_steps=5, dead_feature_window=3, feature_sampling_window=7, n_checkpoints=4,
            save_final_checkpoint=True, keep_last_checkpoints=3, n_batches_for_norm_estimate=4)


class Disturbance:
    "Sends a signal to this process when something happens for the n-th time"
    def __init__(self, where='', n=1, sends='SIGKILL'): self.where, self.left, self.signal = where, n, getattr(signal, sends)

    def happens(self, where: str) -> None:
        if where != self.where:
            return
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.signal)

    def around(self, module, name: str, where: str) -> None:
        "Have it happen before and after each call of a function"
        plain = getattr(module, name)

        def disturbed(*args, **kwargs):
            self.happens(where)
            out = plain(*args, **kwargs)
            self.happens(where)
            return out
        setattr(module, name, disturbed)

    def install(self) -> None:
        for module, name in [(os, 'fsync'), (os, 'rename'), (os, 'replace'), (Path, 'rename'), (files, 'save_file')]:
            self.around(module, name, 'save')
        self.around(optim, 'clip_and_step', 'step')

        plain = files.save_file
        def half(tensors, path, *args):
            plain(tensors, path, *args)
            if self.where == 'half' and self.left == 1:
                os.truncate(path, os.path.getsize(path)//2)
            self.happens('half')
        files.save_file = half


NOTHING = Disturbance()


class Model(nn.Module):
    "A language model of one layer"
    tokenizer = None
    def __init__(self, disturbance=NOTHING):
        super().__init__()
        self.embed, self.layer, self.out = nn.Embedding(VOCAB, D_IN), nn.Identity(), nn.Linear(D_IN, VOCAB)
        for i, p in enumerate(self.parameters()):
            nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
        self.disturbance = disturbance

    def forward(self, tokens):
        self.disturbance.happens('evaluation' if 'evaluate_sae' in callers() else 'model')
        return self.out(self.layer(self.embed(tokens)))


def callers() -> list[str]:
    frame, names = sys._getframe(1), []
    while frame:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def texts() -> list[dict]:
    "Contexts for somewhat less than one epoch of a run of STEPS steps"
    return [dict(tokens=row) for row in torch.randint(VOCAB, (60, 10), generator=torch.Generator().manual_seed(0)).tolist()]


def dataset(source: str):
    from datasets import Dataset
    data = Dataset.from_list(texts())
    if source == 'live':
        return data
    data = data.to_iterable_dataset(num_shards=3)
    return data.shuffle(seed=0, buffer_size=16) if source == 'shuffled_stream' else data


def sae_config(case: dict):
    from sae_workbench.core.registry import get_sae_training_class
    more = dict(normalize_activations=case.get('norm', 'none'), dtype=case.get('dtype', 'float32'))
    return get_sae_training_class(case['architecture'])[1](d_in=D_IN, d_sae=D_SAE, **OPTIONS[case['architecture']], **more)


class Tick:
    "Slow steps, so that a signal from outside meets each of them"
    def __init__(self, seconds): self.seconds = seconds
    def after_step(self, trainer): time.sleep(self.seconds)


def runner(case: dict, folder: Path, disturbance: Disturbance):
    cached = case['source'] == 'cached'
    cache = dict(use_cached_activations=True, cached_activations_path=str(folder.parent/'acts')) if cached else {}
    cfg = LanguageModelSAERunnerConfig(
        sae=sae_config(case), model_name='toy', hook_name='layer', context_size=10, training_tokens=STEPS*BATCH, train_batch_size_tokens=BATCH,
        store_batch_size_prompts=4, n_batches_in_buffer=16, n_eval_batches=1, logger=LoggingConfig(**LOGGER), verbose=False, prepend_bos=False,
        checkpoint_path=str(folder/'checkpoints'), output_path=str(folder/'sae'), resume='auto', **LOOP | cache)
    return LanguageModelSAETrainingRunner(cfg, dataset('live' if cached else case['source']), Model(disturbance))


def source_of(case: dict, disturbance: Disturbance):
    model = Model(disturbance)
    tokens = torch.tensor([t['tokens'] for t in texts()])
    if case['source'] == 'synthetic':
        return SyntheticSource(n_features=12, d_in=D_IN, batch_size=BATCH)
    if case['source'] == 'tensor':
        with torch.no_grad():
            source = TensorSource(model.embed(tokens).flatten(0, 1), rows=50, shuffle=True)
    elif case['source'] == 'module':
        source = ModuleSource(model, 'layer', tokens, batch_size=7, shuffle=True)
    else:
        source = ModuleSource(model, 'layer', DataLoader(tokens, batch_size=7, shuffle=True))
    return MixingBuffer(source, 128, BATCH)


def trainer(case: dict, folder: Path, disturbance: Disturbance, source=None) -> SAETrainer:
    torch.manual_seed(0)
    cfg = SAETrainerConfig(STEPS*BATCH, BATCH, checkpoint_path=str(folder/'checkpoints'), logger=LoggingConfig(**LOGGER), **LOOP)
    source = source_of(case, disturbance) if source is None else source
    def evaluator(sae, data, scaler):
        disturbance.happens('evaluation')
        return {'eval/norm': sae.W_dec.norm().item(), 'eval/drawn': torch.rand(1).item()}
    callbacks = [JSONLLogger(folder/'sae'/'log.jsonl'), Tick(case.get('tick', 0))]
    return SAETrainer(cfg, TrainingSAE.from_dict(sae_config(case).to_dict()), source, evaluator, callbacks=callbacks)


def train(case: dict, folder: Path, disturbance: Disturbance) -> list[tuple[SAETrainer, object]]:
    "The run, to its end; the trainers and their data"
    if case['source'] in ('live', 'stream', 'shuffled_stream', 'cached'):
        r = runner(case, folder, disturbance)
        if case.get('tick'):
            r.make_callbacks = lambda make=r.make_callbacks: make() + [Tick(case['tick'])]
        r.run()
        return [(r.trainer, r.activations_store)]
    if case['source'] == 'layers':
        tokens = torch.tensor([t['tokens'] for t in texts()])
        layers = LayerSources(ModuleSource(Model(disturbance), ['embed', 'layer'], tokens, batch_size=7, shuffle=True))
        trainers = [trainer(case, folder/n, disturbance, MixingBuffer(layers[n], 128, BATCH)) for n in ('embed', 'layer')]
    else:
        trainers = [trainer(case, folder, disturbance)]
    for t in trainers:
        began = Checkpoints(t.cfg.checkpoint_path).load(t)
        if not began:
            t.tell('on_restart')
    train_together(trainers)
    return [(t, t.data_provider) for t in trainers]


def flat(node, at='') -> dict[str, torch.Tensor]:
    "All tensors and numbers of a state as tensors by path"
    if isinstance(node, torch.Tensor):
        return {at: node}
    if isinstance(node, dict):
        return {k: t for name, v in node.items() for k, t in flat(v, f'{at}/{name}').items()}
    return {at: torch.tensor(float(node), dtype=torch.float64)} if isinstance(node, (int, float)) else {}


def result(case: dict, folder: Path, disturbance: Disturbance) -> None:
    "Run, and write all that decides how it would go on"
    out = {}
    for i, (t, data) in enumerate(train(case, folder, disturbance)):
        state = {k: v for k, v in t.state_dict().items() if k not in ('callbacks', 'norm')}
        out |= flat(state, f'{i}') | flat({f'batch {n}': next(data).clone() for n in range(3)}, f'{i}')
    write_tensors(folder/'result.safetensors', out)


def fork(case: dict, folder: Path, **disturb) -> int:
    "Start a run in a child; its process id"
    if pid := os.fork():
        return pid
    code = 99
    try:
        torch.manual_seed(0)
        random.seed(0)   # Python gives each fork another seed
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.simplefilter('ignore')
        disturbance = Disturbance(**disturb)
        disturbance.install()
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder/'stderr.txt', 'a', encoding='utf-8') as err:
            os.dup2(err.fileno(), 2)
        result(case, folder, disturbance)
        code = 0
    except Interrupted as e:
        code = e.exit_code
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    "How a child ended: its exit code, or minus the signal"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def logs(folder: Path) -> dict[str, list]:
    return {str(p.relative_to(folder)): [{k: v for k, v in line.items() if k != 'seconds'} for line in read_log(p)]
            for p in sorted(folder.rglob('log.jsonl'))}


def unlike(folder: Path, whole: Path) -> list[str]:
    "What differs from the run that nobody disturbed"
    a, b = read_tensors(folder/'result.safetensors'), read_tensors(whole/'result.safetensors')
    bad = [k for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k])]
    return sorted(bad) + ['log'] * (logs(folder) != logs(whole))


def loads(folder: Path) -> bool:
    "Whether the latest checkpoint of each run, if there is any, is whole and loads as an SAE"
    for place in {p.parent for p in folder.rglob('cfg.json') if p.parent.parent != folder and not p.parent.name.startswith('.')}:
        found = Checkpoints(place.parent).latest()
        if found is not None:
            TrainingSAE.load_from_disk(found)
    return True


def same_case(case: dict) -> str: return '-'.join(str(case[k]) for k in ('source', 'architecture', 'norm', 'dtype') if k in case)


def undisturbed(case: dict, home: Path) -> Path:
    folder = home/same_case(case)/'whole'
    if not (folder/'result.safetensors').exists():
        if case['source'] == 'cached':
            cache(folder.parent)
        begin = time.perf_counter()
        plain = {k: v for k, v in case.items() if k != 'tick'}
        assert ended(fork(plain, folder)) == 0, (folder/'stderr.txt').read_text(encoding='utf-8')
        (folder/'seconds').write_text(str(time.perf_counter() - begin), encoding='utf-8')
    return folder


def cache(folder: Path) -> None:
    contexts = TokenContexts(texts(), context_size=10)
    write_cache(LanguageModelSource(Model(), 'layer', contexts, 4), folder/'acts', max_rows=500, rows_per_shard=120,
                about=dict(hook_name='layer', context_size=10))


def run_case(case: dict, home: Path, number: int) -> dict:
    "Disturb a run as the case says, let it go on to its end, and compare"
    whole, folder, codes, different = undisturbed(case, home), home/same_case(case)/f'{number}', [], []

    def note(code: int) -> None:
        codes.append(code)
        loads(folder)
        if code == 0:   # it had ended before; the next disturbance meets a new run
            different.extend(unlike(folder, whole))
            shutil.rmtree(folder)

    for disturb in case.get('disturb', []):
        note(ended(fork(case, folder, **disturb)))
    longest = float((whole/'seconds').read_text(encoding='utf-8'))
    while codes.count(-signal.SIGKILL) < case.get('kills', 0):   # from outside, at any moment
        anew, wait = not folder.exists(), random.uniform(0, longest)
        pid = fork(case, folder)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        note(ended(pid))
        if anew and codes[-1] == 0:   # a whole run takes less than that
            longest = wait
    codes.append(ended(fork(case, folder)))
    error = (folder/'stderr.txt').read_text(encoding='utf-8')[-2000:] if codes[-1] else ''
    checkpoints = sorted(p.name for p in folder.rglob('*') if (p/'manifest.json').exists())
    left = [str(p) for p in folder.rglob('.*.tmp')]
    return dict(case=case, codes=codes, unlike=different + ([] if codes[-1] else unlike(folder, whole)), error=error, checkpoints=checkpoints, left=left)


if __name__ == '__main__':
    cases, home = json.loads(Path(sys.argv[1]).read_text(encoding='utf-8')), Path(sys.argv[2])
    random.seed(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    for i, case in enumerate(cases):
        print(json.dumps(run_case(case, home, i)), flush=True)
