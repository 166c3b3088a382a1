"""What a library with the v6 API (`sae_lens` or `sae_workbench`) computes for one case.

The same functions run in both environments: `make_fixtures.py` calls them with the peer and stores the answers,
`test_peer_parity.py` calls them with ours and compares. `lib` is a namespace of public names, `data` holds the case's tensors.
"""
import inspect, json, tempfile
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

NAMES = dict(standard='Standard', gated='Gated', jumprelu='JumpReLU', topk='TopK')
MORE_NAMES = dict(abstopk='AbsTopK', batchtopk='BatchTopK', matryoshka_batchtopk='MatryoshkaBatchTopK', matching_pursuit='MatchingPursuit', temporal='Temporal')
TRANSCODERS = dict(transcoder='Transcoder', skip_transcoder='SkipTranscoder', jumprelu_transcoder='JumpReLUTranscoder',
                   jumprelu_skip_transcoder='JumpReLUSkipTranscoder')

def class_name(arch, kind): return TRANSCODERS.get(arch) or (NAMES | MORE_NAMES)[arch] + kind

def dense(t): return (t.to_dense() if t.layout != torch.strided else t).detach()

def values(d): return {k: v.detach().clone() for k,v in d.items()}

def checkpoint(sae):
    "The tensors of a training SAE; single numbers as float32, to which the peer rounds `topk_threshold` when it loads"
    return {k: v if v.ndim else v.float() for k,v in values(sae.state_dict()).items()}

def flat(d, at=''):
    "The tensors of nested dicts by their dotted path"
    if isinstance(d, torch.Tensor): return {at[1:]: d.contiguous()}
    return {k: v for n,o in d.items() for k,v in flat(o, f'{at}.{n}').items()} if isinstance(d, dict) else {}

def build(lib, case, weights, kind):
    "The SAE (`kind` is SAE or TrainingSAE) of a case with the case's weights"
    name = class_name(case['arch'], kind)
    sae = getattr(lib, name)(getattr(lib, name + 'Config')(**case['cfg']))
    sae.load_state_dict(values(weights))
    return sae

def step(lib, case, data, prepare=lambda sae: None):
    "One training forward and backward pass of an SAE to which `prepare` may do something first"
    sae = build(lib, case, data['weights'], 'TrainingSAE')
    prepare(sae)
    out = sae.training_forward_pass(lib.TrainStepInput(sae_in=data['x'], coefficients=case['coefficients'],
        dead_neuron_mask=data.get('dead'), n_training_steps=0, is_logging_step=False))
    out.loss.backward()
    getattr(sae, 'after_optimizer_step', lambda: None)()      # where ours changes what the peer changes in the forward pass
    buffers = values(dict(sae.named_buffers()))
    grad = lambda p: torch.zeros_like(p) if p.grad is None else p.grad
    return dict(**dict(buffers=buffers) if buffers else {}, sae_out=dense(out.sae_out), feature_acts=dense(out.feature_acts), hidden_pre=dense(out.hidden_pre),
                loss=out.loss.detach(), losses=values(out.losses), grads={n: grad(p) for n,p in sae.named_parameters()})

def read_folder(path): return dict(cfg=json.loads((path/'cfg.json').read_text(encoding='utf-8')), tensors=load_file(path/'sae_weights.safetensors'))

def write_folder(path, saved):
    path.mkdir(parents=True, exist_ok=True)
    (path/'cfg.json').write_text(json.dumps(saved['cfg']), encoding='utf-8')
    save_file(saved['tensors'], path/'sae_weights.safetensors')
    return path

@torch.no_grad()
def use(sae, x):
    "What a user gets from an inference SAE, before and after folding the decoder norms"
    acts = sae.encode(x)
    res = dict(feature_acts=dense(acts), decoded=sae.decode(acts), out=sae(x))
    try: sae.fold_W_dec_norm()
    except NotImplementedError: return res | dict(folded='NotImplementedError')
    acts = sae.encode(x)
    return res | dict(folded=dict(weights=values(sae.state_dict()), feature_acts=dense(acts), out=sae(x)))

def read_back(lib, training, inference, x):
    "What the folders written by `save_model` and `save_inference_model` of a training SAE give"
    res = dict(inference=use(lib.SAE.load_from_disk(inference), x), training=checkpoint(lib.TrainingSAE.load_from_disk(training)))
    try: return res | dict(training_as_inference=use(lib.SAE.load_from_disk(training), x))
    except (KeyError, ValueError, OSError): return res | dict(training_as_inference='refused')   # ours is a LoadError, an OSError

def files(lib, case, data):
    "What a training SAE writes, and what can be read from it: the inference SAE from either folder, the training SAE again"
    sae = build(lib, case, data['weights'], 'TrainingSAE')
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        sae.save_model(d/'training')
        sae.save_inference_model(d/'inference')
        return dict(training=read_folder(d/'training'), inference=read_folder(d/'inference'),
                    read=read_back(lib, d/'training', d/'inference', data['x']))

def inference(lib, case, data):
    "An inference SAE made by hand, and what it writes"
    sae = build(lib, case, data['weights'], 'SAE')
    with tempfile.TemporaryDirectory() as d:
        sae.save_model(d)
        return dict(saved=read_folder(Path(d)), use=use(sae, data['x']))

@torch.no_grad()
def hooks(lib, case, data):
    "The tensors at an inference SAE's hook points, and the effect of one hook on the output"
    sae = build(lib, case, data['weights'], 'SAE')
    out, cache = sae.run_with_cache(data['x'])
    hooked = sae.run_with_hooks(data['x'], fwd_hooks=[('hook_sae_acts_post', lambda acts, hook: acts*2)])
    return dict(out=out, cache={k: dense(v) for k,v in cache.items()}, hooked=hooked)

def init(lib, case, data):
    "How the weights of a new SAE look"
    sae = getattr(lib, case['cls'])(getattr(lib, case['cls'] + 'Config')(**case['cfg']))
    w, norms = values(sae.state_dict()), sae.W_dec.detach().float().norm(dim=1)
    return dict(std=w['W_dec'].float().std().item(), relative_spread=(norms.std()/norms.mean()).item(), tied=torch.equal(w['W_enc'], w['W_dec'].T),
                biases={k: v.float().unique() for k,v in w.items() if v.ndim == 1}, shapes={k: list(v.shape) for k,v in w.items()},
                dtypes={k: str(v.dtype) for k,v in w.items()})

def run(lib, case, data):
    "A whole `SAETrainer.fit()`: what each step saw and gave, and what is left at the end"
    sae = build(lib, case, data['weights'], 'TrainingSAE')
    trainer = lib.SAETrainer(lib.SAETrainerConfig(**case['trainer']), sae, iter(data['batches']))
    rows, forward = [], sae.training_forward_pass
    def recorded(step_input):
        lr, out = trainer.optimizer.param_groups[0]['lr'], forward(step_input)
        rows.append(dict(lr=lr, loss=out.loss.item(), losses={k: v.item() for k,v in out.losses.items()},
            coefficients=dict(step_input.coefficients), dead=int(step_input.dead_neuron_mask.sum()), scale=trainer.activation_scaler.scaling_factor))
        return out
    sae.training_forward_pass = recorded
    trainer.fit()
    return dict(steps={k: [r[k] for r in rows] for k in rows[0]}, weights=values(sae.state_dict()),
        statistics={k: getattr(trainer, k).clone() for k in ('act_freq_scores', 'n_forward_passes_since_fired', 'log_feature_sparsity')},
        n_training_steps=trainer.n_training_steps, n_training_samples=trainer.n_training_samples,
        l0=sae.cfg.metadata.l0, num_dead_features=sae.cfg.metadata.num_dead_features, normalize_activations=sae.cfg.normalize_activations)

def plain(v):
    "A default as JSON can hold it"
    if isinstance(v, (list, tuple)): return [plain(o) for o in v]
    return v if v is None or isinstance(v, (bool, int, float, str, dict)) and not hasattr(v, 'to_dict') else '<object>'

def defaults(lib, case, data):
    "The fields of a config and their values when nothing is given"
    kw = {k: getattr(lib, v[1:])(d_in=8, d_sae=24) if isinstance(v, str) and v[:1] == '@' else v for k,v in case['kwargs'].items()}
    cfg = getattr(lib, case['name'])(**kw)
    return {k: plain(getattr(cfg, k)) for k in cfg.__dataclass_fields__}

def signature(lib, case, data):
    "The parameters of a public function with their defaults"
    obj = lib
    for part in case['name'].split('.'): obj = getattr(obj, part)
    pars = inspect.signature(obj).parameters.values()
    return {p.name: '<required>' if p.default is p.empty else plain(p.default) for p in pars if p.name not in ('self', 'cls')}

MEASURES = dict(step=step, files=files, inference=inference, hooks=hooks, init=init, run=run, defaults=defaults, signature=signature)

def measure(lib, case, data, **kw): return MEASURES[case['kind']](lib, case, data, **kw)
