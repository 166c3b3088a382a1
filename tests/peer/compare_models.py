"""SAEs inside TransformerLens 3.9 models, by sae-lens and by ours: `PYTHONPATH=. PEER/bin/python tests/peer/compare_models.py`"""
import copy, warnings
import torch
import sae_lens
import sae_workbench
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

warnings.simplefilter('ignore')
SHAPE = dict(n_layers=3, d_model=16, d_head=8, n_heads=2, d_mlp=32, n_ctx=32, d_vocab=60, act_fn='gelu', seed=0)
TOKENS = torch.arange(20).reshape(2, 10)
Z = dict(reshape_activations='hook_z')
CASES = {
    'resid': [('Standard', 'blocks.1.hook_resid_post', {}, {})],
    'mlp': [('TopK', 'blocks.0.hook_mlp_out', dict(k=4), {})],
    'z': [('Standard', 'blocks.1.attn.hook_z', Z, {})],
    'transcoder': [('Transcoder', 'blocks.1.mlp.hook_in', dict(d_out=16, apply_b_dec_to_input=False), dict(hook_name_out='blocks.1.hook_mlp_out'))],
    'three': [('Gated', 'blocks.0.hook_resid_pre', {}, {}), ('JumpReLU', 'blocks.1.hook_mlp_out', {}, {}),
              ('TopK', 'blocks.2.hook_resid_post', dict(k=4), {})],
}
SUFFIXES = 'hook_sae_acts_post', 'hook_sae_input'

def models():
    "(name, the peer's, ours), with the same weights"
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**SHAPE), device='cpu')
    theirs = TransformerBridge.boot_native(TransformerBridgeConfig(**SHAPE), device='cpu')
    theirs.__class__, theirs._acts_to_saes, theirs._transcoder_output_hooks = sae_lens.SAETransformerBridge, {}, {}
    yield 'bridge', theirs, sae_workbench.SAETransformerBridge.from_model(bridge)
    theirs = sae_lens.HookedSAETransformer(HookedTransformerConfig(**SHAPE))
    ours = sae_workbench.HookedSAETransformer(HookedTransformerConfig(**SHAPE))
    ours.load_state_dict(theirs.state_dict())
    yield 'hooked', theirs, ours

def saes(specs):
    "The same SAEs of both libraries"
    pairs = []
    for arch, hook, options, facts in specs:
        name = arch if arch=='Transcoder' else f'{arch}SAE'
        made = []
        for lib, meta in ((sae_lens, sae_lens.saes.sae.SAEMetadata), (sae_workbench, sae_workbench.SAEMetadata)):
            cfg = getattr(lib, f'{name}Config')(d_in=16, d_sae=32, metadata=meta(hook_name=hook, **facts), **options)
            made.append(getattr(lib, name)(cfg))
        theirs, ours = made
        torch.manual_seed(len(pairs))
        for p in theirs.parameters(): p.data.normal_(std=.3)
        ours.load_state_dict(theirs.state_dict())
        pairs.append(made)
    return map(list, zip(*pairs))

def ablate(f, hook): return torch.zeros_like(f)

def main():
    for kind, theirs, ours in models():
        for case, specs in CASES.items():
            their_saes, our_saes = saes(specs)
            for error in (False, True, None):
                print(kind, case, error)
                a, their_cache = theirs.run_with_cache_with_saes(TOKENS, saes=their_saes, use_error_term=error)
                b, our_cache = ours.run_with_cache_with_saes(TOKENS, saes=our_saes, use_error_term=error)
                print('   out', float((a-b).abs().max()))
                print('   theirs only', [k for k in their_cache if k not in our_cache])
                print('   ours only', [k for k in our_cache if k not in their_cache][:99 if kind=='hooked' else 0])
                for k in their_cache:
                    if k in our_cache:
                        x, y = their_cache[k], our_cache[k]
                        if x.shape != y.shape: print('   shape', k, x.shape, y.shape)
                        elif not torch.allclose(x, y, atol=1e-5): print('   value', k, float((x-y).abs().max()))

if __name__ == '__main__': main()
