"""Cached activations across notebooks: killed writers, memory, the positions that count, and the way from a cache to an SAE."""
import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext as nothing
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from sae_workbench import CacheActivationsRunner, CacheActivationsRunnerConfig, LanguageModelSAERunnerConfig
from sae_workbench import LanguageModelSAETrainingRunner, StandardSAE, StandardSAEConfig, TopKTrainingSAEConfig
from sae_workbench.activations.cache_read import ShardSource
from sae_workbench.activations.datasets import saved_dataset
from sae_workbench.activations.pretokenize import PretokenizeRunnerConfig, pretokenize_dataset
from sae_workbench.activations.sources import as_slice, excluded_ids
from sae_workbench.activations.store import ActivationsStore
from sae_workbench.activations.tokens import kept_positions, word_tokenizer
from sae_workbench.analysis.attach import attach
from sae_workbench.core.errors import DataError, SAEWorkbenchError
from sae_workbench.training.evaluate import evaluate_sae
from sae_workbench.training.preempt import Interrupted
from sae_workbench.training.trainer import Callback

WORDS = 'the cat sat on a mat and dog ran'.split()


def script(name: str, *args) -> str:
    "Run one of the scripts in fixtures, with this worktree's package; what it prints"
    root = Path(__file__).parents[2]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run([sys.executable, str(root/'tests'/'fixtures'/name), *map(str, args)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(path: Path) -> dict[str, bytes]: return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob('*') if p.is_file()}


def test_killed_writers_end_with_the_same_files(tmp_path):
    died = json.loads(script('kill_cache.py', tmp_path).splitlines()[-1])
    assert len(died) == 3 and all(d['killed'] for d in died)
    whole = files(tmp_path/'whole')
    assert all(0 < d['shards'] < len(whole) for d in died)   # killed in the middle
    assert len(whole) > 20 and files(tmp_path/'killed') == whole


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc')
def test_reading_takes_no_memory_of_its_own(tmp_path):
    grown = json.loads(script('cache_memory.py', tmp_path).splitlines()[-1])
    size = grown.pop('size')
    assert size > 190e6
    assert all(g < size/10 for g in grown.values()), grown


class Model(nn.Module):
    "At its layer is the token's number and its position, so that a row says where it comes from"
    def __init__(self, tok):
        super().__init__()
        self.tokenizer, self.layer, self.n = tok, nn.Identity(), len(tok)
        self.p = nn.Parameter(torch.zeros(()))
    def forward(self, tokens):
        where = torch.arange(tokens.shape[1]).expand_as(tokens)
        x = self.layer(torch.stack([tokens, where, tokens**2, where**2], -1).float() + self.p)
        self.seen = x
        return x[..., :1]*torch.linspace(0, 1, self.n)


class Marks(StandardSAE):
    "Gives back rows that cannot be confused with any activation"
    def encode(self, x): return torch.zeros(*x.shape[:-1], self.cfg.d_sae)
    def decode(self, f): return torch.full((*f.shape[:-1], self.cfg.d_in), -1.)


def contexts_by_hand(texts, tok, size, bos, separator):
    "All tokens in a row, a separator between the texts (unless one is there), cut into contexts that begin with BOS"
    contexts, row = [], []
    for text in texts:
        rest, fresh = [tok.get_vocab()[w] for w in text.split()], True
        while rest:
            if not row and bos: row.append(tok.bos_token_id)
            elif row and fresh and separator not in (None, rest[0]): row.append(separator)
            fresh = fresh and len(row) == size
            while rest and len(row) < size: row.append(rest.pop(0))
            if len(row) == size: contexts.append(row); row = []
    return contexts


OPTIONS = [
    dict(),
    dict(exclude_special_tokens=True),
    dict(exclude_special_tokens=[4, 5], prepend_bos=False),
    dict(seqpos_slice=(1, -1), sequence_separator_token='eos', exclude_special_tokens=True),
    dict(seqpos_slice=(2, 9, 3), sequence_separator_token=None),
    dict(seqpos_slice=(5,), prepend_bos=False, sequence_separator_token=7, exclude_special_tokens=[7, 0]),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_one_mask(options, tmp_path):
    "Training, cache, evaluation, attached SAEs and pre-tokenised data use the same positions"
    tok = word_tokenizer(' '.join(WORDS))
    model, g = Model(tok), torch.Generator().manual_seed(0)
    texts = [' '.join(WORDS[i] for i in torch.randint(len(WORDS), (int(n),), generator=g)) for n in torch.randint(1, 40, (60,), generator=g)]
    dataset, size = [{'text': t} for t in texts], 12
    o = dict(exclude_special_tokens=False, seqpos_slice=(None,), prepend_bos=True, sequence_separator_token='bos') | options
    special = {'bos': tok.bos_token_id, 'eos': tok.eos_token_id}
    separator = special.get(o['sequence_separator_token'], o['sequence_separator_token'])
    excluded = [*special.values()] if o['exclude_special_tokens'] is True else o['exclude_special_tokens'] or []

    contexts = contexts_by_hand(texts, tok, size, o['prepend_bos'], separator)
    n = len(contexts)//4*4
    expected = [(c, p) for c in range(n) for p in range(size)[slice(*o['seqpos_slice'])] if contexts[c][p] not in excluded]
    rows = [(contexts[c][p], p) for c, p in expected]
    assert 0 < len(rows) < n*size or not options

    def read(source, k=len(rows)):
        "The first `k` rows as pairs of token and position"
        parts = []
        while sum(map(len, parts)) < k: parts.append(next(source))
        return [tuple(r) for r in torch.cat(parts)[:k, :2].long().tolist()]

    same = dict(o, context_size=size, hook_name='layer', d_in=4)
    def store(data, **kw):
        return ActivationsStore(model, data, streaming=False, hook_head_index=None, n_batches_in_buffer=8, total_training_tokens=100,
                                store_batch_size_prompts=4, train_batch_size_tokens=8, **same | kw)
    assert read(store(dataset).source) == rows

    cfg = dict(dataset_path='', model_name='toy', model_batch_size=4, training_tokens=len(rows), new_cached_activations_path=str(tmp_path/'acts'),
               shuffle=False, device='cpu', verbose=False)
    CacheActivationsRunner(CacheActivationsRunnerConfig(**cfg | same), dataset, model).run()
    assert read(ShardSource(tmp_path/'acts')) == rows
    assert read(store(None, cached_activations_path=str(tmp_path/'acts')).source) == rows
    everything = cfg | dict(new_cached_activations_path=str(tmp_path/'all'), training_tokens=len(contexts)*size)   # left out on reading
    with pytest.warns(UserWarning) if options.get('seqpos_slice') else nothing():
        CacheActivationsRunner(CacheActivationsRunnerConfig(**everything | same | dict(exclude_special_tokens=False)), dataset, model).run()
    assert read(store(None, cached_activations_path=str(tmp_path/'all')).source) == rows

    packed = pretokenize_dataset(dataset, tok, PretokenizeRunnerConfig(
        context_size=size, shuffle=False, begin_batch_token='bos' if o['prepend_bos'] else None,
        sequence_separator_token=o['sequence_separator_token']))
    assert read(store(packed).source) == rows

    sae = Marks(StandardSAEConfig(d_in=4, d_sae=2))
    sae.cfg.metadata.update({k: same[k] for k in ('hook_name', 'seqpos_slice', 'exclude_special_tokens')})
    replaced = []
    model.register_forward_hook(lambda m, i, out: replaced.append((m.seen == -1).all(-1)))
    found = evaluate_sae(sae, model, torch.tensor(contexts[:n]), batch_size_prompts=n)
    assert found['n_tokens'] == len(expected)
    assert [tuple(x) for x in replaced[2].nonzero().tolist()] == expected   # of three passes the last, with the SAE

    tokens = torch.tensor(contexts[:n])
    keep = kept_positions(tokens, excluded_ids(o['exclude_special_tokens'], tok), as_slice(o['seqpos_slice'], size))
    with attach(model, sae, keep=keep): model(tokens)
    assert [tuple(x) for x in replaced[-1].nonzero().tolist()] == expected


def test_from_a_cache_to_an_sae(tmp_path, capsys):
    "The code that the runner prints trains the SAE that the live model trains"
    tok = word_tokenizer(' '.join(WORDS))
    g = torch.Generator().manual_seed(0)
    dataset = [{'text': ' '.join(WORDS[i] for i in torch.randint(len(WORDS), (30,), generator=g))} for _ in range(100)]
    options = dict(hook_name='layer', context_size=12, seqpos_slice=(1, None), exclude_special_tokens=True, prepend_bos=False)
    cache = CacheActivationsRunnerConfig(
        '', 'toy', 4, d_in=4, training_tokens=2000, new_cached_activations_path=str(tmp_path/'acts'), shuffle=False, device='cpu', **options)
    CacheActivationsRunner(cache, dataset, Model(tok)).run()
    said = capsys.readouterr().out
    code = said[said.index('LanguageModelSAETrainingRunner('):].removesuffix('.run()\n').replace('sae=...', 'sae=sae, **more')
    rest = dict(train_batch_size_tokens=64, n_batches_in_buffer=32, store_batch_size_prompts=4, output_path=None, checkpoint_path=None, verbose=False)
    sae = TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)
    runner = eval(code, globals() | dict(sae=sae, more=rest))
    assert runner.cfg.exclude_special_tokens == [0, 1] and runner.cfg.training_tokens == 2000
    with pytest.warns(UserWarning, match='second epoch'): runner.run()   # the buffer reads ahead

    def weights(data, model, **kw):
        cfg = LanguageModelSAERunnerConfig(sae=sae, model_name='toy', training_tokens=1000, **options | rest | kw)
        return LanguageModelSAETrainingRunner(cfg, data, model).run().W_dec
    from_cache = weights(None, None, use_cached_activations=True, cached_activations_path=str(tmp_path/'acts'))
    assert torch.equal(from_cache, weights(dataset, Model(tok)))


def test_pretokenised_contexts_are_those_of_sae_lens():
    "tests/fixtures/make_pretokenized.py wrote the table"
    table = json.loads((Path(__file__).parents[1]/'fixtures'/'pretokenized.json').read_text(encoding='utf-8'))
    tok, dataset = word_tokenizer(' '.join(table['words'])), Dataset.from_dict({'text': table['texts']})
    assert len(table['cases']) == 64
    for *values, contexts in table['cases']:
        cfg = PretokenizeRunnerConfig(**dict(zip(table['fields'], values)), shuffle=False, pretokenize_batch_size=7)
        assert pretokenize_dataset(dataset, tok, cfg)[:]['input_ids'].tolist() == contexts, values


V6 = Path(__file__).parents[1]/'fixtures'/'v6_cache'   # written and read by sae-lens, see make_v6_cache.py
V6_ROWS = load_file(V6/'rows.safetensors')


def v6_store(**kw):
    options = dict(hook_name='blocks.0.hook_resid_post', hook_head_index=None, context_size=8, d_in=4, n_batches_in_buffer=8,
                   total_training_tokens=144, store_batch_size_prompts=3, train_batch_size_tokens=24, prepend_bos=True, streaming=False)
    return ActivationsStore(None, None, **options | dict(cached_activations_path=str(V6/'cache')) | kw)


def test_a_cache_of_v6_gives_the_rows_that_sae_lens_reads_from_it():
    store = v6_store()
    read = [store.get_raw_llm_batch() for _ in range(6)]
    rows, ids = (torch.cat(parts) for parts in zip(*read))
    assert torch.equal(rows, V6_ROWS['rows']) and torch.equal(ids, V6_ROWS['token_ids'])
    with pytest.raises(StopIteration): store.get_raw_llm_batch(raise_on_epoch_end=True)
    store, expected = v6_store(exclude_special_tokens=[0, 5]), V6_ROWS['without_0_and_5_twice']
    kept = []
    with pytest.warns(UserWarning, match='used once'):
        while sum(map(len, kept)) < len(expected): kept.append(store.get_filtered_llm_batch())
    assert torch.equal(torch.cat(kept), expected)
    half = v6_store(dtype='bfloat16').get_raw_llm_batch()[0]
    assert torch.equal(half, V6_ROWS['rows'][:24].bfloat16())


def test_the_slice_of_a_run_decides_what_is_read_of_a_v6_context():
    contexts = V6_ROWS['rows'].view(18, 8, 4)
    with pytest.warns(UserWarning, match='SAELens v6 trains on all of them'): store = v6_store(seqpos_slice=(2, 7), exclude_special_tokens=[3])
    keep = V6_ROWS['token_ids'].view(18, 8)[:, 2:7] != 3
    rows = torch.cat([store.get_filtered_llm_batch() for _ in range(5)])
    assert torch.equal(rows, contexts[:, 2:7][keep][:len(rows)]) and len(rows) > 60
    written_so = v6_store(context_size=10, seqpos_slice=(1, 9)).get_raw_llm_batch()[0]   # 8 of 10 positions: those in the files
    assert torch.equal(written_so, V6_ROWS['rows'][:24])


@pytest.mark.parametrize('wrong, says', [
    (dict(context_size=16), 'context_size: 16 here, 8 there'), (dict(context_size=16, seqpos_slice=(5, None)), 'context_size: 16 here, 8 there'),
    (dict(d_in=8), 'd_in: 8 here, 4 there'), (dict(hook_name='blocks.0.hook_resid_pre'), "did you mean 'blocks.0.hook_resid_post'")])
def test_a_v6_cache_of_something_else_is_refused(wrong, says):
    with pytest.raises(SAEWorkbenchError, match=says): v6_store(**wrong)


def v6_run(folder, **kw):
    options = dict(model_name='tiny', hook_name='blocks.0.hook_resid_post', context_size=8, training_tokens=24*20, train_batch_size_tokens=24,
                   n_batches_in_buffer=8, store_batch_size_prompts=3, device='cpu', seed=1, lr=1e-3, verbose=False, use_cached_activations=True,
                   cached_activations_path=str(V6/'cache'), exclude_special_tokens=[0], checkpoint_path=str(folder))
    return LanguageModelSAERunnerConfig(sae=TopKTrainingSAEConfig(d_in=4, d_sae=16, k=2), **options | kw)


class StopsAt(Callback):
    def __init__(self, step): self.step = step
    def after_step(self, trainer):
        if trainer.n_training_steps == self.step: trainer.stop('a test')


def test_training_from_a_v6_cache_goes_on_exactly(tmp_path):
    warnings.simplefilter('ignore')
    whole = LanguageModelSAETrainingRunner(v6_run(tmp_path/'whole')).run()
    for step in (3, 11):   # in the first epoch and in a later one
        with pytest.raises(Interrupted):
            LanguageModelSAETrainingRunner(v6_run(tmp_path/str(step), resume='auto'), callbacks=[StopsAt(step)]).run()
        again = LanguageModelSAETrainingRunner(v6_run(tmp_path/str(step), resume='auto')).run()
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_checkpoint_of_another_v6_cache_is_refused(tmp_path):
    store = v6_store()
    for _ in range(2): next(store)
    data = saved_dataset(str(V6/'cache'))
    data.map(lambda row: dict(row, **{'blocks.0.hook_resid_post': [[1 + x for x in r] for r in row['blocks.0.hook_resid_post']]})
             ).save_to_disk(str(tmp_path/'other'))
    shutil.copytree(V6/'cache', tmp_path/'same')
    v6_store(cached_activations_path=str(tmp_path/'same')).load_state_dict(store.state_dict())
    with pytest.raises(DataError, match='of other activations'):
        v6_store(cached_activations_path=str(tmp_path/'other')).load_state_dict(store.state_dict())


def test_the_stores_of_v6_that_read_a_cache(tmp_path):
    cfg = CacheActivationsRunnerConfig('tokens', 'tiny', 3, 'blocks.0.hook_resid_post', 4, 144, context_size=8, device='cpu',
                                       new_cached_activations_path=str(V6/'cache'))
    for make in (ActivationsStore.from_cache_activations, ActivationsStore.from_config):
        assert torch.equal(make(None, cfg).get_raw_llm_batch()[0], V6_ROWS['rows'][:24])
        assert next(make(None, cfg)).shape == (3, 4)


def test_a_run_finds_the_cache_where_v6_puts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = 'activations/me_texts/tiny/blocks.0.hook_resid_post'
    shutil.copytree(V6/'cache', at)
    assert v6_run(tmp_path/'ck', dataset_path='me/texts', cached_activations_path=None).cached_activations_path == at
    with pytest.raises(SAEWorkbenchError, match='needs cached_activations_path'): v6_run(tmp_path/'ck', cached_activations_path=None)
