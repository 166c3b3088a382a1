"""The same evaluations in either library: a tiny Llama, SAEs and tokens whose numbers come from seeds.

    PEER/bin/python tests/peer/evals.py [FILE]

writes what sae-lens measures to `tests/fixtures/peer/evals.json`, which `tests/peer/test_evals.py` compares ours with.
"""
import json, sys, tempfile
from importlib import import_module
from pathlib import Path
import numpy as np, torch

D_MODEL, HEADS, CONTEXT, WORDS = 16, 2, 12, 40
FOLDER = tempfile.TemporaryDirectory()   # TransformerLens reads the tokenizer's files again
RESID, Z = 'blocks.1.hook_resid_post', 'blocks.1.attn.hook_z'
CASES = {
    'topk': dict(arch='TopK', options=dict(k=5)),
    'standard': dict(arch='Standard'),
    'standard, batches of 3': dict(arch='Standard', batch=3, batches=4),
    'jumprelu': dict(arch='JumpReLU', weights=('threshold', 'b_enc')),
    'gated': dict(arch='Gated', weights=('b_gate', 'b_mag', 'r_mag')),
    'layer_norm': dict(arch='Standard', options=dict(normalize_activations='layer_norm')),
    'nothing left out': dict(arch='TopK', options=dict(k=5), exclude=False),
    'other tokens left out': dict(arch='TopK', options=dict(k=5), exclude=[3, 7, 11]),
    'heads': dict(arch='Standard', options=dict(reshape_activations='hook_z'), hook=Z),
    'one head': dict(arch='Standard', hook=Z, head=1, d_in=D_MODEL//HEADS),
    'scaled': dict(arch='Standard', scale=1.7),
    'seqpos_slice': dict(arch='Standard', seqpos=[2, -1]),
    'silent': dict(arch='Standard', silent=True)}

def normal(seed, *shape): return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))

def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({f'w{i}': i for i in range(WORDS)}, unk_token='w2'))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=t, bos_token='w0', eos_token='w1', unk_token='w2').save_pretrained(FOLDER.name)
    return AutoTokenizer.from_pretrained(FOLDER.name)

def model():
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformer_lens.model_bridge import TransformerBridge
    cfg = LlamaConfig(vocab_size=WORDS, hidden_size=D_MODEL, intermediate_size=32, num_hidden_layers=2, num_attention_heads=HEADS,
                      num_key_value_heads=HEADS, max_position_embeddings=64, attn_implementation='eager')
    hf = LlamaForCausalLM(cfg).eval()
    with torch.no_grad():
        for seed, (name, p) in enumerate(sorted(hf.named_parameters())): p.copy_(.5*normal(seed, *p.shape) + ('norm' in name))
    return TransformerBridge.boot_transformers('HuggingFaceTB/SmolLM2-135M-Instruct', hf_model=hf, tokenizer=tokenizer(), device='cpu')

def tokens():
    t = torch.from_numpy(np.random.RandomState(7).randint(2, WORDS, (64, CONTEXT)))
    t[:, 0] = 0
    t[::3, 5] = 1
    return t

def sae(lib, arch, options={}, weights=('b_enc',), hook=RESID, head=None, d_in=D_MODEL, seqpos=None, silent=False, **_):
    facts = dict(hook_name=hook, hook_head_index=head, seqpos_slice=seqpos, context_size=CONTEXT, prepend_bos=True)
    metadata = getattr(import_module(f'{lib}.saes.{"base" if lib == "sae_workbench" else "sae"}'), 'SAEMetadata')(**facts)
    root = import_module(lib)
    made = getattr(root, f'{arch}SAE')(getattr(root, f'{arch}SAEConfig')(d_in=d_in, d_sae=48, metadata=metadata, **options))
    W_dec = normal(100, 48, d_in)
    state = dict(W_dec=W_dec/W_dec.norm(dim=1, keepdim=True), W_enc=.4*normal(101, d_in, 48), b_dec=.2*normal(102, d_in))
    made.load_state_dict(state | {n: .1*normal(103 + i, 48).abs() for i, n in enumerate(weights)})
    if silent:
        for p in made.parameters(): p.data.zero_()
    return made

LOSSES = 'compute_kl', 'compute_ce_loss'
ROWS = ('compute_l2_norms', 'compute_sparsity_metrics', 'compute_variance_metrics', 'compute_featurewise_density_statistics',
        'compute_featurewise_weight_based_metrics')

def evaluate(lib, lm, case, *flags):
    "What `run_evals` returns, on a new store, for some of the metrics"
    from datasets import Dataset
    evals, root = import_module(f'{lib}.evals'), import_module(lib)
    scaler = import_module(f'{lib}.{"activations.scale" if lib == "sae_workbench" else "training.activation_scaler"}').ActivationScaler
    made = sae(lib, **case)
    store = root.ActivationsStore(lm, Dataset.from_dict({'tokens': tokens().tolist()}), False, made.cfg.metadata.hook_name, case.get('head'),
                                  CONTEXT, made.cfg.d_in, 16, 1000, 8, 32, True, 'none', 'cpu', 'float32')
    n = case.get('batches', 1)
    cfg = evals.EvalConfig(batch_size_prompts=case.get('batch', 8), n_eval_reconstruction_batches=n, n_eval_sparsity_variance_batches=n,
                           **{f: True for f in flags})
    metrics, features = evals.run_evals(made, store, lm, scaler(case.get('scale')), cfg, exclude_special_tokens=case.get('exclude', True))
    return {k: v for g in metrics.values() for k, v in g.items()} | features

def main():
    import sae_lens
    lm, found = model(), {}
    for name, case in CASES.items():
        found[name] = dict(losses=evaluate('sae_lens', lm, case, *LOSSES), rows=evaluate('sae_lens', lm, case, *ROWS))
    found['topk']['all'] = evaluate('sae_lens', lm, CASES['topk'], *LOSSES, *ROWS)
    found['topk']['norms'] = evaluate('sae_lens', lm, CASES['topk'], 'compute_l2_norms')
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent/'fixtures'/'peer'/'evals.json')
    path.write_text(json.dumps(dict(sae_lens=sae_lens.__version__, cases=found), separators=(',', ':')) + '\n', encoding='utf-8')
    print(f'{len(found)} cases, {path.stat().st_size} bytes: {path}')

if __name__ == '__main__': main()
