"""SAEs inside the models of TransformerLens 3, by sae-lens and by ours: `PYTHONPATH=ROOT PEER/bin/python compare_models.py`"""
import tempfile
import warnings
from unittest.mock import patch
import torch
import sae_lens
import sae_workbench
from sae_lens.saes.sae import SAEMetadata
from transformer_lens import HookedTransformerConfig
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from sae_workbench.activations.example_data import byte_tokenizer

SHAPE = dict(n_layers=3, d_model=16, d_head=8, n_heads=2, d_mlp=32, n_ctx=32, d_vocab=60, act_fn='gelu', seed=0)
TOKENS = torch.arange(20).reshape(2, 10)
READ, WRITE = 'blocks.1.mlp.hook_in', 'blocks.1.hook_mlp_out'
CASES = {   # architecture, hook, options, metadata
    'residual': [('Standard', 'blocks.1.hook_resid_post', {}, {})],
    'mlp': [('TopK', 'blocks.0.hook_mlp_out', dict(k=4), {})],
    'heads': [('Standard', 'blocks.1.attn.hook_z', dict(reshape_activations='hook_z'), {})],
    'transcoder': [('Transcoder', READ, dict(d_out=16, apply_b_dec_to_input=False), dict(hook_name_out=WRITE))],
    'three': [('Gated', 'blocks.0.hook_resid_pre', {}, {}), ('JumpReLU', 'blocks.1.hook_mlp_out', {}, {}),
              ('TopK', 'blocks.2.hook_resid_post', dict(k=4), {})],
}


def bridges():
    "The peer's model and ours, with the same weights"
    theirs, ours = (TransformerBridge.boot_native(TransformerBridgeConfig(**SHAPE), device='cpu') for _ in range(2))
    theirs.__class__, theirs._acts_to_saes, theirs._transcoder_output_hooks = sae_lens.SAETransformerBridge, {}, {}   # as its loader does
    return theirs, sae_workbench.SAETransformerBridge.from_model(ours)


def hooked():
    theirs, ours = (lib.HookedSAETransformer(HookedTransformerConfig(**SHAPE)) for lib in (sae_lens, sae_workbench))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def saes(specs):
    "The same SAEs of both libraries, each in a list"
    pairs = []
    for arch, hook, options, facts in specs:
        name = arch + 'SAE'*(arch != 'Transcoder')
        theirs, ours = (getattr(lib, name)(getattr(lib, f'{name}Config')(d_in=16, d_sae=32, metadata=meta(hook_name=hook, **facts), **options))
                        for lib, meta in ((sae_lens, SAEMetadata), (sae_workbench, sae_workbench.SAEMetadata)))
        torch.manual_seed(len(pairs))
        for p in theirs.parameters(): p.data.normal_(std=.3)
        ours.load_state_dict(theirs.state_dict())
        pairs.append((theirs, ours))
    return [list(side) for side in zip(*pairs)]


def ablate(f, hook): return f.index_fill(-1, torch.arange(16), 0)


def fail(f, hook): raise RuntimeError('in a hook')


def uses(model, attached):
    "What the methods of v6 give, by what was done"
    did, latents = {}, [n for n in model.run_with_cache_with_saes(TOKENS, saes=attached)[1] if n.endswith('acts_post')]
    for error in (False, True, None):
        did[f'run {error}'] = model.run_with_saes(TOKENS, saes=attached, use_error_term=error)
        did |= {f'cache {error} {n}': x for n, x in model.run_with_cache_with_saes(TOKENS, saes=attached, use_error_term=error)[1].items()}
        with model.saes(saes=attached, use_error_term=error):
            did[f'hooks {error}'] = model.run_with_hooks(TOKENS, fwd_hooks=[(latents[0], ablate)])
            model.add_hook(latents[0], ablate)
            did[f'add_hook {error}'] = model(TOKENS)
            model.hook_dict[latents[0]].remove_hooks()   # with an SAE in a bridge the peer's reset_hooks fails
    did['hooks with saes'] = model.run_with_hooks_with_saes(TOKENS, saes=attached, fwd_hooks=[(latents[0], ablate)])
    _, cache = model.run_with_cache_with_saes(TOKENS, saes=attached, return_type='loss', incl_bwd=True)
    did |= {f'gradient {n}': x for n, x in cache.items() if n.endswith('_grad')}
    did['part'], cache = model.run_with_cache_with_saes(TOKENS, saes=attached[:1], stop_at_layer=2, names_filter=latents)
    did |= {f'part {n}': x for n, x in cache.items()}
    for sae in attached: model.add_sae(sae, use_error_term=True)
    model.add_sae(attached[0])
    did['added'], did['names'] = model(TOKENS), sorted(model.acts_to_saes)
    try:
        with model.saes(saes=attached[:1]): model.run_with_hooks(TOKENS, fwd_hooks=[(latents[-1], fail)])
    except RuntimeError: pass
    did['after an error'], did['names after an error'] = model(TOKENS), sorted(model.acts_to_saes)
    model.reset_saes(attached[0].cfg.metadata.hook_name)
    did['one left'], did['names left'] = model(TOKENS), sorted(model.acts_to_saes)
    model.reset_saes()
    return did | {'none left': model(TOKENS)}


def same(a, b)->bool:
    if isinstance(a, list): return a == b
    return torch.allclose(a.reshape(b.shape), b, atol=2e-5)   # on a bridge the peer joins the heads


def compare(make, case)->int:
    "How many results are equal; an error names those that are not"
    (theirs, ours), (their_saes, our_saes) = make(), saes(CASES[case])
    them, us = uses(theirs, their_saes), uses(ours, our_saes)
    assert not (missing := them.keys() - us.keys()), f'{case}: missing {missing}'
    assert not (bad := [k for k in them if not same(them[k], us[k])]), f'{case}: other values for {bad}'
    places = {s.cfg.metadata.hook_name_out or s.cfg.metadata.hook_name for s in our_saes}   # these and a bridge's aliases the peer's cache leaves out
    places |= {ours.hook_dict[n].name for n in places} | {n for n, p in ours.hook_dict.items() if n != p.name}
    more = {k.split()[-1].removesuffix('_grad') for k in us.keys() - them.keys()}
    assert not (bad := {k for k in more if not {k, k.rpartition('.')[0]} & places}), f'{case}: also {bad}'
    return len(them)


def special_tokens():
    "Only the HookedSAETransformer of the peer can leave tokens alone"
    (theirs, ours), (their_saes, our_saes) = hooked(), saes(CASES['three'])
    a, b = (m.run_with_saes(TOKENS, saes=s, exclude_special_tokens=[0, 10, 13]) for m, s in ((theirs, their_saes), (ours, our_saes)))
    assert torch.allclose(a, b, atol=1e-5)


def readme():
    "The lines that people know, with a tiny GPT-2 instead of the real one, which has to be downloaded"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    config.architectures, config.n_ctx = ['GPT2LMHeadModel'], 64
    gpt2 = GPT2LMHeadModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        byte_tokenizer().save_pretrained(folder)
        known = dict(hf_model=gpt2, tokenizer=AutoTokenizer.from_pretrained(folder), device='cpu')
        for name, load in (('HookedSAETransformer', 'from_pretrained'), ('SAETransformerBridge', 'boot_transformers')):
            outs = []
            for lib, (sae, *_) in zip((sae_lens, sae_workbench), saes(CASES['residual'])):
                with patch('transformer_lens.loading_from_pretrained.AutoConfig.from_pretrained', return_value=config):
                    model = getattr(getattr(lib, name), load)('gpt2', **known)
                _, cache = model.run_with_cache_with_saes('A text', saes=[sae])
                with model.saes(saes=[sae]): logits = model('A text')
                outs.append([logits, *(x for n, x in cache.items() if 'hook_out.hook_sae' in n or 'post.hook_sae' in n and name[0] == 'H')])
            assert len(outs[0]) == 6 and all(map(same, *outs)), name


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    special_tokens()
    readme()
    print(sum(compare(make, case) for make in (bridges, hooked) for case in CASES), 'results are equal')
