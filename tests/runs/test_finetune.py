"""Finetuning on the model's output: the loss by its formula, its gradient by differences, at any hook of any model, resumed to the bit."""
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
import sae_workbench as sw
from sae_workbench import SAE, TokenContexts, attach, finetune_on_model, finetuner, load_checkpoint, save_checkpoint
from sae_workbench.activations.example_data import toy_model
from sae_workbench.saes.training import dense_step
from sae_workbench.training.config import SAETrainerConfig
from sae_workbench.training.model_loss import ModelLoss, Place, kl_weight
from sae_workbench.training.preempt import Interrupted
from sae_workbench.training.sae_group import SAEGroup
from sae_workbench.training.train_state import TrainState
from tiny import VOCAB, gpt2, llama

D, CONTEXT = 16, 12
TRAINING = {'Standard': {}, 'JumpReLU': {}, 'TopK': dict(k=4), 'BatchTopK': dict(k=4), 'MatryoshkaBatchTopK': dict(k=4, matryoshka_widths=[16, 32]),
            'Gated': {}, 'MatchingPursuit': dict(max_iterations=4)}
PLACES = {   # one tensor of a model by its names
    'llama': ('model.layers.1', 'blocks.1.hook_resid_post'), 'gpt2': ('transformer.h.1', 'blocks.1.hook_resid_post'), 'toy': ('blocks.1.hook_out',)}
MLP = {'llama': ('model.layers.1.mlp.input', 'model.layers.1.mlp'), 'toy': ('blocks.1.mlp.hook_in', 'blocks.1.mlp.hook_out')}


def model_of(kind):
    return llama(layers=3) if kind == 'llama' else gpt2(layers=3) if kind == 'gpt2' else toy_model(3, D, seed=1, d_vocab=257)


def tokens(n=6, seed=0): return torch.randint(2, VOCAB, (n, CONTEXT), generator=torch.Generator().manual_seed(seed))


def sae(kind='TopK', **options):
    torch.manual_seed(0)
    made = getattr(sw, f'{kind}TrainingSAE')(getattr(sw, f'{kind}TrainingSAEConfig')(**dict(d_in=D, d_sae=64) | TRAINING[kind] | options))
    if kind == 'JumpReLU': made.threshold.data.fill_(.2)
    return made


def transcoder(kind='TopK', **options):
    torch.manual_seed(0)
    own = TRAINING[kind] | dict(d_in=D, d_out=D, d_sae=64, skip=True) | options
    made = getattr(sw, f'{kind}TrainingTranscoder')(getattr(sw, f'{kind}TrainingTranscoderConfig')(**own))
    made.fresh = False
    return made


def identity(dtype=torch.float32):
    made = sw.StandardSAE(sw.StandardSAEConfig(d_in=D, d_sae=2*D, apply_b_dec_to_input=False, dtype=str(dtype).removeprefix('torch.')))
    both = torch.cat([torch.eye(D, dtype=dtype), -torch.eye(D, dtype=dtype)])
    made.W_dec.data, made.W_enc.data = both, both.T.contiguous()
    return made


def output_of(trained, model, places, kind='kl', contexts=None, **options):
    "A step's output, with the gradients in the SAEs"
    single = trained if isinstance(trained, sw.TrainingSAE) else SAEGroup(trained if isinstance(trained, list) else [trained])
    places = [Place(*p) if isinstance(p, tuple) else Place(p) for p in places]
    state = TrainState(SAETrainerConfig(1024, 64), single, ModelLoss(model, places, kind, **options))
    out = state.loss(state, tokens() if contexts is None else contexts)
    out.loss.backward()
    return out


def weights(one): return {k: v.detach().clone() for k, v in one.state_dict().items()}


@torch.no_grad()
def by_hand(model, one, place, contexts, keep):
    "KL and cross-entropy by their formulas, through `attach`"
    def logits(): return getattr(found := model(contexts), 'logits', found)
    clean = logits()
    with attach(model, one, place, keep=keep): changed = logits()
    p, q = clean.log_softmax(-1), changed.log_softmax(-1)
    ce = F.cross_entropy(changed[:, :-1].flatten(0, 1), contexts[:, 1:].flatten(), reduction='none')
    return (p.exp()*(p - q)).sum(-1)[keep].mean(), ce[keep[:, :-1].flatten()].mean()


# The loss
@pytest.mark.parametrize('kind', PLACES)
def test_nothing_is_lost_with_the_identity(kind):
    for place in PLACES[kind]:
        perfect, model = identity(), model_of(kind)
        out = output_of(perfect, model, [place])
        assert abs(out.losses['kl_loss']) < 1e-7 and max(p.grad.abs().max() for p in perfect.parameters()) < 1e-6
        assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('kind', PLACES)
def test_the_loss_is_that_of_the_formula(kind):
    model, (place, *_), one = model_of(kind), PLACES[kind], sae().to_inference()
    left_out, contexts = torch.tensor([5, 9, 11]), tokens()
    keep = ~torch.isin(contexts, left_out)
    kl, ce = by_hand(model, one, place, contexts, keep)
    found = output_of(one, model, [place], 'kl', contexts, excluded=left_out)
    torch.testing.assert_close(found.losses['kl_loss'], kl)
    torch.testing.assert_close(found.losses['ce_loss'], ce)
    assert found.loss == found.losses['kl_loss'] and len(found.sae_in) == keep.sum()
    both = output_of(one, model, [place], 'kl+mse', contexts, excluded=left_out)
    assert both.loss.item() == pytest.approx(both.losses['mse_loss'].item(), rel=1e-5)   # the two halves are of one size
    assert both.metrics['kl_weight'] == pytest.approx((both.losses['mse_loss']/kl).item(), rel=1e-4)
    half = CONTEXT//2   # the mean does not grow with the context, as a mean over contexts would
    few, _ = by_hand(model, one, place, contexts[:, :half], keep[:, :half])
    torch.testing.assert_close(output_of(one, model, [place], 'kl', contexts[:, :half], excluded=left_out).losses['kl_loss'], few)


def test_the_weight_of_the_divergence_stays_finite(): assert kl_weight(10., 0.) == kl_weight(10., 1e-6) == 1e5


def test_the_error_term_and_dropout_are_off():
    model, one = gpt2(layers=3, resid_pdrop=.5, embd_pdrop=.5), sae().to_inference()
    before = output_of(one, model, ['transformer.h.1']).loss
    one.use_error_term = True
    model.train()
    assert output_of(one, model, ['transformer.h.1']).loss == before > 0
    assert model.training and all(m.training for m in model.modules())


def test_logits_are_the_models_own():
    "Gemma 2 caps its logits"
    from transformers import Gemma2Config, Gemma2ForCausalLM
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=VOCAB, hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        final_logit_softcapping=.05, pad_token_id=0, bos_token_id=1, eos_token_id=None)).eval()
    one = sae().to_inference()
    with torch.no_grad(): assert model(tokens()).logits.abs().max() < .05
    kl, _ = by_hand(model, one, 'model.layers.0', tokens(), torch.ones(6, CONTEXT, dtype=torch.bool))
    torch.testing.assert_close(output_of(one, model, ['model.layers.0']).losses['kl_loss'], kl)


def test_the_stream_keeps_its_type():
    "A bfloat16 model, and one under autocast, with SAEs in float32"
    for model, options in ((llama(layers=3).bfloat16(), {}), (llama(layers=3), dict(autocast_lm=True))):
        one = sae()
        out = output_of(one, model, ['model.layers.1'], **options)
        assert out.sae_out.dtype == one.W_dec.grad.dtype == torch.float32 and out.loss.isfinite()


def test_only_one_head():
    model, one = gpt2(layers=3), sae(d_in=D//2)
    place = Place('blocks.1.attn.hook_z', None, 1)
    assert output_of(one, model, [place]).sae_in.shape == (6*CONTEXT, D//2)
    assert one.W_dec.grad.abs().max() > 0


# Its gradient
def slopes(f, W, at, h=1e-5):
    "Differences of f in some entries of W"
    for i in at:
        kept = W.flatten()[i].item()
        W.view(-1)[i] = kept + h
        above = f()
        W.view(-1)[i] = kept - h
        below = f()
        W.view(-1)[i] = kept
        yield (above - below)/(2*h)


@pytest.mark.parametrize('what', ['one', 'transcoder', 'several'])
@pytest.mark.parametrize('loss', ['kl', 'ce', 'kl+mse'])
def test_the_gradient_by_differences(what, loss):
    "Through a tiny model in float64, and through SAEs behind others: no TopK there, whose choice jumps when its input moves"
    model, wide = toy_model(3, D, seed=1, d_vocab=257).double(), dict(dtype='float64')   # Llama's norms are in float32
    first, place = sae(**wide), ('blocks.0.hook_out',)
    members, places = {'one': ([first], [place]), 'transcoder': ([transcoder(**wide)], [MLP['toy']]),
                       'several': ([sae('Standard', **wide), transcoder('Standard', **wide), first], [place, MLP['toy'], ('blocks.2.hook_out',)])}[what]
    trained = members if what == 'several' else members[0]
    output = output_of(trained, model, places, loss)
    kept = dict(output.losses), output.metrics.get('kl_weight')
    found = [m.W_dec.grad.clone() for m in members]
    def value():
        with torch.no_grad():   # what weighs the terms is a number
            now = ModelLoss(model, [Place(*p) for p in places], loss)
            state = TrainState(SAETrainerConfig(1024, 64), SAEGroup(members) if what == 'several' else trained, now)
            terms = now(state, tokens()).losses
        own = sum(v for k, v in terms.items() if k not in ('kl_loss', 'ce_loss', 'mse_loss'))
        if loss == 'kl+mse': return ((terms['mse_loss'] + kept[1]*terms['kl_loss'])/2 + own).item()
        return (terms[f'{loss}_loss'] + own*kept[0]['kl_loss']/kept[0]['mse_loss']).item()
    for i, (m, g) in enumerate(zip(members, found)):
        if loss == 'kl+mse' and i < len(members) - 1: continue   # the error of a later one counts as a number for this one's input
        at = g.abs().flatten().topk(3).indices.tolist()
        for j, slope in zip(at, slopes(value, m.W_dec.data, at)): assert slope == pytest.approx(g.flatten()[j].item(), rel=1e-5, abs=1e-6), (i, j)


@pytest.mark.parametrize('kind', ['Standard', 'JumpReLU', 'TopK', 'BatchTopK', 'MatryoshkaBatchTopK'])
def test_the_sparse_step_gives_the_gradients_of_the_dense_one(kind):
    def gradients(dense):
        first, second = sae(dtype='float64'), sae(kind, dtype='float64')
        if kind == 'Standard': second.b_enc.data.fill_(-1.)
        if dense:
            for one in (first, second): one.training_forward_pass = lambda given, one=one: dense_step(one, given)
        output_of([first, second], toy_model(3, D, seed=1, d_vocab=257).double(), ['blocks.0.hook_out', 'blocks.1.hook_out'], 'kl+mse')
        return [p.grad for p in (*first.parameters(), *second.parameters())]
    for a, b in zip(gradients(False), gradients(True), strict=True):
        if a is None or b is None: assert a is b
        else: torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


# A dictionary of several layers
def cross_layer(activation='topk', **options):
    torch.manual_seed(0)
    own = dict(l0_coefficient=0.) if activation == 'jumprelu' else dict(k=6)
    made = sw.CrossLayerTrainingTranscoder(sw.CrossLayerTrainingTranscoderConfig(d_in=D, d_sae=3*32, d_out=D, n_layers=3, activation=activation, skip=True,
                                                                                **own | options))
    made.fresh = False
    return made


CLT = tuple(f'model.layers.{i}.mlp.input' for i in range(3)), tuple(f'model.layers.{i}.mlp' for i in range(3))


@pytest.mark.parametrize('activation', ['topk', 'batchtopk', 'layertopk', 'jumprelu'])
def test_a_cross_layer_transcoder_replaces_every_layer(activation, tmp_path):
    model, contexts = llama(layers=3, initializer_range=.3), tokens(8)
    def tuner(one): return finetuner(one, model, contexts, CLT[0], 'kl', 30*8*CONTEXT, 8, 3e-3, CLT[1], exclude_special_tokens=False)
    one = cross_layer(activation)
    t = tuner(one)
    first = t.step_on_next().losses['kl_loss']
    t.fit()
    assert t.step_on_next().losses['kl_loss'] < .8*first and one.cfg.metadata.finetuned['loss'] == 'kl'
    published = one.to_inference()
    before = weights(published)
    finetune_on_model(published, model, contexts, CLT[0], 'kl', 4*8*CONTEXT, hook_name_out=CLT[1], exclude_special_tokens=False)
    assert any(not torch.equal(v, before[k]) for k, v in weights(published).items())


def test_it_reads_the_untouched_model_and_all_that_it_writes_is_put_in_place():
    model, one = llama(layers=3), cross_layer().to_inference()
    clean = sw.capture(model, [*CLT[0]], tokens(), stop=False)
    made = one(torch.cat([*clean.values()], -1)).detach().split(D, -1)
    with torch.no_grad():
        p = model(tokens()).logits.log_softmax(-1)
        with sw.replacing(model, {h: lambda a, new=new: new for h, new in zip(CLT[1], made)}): q = model(tokens()).logits.log_softmax(-1)
    found = output_of(one, model, [CLT], 'kl').losses['kl_loss']
    torch.testing.assert_close(found, (p.exp()*(p - q)).sum(-1).mean())


def test_a_crosscoder_of_two_layers():
    torch.manual_seed(0)
    one = sw.BatchTopKTrainingCrosscoder(sw.BatchTopKTrainingCrosscoderConfig(d_in=[D, D], d_sae=64, k=8, normalize_activations='expected_average_only_in'))
    model = llama(layers=3, initializer_range=.3)
    t = finetuner(one, model, tokens(8), ['model.layers.0', 'model.layers.1'], 'kl', 30*8*CONTEXT, 8, 3e-3, exclude_special_tokens=False)
    steps = t.steps()
    while not t.n_training_steps: next(steps)
    first = t.state.loss(t.state, tokens(8)).losses['kl_loss']
    for _ in steps: pass
    assert one.cfg.normalize_activations == 'none' and t.state.loss(t.state, tokens(8)).losses['kl_loss'] < .8*first


# One prefix for two passes
@pytest.mark.parametrize('kind', PLACES)
def test_the_prefix_is_run_once_and_changes_nothing(kind):
    model, (place, *_) = model_of(kind), PLACES[kind]
    block, calls = ((model.model.layers if kind == 'llama' else model.transformer.h) if kind != 'toy' else model.blocks)[0], []
    inner = next(m for n, m in block.named_modules() if n.endswith(('mlp', 'mlp._original_component')))
    with inner.register_forward_hook(lambda *_: calls.append(1)):
        def count(reuse):
            one, loss = sae(), ModelLoss(model, [Place(place)], 'kl', reuse_prefix=reuse)
            state = TrainState(SAETrainerConfig(1024, 64), one, loss)
            for _ in range(2):   # the first batch is where it is tried
                one.zero_grad()
                calls.clear()
                out = loss(state, tokens())
            out.loss.backward()
            return len(calls), out.loss.detach(), one.W_dec.grad
        (once, a, g), (twice, b, h) = count(True), count(False)
    assert (once, twice) == (1, 2) and a == b and torch.equal(g, h)


class Skips(nn.Module):
    "Blocks past which something is handed: the second one is not all that the third one reads"
    tokenizer = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.out = nn.Embedding(VOCAB, D), nn.Linear(D, VOCAB)
        self.layers = nn.ModuleList([nn.Linear(D, D) for _ in range(3)])

    def forward(self, ids):
        x = self.embed(ids)
        a = self.layers[0](x)
        return self.out(self.layers[2](self.layers[1](a.relu()).relu() + a).relu())


def test_where_more_is_handed_on_the_passes_stay_whole():
    loss = ModelLoss(Skips(), [Place('layers.2')], 'kl')
    one = sae().to_inference()
    state = TrainState(SAETrainerConfig(1024, 64), SAEGroup([one]), loss)
    out = loss(state, tokens())
    assert loss.prefix.blocks and loss.prefix.works is False
    kl, _ = by_hand(loss.model, one, 'layers.2', tokens(), torch.ones(6, CONTEXT, dtype=torch.bool))
    torch.testing.assert_close(out.losses['kl_loss'], kl)


# A run
def run(trained, model=None, contexts=None, steps=20, hook='model.layers.1', **options):
    options = dict(loss='kl+mse', batch_size_prompts=4, lr=3e-3, exclude_special_tokens=False) | options
    return finetuner(trained, model or llama(layers=3), tokens(40) if contexts is None else contexts, hook,
                     training_tokens=steps*4*CONTEXT, **options)


def sets():
    return {'model.layers.0': sae('JumpReLU'), MLP['llama']: transcoder('BatchTopK'), 'model.layers.2': sae('Gated').to_inference()}


KINDS = [*TRAINING, 'scaled', 'transcoder', 'inference', 'set']


def made(kind):
    if kind == 'set': return sets(), None
    if kind == 'scaled': return sae('TopK', normalize_activations='expected_average_only_in'), 'model.layers.1'
    if kind == 'transcoder':
        one = transcoder('JumpReLU', normalize_activations='expected_average_only_in')
        one.cfg.metadata.update(hook_name=MLP['llama'][0], hook_name_out=MLP['llama'][1])
        return one, None
    return (sae('BatchTopK').to_inference() if kind == 'inference' else sae(kind)), 'model.layers.1'


def all_weights(trained): return [weights(s) for s in (trained.values() if isinstance(trained, dict) else [trained])]


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_goes_on_to_the_bit(kind, tmp_path):
    trained, hook = made(kind)
    whole = run(trained, hook=hook)
    whole.fit()
    for cut in (1, 7, 13):
        first = run(made(kind)[0], hook=hook)
        steps = first.steps()
        for _ in range(cut): next(steps)
        save_checkpoint(tmp_path/str(cut), first, first.data_provider)
        again, _ = made(kind)
        second = run(again, hook=hook)
        load_checkpoint(tmp_path/str(cut), second, second.data_provider)
        second.fit()
        for a, b in zip(all_weights(trained), all_weights(again), strict=True):
            for k, t in a.items(): assert torch.equal(t, b[k]), (cut, k)


@pytest.mark.parametrize('loss', ['kl', 'ce', 'kl+mse'])
@pytest.mark.parametrize('kind', ['one', 'transcoder', 'set', 'inference'])
def test_it_learns_what_it_is_asked_to(kind, loss):
    one, other = sae(), transcoder()
    trained = {'one': {'model.layers.1': one}, 'transcoder': {MLP['llama']: other}, 'set': {'model.layers.1': one, MLP['llama']: other},
               'inference': {'model.layers.1': one.to_inference()}}[kind]
    model, contexts = llama(layers=3, initializer_range=.3), tokens(4)   # sure of what it predicts
    t = run(trained, model, contexts, steps=40, hook=None, loss=loss)
    first = t.step_on_next().losses
    t.fit()
    last = t.step_on_next().losses
    name = 'ce_loss' if loss == 'ce' else 'kl_loss'
    assert last[name] < .8*first[name], (first, last)
    if loss == 'kl+mse': assert last['mse_loss'] < first['mse_loss']


class Stops(sw.Callback):
    def after_step(self, trainer):
        if trainer.n_training_steps == 11: trainer.stop('a test')


@pytest.mark.filterwarnings('ignore:resume')
def test_the_function_goes_on_where_it_was_stopped(tmp_path):
    texts = [{'tokens': t} for t in tokens(80).tolist()]
    def tune(folder, **options):
        one = sae('BatchTopK')
        contexts = TokenContexts(texts, context_size=CONTEXT, prepend_bos=False)
        return finetune_on_model(one, llama(layers=3), contexts, 'model.layers.1', training_tokens=20*4*CONTEXT, lr=3e-3,
                                 checkpoint_path=str(tmp_path/folder), n_checkpoints=2, **options)
    whole = tune('whole', exclude_special_tokens=False)
    with pytest.raises(Interrupted): tune('cut', exclude_special_tokens=False, callbacks=[Stops()])
    again = tune('cut', exclude_special_tokens=False, resume=True)
    for k, t in weights(whole).items(): assert torch.equal(t, weights(again)[k]), k
    again.save_inference_model(tmp_path/'sae')
    assert SAE.load_from_disk(tmp_path/'sae').cfg.metadata.finetuned == dict(loss='kl+mse', tokens=20*4*CONTEXT)


def test_what_becomes_of_thresholds():
    "BatchTopK follows on, JumpReLU learns its own, one for inference keeps it"
    batch, jump, fixed = sae('BatchTopK'), sae('JumpReLU', l0_coefficient=.1, jumprelu_bandwidth=.5), sae('JumpReLU').to_inference()
    kept = fixed.threshold.detach().clone()
    for one in (batch, jump, fixed): run(one).fit()
    assert batch.topk_threshold > 0 and jump.threshold.std() > 0 and torch.equal(fixed.threshold, kept)


def test_a_penalty_keeps_its_proportion():
    "With a loss in nats it is divided by what the divergence is multiplied with in 'kl+mse'"
    model, one = llama(layers=3), sae('Standard', l1_coefficient=2.)
    kl, both = (output_of(one, model, ['model.layers.1'], kind) for kind in ('kl', 'kl+mse'))
    own = kl.losses['l1_loss'].item()
    assert own > 0 and both.loss.item() == pytest.approx(both.losses['mse_loss'].item() + own, rel=1e-5)
    assert kl.loss.item() == pytest.approx(kl.losses['kl_loss'].item() + own/both.metrics['kl_weight'], rel=1e-5)


def test_special_tokens_are_left_out_unless_the_sae_was_trained_on_them():
    model, one = toy_model(2, D, seed=1), sae()
    bos = model.tokenizer.bos_token_id
    contexts = torch.cat([torch.full((8, 1), bos), tokens(8)], 1)
    def seen(said, **options):
        one.cfg.metadata.exclude_special_tokens = said
        t = finetuner(one, model, contexts, 'blocks.1.hook_out', training_tokens=4*13, **options)
        return len(t.state.loss(t.state, contexts[:4]).sae_in)
    assert (seen(None), seen(True), seen(False), seen([bos, 3])) == (4*12, 4*12, 4*13, int((~torch.isin(contexts[:4], torch.tensor([bos, 3]))).sum()))
    assert (seen(False, exclude_special_tokens=True), seen(True, exclude_special_tokens=False)) == (4*12, 4*13)
    one.cfg.metadata.seqpos_slice = (2, 6)
    assert seen(True) == 4*4


def test_logged_and_guarded(tmp_path):
    lines = []
    class Keeps(sw.Callback):
        def on_log(self, trainer, metrics): lines.append(metrics)
    run(sets(), hook=None, logger=sw.LoggingConfig(wandb_log_frequency=5), callbacks=[Keeps()]).fit()
    assert len(lines) == 4 and {'losses/kl_loss', 'losses/mse_loss', 'losses/l0_loss_0', 'metrics/kl_weight', 'metrics/l0'} <= lines[0].keys()
    model = llama(layers=3)
    model.lm_head.weight.data.fill_(float('nan'))
    one = sae()
    before = weights(one)
    with pytest.raises(sw.NonFiniteError, match='step 0'): run(one, model).fit()
    for k, t in weights(one).items(): assert torch.equal(t, before[k]), k


def test_what_was_given_comes_back_and_can_be_saved(tmp_path):
    given = sets()
    same = finetune_on_model(given, llama(layers=3), tokens(8), training_tokens=2*4*CONTEXT, exclude_special_tokens=False)
    assert list(same) == list(given) and all(a is b for a, b in zip(same.values(), given.values()))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'the layout is')
        for i, one in enumerate(given.values()):
            one.save_inference_model(tmp_path/str(i)) if hasattr(one, 'save_inference_model') else one.save_model(tmp_path/str(i))
            assert SAE.load_from_disk(tmp_path/str(i)).cfg.metadata.finetuned['tokens'] == 2*4*CONTEXT


def test_another_thread_sees_the_whole_model():
    "Blocks that are left out in a finetune's pass are there for everybody else"
    import threading
    model, found = llama(layers=3), []
    with torch.no_grad(): right = model(tokens()).logits
    loss = ModelLoss(model, [Place('model.layers.1')], 'kl')
    loss.clean_pass(tokens(4, 1))
    loss.clean_pass(tokens(4, 1))
    def read():
        with torch.no_grad(): found.append(model(tokens()).logits)
    with loss.prefix.left_out():
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert torch.equal(found[0], right)


# In the runner
def texts(): return [{'tokens': t} for t in tokens(60, 5).tolist()]


def config(folder, model='llama', **options):
    given = dict(d_in=D, d_sae=64, k=4, normalize_activations='expected_average_only_in') | options.pop('sae', {})
    made = sw.TopKTrainingTranscoderConfig(d_out=D, **given) if 'hook_name_out' in options else sw.BatchTopKTrainingSAEConfig(**given)
    return sw.LanguageModelSAERunnerConfig(**dict(
        sae=made, model_name='toy', model_class_name='AutoModelForCausalLM', hook_name='model.layers.1', dataset_path='none', context_size=CONTEXT,
        training_tokens=40*48, train_batch_size_tokens=48, store_batch_size_prompts=4, n_eval_batches=2, prepend_bos=False, verbose=False, lr=3e-3,
        finetune_loss='kl+mse', finetune_share=.25, output_path=str(folder/'out'), checkpoint_path=str(folder/'checkpoints'),
        logger=sw.LoggingConfig(wandb_log_frequency=1, eval_every_n_wandb_logs=20)) | options)


def runner(cfg, **options):
    model = llama(layers=3)
    model.tokenizer = None
    return sw.LanguageModelSAETrainingRunner(cfg, texts(), model, **options)


class StopsAt(sw.Callback):
    def __init__(self, step): self.step = step
    def after_step(self, trainer):
        if trainer.n_training_steps == self.step: trainer.stop('a test')


@pytest.mark.filterwarnings('ignore:the dataset', 'ignore:the layout')
@pytest.mark.parametrize('places', [{}, dict(hook_name=MLP['llama'][0], hook_name_out=MLP['llama'][1])], ids=['sae', 'transcoder'])
def test_the_runner_ends_on_the_models_output(places, tmp_path):
    whole = runner(config(tmp_path/'whole', **places)).run()
    log = sw.read_log(tmp_path/'whole'/'out')
    kinds = ['losses/kl_loss' in line for line in log if 'losses/mse_loss' in line]
    assert kinds == [False]*30 + [True]*10
    assert SAE.load_from_disk(tmp_path/'whole'/'out').cfg.metadata.finetuned == dict(loss='kl+mse', tokens=10*48)
    assert sw.LanguageModelSAERunnerConfig.from_dict((cfg := config(tmp_path)).to_dict()) == cfg
    for step in (12, 30, 36):   # among the rows, at the change, among the contexts
        cut = config(tmp_path/str(step), n_checkpoints=2, resume='auto', **places)
        with pytest.raises(Interrupted): runner(cut, callbacks=[StopsAt(step)]).run()
        again = runner(config(tmp_path/str(step), n_checkpoints=2, resume='auto', **places)).run()
        for k, t in weights(whole).items(): assert torch.equal(t, weights(again)[k]), (step, k)


@pytest.mark.filterwarnings('ignore:the dataset', 'ignore:the layout')
def test_several_in_one_run_end_there_too(tmp_path):
    "Each is alone in the model; the passes that they have shared stay where they are"
    def several(folder, **options):
        cfg = config(tmp_path, hook_name='unused', checkpoint_path=str(tmp_path/folder), **options)
        shared = {k: v for k, v in cfg.to_dict().items() if k not in ('sae', 'hook_name', 'hook_name_out', 'hook_head_index', 'from_pretrained_path', 'output_path',
                                                                      'logger', 'resume_from_checkpoint')}
        hooks = {'a': 'model.layers.0', 'b': 'model.layers.1'}
        saes = {n: sw.BatchTopKTrainingSAEConfig(d_in=D, d_sae=64, k=4, normalize_activations='expected_average_only_in') for n in hooks}
        return sw.MultiSAETrainingRunnerConfig(saes, hooks, output_path=None, **shared)
    def go(cfg, **options):
        model = llama(layers=3)
        model.tokenizer = None
        return sw.MultiSAETrainingRunner(cfg, texts(), model, **options).run()
    whole = go(several('whole'))
    assert all(s.cfg.metadata.finetuned == dict(loss='kl+mse', tokens=10*48) for s in whole.values())
    with pytest.raises(Interrupted): go(several('cut', n_checkpoints=2, resume='auto'), callbacks=[StopsAt(34)])
    again = go(several('cut', n_checkpoints=2, resume='auto'))
    for name, one in whole.items():
        for k, t in weights(one).items(): assert torch.equal(t, weights(again[name])[k]), (name, k)


@pytest.mark.filterwarnings('ignore:the dataset')
def test_a_run_from_pretrained_weights_honours_or_refuses_every_option(tmp_path):
    "The weights are the folder's; the loss, k and the rest are the config's, which refuses what the weights cannot have"
    sae('BatchTopK').save_model(tmp_path/'sae')
    options = dict(from_pretrained_path=str(tmp_path/'sae'), output_path=None, checkpoint_path=None, finetune_share=.5)
    made = runner(config(tmp_path, sae=dict(k=2, topk_threshold_lr=.2, normalize_activations='none'), **options))
    assert (made.sae.cfg.k, made.sae.cfg.topk_threshold_lr) == (2, .2) and torch.equal(made.sae.W_enc, sae('BatchTopK').W_enc)
    lines = []
    class Keeps(sw.Callback):
        def on_log(self, trainer, metrics): lines.append(metrics)
    made.callbacks.append(Keeps())
    assert made.run().cfg.metadata.finetuned['tokens'] == 20*48
    assert all(line['metrics/l0'] <= 2 for line in lines if 'metrics/l0' in line)
    with pytest.raises(sw.ConfigError, match='d_sae: 64 in the folder, 32 in the run'):
        runner(config(tmp_path, sae=dict(d_sae=32, normalize_activations='none'), **options))


CONFIGS = {
    'a share of nothing': (dict(finetune_share=0.), 'does nothing'), 'a share alone': (dict(finetune_loss=None), 'needs a finetune_loss'),
    'an unknown loss': (dict(finetune_loss='mse'), "not one of 'kl', 'ce' or"), 'too much': (dict(finetune_share=1.5), 'finetune_share=1.5'),
    'several outputs': (dict(hook_name_out=['model.layers.0', 'model.layers.2']), 'names several'),
    'a cache alone': (dict(use_cached_activations=True, cached_activations_path='.', dataset_path=''), 'set dataset_path beside the cache')}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_wrong_config_is_refused(name, tmp_path):
    options, says = CONFIGS[name]
    with pytest.raises(sw.ConfigError, match=says): config(tmp_path, **options)


def test_the_command_line_and_the_form_know_the_options():
    from sae_workbench.apps.options import options_of
    form = {o.path: o for o in options_of(sw.LanguageModelSAERunnerConfig)}
    assert form['finetune_loss'].choices == ('kl', 'ce', 'kl+mse') and form['finetune_loss'].optional and form['finetune_share'].default == .05
    assert all(form[n].about for n in ('finetune_loss', 'finetune_share'))
    from sae_workbench.apps.cli import parse_config
    given = ['--architecture', 'topk', '--sae.d-in', '16', '--sae.d-sae', '64', '--sae.k', '4', '--finetune-loss', 'kl+mse', '--finetune-share', '.1']
    made = parse_config([*given, '--hook-name', 'model.layers.1'])
    assert (made.finetune_loss, made.finetune_share) == ('kl+mse', .1)


WRONG = {
    'two at one place': (lambda: finetuner({'model.layers.1': sae(), ('model.layers.0', 'model.layers.1'): transcoder()}, llama(), tokens()), 'two SAEs write'),
    'wrong width': (lambda: run(sae(d_in=8)), 'are 16 wide'),
    'another vocabulary': (lambda: run(sae(), contexts=tokens() + VOCAB).fit(), 'vocabulary'),
    'nothing left': (lambda: run(sae(), exclude_special_tokens=list(range(VOCAB))).fit(), 'tokens are excluded'),
    'an unknown option': (lambda: run(sae(), lr_warmup_steps=5), 'lr_warm_up_steps'),
    'no such hook': (lambda: run(sae(), hook='model.layers.9'), 'model.layers.9'),
    'longer than the model': (lambda: run(sae(), gpt2(), torch.zeros(4, 99, dtype=torch.long), hook='transformer.h.1'), '64 positions')}


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_said(name):
    do, says = WRONG[name]
    with pytest.raises(sw.SAEWorkbenchError, match=says): do()
