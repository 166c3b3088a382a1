"""Wrong configs, one line each, all refused where they are made, with a message that helps; and right ones that pass"""
import math
import re

import pytest
import torch

from sae_workbench import (GatedTrainingSAEConfig, JumpReLUTrainingSAEConfig, LanguageModelSAERunnerConfig, LoggingConfig, SAETrainerConfig,
                           StandardSAEConfig, StandardTrainingSAEConfig, TopKSAEConfig, TopKTrainingSAEConfig)
from sae_workbench.core.errors import ConfigError, LoadError


def with_defaults(cls, **defaults):
    "A config class with arguments for the fields that have no default"
    return lambda **kw: cls(**defaults | kw)


Standard, Gated, JumpReLU, TopK = (with_defaults(c, d_in=8, d_sae=16) for c in (
    StandardTrainingSAEConfig, GatedTrainingSAEConfig, JumpReLUTrainingSAEConfig, lambda **kw: TopKTrainingSAEConfig(**dict(k=4) | kw)))
Log = LoggingConfig
Trainer = with_defaults(SAETrainerConfig, total_training_samples=10_000, train_batch_size_samples=1000)
Run = with_defaults(LanguageModelSAERunnerConfig, sae=TopK())
NAMES = {k: v for k, v in globals().items() if not k.startswith('_')}

WRONG = {
    # sizes, counts, rates
    "TopK(d_in=0)": "d_in=0: must be at least 1",
    "TopK(d_in='8')": "d_in='8': must be a whole number",
    "TopK(d_sae=16.5)": "d_sae=16.5: must be a whole number",
    "Run(training_tokens=math.inf)": "training_tokens=inf: must be a whole number",
    "TopK(d_sae=True)": "d_sae=True: must be a whole number",
    "StandardTrainingSAEConfig(d_in=8)": "d_sae is required",
    "TopK(k=0)": "k=0: must be at least 1",
    "TopK(k=17)": "k=17 is more than d_sae=16",
    "TopKTrainingSAEConfig(8, 16)": "k=100 is more than d_sae=16",
    "TopKSAEConfig(8, 16, k=17)": "k=17 is more than d_sae=16",
    "TopK(aux_loss_coefficient=-1.0)": "aux_loss_coefficient=-1.0: must be at least 0",
    "Standard(l1_coefficient=math.nan)": "l1_coefficient=nan: must be",
    "Standard(l1_coefficient=math.inf)": "l1_coefficient=inf: must be finite",
    "Standard(lp_norm=0)": "lp_norm=0: must be more than 0",
    "Standard(l1_warm_up_steps=-5)": "l1_warm_up_steps=-5: must be at least 0",
    "Gated(l1_coefficient='5')": "l1_coefficient='5': must be a number",
    "JumpReLU(jumprelu_bandwidth=0)": "jumprelu_bandwidth=0: must be more than 0",
    "JumpReLU(jumprelu_init_threshold=-.1)": "jumprelu_init_threshold=-0.1: must be at least 0",
    "Standard(decoder_init_norm=0)": "decoder_init_norm=0: must be more than 0",
    "Standard(apply_b_dec_to_input='yes')": "apply_b_dec_to_input='yes': must be True or False",
    "Trainer(total_training_samples=10)": "total_training_samples=10 is less than one batch of 1000",
    "Trainer(dead_feature_window=0)": "dead_feature_window=0: must be at least 1",
    "Trainer(feature_sampling_window=0)": "feature_sampling_window=0: must be at least 1",
    "Trainer(on_nonfinite='Skip')": "on_nonfinite='Skip': is not one of 'stop' or 'skip'; did you mean 'skip'?",
    "Run(on_nonfinite='ignore')": "on_nonfinite='ignore': is not one of 'stop' or 'skip'",
    "Log(wandb_log_frequency=0)": "wandb_log_frequency=0: must be at least 1",
    "Log(eval_every_n_wandb_logs=0)": "eval_every_n_wandb_logs=0: must be at least 1",
    "Run(training_tokens=-5)": "training_tokens=-5: must be at least 1",
    "Run(training_tokens=4000)": "training_tokens=4000 is less than one batch of train_batch_size_tokens=4096",
    "Run(train_batch_size_tokens=0)": "train_batch_size_tokens=0: must be at least 1",
    "Run(context_size=0)": "context_size=0: must be at least 1",
    "Run(store_batch_size_prompts=0)": "store_batch_size_prompts=0: must be at least 1",
    "Run(n_eval_batches=0)": "n_eval_batches=0: must be at least 1",
    "Run(eval_batch_size_prompts=0)": "eval_batch_size_prompts=0: must be at least 1",
    "Run(n_batches_for_norm_estimate=0)": "n_batches_for_norm_estimate=0: must be at least 1",
    "Run(activations_mixing_fraction=1.5)": "activations_mixing_fraction=1.5: must be at most 1",
    "Run(seed=-1)": "seed=-1: must be at least 0",
    "Run(lr=0)": "lr=0: must be more than 0",
    "Run(lr='1e-4')": "lr='1e-4': must be a number",
    "Run(adam_beta1=1.0)": "adam_beta1=1.0: must be less than 1",
    "Trainer(adam_beta2=1)": "adam_beta2=1: must be less than 1",
    "Run(prefetch_llm_batches=-1)": "prefetch_llm_batches=-1: ",
    # names
    "Standard(dtype='flaot32')": "unknown dtype; did you mean 'float32'?",
    "Standard(dtype=torch.int64)": "unknown dtype",
    "Standard(device='gpu')": "device='gpu': unknown device (cpu, cuda",
    "Standard(normalize_activations='layernorm')": "did you mean 'layer_norm'?",
    "Standard(reshape_activations='hook_q')": "did you mean 'hook_z'?",
    "JumpReLU(jumprelu_sparsity_loss_mode='tan')": "did you mean 'tanh'?",
    "Run(device='cdua')": "device='cdua': unknown device",
    "Run(act_store_device='with_modle')": "act_store_device='with_modle': unknown device",
    "Run(dtype='bf16')": "dtype='bf16': unknown dtype",
    "Run(lr_scheduler_name='cosine')": "did you mean 'cosineannealing'",
    "Trainer(lr_scheduler_name='linear')": "lr_scheduler_name='linear': not one of constant, cosineannealing",
    "Run(model_class_name='HookedTransfomer')": "did you mean 'HookedTransformer'",
    "Run(model_name='')": "model_name='': must not be empty",
    "Run(hook_name='')": "hook_name='': must not be empty",
    "Run(output_path='')": "output_path='': must not be empty",
    "Run(sequence_separator_token='eso')": "did you mean 'eos'?",
    "Run(sequence_separator_token=-1)": "sequence_separator_token=-1: must be at least 0",
    "Run(exclude_special_tokens=['<bos>'])": "exclude_special_tokens=['<bos>']: ",
    "Run(compile_llm=True, llm_compilation_mode='max-autotun')": "did you mean 'max-autotune'",
    "Log(log_to_wandb=True, wandb_project='me/saes')": "the user or team goes into wandb_entity",
    "Log(wandb_project='me/saes')": "the user or team goes into wandb_entity",
    "Log(log_to_wandb=True, wandb_id='a/b')": "wandb_id='a/b': W&B takes",
    "Run(resume_from_checkpoint='no/such/checkpoint')": "resume_from_checkpoint='no/such/checkpoint': no such folder",
    "Run(from_pretrained_path='no/such/sae')": "from_pretrained_path='no/such/sae': no such folder",
    # options that do not go together
    "Run(lr_warm_up_steps=300, lr_decay_steps=300)": "lr_warm_up_steps=300 and lr_decay_steps=300 together are longer than the run",
    "Run(sae=Standard(l1_warm_up_steps=1000))": "sae.l1_warm_up_steps=1000 is longer than the run of 488 steps",
    "Run(sae=JumpReLU(l0_warm_up_steps=1000))": "sae.l0_warm_up_steps=1000 is longer than the run of 488 steps",
    "Run(lr_end=1e-2)": "lr_end=0.01 is more than lr=0.0003",
    "Run(lr_scheduler_name='cosineannealing', lr_end=0., lr_decay_steps=10)": "would decay from lr_end=0 to 0",
    "Run(n_restart_cycles=3)": "n_restart_cycles=3 is an option of lr_scheduler_name='cosineannealingwarmrestarts'",
    "Run(n_batches_in_buffer=2)": "n_batches_in_buffer=2 contexts hold fewer rows than train_batch_size_tokens=4096",
    "Run(seqpos_slice=(200, None))": "seqpos_slice=(200, None) leaves no position of a context of 128 tokens",
    "Run(seqpos_slice=(0, 9, 0))": "step at least 1",
    "Run(seqpos_slice=(0, 1, 2, 3))": "must be (stop,), (start, stop) or (start, stop, step)",
    "Run(use_chat_formatting=True)": "use_chat_formatting needs conversations",
    "Run(context_size=1, exclude_special_tokens=True)": "leaves nothing of a context",
    "Run(llm_compilation_mode='default')": "llm_compilation_mode='default' needs compile_llm=True",
    "Run(sae_compilation_mode='default')": "sae_compilation_mode='default' needs compile_sae=True",
    "Run(n_checkpoints=3, checkpoint_path=None)": "n_checkpoints=3 needs a folder: set checkpoint_path",
    "Trainer(save_final_checkpoint=True)": "save_final_checkpoint=True needs a folder: set checkpoint_path",
    "Run(n_checkpoints=10_000)": "n_checkpoints=10000 is more than the steps of the run",
    "Run(hook_head_index=1)": "the activations at 'blocks.0.hook_mlp_out' have no heads",
    "Run(sae=TopK(reshape_activations='hook_z'))": "is for hooks such as 'blocks.0.attn.hook_z', not for 'blocks.0.hook_mlp_out'",
    "Run(sae=TopK(reshape_activations='hook_z'), hook_name='blocks.0.attn.hook_z', hook_head_index=1)": "joins all heads",
    "Run(sae=TopK(device='cuda:1'), device='cuda:0')": "sae.device='cuda:1' differs from device='cuda:0'",
    "JumpReLU(jumprelu_sparsity_loss_mode='quadratic')": "target_l0 must be set",
    "JumpReLU(target_l0=8)": "target_l0=8.0 is an option of jumprelu_sparsity_loss_mode='quadratic'",
    "JumpReLU(jumprelu_sparsity_loss_mode='quadratic', target_l0=99)": "target_l0=99.0 is more than d_sae=16",
    "JumpReLU(jumprelu_tanh_scale=2)": "jumprelu_tanh_scale=2.0 is an option of jumprelu_sparsity_loss_mode='tanh'",
    # values of the wrong kind
    "Run(sae={'d_in': 8, 'd_sae': 16})": "sae must be a TrainingSAEConfig, not dict",
    "Run(sae=TopKSAEConfig(8, 16, k=4))": "did you mean 'TopKTrainingSAEConfig'",
    "Run(sae=TopKTrainingSAEConfig)": "sae must be a TrainingSAEConfig, not a class; write TopKTrainingSAEConfig(…)",
    "Run(logger={'run_name': 'a'})": "logger must be a LoggingConfig, not dict {'run_name': 'a'}; write logger=LoggingConfig(…)",
    "Run(logger=None)": "logger must be a LoggingConfig, not NoneType",
    "Run(model_from_pretrained_kwargs={'hf_model': object()})": "['hf_model'] is of type object, which no config file can hold",
    "Run(model_kwargs=[1])": "model_kwargs=[1]: must be a dict",
    "Run(seqpos_slice=5)": "seqpos_slice=5: must be a tuple",
    # names that are no options, or those of another config
    "TopK(d_ni=8)": "d_ni: not an option of TopKTrainingSAEConfig; did you mean 'd_in'?",
    "Standard(k=4)": "k: an option of TopKTrainingSAEConfig, not of StandardTrainingSAEConfig",
    "TopK(l0_coefficient=1)": "l0_coefficient: an option of JumpReLUTrainingSAEConfig, not of TopKTrainingSAEConfig",
    "StandardSAEConfig(8, 16, l1_coefficient=5)": "l1_coefficient: an option of StandardTrainingSAEConfig",
    "Run(contxt_size=128)": "did you mean 'context_size'",
    "Run(wandb_projct='x')": "did you mean 'wandb_project'? It stands in logger.",
    "Trainer(training_tokens=5)": "training_tokens: write total_training_samples",
}

OLD = {
    "TopK(expansion_factor=8)": "set the width itself: d_sae = expansion_factor * d_in",
    "Run(expansion_factor=8)": "set the width itself",
    "Run(hook_layer=3)": "the layer is read from hook_name",
    "Run(hook_point='blocks.0.hook_mlp_out')": "write hook_name",
    "Run(hook_point_layer=0)": "the layer is read from hook_name",
    "Run(hook_point_head_index=1)": "write hook_head_index",
    "Run(use_ghost_grads=False)": "ghost gradients were removed",
    "Standard(use_ghost_grads=True)": "ghost gradients were removed",
    "Run(b_dec_init_method='zeros')": "b_dec always starts at zero",
    "Run(decoder_heuristic_init=True)": "decoder rows start with norm decoder_init_norm",
    "Run(decoder_heuristic_init_norm=.1)": "write decoder_init_norm",
    "Run(decoder_orthogonal_init=True)": "decoder rows start with norm decoder_init_norm",
    "Run(init_encoder_as_decoder_transpose=True)": "the encoder as the decoder's transpose",
    "Run(mse_loss_normalization='dense_batch')": "the MSE loss is not normalised",
    "Run(normalize_sae_decoder=True)": "decoder norms are free",
    "Run(scale_sparsity_penalty_by_decoder_norm=True)": "the sparsity penalty is scaled by them",
    "Run(finetuning_tokens=100)": "fine-tuning after training was removed",
    "Run(finetuning_method='scale')": "fine-tuning after training was removed",
    "Run(noise_scale=.1)": "noise on the pre-activations was removed",
    "Run(activation_fn='relu')": "the architecture decides it",
    "TopK(activation_fn_kwargs={'k': 32})": "k is an option of its own now",
    "Run(architecture='topk')": "the class of sae decides it",
    "Run(d_in=512)": "write it in the config of the SAE",
    "Run(k=32)": "write sae=TopKTrainingSAEConfig(k=…)",
    "Run(l1_coefficient=5)": "sae=StandardTrainingSAEConfig(l1_coefficient=…)",
    "Run(jumprelu_bandwidth=.001)": "write sae=JumpReLUTrainingSAEConfig(jumprelu_bandwidth=…)",
    "JumpReLU(l1_coefficient=5)": "its L0 penalty is l0_coefficient",
    "JumpReLU(l1_warm_up_steps=5)": "write l0_warm_up_steps",
    "TopK(l1_coefficient=5)": "a TopK SAE has no L1 penalty",
    "Gated(lp_norm=1)": "only StandardTrainingSAEConfig has a choice of norm",
    "Run(log_to_wandb=True)": "write logger=LoggingConfig(log_to_wandb=…)",
    "Run(wandb_project='x')": "write logger=LoggingConfig(wandb_project=…)",
    "Run(run_name='x')": "write logger=LoggingConfig(run_name=…)",
    "Run(total_training_tokens=10**6)": "write training_tokens",
    "Run(train_batch_size=4096)": "write train_batch_size_tokens",
    "Run(resume=True)": "write resume_from_checkpoint",
    "Run(dead_feature_estimation_method='no_fire')": "a latent is dead when it has not fired for dead_feature_window steps",
    "Run(feature_sampling_method='anthropic')": "dead latents are not resampled",
    "Standard(normalize_activations=True)": "write 'expected_average_only_in' (it was a switch before v3)",
    "Run(lr_scheduler_name='constantwithwarmup')": "write 'constant' (the warm-up is lr_warm_up_steps)",
    "Run(lr_scheduler_name=None)": "write 'constant'",
    "Run(model_class_name='HookedMamba')": "write 'AutoModelForCausalLM'",
}

RIGHT = [
    "Run(training_tokens=1e6)", "TopK(d_sae=16.0)", "Run(exclude_special_tokens=[0., 1.])",
    "TopK()", "Standard(lp_norm=.5, dtype='torch.bfloat16')", "Gated(l1_coefficient=5)", "JumpReLU(l0_coefficient=0)",
    "JumpReLU(jumprelu_sparsity_loss_mode='tanh', jumprelu_tanh_scale=2, pre_act_loss_coefficient=3e-6)",
    "JumpReLU(jumprelu_sparsity_loss_mode='quadratic', target_l0=4)", "TopK(dtype=torch.float64, decoder_init_norm=None)",
    "Log(log_to_wandb=False, wandb_project='me/saes')", "Log(log_to_wandb=True, wandb_entity='me')", "Trainer(n_checkpoints=3, checkpoint_path='c')",
    "Trainer(lr_warm_up_steps=5, lr_decay_steps=5)", "Run()", "Run(sae=TopK(device='cuda'), device='cuda:0')",
    "Run(device='cuda', act_store_device='with_model', llm_device='cuda:1')", "Run(lr_scheduler_name='CosineAnnealing', lr_end=1e-6)",
    "Run(lr_scheduler_name='cosineannealingwarmrestarts', n_restart_cycles=3)", "Run(adam_beta1=0.0, adam_beta2=0.9999)",
    "Run(hook_name='blocks.3.attn.hook_z', hook_head_index=2)", "Run(hook_name='blocks.3.attn.hook_z', sae=TopK(reshape_activations='hook_z'))",
    "Run(hook_name='model.layers.3.self_attn', model_class_name='AutoModelForCausalLM', hook_head_index=2)",
    "Run(hook_eval='blocks.0.attn.pattern', prefetch_llm_batches=True, dead_feature_threshold=1e-4)",
    "Run(seqpos_slice=(5, -5))", "Run(seqpos_slice=[None, None, 2], exclude_special_tokens=[0, 1])", "Run(exclude_special_tokens=True)",
    "Run(sequence_separator_token=None, disable_concat_sequences=True)", "Run(is_dataset_tokenized=False, use_chat_formatting=True)",
    "Run(compile_llm=True, llm_compilation_mode='max-autotune', compile_sae=True)", "Run(output_path=None, checkpoint_path=None)",
    "Run(model_from_pretrained_kwargs={'dtype': torch.bfloat16, 'n_devices': 1})", "Run(autocast=True, autocast_lm=True, seed=0)",
    "Run(logger=Log(log_to_wandb=False, wandb_project='x', run_name='y'), verbose=False)", "Run(n_batches_in_buffer=64, context_size=512)",
]


def complaint(code: str) -> str:
    "What making a config says"
    with pytest.raises(ConfigError) as raised:
        eval(code, NAMES)
    return str(raised.value)


@pytest.mark.parametrize('code', [*WRONG, *OLD])
def test_a_wrong_config_is_refused_at_once_and_says_why(code):
    assert (WRONG | OLD)[code] in complaint(code)


@pytest.mark.parametrize('code', RIGHT)
def test_a_right_config_passes(code): eval(code, NAMES)


def test_all_mistakes_of_a_nested_config_are_told_at_once():
    data = Run().to_dict()
    data['sae'] |= dict(k=0, expansion_factor=4)
    data |= dict(lr=-1, logger={'wandb_log_frequency': 0})
    with pytest.raises(ConfigError) as raised:
        LanguageModelSAERunnerConfig.from_dict(data)
    assert len(raised.value.mistakes) == 4
    for part in ('sae.k=0', 'sae.expansion_factor', 'logger.wandb_log_frequency=0', 'lr=-1'):
        assert part in str(raised.value)


def test_the_example_of_the_migration_text_passes():
    cfg = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=1024, d_sae=16384, apply_b_dec_to_input=True,
                                      normalize_activations="expected_average_only_in", l1_coefficient=5),
        model_name="tiny-stories-1L-21M", hook_name="blocks.0.hook_mlp_out",
        dataset_path="apollo-research/roneneldan-TinyStories-tokenizer-gpt2", is_dataset_tokenized=True, streaming=True,
        lr=5e-5, train_batch_size_tokens=4096, context_size=512, n_batches_in_buffer=64, training_tokens=100_000_000,
        store_batch_size_prompts=16, logger=LoggingConfig(log_to_wandb=True, wandb_project="sae_lens_tutorial"),
        device="cpu", seed=42, n_checkpoints=0, checkpoint_path="checkpoints", dtype="float32")
    assert cfg.to_sae_trainer_config().total_training_samples == 100_000_000


TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, vocab_size=50,
            max_position_embeddings=64)
DO_NOT_FIT = [
    (dict(), "d_in=8, but the activations at 'blocks.0.hook_mlp_out' are 16 wide; set d_in=16"),
    (dict(hook_name='blocks.2.hook_resid_post'), "the model has 2 layers, 0 to 1; did you mean 'blocks.1.hook_resid_post'?"),
    (dict(hook_name='blocks.1.hook_resid_pots'), "did you mean 'blocks.1.hook_resid_post'?"),
    (dict(hook_name='blocks.1.attn.hook_z', hook_head_index=4), "hook_head_index=4: 'blocks.1.attn.hook_z' has 4 heads, 0 to 3"),
    (dict(hook_name='blocks.1.attn.hook_v', sae=TopK(d_in=16)), "are 8 wide; set d_in=8"),
    (dict(sae=TopK(d_in=40)), "set d_in=16, or hook_name='blocks.0.mlp.hook_post'"),
    (dict(sae=TopK(d_in=16), context_size=65), "context_size=65 is more than the 64 positions of the model"),
    (dict(model_class_name='AutoModelForCausalLM', hook_name='model.layers.2'), "did you mean 'model.layers.1'"),
    (dict(model_class_name='AutoModelForCausalLM', hook_name='model.layers.1.mlp'), "are 16 wide; set d_in=16"),
]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "The folder of a model of which nothing is there but its config"
    transformers = pytest.importorskip('transformers')
    folder = tmp_path_factory.mktemp('tiny')
    transformers.LlamaConfig(**TINY).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize('options, says', DO_NOT_FIT)
def test_what_does_not_fit_the_model_is_told_before_weights_or_data_are_missed(tiny, options, says):
    from sae_workbench.training.runner import LanguageModelSAETrainingRunner
    cfg = Run(**dict(model_name=tiny, dataset_path='/no/such/data', context_size=32) | options)
    with pytest.raises(ConfigError, match=re.escape(says)):
        LanguageModelSAETrainingRunner(cfg)


@pytest.mark.parametrize('name, hook, d_in', [
    ('HookedTransformer', 'blocks.1.hook_resid_post', 16), ('TransformerBridge', 'blocks.1.mlp.hook_post', 40),
    ('AutoModelForCausalLM', 'model.layers.1.mlp.act_fn', 40)])
def test_what_fits_gets_as_far_as_the_missing_weights(tiny, name, hook, d_in):
    from sae_workbench.training.runner import LanguageModelSAETrainingRunner
    cfg = Run(sae=TopK(d_in=d_in), model_name=tiny, model_class_name=name, hook_name=hook, dataset_path='/no/such/data', context_size=32)
    with pytest.raises(LoadError, match='could not be loaded'):
        LanguageModelSAETrainingRunner(cfg)


def test_a_model_that_nobody_knows_is_left_to_the_later_check(tmp_path):
    (tmp_path/'config.json').write_text('{"model_type": "unheard_of", "hidden_size": 16}', encoding='utf-8')
    for name in (str(tmp_path), 'no/such-model'):
        Run(model_name=name).check_model()


def test_making_a_config_is_quick():
    import time
    Run()
    start = time.process_time()
    for _ in range(100):
        Run()
    assert (time.process_time() - start)/100 < .002
