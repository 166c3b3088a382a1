"""Store what sae-lens computes for every case of the parity test (run in an environment that has sae-lens):

    PEER/bin/python tests/peer/make_fixtures.py [FOLDER]

Writes `tensors.safetensors` to the folder (`tests/fixtures/peer` unless given), where equal tensors are stored once under a hash of their content,
and `index.json`: per case its definition, its input tensors and its answers.
"""
import hashlib, json, logging, sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from safetensors.torch import save_file
import sae_lens
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from measure import NAMES, TRANSCODERS, class_name, measure

LIB = SimpleNamespace(**{k: getattr(sae_lens, k) for k in sae_lens.__all__}, SAETrainerConfig=SAETrainerConfig, TrainStepInput=TrainStepInput)
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent/'fixtures'/'peer')
D_IN, D_SAE, BATCH, STEPS = 8, 24, 10, 10
MODES = 'none', 'expected_average_only_in', 'layer_norm', 'constant_norm_rescale'
COEFFICIENTS = dict(standard=dict(l1=0.7), gated=dict(l1=0.7), jumprelu=dict(l0=0.7))
BASE = dict(standard={}, gated={}, jumprelu=dict(jumprelu_bandwidth=0.3), topk=dict(k=4), abstopk=dict(k=4), batchtopk=dict(k=3.5), matching_pursuit={},
            matryoshka_batchtopk=dict(k=3.5, matryoshka_widths=[4, 12, D_SAE]))

class Tensors(dict):
    "Tensors by the hash of their content"
    def add(self, t):
        t = t.detach().contiguous()
        key = hashlib.sha1(repr((t.dtype, t.shape)).encode() + t.numpy().tobytes()).hexdigest()[:10]
        self[key] = t.clone()
        return {'$': key}
    def pack(self, o):
        "`o` as JSON, with references in place of the tensors"
        if isinstance(o, torch.Tensor): return self.add(o)
        if isinstance(o, dict): return {k: self.pack(v) for k,v in sorted(o.items())}
        return [self.pack(v) for v in o] if isinstance(o, (list, tuple)) else o

def normal(seed, *shape): return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))

def weights(arch, d_in=D_IN, d_sae=D_SAE, bias=0.):
    "Weights in which nothing is tied, zero or of norm one"
    W_dec = normal(1, d_sae, d_in)
    W_dec *= torch.linspace(0.4, 1.6, d_sae)[:,None]/W_dec.norm(dim=1, keepdim=True)
    res = dict(W_enc=0.3*normal(2, d_in, d_sae), W_dec=W_dec, b_dec=0.3*normal(3, d_in))
    biases = ('b_gate', 'b_mag', 'r_mag') if arch == 'gated' else ('b_enc',)
    res |= {n: 0.3*normal(4+i, d_sae) + (bias if n != 'r_mag' else 0) for i,n in enumerate(biases)}
    if arch.endswith('batchtopk'): res['topk_threshold'] = torch.tensor(0.3, dtype=torch.float64)
    if arch == 'jumprelu': res['threshold'] = 0.2*normal(7, d_sae).abs()
    return res

def transcoder_weights(arch, d_out=6):
    res = weights('jumprelu' if 'jumprelu' in arch else 'transcoder')
    res |= dict(W_dec=normal(1, D_SAE, d_out), b_dec=0.3*normal(3, d_out))
    return res | (dict(W_skip=0.3*normal(9, d_out, D_IN)) if 'skip' in arch else {})

def temporal_weights(tied, layers, narrow):
    res = {k: v for k,v in weights('temporal').items() if k in ('W_dec', 'b_dec') or k == 'W_enc' and not tied}
    widths = dict(k_ctx=narrow, q_target=narrow, v_ctx=D_SAE, c_proj=D_SAE)
    for seed,(i,name) in enumerate(product(range(layers), widths), 20):
        at = f'attn_layers.{i}.{name}'
        res |= {f'{at}.weight': 0.5*normal(seed, widths[name], D_SAE), f'{at}.bias': 0.1*normal(seed + 20, widths[name])}
    return res

def pursuit_weights():
    res = {k: v for k,v in weights('matching_pursuit').items() if k in ('W_dec', 'b_dec')}
    return res | dict(W_dec=res['W_dec']/res['W_dec'].norm(dim=1, keepdim=True))

def dead_mask(n): return torch.zeros(D_SAE, dtype=torch.bool).index_fill(0, torch.from_numpy(np.random.RandomState(8).permutation(D_SAE)[:n]), True)

X = normal(10, BATCH, D_IN) + 0.2
CASES = []

def case(name, kind, data=(), **kw):
    CASES.append((dict(name=name, kind=kind, **kw), dict(data)))

def training_case(arch, option, dead=None, coefficients=None, change=None, **cfg):
    "A step; with new config options also the files and the inference SAE made from it"
    cfg = dict(d_in=D_IN, d_sae=D_SAE, **BASE[arch]) | cfg
    w = (pursuit_weights() if arch == 'matching_pursuit' else weights(arch)) | (change or {})
    mask = {} if dead is None else dict(dead=dead_mask(dead))
    case(f'{arch}-{option}', 'step', dict(weights=w, x=X, **mask), arch=arch, cfg=cfg, coefficients=coefficients or COEFFICIENTS.get(arch, {}))
    if any(c['kind'] == 'files' and (c['arch'], c['cfg']) == (arch, cfg) for c,_ in CASES) or change: return
    x = X.reshape(5, 2, 2, 4) if cfg.get('reshape_activations') == 'hook_z' else X
    case(f'{arch}-{option}', 'files', dict(weights=w, x=x), arch=arch, cfg=cfg)

def training_cases():
    for arch,mode,b_dec in product(NAMES, MODES, (True, False)):
        training_case(arch, f"{mode}{'' if b_dec else '-no_b_dec'}", normalize_activations=mode, apply_b_dec_to_input=b_dec)
    for arch in NAMES:
        training_case(arch, 'hook_z', reshape_activations='hook_z')
        training_case(arch, 'init_norm', decoder_init_norm=None)
        for n in (0, 3, 10, D_SAE): training_case(arch, f'dead{n}', dead=n)
    for arch,name in dict(standard='l1', gated='l1', jumprelu='l0').items():
        training_case(arch, 'coefficient', **{f'{name}_coefficient': 5.0, f'{name}_warm_up_steps': 10}, coefficients={name: 1.25})
        training_case(arch, 'no_penalty', coefficients={name: 0.0})
    for p in (2.0, 0.5): training_case('standard', f'lp{p}', lp_norm=p)

def jumprelu_cases():
    one = lambda option, **kw: training_case('jumprelu', option, **kw)
    for mode,ste in product((dict(step={}, tanh=dict(jumprelu_tanh_scale=2.0), quadratic=dict(target_l0=5.0))).items(), (False, True)):
        cfg = dict(jumprelu_sparsity_loss_mode=mode[0], **mode[1], jumprelu_ste_to_input=ste)
        one(f"{mode[0]}{'-ste' if ste else ''}", **cfg)
        one(f"{mode[0]}{'-ste' if ste else ''}-pre_act", dead=10, pre_act_loss_coefficient=0.05, **cfg)
    for n in (None, 0, 3, D_SAE): one(f'pre_act-dead{n}', dead=n, pre_act_loss_coefficient=0.05)
    one('narrow', jumprelu_bandwidth=0.05)
    one('wide', jumprelu_bandwidth=2.0)
    one('threshold0', change=dict(threshold=torch.zeros(D_SAE)))
    one('init_threshold', jumprelu_init_threshold=0.2)
    one('negative_threshold', change=dict(threshold=0.2*normal(7, D_SAE)))
    one('quadratic-no_target', jumprelu_sparsity_loss_mode='quadratic')
    one('layer_norm-pre_act', dead=10, normalize_activations='layer_norm', pre_act_loss_coefficient=0.05)

def topk_cases():
    one = lambda option, **kw: training_case('topk', option, **kw)
    for rescale,sparse,n in product((True, False), (True, False), (None, 0, 1, 3, 4, 10, D_SAE)):
        one(f"{'' if rescale else 'no_'}rescale{'-sparse' if sparse else ''}-dead{n}", dead=n, rescale_acts_by_decoder_norm=rescale, use_sparse_activations=sparse)
    for k in (1, 2, 12, D_SAE): one(f'k{k}', k=k)
    one('aux0', dead=10, aux_loss_coefficient=0.0)
    one('aux_small', dead=10, aux_loss_coefficient=1/32)
    for mode,rescale in product(MODES, (True, False)):
        one(f"{mode}-dead10-{'rescale' if rescale else 'no_rescale'}", dead=10, normalize_activations=mode, rescale_acts_by_decoder_norm=rescale)
    one('no_b_dec-dead10', dead=10, apply_b_dec_to_input=False)
    one('few_positive', k=12, change=dict(b_enc=weights('topk')['b_enc'] - 3))

def inference_cases():
    shapes = dict(two=X, three=X.reshape(2, 5, D_IN), hook_z=X.reshape(5, 2, 2, 4), one=X[0])
    for arch,(name,x) in product(NAMES, shapes.items()):
        cfg = dict(d_in=D_IN, d_sae=D_SAE) | (dict(k=4) if arch == 'topk' else {}) | (dict(reshape_activations='hook_z') if name == 'hook_z' else {})
        case(f'{arch}-{name}', 'inference', dict(weights=weights(arch), x=x), arch=arch, cfg=cfg)
        if arch == 'topk': case(f'{arch}-{name}-rescale', 'inference', dict(weights=weights(arch), x=x), arch=arch, cfg=cfg | dict(rescale_acts_by_decoder_norm=True))
        if name in ('two', 'hook_z'): case(f'{arch}-{name}', 'hooks', dict(weights=weights(arch), x=x), arch=arch, cfg=cfg)
    for arch,mode in product(NAMES, MODES[2:]):
        cfg = dict(d_in=D_IN, d_sae=D_SAE, normalize_activations=mode) | (dict(k=4) if arch == 'topk' else {})
        case(f'{arch}-three-{mode}', 'inference', dict(weights=weights(arch), x=shapes['three']), arch=arch, cfg=cfg)
        case(f'{arch}-{mode}', 'hooks', dict(weights=weights(arch), x=X), arch=arch, cfg=cfg)

PURSUIT = dict(plain={}, few=dict(max_iterations=3), far=dict(residual_threshold=1.5), endless=dict(residual_threshold=0.0, stop_on_duplicate_support=False),
               repeats=dict(stop_on_duplicate_support=False), no_b_dec=dict(apply_b_dec_to_input=False), layer_norm=dict(normalize_activations='layer_norm'))

def more_cases():
    for arch,mode in product(TRANSCODERS, MODES):
        cfg = dict(d_in=D_IN, d_sae=D_SAE, d_out=6, apply_b_dec_to_input=False, normalize_activations=mode)
        case(f'{arch}-{mode}', 'inference', dict(weights=transcoder_weights(arch), x=X.reshape(2, 5, D_IN)), arch=arch, cfg=cfg)
    for name,option in PURSUIT.items():
        cfg = dict(d_in=D_IN, d_sae=D_SAE) | option
        case(f'matching_pursuit-{name}', 'inference', dict(weights=pursuit_weights(), x=X.reshape(2, 5, D_IN)), arch='matching_pursuit', cfg=cfg)
        training_case('matching_pursuit', name, **option)
    unequal = pursuit_weights()['W_dec']*torch.linspace(0.5, 1.3, D_SAE)[:,None]
    training_case('matching_pursuit', 'unequal_rows', change=dict(W_dec=unequal), max_iterations=12)
    for tied,layers,b_dec in product((True, False), (1, 2), (True, False)):
        temporal_case(f"{'tied' if tied else 'untied'}-{layers}{'' if b_dec else '-no_b_dec'}", tied_weights=tied, n_attn_layers=layers, apply_b_dec_to_input=b_dec)
    for name,option in dict(relu=dict(sae_diff_type='relu'), all=dict(kval_topk=None), layer_norm=dict(normalize_activations='layer_norm'),
                            rescale=dict(normalize_activations='constant_scalar_rescale', activation_normalization_factor=0.4)).items():
        temporal_case(name, n_attn_layers=2, **option)
    for rescale,n in product((True, False), (None, 0, 3, D_SAE)):
        training_case('abstopk', f"{'' if rescale else 'no_'}rescale-dead{n}", dead=n, rescale_acts_by_decoder_norm=rescale)
    for rescale,n in product((True, False), (None, 3, D_SAE)):
        training_case('batchtopk', f"{'' if rescale else 'no_'}rescale-dead{n}", dead=n, rescale_acts_by_decoder_norm=rescale)
    for mode in MODES: training_case('batchtopk', mode, normalize_activations=mode)
    for rescale,own,n in product((True, False), (True, False), (None, 3, D_SAE)):
        training_case('matryoshka_batchtopk', f"{'' if rescale else 'no_'}rescale{'-own_aux' if own else ''}-dead{n}", dead=n,
                      rescale_acts_by_decoder_norm=rescale, use_matryoshka_aux_loss=own)
    for mode in MODES[:2]: training_case('matryoshka_batchtopk', mode, normalize_activations=mode)    # the peer fails with the others
    for mode in MODES: training_case('abstopk', f'{mode}-dead10', dead=10, normalize_activations=mode)
    case('abstopk-three', 'inference', dict(weights=weights('abstopk'), x=X.reshape(2, 5, D_IN)), arch='abstopk', cfg=dict(d_in=D_IN, d_sae=D_SAE, k=4))

def temporal_case(name, **option):
    cfg = dict(d_in=D_IN, d_sae=D_SAE, n_heads=2, bottleneck_factor=3, tied_weights=True, kval_topk=3) | option
    w = temporal_weights(cfg['tied_weights'], cfg['n_attn_layers'], D_SAE//cfg['bottleneck_factor'])
    case(f'temporal-{name}', 'inference', dict(weights=w, x=8*X.reshape(2, 5, D_IN)), arch='temporal', cfg=cfg)

BATCHES = 2*normal(11, STEPS + 3, BATCH, D_IN) + 0.5
RARE = torch.linspace(-3, 0.5, D_SAE)      # added to the biases, so that latents die at different steps
TRAINER = dict(total_training_samples=STEPS*BATCH, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-4, dead_feature_window=2,
               feature_sampling_window=4, n_batches_for_norm_estimate=3)

def run_case(arch, option, cfg=None, **trainer):
    cfg = dict(d_in=D_IN, d_sae=D_SAE, **BASE[arch]) | (cfg or {})
    w = pursuit_weights() if arch == 'matching_pursuit' else weights(arch, bias=RARE)
    case(f'{arch}-{option}', 'run', dict(weights=w, batches=BATCHES), arch=arch, cfg=cfg, trainer=TRAINER | trainer)

def run_cases():
    penalty = dict(standard='l1', gated='l1', jumprelu='l0')
    for arch in NAMES:
        run_case(arch, 'plain')
        run_case(arch, 'scaled', dict(normalize_activations='expected_average_only_in'))
        for mode in MODES[2:]: run_case(arch, mode, dict(normalize_activations=mode), dead_feature_window=100)
        run_case(arch, 'cosine', lr_scheduler_name='cosineannealing', lr_warm_up_steps=3, lr_decay_steps=3)
        run_case(arch, 'betas', adam_beta1=0.0, adam_beta2=0.9)
        if arch in penalty: run_case(arch, 'warm_up', {f'{penalty[arch]}_coefficient': 2.0, f'{penalty[arch]}_warm_up_steps': 4})
    for ste,mode in product((False, True), ('step', 'tanh', 'quadratic')):
        run_case('jumprelu', f"{mode}{'-ste' if ste else ''}", dict(jumprelu_sparsity_loss_mode=mode, jumprelu_ste_to_input=ste, pre_act_loss_coefficient=0.05, **dict(target_l0=5.0) if mode=='quadratic' else {}))
    for rescale,sparse in product((True, False), (True, False)):
        run_case('topk', f"{'' if rescale else 'no_'}rescale{'-sparse' if sparse else ''}",
                 dict(k=2, rescale_acts_by_decoder_norm=rescale, use_sparse_activations=sparse), dead_feature_window=1)
    for arch,mode in product(('abstopk', 'batchtopk', 'matryoshka_batchtopk', 'matching_pursuit'), MODES[:2]): run_case(arch, mode, dict(normalize_activations=mode))
    run_case('topk', 'layer_norm-dead', dict(k=1, normalize_activations='layer_norm'), dead_feature_window=1)
    run_case('standard', 'remainder', total_training_samples=STEPS*BATCH - 5)
    for name,(warm,decay) in product(('constant', 'cosineannealing', 'cosineannealingwarmrestarts'), ((0, 0), (1, 0), (4, 0), (0, 3), (2, 4))):
        cycles = dict(n_restart_cycles=2) if name.endswith('restarts') else {}
        run_case('standard', f'lr-{name}-{warm}-{decay}', lr_scheduler_name=name, lr_warm_up_steps=warm, lr_decay_steps=decay, **cycles)

def init_cases():
    for arch,(kind,option) in product(NAMES, (('SAE', {}), ('TrainingSAE', {}), ('TrainingSAE', dict(decoder_init_norm=None)), ('TrainingSAE', dict(dtype='bfloat16')))):
        extra = dict(k=4) if arch == 'topk' else dict(jumprelu_init_threshold=0.2) if (arch, kind) == ('jumprelu', 'TrainingSAE') else {}
        case('-'.join([arch, kind, *option]), 'init', cls=NAMES[arch] + kind, cfg=dict(d_in=64, d_sae=512) | extra | option)

def api_cases():
    sized = dict(d_in=8, d_sae=256)
    for arch in NAMES.values():
        for kind in ('SAEConfig', 'TrainingSAEConfig'): case(arch+kind, 'defaults', kwargs=sized)
    for arch in ('abstopk', 'matching_pursuit'):
        for kind in ('SAE', 'TrainingSAE'): case(f'{class_name(arch, kind)}Config', 'defaults', kwargs=sized)
    case('BatchTopKTrainingSAEConfig', 'defaults', kwargs=sized)
    for arch in TRANSCODERS.values(): case(arch + 'Config', 'defaults', kwargs=sized | dict(apply_b_dec_to_input=False))
    case('TemporalSAEConfig', 'defaults', kwargs=dict(d_in=8, d_sae=512))
    case('LoggingConfig', 'defaults', kwargs={})
    case('SAETrainerConfig', 'defaults', kwargs=dict(total_training_samples=100, train_batch_size_samples=10))
    case('LanguageModelSAERunnerConfig', 'defaults', kwargs=dict(sae='@StandardTrainingSAEConfig', dataset_path='a/b', checkpoint_path=None))
    functions = dict(SAE='load_from_disk save_model encode decode forward fold_W_dec_norm get_activation_fn get_name process_sae_in from_dict',
        TrainingSAE='save_inference_model training_forward_pass calculate_aux_loss encode_with_hidden_pre get_coefficients '
                    'process_state_dict_for_saving_inference process_state_dict_for_saving process_state_dict_for_loading initialize_weights',
        ActivationsStore='__init__ from_config from_sae', SAETrainer='__init__ fit', LanguageModelSAETrainingRunner='__init__ run')
    for cls,names in functions.items():
        for n in names.split(): case(f'{cls}.{n}', 'signature')
    for n in ('TrainStepInput', 'register_sae_class', 'register_sae_training_class'): case(n, 'signature')

def attempt(case, data):
    "The peer's answer to a case; an exception is an answer too"
    try: return measure(LIB, case, data)
    except (ValueError, NotImplementedError) as e: return dict(error=type(e).__name__, message=str(e).split('\n')[0][:200])

def answer(case, data):
    "The same; where the peer's sparse tensors fail inside torch (`rescale_acts_by_decoder_norm`, torch 2.13), the answer of its dense form"
    res = attempt(case, data)
    if res.get('error') != 'NotImplementedError': return dict(result=res)
    return dict(result=attempt(case | dict(cfg=case['cfg'] | dict(use_sparse_activations=False)), data), peer_error=res)

def main():
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    for add in (training_cases, jumprelu_cases, topk_cases, inference_cases, more_cases, run_cases, init_cases, api_cases): add()
    ids = [(c['kind'], c['name']) for c,_ in CASES]
    assert len(set(ids)) == len(ids), 'two cases have one name'
    tensors = Tensors()
    index = dict(sae_lens=sae_lens.__version__, torch=torch.__version__, numpy=np.__version__,
                 cases=[c | tensors.pack(dict(data=d, **answer(c, d))) for c,d in CASES])
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), OUT/'tensors.safetensors')
    lines = ',\n'.join(json.dumps(c) for c in index.pop('cases'))
    (OUT/'index.json').write_text(f'{json.dumps(index)[:-1]}, "cases": [\n{lines}\n]}}\n', encoding='utf-8')
    print(f'{len(CASES)} cases, {len(tensors)} tensors, {sum(f.stat().st_size for f in OUT.iterdir())/1e6:.2f} MB in {OUT}')

if __name__ == '__main__': main()
