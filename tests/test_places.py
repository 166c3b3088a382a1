"""What names of places mean, family by family, against TransformerLens and plain torch hooks."""

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

from sae_workbench.activations.offline import byte_tokenizer
from sae_workbench.core.capture import capture, replacing
from sae_workbench.core.errors import HookError
from sae_workbench.core.points import FAMILIES, POINTS, resolve

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


def tiny(model_type: str) -> torch.nn.Module:
    "A model of a type with random weights, norms included"
    name, config, more = MODELS[model_type]
    cfg = config(**SIZES, **more)
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
