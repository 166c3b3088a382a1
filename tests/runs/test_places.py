"""What names of places mean, family by family, against TransformerLens and plain torch hooks."""

import json
import warnings

import pytest
import torch
import transformers as tf
from producers import PRODUCERS, put
from safetensors.torch import load_file
from torch.testing import assert_close

from sae_workbench import SAE
from sae_workbench.activations.modules import ModuleSource
from sae_workbench.activations.example_data import byte_tokenizer, toy_model
from sae_workbench.activations.sources import LanguageModelSource
from sae_workbench.activations.tokens import TokenContexts
from sae_workbench.analysis.attach import attach, place_of
from sae_workbench.analysis.evals import EvalConfig, run_evals
from sae_workbench.analysis.examples import TextLatents
from sae_workbench.core.capture import capture, replacing
from sae_workbench.core.errors import HookError
from sae_workbench.core.points import FAMILIES, POINTS, resolve
from sae_workbench.saes.base import SAEMetadata
from sae_workbench.saes.standard import StandardSAE, StandardSAEConfig
from sae_workbench.saes.transcoder import TopKSkipTranscoder, TopKSkipTranscoderConfig

SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GROUPED, HEADS = dict(num_key_value_heads=2), dict(num_key_value_heads=2, head_dim=8)
EXPERTS = HEADS | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, num_local_experts=4)
# model type -> its classes and what its config needs besides SIZES
MODELS = {
    'gpt2': ('GPT2LMHeadModel', tf.GPT2Config, {}), 'gpt_neox': ('GPTNeoXForCausalLM', tf.GPTNeoXConfig, {}),
    'llama': ('LlamaForCausalLM', tf.LlamaConfig, GROUPED), 'mistral': ('MistralForCausalLM', tf.MistralConfig, GROUPED),
    'qwen2': ('Qwen2ForCausalLM', tf.Qwen2Config, GROUPED), 'qwen3': ('Qwen3ForCausalLM', tf.Qwen3Config, HEADS),
    'gemma': ('GemmaForCausalLM', tf.GemmaConfig, HEADS), 'gemma2': ('Gemma2ForCausalLM', tf.Gemma2Config, HEADS),
    'gemma3_text': ('Gemma3ForCausalLM', tf.Gemma3TextConfig, HEADS | dict(sliding_window=16)),
    'smollm3': ('SmolLM3ForCausalLM', tf.SmolLM3Config, GROUPED), 'phi3': ('Phi3ForCausalLM', tf.Phi3Config, GROUPED),
    'mixtral': ('MixtralForCausalLM', tf.MixtralConfig, EXPERTS),
    'qwen3_moe': ('Qwen3MoeForCausalLM', tf.Qwen3MoeConfig, EXPERTS),
    'gpt_oss': ('GptOssForCausalLM', tf.GptOssConfig, EXPERTS)}
TOKENS = torch.arange(3, 21).view(2, 9)
NAMES = ['hook_embed', 'ln_final.hook_normalized', 'blocks.1.hook_resid_pre', 'blocks.1.hook_resid_post',
         *(f'blocks.1.{p}' for p in POINTS)]
pytestmark = pytest.mark.filterwarnings('ignore:.*is the residual stream before the norm')


def tiny(model_type: str, layers: int = 2) -> torch.nn.Module:
    "A model of a type with random weights, norms included"
    name, config, more = MODELS[model_type]
    cfg = config(**SIZES | more | dict(num_hidden_layers=layers))
    cfg.architectures, cfg._attn_implementation = [name], 'eager'
    torch.manual_seed(0)
    model = getattr(tf, name)(cfg).eval().requires_grad_(False)
    for n, p in model.named_parameters():
        if 'norm' in n or 'ln_' in n:
            p.add_(torch.randn_like(p)*.5)
    return model


def bridged(model_type: str, folder) -> torch.nn.Module:
    "The same model as a TransformerBridge"
    from transformer_lens.model_bridge import TransformerBridge
    model = tiny(model_type)
    model.config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=model, device='cpu')
    bridge.set_use_hook_mlp_in(True)
    return bridge


def known(model, names):
    "Those of the names that the model has"
    found = []
    for n in names:
        try:
            resolve(model, n)
            found.append(n)
        except HookError:
            pass
    return found


def test_every_family_is_compared():
    assert set(FAMILIES) == set(MODELS)


@pytest.mark.parametrize('model_type', MODELS)
def test_read_what_transformer_lens_reads(model_type, tmp_path):
    model, bridge = tiny(model_type), bridged(model_type, tmp_path)
    names = known(model, NAMES)
    assert {'blocks.1.hook_resid_pre', 'blocks.1.hook_resid_post', 'blocks.1.hook_mlp_out', 'blocks.1.attn.hook_z',
            'blocks.1.hook_attn_out', 'blocks.1.mlp.hook_in', 'hook_embed'} <= set(names)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(TOKENS)
        ours = capture(model, names, TOKENS)
    for n in names:
        assert_close(ours[n], cache[n], msg=lambda m: f'{n}: {m}')


@pytest.mark.parametrize('model_type', MODELS)
def test_write_what_transformer_lens_writes(model_type, tmp_path):
    model, bridge = tiny(model_type), bridged(model_type, tmp_path)
    # the bridge's hook_resid_mid reaches the MLP alone; see test_resid_mid_is_the_whole_stream
    names = [n for n in known(model, NAMES) if not n.endswith(('hook_normalized', 'hook_resid_mid'))]

    def change(x, hook=None): return x*.5 + .1
    for n in names:
        with torch.no_grad(), replacing(model, {n: change}):
            ours = model(TOKENS).logits
        theirs = bridge.run_with_hooks(TOKENS, fwd_hooks=[(n, change)])
        assert_close(ours, theirs, msg=lambda m: f'{n}: {m}')


@pytest.mark.parametrize('model_type', ['gpt2', 'llama', 'gemma2', 'gemma3_text'])
def test_resid_mid_is_the_whole_stream(model_type):
    "A new value reaches the MLP and the block's output, as in HookedTransformer"
    model, name = tiny(model_type), 'blocks.1.hook_resid_mid'
    new = torch.randn(2, 9, 32)
    f, block = FAMILIES[model_type], resolve(model, 'blocks.1.hook_resid_post').module
    mlp = block.mlp(block.get_submodule(f.ln2)(new))
    expected = new + (block.get_submodule(f.ln2_post)(mlp) if f.ln2_post else mlp)
    with replacing(model, {name: lambda x: new}):
        after = capture(model, 'blocks.1.hook_resid_post', TOKENS)['blocks.1.hook_resid_post']
    assert_close(after, expected)
    clean = model(TOKENS).logits
    with replacing(model, {name: lambda x: x}):
        assert_close(model(TOKENS).logits, clean)


def test_parallel_blocks_have_no_resid_mid():
    model = tiny('gpt_neox')
    with pytest.raises(HookError, match="both read 'blocks.1.hook_resid_pre'"):
        resolve(model, 'blocks.1.hook_resid_mid')


def test_normalized_is_not_written():
    model = tiny('llama')
    with pytest.raises(HookError, match='can be read, not replaced'), replacing(model, {'blocks.1.ln2.hook_normalized': lambda x: x}):
        model(TOKENS)


def test_names_of_hugging_face_on_a_bridge(tmp_path):
    model, bridge = tiny('gemma3_text'), bridged('gemma3_text', tmp_path)
    names = ['model.layers.1.output', 'model.layers.1.post_feedforward_layernorm.output', 'layers.1.mlp']
    ours, theirs = capture(model, names, TOKENS), capture(bridge, names, TOKENS)
    for n in names:
        assert_close(theirs[n], ours[n])


def test_unknown_types_have_a_residual_stream():
    torch.manual_seed(0)
    model = tf.OlmoForCausalLM(tf.OlmoConfig(**SIZES)).eval().requires_grad_(False)
    acts = capture(model, ['blocks.0.hook_resid_post', 'blocks.1.hook_resid_pre'], TOKENS)
    hidden = model(TOKENS, output_hidden_states=True).hidden_states
    for x in acts.values():
        assert_close(x, hidden[1])
    with pytest.raises(HookError, match="in models of type 'olmo'; layer 1 is 'model.layers.1', its parts are self_attn"):
        resolve(model, 'blocks.1.hook_mlp_out')


# Where each producer's SAEs read and write, as the producer does it: a path and its side, or a function of the model
GAINLESS = 'normed'   # the input of a norm over its scale, before the norm's weights
L3 = 'model.layers.3'
SCOPE = 'gemma-scope-2b-pt-{}/layer_3/average_l0_6'
SCOPE_2 = 'gemma-scope-2-1b-pt/{}/layer_3_l0_small'
OPENAI = '{}/v5_32k/autoencoders/3.pt'
HF_IN_OUT = dict(hf_hook_point_in=f'{L3}.pre_feedforward_layernorm.output',
                 hf_hook_point_out=f'{L3}.post_feedforward_layernorm.output')
PLACES = [   # producer, path, what its config says instead, model type, layers, (where it reads, where it writes)
    ('sae_lens', None, dict(hook_name='blocks.3.hook_resid_pre'), 'gpt2', 4, ['transformer.h.3.input']),
    ('gemma_2', SCOPE.format('res'), {}, 'gemma2', 4, [f'{L3}.output']),
    ('gemma_2', SCOPE.format('mlp'), {}, 'gemma2', 4, [f'{L3}.post_feedforward_layernorm.output']),
    ('gemma_2', SCOPE.format('att'), {}, 'gemma2', 4, [f'{L3}.self_attn.o_proj.input']),
    ('gemma_2', None, {}, 'gemma2', 2, ['model.layers.0.input']),   # scaled; transformers 4 scales after embed_tokens
    ('gemma_2_transcoder', None, {}, 'gemma2', 4,
     [f'{L3}.pre_feedforward_layernorm.{GAINLESS}', f'{L3}.post_feedforward_layernorm.output']),
    ('gemma_3', SCOPE_2.format('resid_post'), dict(hf_hook_point_in=f'{L3}.output'), 'gemma3_text', 4, [f'{L3}.output']),
    ('gemma_3', SCOPE_2.format('mlp_out'), dict(hf_hook_point_in=f'{L3}.post_feedforward_layernorm.output'), 'gemma3_text', 4,
     [f'{L3}.post_feedforward_layernorm.output']),
    ('gemma_3', SCOPE_2.format('attn_out'), dict(hf_hook_point_in=f'{L3}.self_attn.o_proj.input'), 'gemma3_text', 4,
     [f'{L3}.self_attn.o_proj.input']),
    ('gemma_3', SCOPE_2.format('transcoder'), HF_IN_OUT, 'gemma3_text', 4, [*HF_IN_OUT.values()]),
    ('llama_scope', None, dict(hook_point_in='blocks.3.hook_resid_post', hook_point_out='blocks.3.hook_resid_post'), 'llama', 4,
     [f'{L3}.output']),
    ('llama_scope', None, dict(hook_point_in='blocks.3.hook_mlp_out', hook_point_out='blocks.3.hook_mlp_out'), 'llama', 4,
     [f'{L3}.mlp.output']),
    ('llama_scope', None, dict(hook_point_in='blocks.3.hook_attn_out', hook_point_out='blocks.3.hook_attn_out'), 'llama', 4,
     [f'{L3}.self_attn.output']),
    ('llama_scope_r1_distill', None, dict(hook_point_in='blocks.3.hook_resid_post'), 'llama', 4, [f'{L3}.output']),
    ('dictionary_learning_1', None, dict(trainer=dict(submodule_name='mlp_out_layer_3')), 'gpt_neox', 4,
     ['gpt_neox.layers.3.mlp.output']),
    ('dictionary_learning_1', None, dict(trainer=dict(submodule_name='attention_out_layer_3')), 'gpt_neox', 4,
     ['gpt_neox.layers.3.attention.output']),
    ('dictionary_learning_1', None, dict(trainer=dict(submodule_name='mlp_out_layer_3', lm_name='google/gemma-2-2b')), 'gemma2', 4,
     [f'{L3}.mlp.output']),
    ('dictionary_learning_1', None, dict(trainer=dict(submodule_name=None)), 'gpt_oss', 4, [f'{L3}.output']),
    ('sparsify', None, {}, 'llama', 4, [f'{L3}.mlp.input', f'{L3}.mlp.output']),
    ('sparsify', None, dict(model='google/gemma-2-2b'), 'gemma2', 4, [f'{L3}.mlp.input', f'{L3}.mlp.output']),
    ('sparsify', 'layers.3.self_attn', {}, 'llama', 4, [f'{L3}.self_attn.input', f'{L3}.self_attn.output']),
    ('sparsify', 'gpt_neox.layers.3.mlp', dict(skip_connection=False), 'gpt_neox', 4, ['gpt_neox.layers.3.mlp.output']),
    ('sparsify', 'h.3', dict(skip_connection=False), 'gpt2', 4, ['transformer.h.3.output']),
    ('sparsify', 'embed_tokens', dict(skip_connection=False), 'llama', 2, ['model.embed_tokens.output']),
    ('mwhanna_transcoder', None, dict(feature_input_hook='mlp.hook_in', feature_output_hook='mlp.hook_out'), 'qwen3', 4,
     [f'{L3}.mlp.input', f'{L3}.mlp.output']),
    ('mntss_clt_layer_transcoder', None, dict(feature_input_hook='hook_resid_mid', feature_output_hook='hook_mlp_out'), 'gemma2', 4,
     [f'{L3}.pre_feedforward_layernorm.input', f'{L3}.post_feedforward_layernorm.output']),
    ('llamascopium', None, dict(hook_point_in='blocks.3.mlp.hook_in', hook_point_out='blocks.3.hook_mlp_out'), 'qwen3', 4,
     [f'{L3}.mlp.input', f'{L3}.mlp.output']),
    ('qwen_scope', None, {}, 'qwen3', 4, [f'{L3}.output']),
    ('qwen_scope', None, {}, 'qwen3_moe', 4, [f'{L3}.output']),
    ('goodfire', None, {}, 'llama', 20, ['model.layers.19.output']),
    ('deepseek_r1', None, {}, 'llama', 20, ['model.layers.19.output']),
    ('connor_rob_hook_z', None, {}, 'gpt2', 2, ['transformer.h.0.attn.c_proj.input']),
    ('openai', OPENAI.format('resid_post_mlp'), {}, 'gpt2', 4, ['transformer.h.3.output']),
    ('openai', OPENAI.format('resid_post_attn'), {}, 'gpt2', 4, ['transformer.h.3.ln_2.input']),
    ('openai', OPENAI.format('resid_delta_mlp'), {}, 'gpt2', 4, ['transformer.h.3.mlp.output']),
    ('openai', OPENAI.format('resid_delta_attn'), {}, 'gpt2', 4, ['transformer.h.3.attn.output']),
    ('openai', OPENAI.format('mlp_post_act'), {}, 'gpt2', 4, ['transformer.h.3.mlp.act.output']),
    ('temporal', None, {}, 'gemma2', 13, ['model.layers.12.output']),
]


def changed(config: dict, said: dict) -> dict:
    "A config that says something else; None takes a fact out"
    new = {k: changed(v, said[k]) if isinstance(said.get(k), dict) else said.get(k, v) for k, v in config.items()}
    return {k: v for k, v in new.items() if v is not None}


def published(folder, producer: str, path: str | None, said: dict) -> SAE:
    "An SAE in the producer's layout, at another path, with a config that says something else"
    at = PRODUCERS[producer](folder)
    if path:
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        (folder/at).rename(folder/path)
        at = path
    for file in [*folder.rglob('*.json'), *folder.rglob('*.yaml')]:
        file.write_text(json.dumps(changed(json.loads(file.read_text(encoding='utf-8')), said)), encoding='utf-8')
    for file in folder.rglob('*.safetensors'):
        t = load_file(file)
        if said.get('skip_connection') is False:
            del t['W_skip']
        if producer == 'gemma_3' and 'transcoder' not in at:
            del t['affine_skip_connection']
            t |= dict(w_dec=t['w_dec'][:, :8], b_dec=t['b_dec'][:8])
        norms = {f'dataset_average_activation_norm.{old}': new for old, new in zip('ab', said.values())}
        put(file, {f'dataset_average_activation_norm.{norms[k]}' if k in norms else k: v for k, v in t.items()})
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return SAE.from_pretrained(str(folder), at, allow_pickle=True)


def direct(model, place: str) -> torch.Tensor:
    "What stands at a place, by a plain hook of torch"
    (path, _, side), seen = place.rpartition('.'), []
    module = model.get_submodule(path)

    def before(m, args, kwargs): seen.append(args[0] if args else kwargs['hidden_states'])
    def after(m, args, out): seen.append(out[0] if isinstance(out, tuple) else out)
    handle = module.register_forward_hook(after) if side == 'output' else module.register_forward_pre_hook(before, with_kwargs=True)
    model(TOKENS)
    handle.remove()
    x = seen[0]
    return x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.eps) if side == GAINLESS else x


def test_every_producer_has_a_place():
    every_layer = {'circuit_tracer_clt', 'gemma_3_cross_layer', 'llamascopium_clt'}   # have a list of places
    two_models = {'crosscoder_kissane', 'crosscoder_learning'}   # read in both of them
    assert {p.split()[0] for p in PRODUCERS} - every_layer - two_models == {p for p, *_ in PLACES}


@pytest.mark.parametrize('producer,path,said,model_type,layers,expected', PLACES)
def test_read_what_the_producer_read(producer, path, said, model_type, layers, expected, tmp_path):
    sae, model = published(tmp_path, producer, path, said), tiny(model_type, layers)
    with warnings.catch_warnings():
        warnings.simplefilter('error')   # no doubt about the place
        places = place_of(model, sae)
    assert hasattr(sae.cfg, 'd_out') == (len(expected) == 2)
    for place, at in zip(places, expected):
        assert_close(capture(model, place, TOKENS)[place].flatten(2), direct(model, at))


def transcoder(**names):
    "A transcoder of the model's width that says where it belongs, with random weights"
    torch.manual_seed(1)
    sae = TopKSkipTranscoder(TopKSkipTranscoderConfig(d_in=32, d_out=32, d_sae=64, k=4, metadata=SAEMetadata(**names)))
    sae.W_skip.data.normal_(std=.1)
    return sae.requires_grad_(False)


@pytest.mark.parametrize('names', [dict(hf_hook_name='layers.1.mlp', hf_hook_name_out='layers.1.mlp'),
                                   dict(hook_name='blocks.1.mlp.hook_in', hook_name_out='blocks.1.hook_mlp_out')])
def test_a_transcoder_is_attached_and_measured(names):
    model, sae = tiny('llama'), transcoder(**names)
    block = model.model.layers[1]
    handle = block.mlp.register_forward_hook(lambda m, args, out: sae(args[0]))
    expected = model(TOKENS).logits
    handle.remove()
    with attach(model, sae):
        assert_close(model(TOKENS).logits, expected)
    cfg = EvalConfig(compute_ce_loss=True, compute_variance_metrics=True, compute_sparsity_metrics=True, batch_size_prompts=2,
                     n_eval_reconstruction_batches=1, baselines=False)   # on all contexts: none is held back to fit them on
    metrics = run_evals(sae, TOKENS, model, None, cfg, exclude_special_tokens=False)[0]
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).item()
    x, y = direct(model, 'model.layers.1.mlp.input'), direct(model, 'model.layers.1.mlp.output')
    assert metrics['model_performance_preservation']['ce_loss_with_sae'] == pytest.approx(loss, rel=1e-5)
    assert metrics['reconstruction_quality']['mse'] == pytest.approx((sae(x) - y).pow(2).sum(-1).mean().item(), rel=1e-4)
    assert metrics['sparsity']['l0'] <= 4 and metrics.baselines == {}


def saved_as(name, d=32, **more):
    "An SAE that names a TransformerLens point and nothing else"
    torch.manual_seed(1)
    return StandardSAE(StandardSAEConfig(d_in=d, d_sae=64, metadata=SAEMetadata(hook_name=name, **more))).requires_grad_(False)


@pytest.mark.parametrize('model_type', ['gpt2', 'llama', 'gemma3_text'])
@pytest.mark.parametrize('point', ['hook_resid_pre', 'attn.hook_z', 'hook_mlp_out'])
def test_one_name_everywhere(model_type, point, tmp_path):
    "attach, evaluations, sources, caches, modules and examples give on a Hugging Face model what they give on a bridge"
    name = f'blocks.1.{point}'
    model, bridge, sae = tiny(model_type), bridged(model_type, tmp_path), saved_as(name)
    with attach(model, sae), attach(bridge, sae):
        assert_close(model(TOKENS).logits, bridge(TOKENS))
    cfg = EvalConfig(compute_ce_loss=True, compute_variance_metrics=True, batch_size_prompts=2, n_eval_reconstruction_batches=1,
                     baselines=False)
    ours, theirs = (run_evals(sae, TOKENS, m, None, cfg, exclude_special_tokens=False)[0] for m in (model, bridge))
    for group in ('model_performance_preservation', 'reconstruction_quality'):
        assert ours[group] == pytest.approx(theirs[group], rel=1e-3)
    rows = [next(ModuleSource(m, name, [TOKENS], channel_dim=-1)) for m in (model, bridge)]
    assert_close(rows[0].flatten(), rows[1].flatten())
    texts = [dict(tokens=t) for t in TOKENS.tolist()]
    contexts = [TokenContexts(texts, None, 9, prepend_bos=False) for _ in range(2)]
    rows = [next(LanguageModelSource(m, name, c, 2)) for m, c in zip((model, bridge), contexts)]
    assert_close(*rows)
    latents = [next(TextLatents(sae, m, TOKENS, tokenizer=byte_tokenizer()).batches())[1] for m in (model, bridge)]
    assert_close(*latents)


def test_one_head_of_z():
    model = tiny('llama')
    sae = saved_as('blocks.1.attn.hook_z', 8, hook_head_index=2)
    z = direct(model, 'model.layers.1.self_attn.o_proj.input').unflatten(-1, (4, 8))

    def swap(m, args):
        x = args[0].unflatten(-1, (4, 8)).clone()
        x[:, :, 2] = sae(x[:, :, 2])
        return (x.flatten(-2),)
    handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(swap)
    expected = model(TOKENS).logits
    handle.remove()
    with attach(model, sae):
        assert_close(model(TOKENS).logits, expected)
    found = next(TextLatents(sae, model, TOKENS, tokenizer=byte_tokenizer()).batches())[1]
    assert_close(found, sae.encode(z[:, :, 2]))


def test_two_places_are_both_named():
    sae = saved_as('blocks.1.hook_mlp_out', hf_hook_name='model.layers.1.mlp')
    assert place_of(tiny('llama'), sae) == ('model.layers.1.mlp', 'model.layers.1.mlp')
    with pytest.warns(UserWarning, match="'model.layers.1.mlp' is taken, not 'blocks.1.hook_mlp_out'"):
        place_of(tiny('gemma2'), sae)


def test_the_same_place_by_another_name_is_no_other_place():
    "A warning that an SAE is used elsewhere compares tensors, not names"
    model, sae = tiny('llama'), saved_as('blocks.1.hook_resid_pre')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with attach(model, sae, 'model.layers.0'):
            pass
    with pytest.warns(UserWarning, match='used at'), attach(model, sae, 'model.layers.1'):
        pass


def test_a_model_that_also_sees():
    "Gemma 3 with its vision tower: the text layers stand elsewhere, and the tower has layers too"
    text = tf.Gemma3TextConfig(**SIZES, **MODELS['gemma3_text'][2])
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    torch.manual_seed(0)
    model = tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).eval().requires_grad_(False)
    layer = model.model.language_model.layers[1]
    assert resolve(model, 'blocks.1.hook_mlp_out').module is layer.post_feedforward_layernorm
    for name in ('model.layers.1.output', 'language_model.model.layers.1', 'blocks.1.hook_resid_post'):
        assert resolve(model, name).module is layer
    assert_close(capture(model, 'model.layers.1.output', TOKENS)['model.layers.1.output'],
                 direct(model, 'model.language_model.layers.1.output'))


def test_train_at_a_name_of_transformer_lens():
    "A runner on a Hugging Face model, without TransformerLens"
    from sae_workbench import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, TopKTrainingSAEConfig
    model = tiny('llama')
    cfg = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=32, d_sae=64, k=4), hook_name='blocks.1.hook_resid_pre', context_size=9, train_batch_size_tokens=16,
        training_tokens=64, store_batch_size_prompts=2, n_batches_in_buffer=4, model_class_name='AutoModelForCausalLM', save_final_checkpoint=False,
        output_path=None, prepend_bos=False, is_dataset_tokenized=True)
    data = [dict(tokens=torch.randint(3, 60, (9,)).tolist()) for _ in range(40)]
    sae = LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=data).run()
    assert place_of(model, sae) == ('blocks.1.hook_resid_pre', 'blocks.1.hook_resid_pre')


def test_steering_through_a_transcoder():
    from sae_workbench.apps.explorer import steer_text
    model = toy_model(2, 16)
    sae = TopKSkipTranscoder(TopKSkipTranscoderConfig(d_in=16, d_out=16, d_sae=32, k=4, metadata=SAEMetadata(
        hook_name='blocks.1.mlp.hook_in', hook_name_out='blocks.1.hook_mlp_out')))
    source = TextLatents(sae, model, torch.randint(1, 256, (4, 12)))
    assert source.hook_name == 'blocks.1.mlp.hook_in'
    assert steer_text(source, 'abc', 3, 50., n=3).plain
