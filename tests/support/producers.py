"""Small good SAEs in the layout of every format: `PRODUCERS[name](folder)` writes one and returns its path in the folder.

What stands behind a blank in a name tells SAEs of the same format apart.
"""
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sae_workbench import JumpReLUSAEConfig, MatchingPursuitSAEConfig, TemporalSAEConfig, get_sae_class

D, N = 8, 16
PRODUCERS = {}


def producer(format, path):
    "Register a function that gives the files of an SAE at `path`: dicts of tensors or of plain data, by name"
    def register(files):
        def write(folder: Path) -> str:
            for name, data in files().items():
                put(folder/name.format(path=path), data)
            return path
        PRODUCERS[format] = write
        return files
    return register


def put(file: Path, data: dict) -> None:
    "Write tensors or plain data by the file's ending; JSON is YAML"
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in ('.json', '.yaml'):
        file.write_text(json.dumps(data), encoding='utf-8')
    elif file.suffix == '.safetensors':
        save_file({k: v.contiguous() for k, v in data.items()}, file)
    elif file.suffix == '.npz':
        np.savez(file, **{k: v.numpy() for k, v in data.items()})
    else:
        torch.save(data, file)


def r(*shape): return torch.randn(*shape)
def plain(n=N): return dict(W_enc=r(D, n), b_enc=r(n), W_dec=r(n, D), b_dec=r(D))
def linear(a='encoder', b='decoder'): return {f'{a}.weight': r(N, D), f'{a}.bias': r(N), f'{b}.weight': r(D, N), f'{b}.bias': r(D)}


@producer('sae_lens', 'blocks.3.hook_z')
def sae_lens():
    cfg = dict(d_in=D, d_sae=N, dtype='float32', hook_name='blocks.3.hook_z', model_name='gpt2', normalize_activations=False,
               activation_fn_str='topk', activation_fn_kwargs=dict(k=3))
    return {'{path}/cfg.json': cfg, '{path}/sae_weights.safetensors': plain() | dict(scaling_factor=r(N)),
            '{path}/sparsity.safetensors': dict(sparsity=r(N))}


def saved(cfg, arch):
    "What the library itself writes"
    def write(folder: Path) -> str:
        sae = get_sae_class(arch)[0](cfg(d_in=D, d_sae=N))
        for k, v in sae.state_dict().items():
            v.copy_(r(*v.shape))
        sae.save_model(folder/'saved')
        return 'saved'
    return write


PRODUCERS['sae_lens jumprelu'] = saved(JumpReLUSAEConfig, 'jumprelu')
PRODUCERS['sae_lens temporal'] = saved(partial(TemporalSAEConfig, n_heads=2, bottleneck_factor=2, kval_topk=3), 'temporal')
PRODUCERS['sae_lens pursuit'] = saved(MatchingPursuitSAEConfig, 'matching_pursuit')


@producer('gemma_2', 'gemma-scope-2b-pt-res/embedding/average_l0_6')
def gemma_2(): return {'{path}/params.npz': plain() | dict(threshold=r(N))}


@producer('gemma_2_transcoder', 'transcoders/layer_3/average_l0_6')
def gemma_2_transcoder(): return {'{path}/params.npz': plain() | dict(threshold=r(N))}


@producer('gemma_3', 'transcoder/layer_3_affine')
def gemma_3():
    tensors = dict(w_enc=r(D, N), w_dec=r(N, 12), b_enc=r(N), b_dec=r(12), threshold=r(N), affine_skip_connection=r(D, 12))
    return {'{path}/config.json': dict(architecture='jump_relu', model_name='gemma-v3-1b', hf_hook_point_in='a', hf_hook_point_out='b'),
            '{path}/params.safetensors': tensors}


@producer('llama_scope', 'L3R-8x')
def llama_scope():
    cfg = dict(d_model=D, d_sae=N, hook_point_in='a', hook_point_out='a', jump_relu_threshold=.3, act_fn='jumprelu',
               dataset_average_activation_norm={'in': 3., 'out': 3.})
    return {'{path}/hyperparams.json': cfg, '{path}/checkpoints/final.safetensors': linear()}


@producer('llama_scope_r1_distill', 'L3R')
def llama_scope_r1_distill():
    cfg = dict(d_model=D, expansion_factor=2, hook_point_in='a', dataset_average_activation_norm={'in': 3.})
    return {'{path}/config.json': cfg, '{path}/sae_weights.safetensors': linear() | dict(log_jumprelu_threshold=r(N))}


@producer('llamascopium', 'L3')
def llamascopium():
    cfg = dict(sae_type='sae', d_model=D, expansion_factor=2, hook_point_in='a', hook_point_out='b', act_fn='jumprelu', top_k=3,
               norm_activation='dataset-wise', sparsity_include_decoder_norm=True, use_decoder_bias=True)
    tensors = {'W_E': r(D, N), 'b_E': r(N), 'W_D': r(N, D), 'b_D': r(D), 'activation_function.log_jumprelu_threshold': r(N),
               'dataset_average_activation_norm.a': torch.tensor(3.), 'dataset_average_activation_norm.b': torch.tensor(2.)}
    return {'{path}/config.json': cfg, '{path}/sae_weights.safetensors': tensors}


@producer('dictionary_learning_1', 'resid_post_layer_3/trainer_0')
def dictionary_learning_1():
    trainer = dict(dict_class='BatchTopKSAE', activation_dim=D, dict_size=N, k=3, layer=3, lm_name='a/b', submodule_name='mlp_out_layer_3')
    tensors = {'encoder.weight': r(N, D), 'encoder.bias': r(N), 'decoder.weight': r(D, N), 'b_dec': r(D), 'k': torch.tensor(3),
               'threshold': torch.tensor(.4)}
    return {'{path}/config.json': dict(trainer=trainer, buffer=dict(ctx_len=128)), '{path}/ae.pt': tensors}


@producer('sparsify', 'layers.3.mlp')
def sparsify():
    tensors = {'encoder.weight': r(N, D), 'encoder.bias': r(N), 'W_dec': r(N, D), 'b_dec': r(D), 'W_skip': r(D, D)}
    return {'{path}/cfg.json': dict(d_in=D, expansion_factor=2, num_latents=0, k=3, activation='topk', skip_connection=True, transcode=False),
            'config.json': dict(model='a/b', dataset='c', ctx_len=128), '{path}/sae.safetensors': tensors}


@producer('mwhanna_transcoder', 'layer_3.safetensors')
def mwhanna_transcoder():
    tensors = {'W_enc': r(N, D), 'W_dec': r(N, 12), 'b_enc': r(N), 'b_dec': r(12), 'W_skip': r(12, D), 'activation_function.threshold': r(N)}
    return {'{path}': tensors, 'wanb-config.yaml': dict(batch_size=dict(value=128)),
            'config.yaml': dict(model_name='a', feature_input_hook='b', feature_output_hook='c', activation='jump_relu', k=3)}


@producer('mntss_clt_layer_transcoder', '3')
def mntss_clt_layer_transcoder():
    encoder = dict(W_enc_3=r(N, D), b_enc_3=r(N), b_dec_3=r(D), threshold_3=r(N))
    return {'W_enc_3.safetensors': encoder, 'W_dec_3.safetensors': dict(W_dec_3=r(N, 2, D)),
            'config.yaml': dict(model_name='a', feature_input_hook='b', feature_output_hook='c')}


@producer('circuit_tracer_clt', 'clt-gemma')
def circuit_tracer_clt():
    files = {'{path}/config.yaml': dict(model_kind='cross_layer_transcoder', model_name='a', feature_input_hook='b', feature_output_hook='c')}
    for i in range(3):
        files[f'{{path}}/W_enc_{i}.safetensors'] = {f'W_enc_{i}': r(N, D), f'b_enc_{i}': r(N), f'b_dec_{i}': r(12), f'threshold_{i}': r(N), f'W_skip_{i}': r(D, 12)}
        files[f'{{path}}/W_dec_{i}.safetensors'] = {f'W_dec_{i}': r(N, 3 - i, 12)}
    return files


@producer('gemma_3_cross_layer', 'clt/l0_big_affine')
def gemma_3_cross_layer():
    files = {'{path}/config.json': dict(architecture='jump_relu', model_name='gemma-v3-1b', hf_hook_point_in='a{all}', hf_hook_point_out='b{all}', type='clt')}
    for i in range(3):
        decoder = r(N, 3, 12)
        decoder[:, :i] = 0
        files[f'{{path}}/params_layer_{i}.safetensors'] = dict(
            w_enc=r(D, N), w_dec=decoder, b_enc=r(N), b_dec=r(12), threshold=r(N), affine_skip_connection=r(D, 12))
    return files


@producer('llamascopium_clt', 'CLT')
def llamascopium_clt():
    cfg = dict(sae_type='clt', d_model=D, expansion_factor=2, hook_points_in=['a', 'b'], hook_points_out=['c', 'd'], act_fn='jumprelu', top_k=3,
               norm_activation='dataset-wise', sparsity_include_decoder_norm=True, use_decoder_bias=True)
    tensors = {'W_E': r(2, D, N), 'b_E': r(2, N), 'W_D.0': r(1, N, D), 'W_D.1': r(2, N, D), 'b_D.0': r(D), 'b_D.1': r(D),
               'activation_function.log_jumprelu_threshold': r(2, N)}
    return {'{path}/config.json': cfg, '{path}/sae_weights.safetensors': tensors | {f'dataset_average_activation_norm.{h}': torch.tensor(3.) for h in 'abcd'}}


@producer('crosscoder_kissane', 'blocks.14.hook_resid_pre')
def crosscoder_kissane():
    return {'{path}/cfg.json': dict(model_name='gemma-2-2b', hook_point='blocks.14.hook_resid_pre', d_in=D, dict_size=N, scaling_factors=[.3, 2.]),
            '{path}/cc_weights.pt': dict(W_enc=r(2, D, N), W_dec=r(N, 2, D), b_enc=r(N), b_dec=r(2, D))}


@producer('crosscoder_learning', 'crosscoder-l13')
def crosscoder_learning():
    tensors = {'encoder.weight': r(2, D, N), 'encoder.bias': r(N), 'decoder.weight': r(2, N, D), 'decoder.bias': r(2, D), 'k': torch.tensor(3),
               'threshold': torch.tensor(.4), 'code_normalization_id': torch.tensor(2), 'activation_mean': r(2, D), 'activation_std': r(2, D).abs() + 1,
               'activation_global_scale': torch.ones(2)}
    return {'{path}/config.json': dict(activation_dim=D, dict_size=N, num_layers=2), '{path}/model.safetensors': tensors}


@producer('qwen_scope', 'SAE-Res-Qwen3-8B-Base-W1K-L0_3/layer3.sae.pt')
def qwen_scope(): return {'{path}': dict(W_enc=r(1024, D), b_enc=r(1024), W_dec=r(D, 1024), b_dec=r(D))}


@producer('goodfire', 'Llama-3.1-8B-Instruct-SAE-l19.pth')
def goodfire(): return {'{path}': linear('encoder_linear', 'decoder_linear')}


@producer('deepseek_r1', 'DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt')
def deepseek_r1(): return {'{path}': linear()}


@producer('connor_rob_hook_z', 'gpt2-small_L0_z.pt')
def connor_rob_hook_z():
    return {'{path}': plain(), 'gpt2-small_L0_z_cfg.json': dict(act_size=D, dict_size=N, act_name='blocks.0.attn.hook_z')}


@producer('openai', 'resid_post_mlp/v5_32k/autoencoders/3.pt')
def openai():
    return {'{path}': {'pre_bias': r(D), 'encoder.weight': r(N, D), 'latent_bias': r(N), 'decoder.weight': r(D, N), 'activation': 'TopK',
                       'activation_state_dict': dict(k=3, postact_fn='ReLU'), 'stats_last_nonzero': torch.zeros(N, dtype=torch.long)}}


@producer('temporal', 'layer_12/temporal')
def temporal():
    sae = dict(exp_factor=2., n_heads=2, n_attn_layers=1, bottleneck_factor=2, sae_diff_type='topk', kval_topk=3, tied_weights=False, scaling_factor=.5)
    tensors = dict(D=r(N, D), E=r(D, N), b=r(1, D))
    for name, width in dict(k_ctx=N//2, q_target=N//2, v_ctx=N, c_proj=N).items():
        tensors |= {f'attn_layers.0.{name}.weight': r(width, N), f'attn_layers.0.{name}.bias': r(width)}
    return {'{path}/conf.yaml': dict(llm=dict(dimin=D), sae=sae, data=dict(dtype='float32')), '{path}/latest_ckpt.safetensors': tensors}
