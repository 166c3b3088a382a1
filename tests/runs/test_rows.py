"""Rows with a target, from every source, through every cache, store and runner: a toy transcoder learns, and a run that stops goes on to the bit."""
import re
import warnings

import pytest
import torch
from tiny import llama
from torch import nn
from sae_workbench import ActivationsStore, CacheActivationsRunner, CacheActivationsRunnerConfig, LanguageModelSAERunnerConfig
from sae_workbench import LanguageModelSAETrainingRunner, LanguageModelSource, MixingBuffer, ModuleSource, SAETrainer, SAETrainerConfig
from sae_workbench import ShardSource, SideBySide, TensorSource, TokenContexts, TopKTrainingSAE, TopKTrainingSAEConfig, load_checkpoint
from sae_workbench import save_checkpoint, write_cache
from sae_workbench.activations.example_data import toy_model
from sae_workbench.activations.shared_passes import SharedPasses
from sae_workbench.core.errors import SAEWorkbenchError
from sae_workbench.core.processes import SingleProcess
from sae_workbench.saes.folding import fold_scales
from sae_workbench.training.preempt import Interrupted
from sae_workbench.training.trainer import Callback

D_IN, D_OUT, BATCH, STEPS = 16, 12, 32, 24
READ, WRITTEN = 'blocks.0.hook_resid_post', 'blocks.1.hook_resid_post'
TEXTS = [{'text': f'{n} bottles of beer on the wall, {n} bottles of beer'} for n in range(60, 0, -1)]


class Transcoder(TopKTrainingSAE):
    "Reads the first block of a row and reconstructs the second"
    width = D_OUT
    row_blocks = property(lambda self: (self.cfg.d_in, self.width))

    def initialize_weights(self):
        super().initialize_weights()
        if self.width != self.cfg.d_in:
            self.W_dec, self.b_dec = nn.Parameter(self.W_dec[:, :self.width].detach().clone()), nn.Parameter(torch.zeros(self.width))

    def split(self, rows): return rows.split(self.row_blocks, -1)
    def fold_activation_norm_scaling_factor(self, read, written): fold_scales(self, read, written)


class Square(Transcoder):
    "Between two places of the same width"
    width = D_IN


class Two(SingleProcess):
    "A process that believes it is two, and runs all passes itself"
    size = 2
    def objects(self, obj): return [obj]*2
    def gather(self, x): return [x]*2


def config(**options) -> TopKTrainingSAEConfig:
    return TopKTrainingSAEConfig(d_in=D_IN, d_sae=64, k=8, apply_b_dec_to_input=False, normalize_activations='expected_average_only_in', **options)


def table() -> torch.Tensor: return torch.randn(512, 10, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, D_IN), nn.ReLU(), nn.Linear(D_IN, D_OUT)).requires_grad_(False)


def tensors() -> TensorSource:
    x = net()[:1](table())
    return TensorSource(x, BATCH, shuffle=True, target=100*net()[1:](x))


def modules(**options) -> ModuleSource: return ModuleSource(net(), table(), '0', hook_name_out='2', batch_size=BATCH, shuffle=True, **options)


def joined() -> SideBySide: return SideBySide(ModuleSource(net(), ['0', '2'], table(), batch_size=BATCH, shuffle=True))


def language(model, hook=READ, **options) -> LanguageModelSource:
    contexts = TokenContexts(TEXTS, model.tokenizer, context_size=16)
    return LanguageModelSource(model, hook, contexts, 4, **options)


def store(model, **options) -> ActivationsStore:
    given = dict(hook_name=READ, hook_name_out=WRITTEN, hook_head_index=None, context_size=16, d_in=D_IN, n_batches_in_buffer=16, total_training_tokens=1000,
                 store_batch_size_prompts=4, train_batch_size_tokens=BATCH, prepend_bos=True, exclude_special_tokens=True, seed=3)
    return ActivationsStore(model, TEXTS, False, **given | options)


def cached(make, folder) -> ShardSource:
    if not folder.exists(): write_cache(make(), folder, max_rows=300, rows_per_shard=70)
    return ShardSource(folder, rows=BATCH, shuffle=True)


@pytest.fixture(scope='module')
def model(): return toy_model(n_layers=2, d_model=D_IN)


SOURCES = {   # the class of the transcoder, and what gives its rows
    'tensors': (Transcoder, lambda at, model: tensors()),
    'modules': (Transcoder, lambda at, model: modules()),
    'side by side': (Transcoder, lambda at, model: joined()),
    'language model': (Square, lambda at, model: MixingBuffer(language(model, hook_name_out=WRITTEN, exclude_special_tokens=True), 128, BATCH)),
    'tensors on disk': (Transcoder, lambda at, model: cached(tensors, at/'tensors')),
    'modules on disk': (Transcoder, lambda at, model: cached(modules, at/'modules')),
    'side by side on disk': (Transcoder, lambda at, model: MixingBuffer(cached(joined, at/'joined'), 128, BATCH)),
    'language model on disk': (Square, lambda at, model: cached(lambda: language(model, hook_name_out=WRITTEN), at/'language')),
    'store': (Square, lambda at, model: store(model)),
    'two processes': (Transcoder, lambda at, model: MixingBuffer(SharedPasses(modules(), Two()), 128, BATCH))}


def trainer(cls, data, **options) -> SAETrainer:
    torch.manual_seed(0)
    return SAETrainer(SAETrainerConfig(STEPS*BATCH, BATCH, lr=1e-2, n_batches_for_norm_estimate=4), cls(config()), data, **options)


pytestmark = pytest.mark.filterwarnings('ignore:the cache')   # of 300 rows, read more than once


class Losses(Callback):
    def __init__(self): self.seen = []
    def on_step(self, trainer, output): self.seen.append(output.loss.item())


@pytest.mark.parametrize('name', SOURCES)
def test_it_learns_and_goes_on_to_the_bit(name, model, tmp_path):
    cls, make = SOURCES[name]
    losses = Losses()
    whole = trainer(cls, make(tmp_path, model), callbacks=[losses])
    whole.fit()
    assert sum(losses.seen[-5:]) < .8*sum(losses.seen[:5])
    for cut in (2, 4 + 9):   # in the estimate of the norms, and in training
        first = trainer(cls, make(tmp_path, model))
        steps = first.steps()
        for _ in range(cut): next(steps)
        save_checkpoint(tmp_path/str(cut), first, first.data_provider)
        second = trainer(cls, make(tmp_path, model))
        load_checkpoint(tmp_path/str(cut), second, second.data_provider)
        assert second.position == first.position
        second.fit()
        for k, t in whole.sae.state_dict().items(): assert torch.equal(t, second.sae.state_dict()[k]), (cut, k)


def test_each_block_has_its_own_scale_and_both_are_folded():
    t = trainer(Transcoder, tensors())
    steps = t.steps()
    for _ in range(5): next(steps)   # the four of the estimate, and the first of training
    read, written = t.state.scaling.factors
    x, y = tensors().acts.parts.values()
    for factor, part in zip((read, written), (x, y)):
        assert factor == pytest.approx(part.shape[1]**.5/part.norm(dim=-1).mean().item(), rel=.1)
    assert read > 10*written
    for _ in steps: pass
    assert t.state.scaling.factors == [None, None] and t.sae.cfg.normalize_activations == 'none'
    assert (t.sae(x) - y).pow(2).sum() < .7*(y - y.mean(0)).pow(2).sum()   # on rows as they are


def test_an_unfolded_scale_is_what_it_was():
    t = trainer(Transcoder, tensors())
    t.fit()
    folded, x = t.sae.W_dec.detach().clone(), tensors().acts.parts['input'][:8]
    before = t.sae(x)
    t.state.scaling.unfold(t.sae, dict(normalize_activations='expected_average_only_in'))
    read, written = t.state.scaling.factors
    torch.testing.assert_close(t.sae(x*read)/written, before)
    t.state.scaling.fold(t.sae)
    torch.testing.assert_close(t.sae.W_dec.detach(), folded)


# A language model, from the config to the trained transcoder
def run(model, at, sae=None, data=TEXTS, **options):
    given = dict(sae=config(), model_name='toy', hook_name=READ, hook_name_out=WRITTEN, dataset_path='none', is_dataset_tokenized=False, streaming=False,
                 context_size=16, training_tokens=STEPS*BATCH, train_batch_size_tokens=BATCH, n_batches_in_buffer=16, store_batch_size_prompts=4,
                 lr=1e-2, n_batches_for_norm_estimate=4, exclude_special_tokens=True, output_path=str(at/'out'), checkpoint_path=str(at/'checkpoints'),
                 verbose=False)
    torch.manual_seed(0)
    return LanguageModelSAERunnerConfig(**given | options), dict(
        override_dataset=data, override_model=model, override_sae=Square(config()) if sae is None else sae)


class Stops(Callback):
    def __init__(self, step): self.step = step
    def after_step(self, trainer):
        if trainer.n_training_steps == self.step: trainer.stop('a test')


def weights(sae) -> dict[str, torch.Tensor]: return {k: v.clone() for k, v in sae.state_dict().items()}


def test_the_runner_trains_it_and_goes_on_to_the_bit(model, tmp_path):
    cfg, given = run(model, tmp_path/'whole')
    whole = LanguageModelSAETrainingRunner(cfg, **given).run()
    assert (whole.cfg.metadata.hook_name, whole.cfg.metadata.hook_name_out) == (READ, WRITTEN)
    cfg, given = run(model, tmp_path/'cut', n_checkpoints=2, resume='auto')
    with pytest.raises(Interrupted): LanguageModelSAETrainingRunner(cfg, **given, callbacks=[Stops(11)]).run()
    cfg, given = run(model, tmp_path/'cut', n_checkpoints=2, resume='auto')
    again = LanguageModelSAETrainingRunner(cfg, **given)
    sae = again.run()
    assert again.trainer.n_training_steps == STEPS
    for k, t in weights(whole).items(): assert torch.equal(t, weights(sae)[k]), k


def test_an_sae_says_nothing_of_a_target(model, tmp_path):
    cfg, given = run(model, tmp_path, sae=TopKTrainingSAE(config()), hook_name_out=None)
    assert 'hook_name_out' not in LanguageModelSAETrainingRunner(cfg, **given).run().cfg.metadata.to_dict()


def cache_config(at, **options) -> CacheActivationsRunnerConfig:
    return CacheActivationsRunnerConfig(**dict(
        dataset_path='none', model_name='toy', model_batch_size=4, hook_name=READ, hook_name_out=WRITTEN, d_in=D_IN, training_tokens=900, context_size=16,
        device='cpu', exclude_special_tokens=True, verbose=False, new_cached_activations_path=str(at)) | options)


def test_the_cache_holds_the_rows_of_the_run(model, tmp_path):
    manifest = CacheActivationsRunner(cache_config(tmp_path/'cache'), TEXTS, model).run()
    assert manifest['columns'] == [[READ, D_IN], [WRITTEN, D_IN]] and manifest['about']['hook_name_out'] == WRITTEN
    from_disk, live = ShardSource(tmp_path/'cache', shuffle=False), language(model, hook_name_out=WRITTEN, exclude_special_tokens=True)
    assert torch.equal(from_disk.acts[:200], torch.cat([next(live) for _ in range(8)])[:200])
    cfg, given = run(model, tmp_path/'run', data=None, dataset_path='', use_cached_activations=True, cached_activations_path=str(tmp_path/'cache'))
    trained = LanguageModelSAETrainingRunner(cfg, **given | dict(override_model=None)).run()
    assert trained.cfg.metadata.hook_name_out == WRITTEN
    reads = ActivationsStore.from_config(model, cache_config(tmp_path/'cache'))
    assert next(reads).shape[1] == 2*D_IN and [*reads.columns] == [READ, WRITTEN]


def test_one_pass_gives_both_and_ends_at_the_later_hook():
    m = llama(layers=3)
    ran = []
    for i, layer in enumerate(m.model.layers): layer.register_forward_hook(lambda *args, i=i: ran.append(i))
    contexts = TokenContexts([dict(tokens=[*range(1, 9)])]*8, context_size=8)
    source = LanguageModelSource(m, 'blocks.1.mlp.hook_in', contexts, 2, hook_name_out='blocks.1.hook_mlp_out')
    ran.clear()
    rows = next(source)
    assert ran == [0]   # the second layer is left behind its MLP, before its own end
    x, y = (rows[:, at] for at in source.columns.values())
    with torch.no_grad(): torch.testing.assert_close(m.model.layers[1].mlp(x), y)
    names = LanguageModelSource(m, 'model.layers.1.mlp.input', contexts, 2, hook_name_out='model.layers.1.mlp')
    assert torch.equal(next(names), rows)


def test_the_store_gives_activations_and_rows_of_both(model):
    s = store(model)
    tokens = s.get_batch_tokens(3)
    both = s.get_activations(tokens)
    assert both.shape == (3, 16, 2*D_IN) and torch.equal(both[..., :D_IN], store(model, hook_name_out=None).get_activations(tokens))
    assert s.get_filtered_llm_batch().shape[1] == 2*D_IN and next(s).shape == (BATCH, 2*D_IN)
    assert [*s.columns] == [READ, WRITTEN]


def test_several_hooks_are_written(model):
    source = language(model, 'blocks.0.hook_resid_pre', hook_name_out=[READ, WRITTEN], d_in=D_IN)
    assert [*source.columns] == ['blocks.0.hook_resid_pre', READ, WRITTEN] and next(source).shape[1] == 3*D_IN


def fit(sae, data): return SAETrainer(SAETrainerConfig(BATCH, BATCH), sae, data)


WRONG = {   # what somebody does, and what they are told
    'an SAE on pairs': (lambda m, at: fit(TopKTrainingSAE(config()), modules()), "columns '0': 16, '2': 12, which do not fit widths of 16"),
    'blocks the other way round': (lambda m, at: fit(Transcoder(config()), ModuleSource(net(), table(), '2', hook_name_out='0')), 'takes rows of 2 parts in this order'),
    'a target of other rows': (lambda m, at: TensorSource(table(), target=table()[:9]), 'input: 512 rows of torch.float32 on cpu, target: 9 rows'),
    'the same hook twice': (lambda m, at: ModuleSource(net(), table(), '0', hook_name_out='0'), "'0' occurs twice in a row"),
    'no such hook': (lambda m, at: ModuleSource(net(), table(), '0', hook_name_out='3'), "no hook or submodule '3'"),
    'no such hook of a language model': (lambda m, at: language(m, hook_name_out='blocks.1.hook_resid_pst'), "did you mean 'blocks.1.hook_resid_post'"),
    'no hook': (lambda m, at: run(m, at, hook_name_out=[]), 'names no hook'),
    'a config with a hook twice': (lambda m, at: run(m, at, hook_name_out=READ), 'occurs twice in a row'),
    'a run of an SAE with a target': (lambda m, at: start(m, at, TopKTrainingSAE(config())), 'TopKTrainingSAE reconstructs what it reads, so it has no use for a target'),
    'a run without a target': (lambda m, at: start(m, at, hook_name_out=None), 'takes rows of 2 parts, and the run has 1: blocks.0.hook_resid_post'),
    'a run with a target of another width': (lambda m, at: start(m, at, Transcoder(config())), 'do not fit widths of 16 and 12'),
    'a cache of single activations': (lambda m, at: from_cache(m, at, dict(hook_name_out=None), {}), f"hook_name_out: '{WRITTEN}' here, None there"),
    'a cache of pairs for an SAE': (lambda m, at: from_cache(m, at, {}, dict(hook_name_out=None, sae=TopKTrainingSAE(config()))), f"hook_name_out: None here, '{WRITTEN}' there"),
    'pairs of several caches': (lambda m, at: cache_config(at, hook_name=[READ, 'blocks.0.hook_resid_pre']), 'belongs to one hook_name'),
    'whitening': (lambda m, at: fit(Transcoder(TopKTrainingSAEConfig(d_in=D_IN, d_sae=64, normalize_activations='covariance_whitening', k=4)), tensors()),
                  "write 'expected_average_only_in'")}


def start(model, at, sae=None, **options):
    cfg, given = run(model, at, sae, **options)
    return LanguageModelSAETrainingRunner(cfg, **given)


def from_cache(model, at, written, read):
    CacheActivationsRunner(cache_config(at/'cache', **written), TEXTS, model).run()
    return start(model, at, **dict(data=None, dataset_path='', use_cached_activations=True, cached_activations_path=str(at/'cache')) | read)


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_said_at_once(name, model, tmp_path):
    do, says = WRONG[name]
    with warnings.catch_warnings(), pytest.raises(SAEWorkbenchError, match=re.escape(says)):
        warnings.simplefilter('ignore')
        do(model, tmp_path)


def test_the_model_is_not_fetched_for_a_target_that_nothing_has_use_for(tmp_path):
    cfg, _ = run(None, tmp_path, model_name='no/such-model')
    with pytest.raises(SAEWorkbenchError, match='no use for a target'): LanguageModelSAETrainingRunner(cfg, TEXTS)


def test_the_config_of_the_model_tells_of_a_wrong_target(tmp_path):
    cfg, _ = run(None, tmp_path, hook_name_out='blocks.7.hook_resid_post')
    with pytest.raises(SAEWorkbenchError, match=r"hook_name_out='blocks.7.hook_resid_post': the model has 2 layers"): cfg.check_model(llama(layers=2).config)
