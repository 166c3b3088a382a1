"""Scripts of SAELens v6 that train: what they write in annotations, read from configs and stores, call on runners"""
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from sae_workbench import (
    SAE, AbsTopKTrainingSAEConfig, ActivationScaler, BatchTopKTrainingSAEConfig, CacheActivationsRunner, CacheActivationsRunnerConfig, GatedTrainingSAE,
    GatedTrainingSAEConfig, JumpReLUTrainingSAEConfig, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig, MatchingPursuitTrainingSAEConfig, PretokenizeRunner, PretokenizeRunnerConfig, SAETrainer, SAETrainerConfig, StandardTrainingSAE, StandardTrainingSAEConfig, SyntheticSource,
    TopKTrainingSAE, TopKTrainingSAEConfig, TrainingSAE, Transcoder, TranscoderConfig)
from sae_workbench.activations.cache_read import ShardSource
from sae_workbench.activations.tokens import word_tokenizer
from sae_workbench.core.errors import ConfigError, LoadError
from sae_workbench.apps.cli import parse_config
from sae_workbench.saes.topk import TopK
from sae_workbench.training.checkpoint import load_checkpoint, save_checkpoint
from sae_workbench.training.preempt import Interrupted
from sae_workbench.training.trainer import Callback
from sae_workbench.training.wandb_log import WandBLogger


def topk(**kw): return TopKTrainingSAEConfig(**dict(d_in=8, d_sae=32, k=3) | kw)


# Annotations and numbers

def test_subscripted_names_in_annotations():
    "v6's classes are generic: scripts write the SAE's class or config in brackets, and make objects that way too"
    def train(cfg: LanguageModelSAERunnerConfig[TopKTrainingSAEConfig], trainer: SAETrainer[TopKTrainingSAE, TopKTrainingSAEConfig],
              runner: LanguageModelSAETrainingRunner[TopKTrainingSAEConfig], sae: TrainingSAE[TopKTrainingSAEConfig], out: SAE[TopKTrainingSAEConfig]): pass
    cfg = LanguageModelSAERunnerConfig[TopKTrainingSAEConfig](sae=topk())
    assert type(cfg) is LanguageModelSAERunnerConfig and cfg == LanguageModelSAERunnerConfig.from_dict(cfg.to_dict())
    class Mine(LanguageModelSAERunnerConfig[TopKTrainingSAEConfig]): pass
    assert isinstance(Mine(sae=topk()), LanguageModelSAERunnerConfig)


def test_a_whole_number_may_be_written_as_a_float():
    cfg = LanguageModelSAERunnerConfig(sae=topk(d_sae=32.), training_tokens=4e4)
    assert (cfg.training_tokens, type(cfg.training_tokens), type(cfg.sae.d_sae)) == (40_000, int, int)
    assert type(SAETrainerConfig(total_training_samples=1e6, train_batch_size_samples=10).total_training_samples) is int
    cache = CacheActivationsRunnerConfig('data', 'model', 4, 'hook', 8, training_tokens=4e3, context_size=16.)
    assert (cache.training_tokens, cache.context_size) == (4000, 16) and type(cache.context_size) is int


def test_topk_with_sparse_activations():
    x = torch.randn(3, 4, 16)
    f = TopK(3, use_sparse_activations=True)(x)
    assert f.layout == torch.sparse_coo and torch.equal(f.to_dense(), TopK(3)(x))


# Weights & Biases

@pytest.fixture
def wandb(monkeypatch):
    "W&B's package, which keeps what it is sent"
    class Run:
        id, project, finished = 'abc', 'mine', False
        def __init__(self): self.sent = []
        def log(self, metrics, step): self.sent.append((step, metrics))
        def finish(self, exit_code): self.finished = True
    package = type('wandb', (), dict(run=None, Histogram=list, begun=[], Run=Run))
    package.init = lambda **kw: package.begun.append(kw) or Run()
    monkeypatch.setitem(sys.modules, 'wandb', package)
    return package


def train(logger, sae=None, **kw):
    sae = sae or TopKTrainingSAE(topk())
    trainer = SAETrainer(SAETrainerConfig(64*20, 64, logger=logger, **kw), sae, SyntheticSource(16, 8, batch_size=64),
                         evaluator=lambda sae, data, scaler: {'eval/ce_loss_score': .9, 'eval/l0': 3., 'eval/kl_div_score': .8})
    trainer.fit()
    return next((cb for cb in trainer.callbacks if isinstance(cb, WandBLogger)), None)


def test_who_names_a_project_logs_to_wandb(wandb, capsys):
    "v6 logs unless it is told not to, so its scripts name a project and no more; what is said is said once"
    assert [LoggingConfig(**kw).log_to_wandb for kw in ({}, dict(run_name='a'), dict(wandb_log_frequency=5))] == [False]*3
    for kw in (dict(wandb_project='mine'), dict(wandb_entity='me'), dict(wandb_id='abc')):
        assert LoggingConfig(**kw).log_to_wandb and not LoggingConfig(log_to_wandb=False, **kw).log_to_wandb
    cfg = LanguageModelSAERunnerConfig(sae=topk(), logger=LoggingConfig(wandb_project='mine'))
    assert LanguageModelSAERunnerConfig.from_yaml(cfg.to_yaml()) == cfg and cfg.to_dict()['logger']['log_to_wandb'] is True
    line = ['--architecture', 'topk', '--d-in', '8', '--d-sae', '32', '--k', '3', '--wandb-project', 'mine']
    assert parse_config(line).logger.log_to_wandb and not parse_config([*line, '--log-to-wandb', 'false']).logger.log_to_wandb
    train(LoggingConfig(wandb_project='mine'))
    assert wandb.begun[0]['project'] == 'mine'
    said = ''.join(capsys.readouterr())
    assert said.count("Logging to Weights & Biases, project 'mine'; log_to_wandb=False keeps it off") == 1
    assert train(LoggingConfig()) is None and len(wandb.begun) == 1


def test_wandb_keys_are_those_of_v6(wandb):
    "Sweeps and plots look for these names"
    logger, runs = LoggingConfig(wandb_project='mine', wandb_log_frequency=5, eval_every_n_wandb_logs=2), []
    wandb.init = lambda **kw: runs.append(wandb.Run()) or runs[-1]
    gated = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=8, d_sae=32))
    for sae in (StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=32)), gated): train(logger, sae, feature_sampling_window=10)
    at = [{s: {k: v for step, m in run.sent if step == s for k, v in m.items()} for s in (4, 9, 10)} for run in runs]
    step = {'losses/overall_loss', 'losses/mse_loss', 'losses/l1_loss', 'metrics/explained_variance', 'metrics/explained_variance_legacy',
            'metrics/explained_variance_legacy_std', 'metrics/l0', 'sparsity/mean_passes_since_fired', 'sparsity/dead_features',
            'details/current_learning_rate', 'details/n_training_samples', 'details/l1_coefficient'}
    assert step <= at[0][4].keys()
    evaluation = {'model_performance_preservation/ce_loss_score', 'model_behavior_preservation/kl_div_score', 'sparsity/l0',
                  'weights/W_dec_norms', 'weights/b_e'}
    assert evaluation <= at[0][9].keys() and {'weights/b_gate', 'weights/b_mag'} <= at[1][9].keys()
    assert at[0][9]['model_performance_preservation'] == {'ce_loss_score': .9}   # which W&B writes with a dot, as v6's own runs have it
    window = {'metrics/mean_log10_feature_sparsity', 'plots/feature_density_line_chart', 'sparsity/below_1e-5', 'sparsity/below_1e-6'}
    assert window == at[0][10].keys()
    assert [s for s, _ in runs[0].sent] == sorted(s for s, _ in runs[0].sent)   # W&B leaves out what comes late


def test_a_wandb_run_that_is_open_is_used_and_left_open(wandb):
    "As in the function of a sweep, which reads its options from a run of its own"
    wandb.run = wandb.Run()
    train(LoggingConfig(wandb_project='mine'))
    assert wandb.run.sent and not wandb.run.finished and not wandb.begun
    train(LoggingConfig(wandb_project='mine', wandb_id='another'))
    assert wandb.begun[0]['id'] == 'another'


def test_a_missing_wandb_is_told_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    cfg = LanguageModelSAERunnerConfig(sae=topk(), model_name='there/is-none', dataset_path='none', logger=LoggingConfig(wandb_project='mine'),
                                       output_path=None, checkpoint_path=None)
    with pytest.raises(ConfigError, match='needs the package wandb.*log_to_wandb=False'): LanguageModelSAETrainingRunner(cfg)


# Stores and data sets

@pytest.fixture(scope='module')
def model():
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    sizes = dict(vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **sizes))


def tokens(n, column='tokens'):
    g = torch.Generator().manual_seed(0)
    return [{column: torch.randint(30, (16,), generator=g).tolist()} for _ in range(n)]


def run_config(folder=None, **kw):
    places = dict(output_path=folder and str(folder/'sae'), checkpoint_path=folder and str(folder/'ck'))
    return LanguageModelSAERunnerConfig(**dict(
        sae=topk(), model_class_name='AutoModelForCausalLM', hook_name='model.layers.0', context_size=16, training_tokens=4096,
        train_batch_size_tokens=64, store_batch_size_prompts=8, n_eval_batches=1, verbose=False, **places) | kw)


def of_kind(kind, rows): return {'list': list, 'map': Dataset.from_list, 'stream': lambda r: Dataset.from_list(r).to_iterable_dataset()}[kind](rows)


@pytest.mark.parametrize('kind', ['list', 'map', 'stream'])
def test_a_data_set_smaller_than_a_batch_of_the_model_cycles(kind, model):
    with pytest.warns(UserWarning) as said:
        runner = LanguageModelSAETrainingRunner(run_config(training_tokens=1024), of_kind(kind, tokens(3)), model)
        assert len(runner.activations_store.get_batch_tokens()) == 8
        runner.run()
    said = [str(w.message) for w in said]
    assert sum('gives 3 contexts of 16 tokens: a batch for the model, batch_size_prompts=8, has some of them more than once' in s for s in said) == 1
    assert runner.trainer.n_training_samples == 1024


def test_a_store_says_what_it_reads(model):
    "v6's attributes of a store"
    for column, tokenized in (('tokens', True), ('input_ids', True)):
        store = LanguageModelSAETrainingRunner(run_config(), tokens(9, column), model).activations_store
        assert (store.tokens_column, store.is_dataset_tokenized) == (column, tokenized)
    model.tokenizer = word_tokenizer(' '.join(f'w{i}' for i in range(27)))
    try: store = LanguageModelSAETrainingRunner(run_config(), [dict(text='w1 w2 w3 ' * 9)] * 50, model).activations_store
    finally: del model.tokenizer
    assert (store.tokens_column, store.is_dataset_tokenized) == ('text', False)


def test_pretokenizing_a_stream_stays_lazy():
    read = []
    def look(row): read.append(row); return row
    texts = Dataset.from_list([dict(text='a b c d ' * 20)] * 500).to_iterable_dataset().map(look)
    cfg = PretokenizeRunnerConfig(context_size=16, streaming=True, shuffle=False, pretokenize_batch_size=5)
    packed = PretokenizeRunner(cfg, texts, word_tokenizer('a b c d')).run()
    assert isinstance(packed, IterableDataset) and len(read) < 50
    assert next(iter(packed))['input_ids'].shape == (16,) and len(read) < 100


# Runs and checkpoints

def test_checkpoint_path_is_the_runs_own_folder_afterwards(model, tmp_path, monkeypatch):
    "Scripts read cfg.checkpoint_path after the run, to find final_4096 in it; another run from the same config lies beside it"
    cfg, seen = run_config(tmp_path, save_final_checkpoint=True), []
    runner = LanguageModelSAETrainingRunner(cfg, tokens(99), model)
    runner.callbacks.append(type('Looks', (), dict(on_start=lambda self, trainer: seen.append((cfg.checkpoint_path, trainer.cfg.checkpoint_path))))())
    runner.run()
    own = Path(cfg.checkpoint_path)
    assert own.parent == tmp_path/'ck' and (own/'final_4096'/'sae_weights.safetensors').is_file() and seen == [(str(own), str(own))]
    assert json.loads((own/'final_4096'/'runner_cfg.json').read_text(encoding='utf-8'))['checkpoint_path'] == str(own)
    LanguageModelSAETrainingRunner(cfg, tokens(99), model).run()
    assert Path(cfg.checkpoint_path).parent == tmp_path/'ck' and len(list((tmp_path/'ck').iterdir())) == 2
    monkeypatch.chdir(tmp_path)
    given = dict(output_path=None, checkpoint_path='here', save_final_checkpoint=True)
    for id in ('a', 'b'):
        cfg = run_config(**given, logger=LoggingConfig(wandb_id=id, log_to_wandb=False))
        LanguageModelSAETrainingRunner(cfg, tokens(99), model).run()
        assert cfg.checkpoint_path == f'here/{id}'
    quiet = run_config(output_path='quiet', checkpoint_path='here')   # no checkpoint was written for this one
    LanguageModelSAETrainingRunner(quiet, tokens(99), model).run()
    assert quiet.checkpoint_path == 'here' and len(list((tmp_path/'here').iterdir())) == 2


def test_resuming_finds_the_run_whose_folder_the_config_names(model, tmp_path):
    cfg = run_config(tmp_path, resume='auto', n_checkpoints=3)
    runner = LanguageModelSAETrainingRunner(cfg, tokens(99), model)
    class Stops:
        def after_step(self, trainer):
            if trainer.n_training_steps == 40: trainer.stop()
    runner.callbacks.append(Stops())
    with pytest.raises(Interrupted): runner.run()
    own = cfg.checkpoint_path
    again = LanguageModelSAETrainingRunner(cfg, tokens(99), model)
    again.run()
    assert cfg.checkpoint_path == own and len(list((tmp_path/'ck').iterdir())) == 1 and again.trainer.ended


def test_v6s_methods_that_save(model, tmp_path):
    "runner.save_checkpoint(checkpoint_path), save_final_sae, trainer.save_checkpoint, save_trainer_state, load_trainer_state"
    cfg = run_config(tmp_path, n_checkpoints=1)
    runner = LanguageModelSAETrainingRunner(cfg, tokens(99), model)
    made = []
    class Saves:
        def after_step(self, trainer):
            if trainer.n_training_steps != 20: return
            made.append(runner.save_checkpoint(tmp_path/'mine'))
            made.append(trainer.save_checkpoint('early'))
            made.append(trainer.save_checkpoint('early'))   # v6 writes over it
            made.append(trainer.save_checkpoint('elsewhere', base_path=tmp_path))
            trainer.save_trainer_state(tmp_path/'state')
            trainer.sae.save_model(tmp_path/'state')
            assert runner.save_checkpoint(None) is None
    runner.callbacks.append(Saves())
    runner.run()
    assert made == [tmp_path/'mine', *[Path(cfg.checkpoint_path)/'early']*2, tmp_path/'elsewhere']
    for path in made:
        other = LanguageModelSAETrainingRunner(run_config(resume_from_checkpoint=str(path)), tokens(99), model)
        other.run()
        for k, v in runner.sae.state_dict().items(): assert torch.equal(v, other.sae.state_dict()[k]), (path, k)
    folder = runner.save_final_sae(runner.sae, tmp_path/'final', runner.trainer.log_feature_sparsity)
    assert {'cfg.json', 'sae_weights.safetensors', 'sparsity.safetensors', 'runner_cfg.json'} <= {p.name for p in folder.iterdir()}
    assert SAE.load_from_disk(folder).cfg.d_sae == 32
    trainer = SAETrainer(cfg.to_sae_trainer_config(), TopKTrainingSAE(topk()), runner.activations_store)
    trainer.sae.load_weights_from_checkpoint(tmp_path/'state')
    trainer.load_trainer_state(tmp_path/'state')
    assert (trainer.n_training_steps, trainer.n_training_samples) == (20, 1280)
    with pytest.raises(ConfigError, match='give base_path'):
        SAETrainer(SAETrainerConfig(640, 64), TopKTrainingSAE(topk()), SyntheticSource(16, 8, batch_size=64)).save_checkpoint('a')


def test_save_checkpoint_fn_is_told(tmp_path):
    told = []
    trainer = SAETrainer(SAETrainerConfig(640, 64, checkpoint_path=str(tmp_path)), TopKTrainingSAE(topk()), SyntheticSource(16, 8, batch_size=64),
                         save_checkpoint_fn=lambda checkpoint_path: told.append(checkpoint_path))
    trainer.fit()
    assert trainer.save_checkpoint('mine') == tmp_path/'mine' and told == [tmp_path/'mine']


# Caches of activations

def cache_config(folder, **kw):
    return CacheActivationsRunnerConfig(**dict(
        dataset_path=str(folder), model_name=str(folder/'model'), model_batch_size=4, hook_name='model.layers.0', d_in=8, training_tokens=640, context_size=16,
        model_class_name='AutoModelForCausalLM', new_cached_activations_path=str(folder/'acts'), device='cpu', verbose=False) | kw)


def test_v6s_properties_of_a_cache(tmp_path):
    "The numbers are those of sae-lens 6.54.12 for the same options"
    cfg = cache_config(tmp_path, training_tokens=100_000, d_in=512, context_size=1024, model_batch_size=4, buffer_size_gb=.05, seqpos_slice=(10, -14))
    names = 'sliced_context_size bytes_per_token n_tokens_in_buffer n_tokens_in_batch n_batches_in_buffer n_seq_in_dataset n_seq_in_buffer n_buffers'
    assert [getattr(cfg, n) for n in names.split()] == [1000, 2048, 24000, 4000, 6, 100, 24, 5]
    with pytest.raises(ConfigError, match='known once it is open'): cache_config(tmp_path, context_size=-1).n_buffers


def test_a_cache_is_uploaded(model, tmp_path, monkeypatch):
    "And what goes to the hub names no folder of this machine; it can be trained from"
    hub, asked = tmp_path/'hub', []
    class Api:
        def create_repo(self, **kw): asked.append(kw)
        def create_branch(self, **kw): asked.append(kw)
        def upload_folder(self, folder_path, path_in_repo, ignore_patterns, **kw):
            asked.append(kw)
            skipped = [p for pattern in ignore_patterns for p in Path(folder_path).glob(pattern)]
            for p in set(Path(folder_path).iterdir()) - set(skipped):
                (hub/(path_in_repo or '')).mkdir(parents=True, exist_ok=True)
                (hub/(path_in_repo or '')/p.name).write_bytes(p.read_bytes())
        def upload_file(self, path_or_fileobj, path_in_repo, **kw): (hub/path_in_repo).write_bytes(path_or_fileobj)
    monkeypatch.setattr('huggingface_hub.HfApi', Api)
    cfg = cache_config(tmp_path, hf_repo_id='me/acts', hf_revision='v1', hf_is_private_repo=True, hf_num_shards=8)
    CacheActivationsRunner(cfg, tokens(40), model).run()
    where = dict(repo_id='me/acts', repo_type='dataset')
    assert asked == [where | dict(private=True, exist_ok=True), where | dict(branch='v1', exist_ok=True), where | dict(revision='v1')]
    assert str(tmp_path) not in (hub/'manifest.json').read_text(encoding='utf-8') and not list(hub.glob('.*'))
    assert torch.equal(next(ShardSource(hub, 64)), next(ShardSource(tmp_path/'acts', 64)))


# Checkpoints of v6

V6_CHECKPOINT = Path(__file__).parents[1]/'fixtures'/'v6_checkpoint'   # made by fixtures/make_v6_checkpoint.py

def v6_batches():
    "The data of that run behind the checkpoint, which took three batches for the norm and six steps"
    g = torch.Generator().manual_seed(0)
    for _ in range(9): torch.randn(32, 8, generator=g)
    while True: yield torch.randn(32, 8, generator=g)


def v6_trainer(normalize='expected_average_only_in', **kw):
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16, l1_warm_up_steps=8, normalize_activations=normalize))
    cfg = SAETrainerConfig(**dict(total_training_samples=320, train_batch_size_samples=32, lr=1e-3, lr_end=1e-4, lr_warm_up_steps=8) | kw)
    return SAETrainer(cfg, sae, v6_batches())


V6_WHITENED = V6_CHECKPOINT.with_name('v6_whitened')

@pytest.mark.parametrize('at, normalize', [(V6_CHECKPOINT, 'expected_average_only_in'), (V6_WHITENED, 'covariance_whitening')])
@pytest.mark.parametrize('way', ['load_checkpoint', 'load_trainer_state'])
def test_a_checkpoint_of_v6_goes_on(way, at, normalize):
    "To the weights that sae-lens has at the end of the run that wrote it"
    trainer = v6_trainer(normalize)
    if way == 'load_checkpoint': load_checkpoint(at, trainer)
    else:
        trainer.load_trainer_state(at)
        trainer.sae.load_weights_from_checkpoint(at)
    assert (trainer.n_training_steps, trainer.n_training_samples) == (6, 192) and 0 < trainer.get_coefficients()['l1'] < 1
    trainer.fit()
    assert trainer.n_training_steps == 10
    for k, v in load_file(at/'after.safetensors').items(): torch.testing.assert_close(trainer.sae.state_dict()[k], v, rtol=1e-4, atol=1e-6, msg=k)


def test_a_checkpoint_of_v6_of_another_sae_is_refused(tmp_path):
    other = SAETrainer(SAETrainerConfig(320, 32), StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16, l1_coefficient=3.)), v6_batches())
    with pytest.raises(ConfigError, match='l1_coefficient: 1.0 in the checkpoint, 3.0 now'): load_checkpoint(V6_CHECKPOINT, other)
    shutil.copytree(V6_CHECKPOINT, tmp_path/'ck')
    (tmp_path/'ck'/'trainer_state.pt').write_bytes(b'nonsense')
    with pytest.raises(LoadError, match="not a trainer's state of SAELens v6"): load_checkpoint(tmp_path/'ck', v6_trainer())


def test_a_runner_goes_on_from_a_checkpoint_of_v6(model, tmp_path):
    shutil.copytree(V6_CHECKPOINT, tmp_path/'ck')
    save_file({'n_dataset_processed': torch.tensor(70)}, tmp_path/'ck'/'activations_store_state.safetensors')
    sae = StandardTrainingSAEConfig(d_in=8, d_sae=16, l1_warm_up_steps=8, normalize_activations='expected_average_only_in')
    runner = LanguageModelSAETrainingRunner(run_config(sae=sae, resume_from_checkpoint=str(tmp_path/'ck')), tokens(199), model)
    with pytest.warns(UserWarning, match='in another mixture'): runner.run()
    assert runner.trainer.n_training_samples >= 4096 and runner.activations_store.n_dataset_processed >= 70


# Whitened activations

MIX = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
WHITENED = dict(   # class, options
    standard=(StandardTrainingSAEConfig, dict(apply_b_dec_to_input=False)), gated=(GatedTrainingSAEConfig, dict(apply_b_dec_to_input=False)),
    jumprelu=(JumpReLUTrainingSAEConfig, {}), topk=(TopKTrainingSAEConfig, dict(k=3)), abstopk=(AbsTopKTrainingSAEConfig, dict(k=3)),
    batchtopk=(BatchTopKTrainingSAEConfig, dict(k=3)))


class Mixed:
    "Rows of one covariance, with a position"
    def __init__(self): self.n = 0
    def __iter__(self): return self
    def __next__(self):
        self.n += 1
        return torch.randn(32, 8, generator=torch.Generator().manual_seed(self.n)) @ MIX + 2
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, state): self.n = state['n']


def whitened_trainer(arch='topk', steps=20, callbacks=(), **kw):
    torch.manual_seed(0)
    cfg, options = WHITENED[arch]
    sae = TrainingSAE.from_dict(cfg(d_in=8, d_sae=32, normalize_activations='covariance_whitening', **options).to_dict())
    run = SAETrainerConfig(32*steps, 32, lr=1e-3, lr_end=1e-4, n_batches_for_norm_estimate=6, **kw)
    return SAETrainer(run, sae, Mixed(), callbacks=callbacks)


def test_whitening_is_that_of_sae_lens():
    "Up to the signs of the eigenvectors, which nothing determines"
    scaler = ActivationScaler()
    g = torch.Generator().manual_seed(0)
    scaler.estimate_whitening(8, iter([torch.randn(32, 8, generator=g) for _ in range(3)]), 3)
    theirs = load_file(V6_WHITENED/'activation_whitening.safetensors')
    signs = (scaler.whitening.matrix*theirs['matrix']).sum(0).sign()
    torch.testing.assert_close(scaler.whitening.mean, theirs['mean'])
    torch.testing.assert_close(scaler.whitening.matrix*signs, theirs['matrix'])
    torch.testing.assert_close(scaler.whitening.inverse_matrix*signs[:, None], theirs['inverse_matrix'])


@pytest.mark.parametrize('arch', WHITENED)
def test_what_was_trained_on_whitened_activations_takes_them_as_they_are(arch):
    class Before(Callback):
        def after_step(self, trainer):
            if trainer.n_training_steps == 20:
                z = trainer.activation_scaler(x).to(trainer.sae.W_dec)
                self.said = trainer.activation_scaler.unscale(trainer.sae.eval()(z))
    x, watch = next(Mixed()), Before()
    trainer = whitened_trainer(arch, callbacks=[watch])
    sae = trainer.fit()
    assert sae.cfg.normalize_activations == 'none' and not trainer.activation_scaler.is_known
    torch.testing.assert_close(sae.eval()(x), watch.said, rtol=1e-3, atol=1e-4)
    if arch != 'batchtopk': torch.testing.assert_close(sae.to_inference()(x), watch.said, rtol=1e-3, atol=1e-4)   # that one has a threshold
    assert (sae.to_inference()(x) - x).pow(2).sum() < (x - x.mean(0)).pow(2).sum()


@pytest.mark.parametrize('arch', ['gated', 'topk', 'batchtopk'])
def test_a_whitened_run_goes_on_exactly(arch, tmp_path):
    whole = whitened_trainer(arch)
    whole.fit()
    class StopsAt(Callback):
        def __init__(self, norm, step): self.norm, self.step = norm, step
        def on_norm(self, trainer, most):
            if trainer.norm.batches == self.norm: trainer.stop('a test')
        def after_step(self, trainer):
            if trainer.n_training_steps == self.step: trainer.stop('a test')
    for norm, step in ((4, 0), (0, 11)):   # in the middle of the estimate, and of the run
        path = tmp_path/f'{norm}-{step}'
        first = whitened_trainer(arch, callbacks=[StopsAt(norm or 99, step or 99)])
        with pytest.raises(Interrupted): first.fit()
        save_checkpoint(path, first, first.data_provider)
        again = whitened_trainer(arch)
        load_checkpoint(path, again, again.data_provider)
        again.fit()
        for k, v in whole.sae.state_dict().items(): assert torch.equal(again.sae.state_dict()[k], v), k


@pytest.mark.parametrize('arch', ['standard', 'gated', 'topk', 'batchtopk'])
def test_a_whitened_run_goes_on_longer_from_its_end(arch, tmp_path):
    done = whitened_trainer(arch, steps=10)
    done.fit()
    save_checkpoint(tmp_path/'ck', done, done.data_provider)
    same = whitened_trainer(arch, steps=10)
    load_checkpoint(tmp_path/'ck', same, same.data_provider)
    assert torch.equal(same.fit().W_dec, done.sae.W_dec)
    for k in ('normalize_activations', 'rescale_acts_by_decoder_norm'): assert getattr(same.sae.cfg, k, None) == getattr(done.sae.cfg, k, None)
    longer = whitened_trainer(arch, steps=20)
    with pytest.warns(UserWarning, match='now goes on to 640'): load_checkpoint(tmp_path/'ck', longer, longer.data_provider)
    assert longer.activation_scaler.is_known and longer.sae.cfg.normalize_activations == 'covariance_whitening'
    whole = whitened_trainer(arch, steps=20).fit()
    for k, v in longer.fit().state_dict().items(): torch.testing.assert_close(v, whole.state_dict()[k], rtol=1e-3, atol=1e-4, msg=k)
    assert longer.sae.cfg.normalize_activations == 'none'


def test_whitening_that_cannot_be_folded_is_refused():
    with pytest.raises(ConfigError, match='the encoder of matching pursuit is its decoder'):
        MatchingPursuitTrainingSAEConfig(d_in=8, d_sae=32, normalize_activations='covariance_whitening')
    transcoder = Transcoder(TranscoderConfig(d_in=8, d_sae=32, d_out=8, apply_b_dec_to_input=False))
    with pytest.raises(NotImplementedError, match='elsewhere'): transcoder.fold_activation_whitening(*torch.eye(8).expand(3, 8, 8))
