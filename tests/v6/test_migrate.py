"""Configs of SAELens v1 to v5, converted: nothing is lost in silence, and the code that is printed makes the config."""
import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sae_workbench
from sae_workbench import ConfigError, LanguageModelSAERunnerConfig, LoggingConfig, StandardTrainingSAEConfig
from sae_workbench import migrate_config
from sae_workbench.core.old_options import OLD_NAMES
from sae_workbench.migrate.old_config import DEFAULT, DIFFERS, KINDS, NO_EFFECT, UNKNOWN_OPTION

FACTS = json.loads((Path(__file__).parents[1]/'fixtures'/'old_configs.json').read_text(encoding='utf-8'))
SHAPES = [(kind, version) for kind in FACTS for version in FACTS[kind]]
STAMPS = ('sae_lens_version', 'sae_lens_training_version')


def written(kind: str, version: str) -> dict:
    "Every option of a version, as a user could have written it, at its default"
    options = {k: v for k, v in FACTS[kind][version].items() if k not in STAMPS and v is not None}
    return options | ({'lr_warm_up_steps': 100} if 'lr_warm_up_steps' in options else {})


def saved(version: str) -> dict:
    "What a checkpoint's cfg.json held: the options after the old config had completed them"
    options = FACTS['run'][version] | {
        'lr_warm_up_steps': 100, 'expansion_factor': None, 'd_sae': 2048, 'lr_end': 3e-4 / 10, 'run_name': '2048-L1',
        'tokens_per_buffer': 10_485_760, 'sae_lens_training_version': version}
    function = {'activation_fn': 'relu', 'activation_fn_kwargs': {}}
    return options | (function if 'activation_fn_kwargs' in options else {})


def kinds(m) -> dict:
    return {c.option: c.kind for c in m.changes}


def executed(m):
    "The config that the printed code makes"
    made = {}
    exec(m.code, made)
    return made['cfg']


@pytest.mark.parametrize('kind, version', SHAPES)
def test_every_option_of_every_version_has_an_answer(kind, version):
    options = written(kind, version)
    m = migrate_config(options, from_version=version)
    assert set(options) <= set(kinds(m))
    assert UNKNOWN_OPTION not in kinds(m).values() and set(kinds(m).values()) <= set(KINDS)
    assert m.config is not None and executed(m) == m.config, m.parts[0].problem


@pytest.mark.parametrize('version', FACTS['run'])
def test_a_saved_config_is_converted_and_not_repeated(version):
    m = migrate_config(json.dumps(saved(version)))
    assert str(m.parts[0].t.was.version) == version
    assert executed(m) == m.config and m.config.sae.d_sae == 2048
    assert 'lr_end' not in m.code and 'context_size' not in m.code


@pytest.mark.parametrize('version', FACTS['run'])
def test_a_default_is_the_old_one_or_is_told(version):
    "Nothing written gives the config that writing every default gives, and what trains differently is named either way"
    everything = migrate_config(written('run', version), from_version=version)
    nothing = migrate_config({'lr_warm_up_steps': 100}, from_version=version)
    a, b = everything.config.to_dict(), nothing.config.to_dict()
    told_only = {'n_batches_in_buffer', 'model_from_pretrained_kwargs'}
    assert {k: v for k, v in a.items() if k not in told_only} == {k: v for k, v in b.items() if k not in told_only}
    together = {'init_encoder_as_decoder_transpose': 'decoder_heuristic_init'}   # told as one
    differs = {together.get(c.option, c.option) for c in everything.changes if c.kind == DIFFERS}
    assert differs <= {c.option for c in nothing.changes if c.kind == DEFAULT}


@pytest.mark.parametrize('options, version', [
    ({'store_batch_size': 8}, 1), ({'hook_point': 'blocks.{layer}.hook_resid_pre', 'hook_point_layer': 2}, 2),
    ({'exclude_special_tokens': True}, 5)])
def test_the_version_is_guessed(options, version):
    assert migrate_config(options).parts[0].t.was.version.release[0] == version


OLD_TUTORIAL = '''
cfg = LanguageModelSAERunnerConfig(
    model_name="tiny-stories-1L-21M", hook_name="blocks.0.hook_mlp_out", hook_layer=0, d_in=1024,
    dataset_path="apollo-research/roneneldan-TinyStories-tokenizer-gpt2", is_dataset_tokenized=True, streaming=True,
    mse_loss_normalization=None, expansion_factor=16, b_dec_init_method="zeros", apply_b_dec_to_input=True,
    normalize_sae_decoder=False, scale_sparsity_penalty_by_decoder_norm=True, decoder_heuristic_init=True,
    init_encoder_as_decoder_transpose=True, normalize_activations="expected_average_only_in", lr=5e-5, adam_beta1=0.9,
    l1_coefficient=5, train_batch_size_tokens=4096, context_size=512, n_batches_in_buffer=64,
    training_tokens=100_000_000, store_batch_size_prompts=16, use_ghost_grads=False, log_to_wandb=True,
    wandb_project="sae_lens_tutorial",
    device="cpu", seed=42, n_checkpoints=0, checkpoint_path="checkpoints", dtype="float32")
'''


def test_the_migration_text():
    m = migrate_config(OLD_TUTORIAL)
    assert not {DIFFERS, DEFAULT, UNKNOWN_OPTION} & set(kinds(m).values()) and m.complete
    assert executed(m) == m.config == LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(
            d_in=1024, d_sae=16384, apply_b_dec_to_input=True, normalize_activations='expected_average_only_in',
            l1_coefficient=5),
        model_name='tiny-stories-1L-21M', hook_name='blocks.0.hook_mlp_out',
        dataset_path='apollo-research/roneneldan-TinyStories-tokenizer-gpt2', is_dataset_tokenized=True, streaming=True,
        lr=5e-5, train_batch_size_tokens=4096, context_size=512, n_batches_in_buffer=64, training_tokens=100_000_000,
        store_batch_size_prompts=16, logger=LoggingConfig(log_to_wandb=True, wandb_project='sae_lens_tutorial'),
        device='cpu', seed=42, n_checkpoints=0, checkpoint_path='checkpoints', dtype='float32')


@pytest.mark.parametrize('options, option, kind, says', [
    ({'use_ghost_grads': True, 'architecture': 'gated'}, 'use_ghost_grads', NO_EFFECT, 'never had them'),
    ({'use_ghost_grads': True}, 'use_ghost_grads', DIFFERS, 'ghost'),
    ({'mse_loss_normalization': 'dense_batch'}, 'mse_loss_normalization', DIFFERS, 'multiply l1_coefficient'),
    ({'normalize_sae_decoder': True}, 'normalize_sae_decoder', DIFFERS, 'fold_W_dec_norm'),
    ({'normalize_sae_decoder': True, 'architecture': 'topk'}, 'normalize_sae_decoder', NO_EFFECT,
     'rescale_acts_by_decoder_norm'),
    ({'scale_sparsity_penalty_by_decoder_norm': False, 'normalize_sae_decoder': False},
     'scale_sparsity_penalty_by_decoder_norm', DIFFERS, 'anew'),
    ({'activation_fn': 'tanh-relu'}, 'activation_fn', DIFFERS, 'upper bound'),
    ({'b_dec_init_method': 'mean'}, 'b_dec_init_method', DIFFERS, 'starts at zero'),
    ({'resume': True}, 'resume', DIFFERS, 'resume_from_checkpoint'),
    ({'noise_scale': 0.1}, 'noise_scale', DIFFERS, 'removed'),
    ({'lr': [1e-3, 1e-4], 'hook_point': 'x'}, 'lr', DIFFERS, 'one config for each'),
    ({'expansion_facto': 8}, 'expansion_facto', UNKNOWN_OPTION, "did you mean 'expansion_factor'")])
def test_what_differs_is_told(options, option, kind, says):
    change = next(c for c in migrate_config(options).changes if c.option == option)
    assert change.kind == kind and says in change.reason


@pytest.mark.parametrize('options, path, value', [
    ({'architecture': 'jumprelu', 'l1_coefficient': 3, 'l1_warm_up_steps': 9}, 'sae.l0_warm_up_steps', 9),
    ({'architecture': 'jumprelu'}, 'sae.jumprelu_bandwidth', 0.001),
    ({'activation_fn': 'topk', 'activation_fn_kwargs': {'k': 7}}, 'sae.k', 7),
    ({'architecture': 'topk', 'normalize_sae_decoder': False}, 'sae.rescale_acts_by_decoder_norm', False),
    ({'normalize_activations': True}, 'sae.normalize_activations', 'expected_average_only_in'),
    ({'dtype': 'torch.bfloat16'}, 'sae.dtype', 'bfloat16'),
    ({'hook_point': 'blocks.{layer}.attn.hook_z', 'hook_point_layer': 3}, 'hook_name', 'blocks.3.attn.hook_z'),
    ({'hook_name': 'blocks.3.attn.hook_z'}, 'sae.reshape_activations', 'hook_z'),
    ({'n_batches_in_buffer': 20, 'store_batch_size_prompts': 16}, 'n_batches_in_buffer', 320)])
def test_values(options, path, value):
    m = migrate_config(options)
    part, _, name = path.rpartition('.')
    assert getattr(m.config.sae if part else m.config, name) == value and executed(m) == m.config


def test_the_first_releases_averaged_the_squared_error():
    old = {'d_in': 64, 'l1_coefficient': 0.01, 'lr_warm_up_steps': 1}
    assert migrate_config(old, from_version='1.3.0').config.sae.l1_coefficient == 0.64
    assert migrate_config(old, from_version='1.5').config.sae.l1_coefficient == 0.01


FROM = 'from sae_lens import LanguageModelSAERunnerConfig'
SCRIPTS = {
    'alias': FROM + ' as C\ncfg = C(d_in=64, d_sae=128, lr=1e-3, log_to_wandb=False)\n',
    'module': 'import sae_lens\ncfg = sae_lens.LanguageModelSAERunnerConfig(d_in=64, d_sae=128, log_to_wandb=False)\n',
    'function': FROM.replace('sae_lens', 'sae_lens.config') + '\n\ndef make(lr=1e-3):\n'
                '\treturn LanguageModelSAERunnerConfig(d_in=64, d_sae=128, lr=lr)\n',
    'star': 'from sae_lens import *\ncfg = LanguageModelSAERunnerConfig(d_in=8, expansion_factor=4)\n',
    'unicode': f'# Größe\n{FROM}\n'
               'ä = 2; cfg = LanguageModelSAERunnerConfig(d_in=8*ä, run_name="é", d_sae=4)  # ü\n',
    'dictionary': FROM + '\no = dict(d_in=64, d_sae=128)\no["lr"] = 2e-3\ncfg = LanguageModelSAERunnerConfig(**o)\n',
    'crlf': FROM + '\r\ncfg = LanguageModelSAERunnerConfig(d_in=8, d_sae=32)\r\n',
    'two': FROM + ' as L\na = L(d_in=8, d_sae=32)\nb = L(d_in=8, d_sae=64, architecture="gated")\n'}


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_script_is_rewritten(name):
    m = migrate_config(SCRIPTS[name])
    ast.parse(m.script)
    again = migrate_config(m.script)
    assert 'sae_lens' not in m.script and again.nothing_to_do and again.configs == m.configs
    assert m.script.count('\r\n') == (m.script.count('\n') if name == 'crlf' else 0)
    if name != 'function':
        made = {}
        exec(m.script, made)
        assert [v for v in made.values() if isinstance(v, LanguageModelSAERunnerConfig)] == m.configs


def test_facts_on_an_sae_are_read_from_its_metadata():
    script = 'from sae_lens import SAE\nsae = SAE.load_from_disk("a")\ncache[sae.cfg.hook_name], runner.cfg.hook_name\n'
    m = migrate_config(script)
    assert 'cache[sae.cfg.metadata.hook_name], runner.cfg.hook_name' in m.script
    assert migrate_config(script.replace('cfg.hook_name', 'cfg.hook_layer', 1)).complete is False


@pytest.mark.parametrize('version, guessed', [(None, True), (3, False), ('3.22', False)])
def test_a_guessed_version_says_how_to_name_another(version, guessed):
    assert ('--from-version 3' in migrate_config({'d_in': 8, 'hook_layer': 0}, from_version=version).report) is guessed


@pytest.mark.parametrize('architecture', ['batchtopk', 'matching_pursuit'])
def test_an_architecture_that_old_versions_lacked_is_converted_too(architecture):
    m = migrate_config({'architecture': architecture, 'normalize_sae_decoder': True})
    assert kinds(m)['normalize_sae_decoder'] == DIFFERS


def test_a_layer_that_is_not_known_stays_a_name():
    m = migrate_config('LanguageModelSAERunnerConfig(hook_point_layer=layer)')
    assert m.parts[0].t.new['hook_name'].printed == "'blocks.{layer}.hook_mlp_out'.format(layer=layer)"


def test_a_notebook_and_a_folder(tmp_path):
    cells = [{'cell_type': 'code', 'source': ['!pip install sae-lens\n', '%matplotlib inline\n', 'd = 64']},
             {'cell_type': 'markdown', 'source': ['text']},
             {'cell_type': 'code', 'source': ['cfg = LanguageModelSAERunnerConfig(d_in=d, expansion_factor=2)']}]
    (tmp_path/'a.ipynb').write_text(json.dumps({'cells': cells}), encoding='utf-8')
    assert migrate_config(tmp_path/'a.ipynb').config.sae.d_sae == 128
    (tmp_path/'cfg.json').write_text(json.dumps(saved('5.11.0')), encoding='utf-8')
    assert migrate_config(str(tmp_path)).config.sae.d_sae == 2048


def test_a_saved_sae_says_nothing_of_its_training():
    cfg = dict(
        architecture='standard', d_in=768, d_sae=24576, activation_fn_str='relu', apply_b_dec_to_input=True,
        finetuning_scaling_factor=False, context_size=128, model_name='gpt2-small', hook_name='blocks.8.hook_resid_pre',
        hook_layer=8, hook_head_index=None, prepend_bos=True, dataset_path='x', normalize_activations='none',
        dtype='torch.float32', device='cpu', sae_lens_training_version='3.2.3', neuronpedia_id='a/b', oops=1)
    m = migrate_config(json.dumps(cfg))
    assert m.config.sae.d_sae == 24576 and [c.option for c in m.changes if c.kind == UNKNOWN_OPTION] == ['oops']
    assert 'SAE.load_from_disk' in m.report and not m.complete


@pytest.mark.parametrize('old, says', [
    ('', 'is empty'), ('  \n', 'is empty'), ('import torch\nx = 1\n', 'no config found'),
    ('cfg = LanguageModelSAERunnerConfig(d_in=', 'line 1'),
    ('{"d_in": 8,', 'line 1, column'), ('{"d_in": 8} trailing', 'line 1'), ({}, 'no options'),
    ({'architecture': 'topkk'}, "did you mean 'topk'"),
    ('LanguageModelSAERunnerConfig(architecture=a.arch)', 'give its value'), (3, 'give a dict')])
def test_errors(old, says):
    with pytest.raises(ConfigError, match=says.replace('(', r'\(')):
        migrate_config(old)


def test_loading_a_flat_config_names_the_converter():
    with pytest.raises(ConfigError, match='migrate_config'):
        LanguageModelSAERunnerConfig.from_dict(saved('5.11.0'))


def test_nothing_is_run(tmp_path):
    trap = tmp_path/'ran'
    config = 'cfg = LanguageModelSAERunnerConfig(d_in=__import__("os").getpid(), d_sae=8)'
    migrate_config(f'open({str(trap)!r}, "w")\n{config}\n')
    assert not trap.exists()


def test_the_command(tmp_path):
    code = 'import sys; from sae_workbench.apps.cli import main; main(sys.argv[1:])'
    def run(*args, text=None):
        command = [sys.executable, '-c', code, 'migrate', *args]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    done = run('-', text=OLD_TUTORIAL)
    assert done.returncode == 0, done.stderr
    made = {}
    exec(done.stdout, made)
    assert made['cfg'].sae.d_sae == 16384 and '# kept:' in done.stdout
    assert run('-', text='{"d_in": 8, "d_sae": 32, "lrr": 1}').returncode == 1
    refused = run(str(tmp_path/'none.py'))
    assert refused.returncode == 2 and 'no such file' in refused.stderr and 'Traceback' not in refused.stderr


def test_an_old_yaml_file(tmp_path):
    (tmp_path/'old.yaml').write_text('d_in: 768\nexpansion_factor: 8\narchitecture: gated\nl1_coefficient: 5\n', encoding='utf-8')
    cfg = migrate_config(tmp_path/'old.yaml').config
    assert (cfg.sae.architecture(), cfg.sae.d_sae, cfg.sae.l1_coefficient) == ('gated', 6144, 5)


def test_a_command_line_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match='a command line is not converted'):
        migrate_config('python -m sae_lens.sae_training_runner --d_in 512')


def test_a_model_with_saes_and_facts_of_its_configs():
    done = migrate_config('from sae_lens import SAE, HookedSAETransformer\nprint(sae.cfg.activation_fn_str, sae.cfg.hook_name)\n')
    assert done.script.startswith('from sae_workbench import SAE, HookedSAETransformer\n') and 'sae.cfg.metadata.hook_name' in done.script
    assert ('sae.cfg.activation_fn_str', 'sae.cfg.architecture() tells it') in [(c.option, c.reason) for c in done.script_changes]


OLD_LOOP = '''from sae_lens import SAE, SAEConfig, SAETrainer, TrainingSAE, TrainingSAEConfig
from sae_lens.training.session_loader import LMSparseAutoencoderSessionloader
sae = SAE.load_from_pretrained("a")
cfg = SAEConfig(d_in=8, activation_fn_str="relu")
sae.save_model("b", sparsity)
f = sae.encode_standard(x)
trainer = SAETrainer(model=model, sae=sae, activation_store=store, save_checkpoint_fn=None, cfg=cfg)
out = sae.training_forward_pass(sae_in=x, current_l1_coefficient=1e-3, dead_neuron_mask=None)
sae.remove_gradient_parallel_to_decoder_directions()
store.apply_norm_scaling_factor(x)
run_evals(sae, store, model, ignore_tokens={1})
'''


def test_what_a_script_calls_is_answered():
    m = migrate_config(OLD_LOOP)
    assert 'sae = SAE.load_from_disk("a")\n' in m.script and 'f = sae.encode(x)\n' in m.script
    open_lines = {int(c.old.removeprefix('line ')): c.reason for c in m.script_changes if c.kind == UNKNOWN_OPTION}
    assert sorted(open_lines) == [2, 4, 5, 7, 8, 9, 10, 11] and 'nothing public' not in ' '.join(open_lines.values())


def test_a_script_of_v0():
    m = migrate_config('from sae_training.config import LanguageModelSAERunnerConfig\n'
                       'from sae_training.lm_runner import language_model_sae_runner\n'
                       'cfg = LanguageModelSAERunnerConfig(d_in=8, expansion_factor=4, total_training_tokens=1e6, dead_feature_window=5e3)\n'
                       'sae = language_model_sae_runner(cfg)\n')
    assert m.complete and 'from sae_training' not in m.script and m.config.training_tokens == 1_000_000
    assert m.script.endswith('sae = LanguageModelSAETrainingRunner(cfg).run()\n')


@pytest.mark.parametrize('config', ['CacheActivationsRunnerConfig(d_in=8, hook_layer=0, store_batch_size_prompts=4)', 'PretokenizeRunnerConfig(num_proc=2)'])
def test_configs_that_are_only_read(config):
    m = migrate_config(f'from sae_lens import {config.partition("(")[0]}\ncfg = {config}\n')
    assert m.complete is config.startswith('Pretok') and f'cfg = {config}\n' in m.script


@pytest.mark.parametrize('name', [o.name for o in OLD_NAMES.values() if not o.of and o.name not in sae_workbench.MODULE_OF])
def test_an_import_of_an_old_name_says_what_to_write(name):
    with pytest.raises(ImportError) as e:
        exec(f'from sae_workbench import {name}')
    assert OLD_NAMES[name].why in str(e.value)


def test_what_replaces_an_old_name_is_there():
    import sae_workbench
    for o in OLD_NAMES.values():
        if o.now:
            assert hasattr(getattr(sae_workbench, o.of) if o.of else sae_workbench, o.now) or o.of == 'SAETrainer', o.name
