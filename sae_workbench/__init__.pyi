# Made from the list in nbs/api.ipynb by tools/stubs.py: edit the notebook.
from .core.errors import (
    SAEWorkbenchError as SAEWorkbenchError,
    ConfigError as ConfigError,
    DataError as DataError,
    HookError as HookError,
    LoadError as LoadError,
    SaveError as SaveError,
    UploadError as UploadError,
    NonFiniteError as NonFiniteError,
    ProcessError as ProcessError,
)
from .core.processes import (
    processes as processes,
    batch_group as batch_group,
)
from .core.registry import (
    register_sae_class as register_sae_class,
    register_sae_training_class as register_sae_training_class,
    get_sae_class as get_sae_class,
    get_sae_training_class as get_sae_training_class,
)
from .core.dictionaries import (
    recovered as recovered,
    mmcs as mmcs,
    match as match,
    firing_scores as firing_scores,
)
from .core.capture import (
    capture as capture,
    replacing as replacing,
)
from .saes.base import SAE as SAE
from .saes.config import (
    SAEConfig as SAEConfig,
    SAEMetadata as SAEMetadata,
)
from .saes.training import (
    TrainingSAE as TrainingSAE,
    TrainingSAEConfig as TrainingSAEConfig,
    TrainCoefficientConfig as TrainCoefficientConfig,
    TrainStepInput as TrainStepInput,
    TrainStepOutput as TrainStepOutput,
)
from .saes.standard import (
    StandardSAE as StandardSAE,
    StandardSAEConfig as StandardSAEConfig,
    StandardTrainingSAE as StandardTrainingSAE,
    StandardTrainingSAEConfig as StandardTrainingSAEConfig,
)
from .saes.gated import (
    GatedSAE as GatedSAE,
    GatedSAEConfig as GatedSAEConfig,
    GatedTrainingSAE as GatedTrainingSAE,
    GatedTrainingSAEConfig as GatedTrainingSAEConfig,
)
from .saes.jumprelu import (
    JumpReLUSAE as JumpReLUSAE,
    JumpReLUSAEConfig as JumpReLUSAEConfig,
    JumpReLUTrainingSAE as JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig as JumpReLUTrainingSAEConfig,
)
from .saes.topk import (
    TopKSAE as TopKSAE,
    TopKSAEConfig as TopKSAEConfig,
    TopKTrainingSAE as TopKTrainingSAE,
    TopKTrainingSAEConfig as TopKTrainingSAEConfig,
)
from .saes.abstopk import (
    AbsTopKSAE as AbsTopKSAE,
    AbsTopKSAEConfig as AbsTopKSAEConfig,
    AbsTopKTrainingSAE as AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig as AbsTopKTrainingSAEConfig,
)
from .saes.batchtopk import (
    BatchTopKTrainingSAE as BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig as BatchTopKTrainingSAEConfig,
)
from .saes.matryoshka import (
    MatryoshkaBatchTopKTrainingSAE as MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig as MatryoshkaBatchTopKTrainingSAEConfig,
)
from .saes.transcoder import (
    Transcoder as Transcoder,
    TranscoderConfig as TranscoderConfig,
    SkipTranscoder as SkipTranscoder,
    SkipTranscoderConfig as SkipTranscoderConfig,
    JumpReLUTranscoder as JumpReLUTranscoder,
    JumpReLUTranscoderConfig as JumpReLUTranscoderConfig,
    JumpReLUSkipTranscoder as JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig as JumpReLUSkipTranscoderConfig,
    TopKTranscoder as TopKTranscoder,
    TopKTranscoderConfig as TopKTranscoderConfig,
    TopKSkipTranscoder as TopKSkipTranscoder,
    TopKSkipTranscoderConfig as TopKSkipTranscoderConfig,
    StandardTrainingTranscoder as StandardTrainingTranscoder,
    StandardTrainingTranscoderConfig as StandardTrainingTranscoderConfig,
    JumpReLUTrainingTranscoder as JumpReLUTrainingTranscoder,
    JumpReLUTrainingTranscoderConfig as JumpReLUTrainingTranscoderConfig,
    TopKTrainingTranscoder as TopKTrainingTranscoder,
    TopKTrainingTranscoderConfig as TopKTrainingTranscoderConfig,
    BatchTopKTrainingTranscoder as BatchTopKTrainingTranscoder,
    BatchTopKTrainingTranscoderConfig as BatchTopKTrainingTranscoderConfig,
    MatryoshkaBatchTopKTrainingTranscoder as MatryoshkaBatchTopKTrainingTranscoder,
    MatryoshkaBatchTopKTrainingTranscoderConfig as MatryoshkaBatchTopKTrainingTranscoderConfig,
)
from .saes.crosscoder import (
    Crosscoder as Crosscoder,
    CrosscoderConfig as CrosscoderConfig,
    TopKCrosscoder as TopKCrosscoder,
    TopKCrosscoderConfig as TopKCrosscoderConfig,
    StandardTrainingCrosscoder as StandardTrainingCrosscoder,
    StandardTrainingCrosscoderConfig as StandardTrainingCrosscoderConfig,
    JumpReLUTrainingCrosscoder as JumpReLUTrainingCrosscoder,
    JumpReLUTrainingCrosscoderConfig as JumpReLUTrainingCrosscoderConfig,
    TopKTrainingCrosscoder as TopKTrainingCrosscoder,
    TopKTrainingCrosscoderConfig as TopKTrainingCrosscoderConfig,
    BatchTopKTrainingCrosscoder as BatchTopKTrainingCrosscoder,
    BatchTopKTrainingCrosscoderConfig as BatchTopKTrainingCrosscoderConfig,
    MatryoshkaBatchTopKTrainingCrosscoder as MatryoshkaBatchTopKTrainingCrosscoder,
    MatryoshkaBatchTopKTrainingCrosscoderConfig as MatryoshkaBatchTopKTrainingCrosscoderConfig,
)
from .saes.crosscoder_files import save_crosscoder as save_crosscoder
from .saes.matching_pursuit import (
    MatchingPursuitSAE as MatchingPursuitSAE,
    MatchingPursuitSAEConfig as MatchingPursuitSAEConfig,
    MatchingPursuitTrainingSAE as MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig as MatchingPursuitTrainingSAEConfig,
)
from .saes.temporal import (
    TemporalSAE as TemporalSAE,
    TemporalSAEConfig as TemporalSAEConfig,
)
from .saes.card import model_card as model_card
from .activations.tokens import TokenContexts as TokenContexts
from .activations.pretokenize import (
    PretokenizeRunner as PretokenizeRunner,
    PretokenizeRunnerConfig as PretokenizeRunnerConfig,
    pretokenize_runner as pretokenize_runner,
)
from .activations.models import load_model as load_model
from .activations.sources import (
    TensorSource as TensorSource,
    LanguageModelSource as LanguageModelSource,
)
from .activations.modules import ModuleSource as ModuleSource
from .activations.layers import LayerSources as LayerSources
from .activations.paired import (
    PairedSource as PairedSource,
    Difference as Difference,
)
from .activations.synthetic import (
    SyntheticSource as SyntheticSource,
    grouped as grouped,
    trees as trees,
    zipf as zipf,
)
from .activations.buffer import MixingBuffer as MixingBuffer
from .activations.scale import ActivationScaler as ActivationScaler
from .activations.cache_write import (
    write_cache as write_cache,
    write_caches as write_caches,
)
from .activations.cache_read import ShardSource as ShardSource
from .activations.store import ActivationsStore as ActivationsStore
from .activations.cache_runner import (
    CacheActivationsRunner as CacheActivationsRunner,
    CacheActivationsRunnerConfig as CacheActivationsRunnerConfig,
)
from .activations.shared_passes import share_passes as share_passes
from .activations.side_by_side import SideBySide as SideBySide
from .training.config import (
    LoggingConfig as LoggingConfig,
    SAETrainerConfig as SAETrainerConfig,
    LanguageModelSAERunnerConfig as LanguageModelSAERunnerConfig,
)
from .migrate.migrate import migrate_config as migrate_config
from .training.preempt import Interrupted as Interrupted
from .training.checkpoint import (
    Checkpoints as Checkpoints,
    latest as latest,
    save_checkpoint as save_checkpoint,
    load_checkpoint as load_checkpoint,
)
from .training.changes import (
    CoefficientChanges as CoefficientChanges,
    changes_of as changes_of,
)
from .training.guards import Guards as Guards
from .training.trainer import (
    SAETrainer as SAETrainer,
    train_together as train_together,
)
from .training.evaluate import evaluate_sae as evaluate_sae
from .training.replacement import evaluate_replacement as evaluate_replacement
from .training.finetune import (
    finetune_on_model as finetune_on_model,
    finetuner as finetuner,
)
from .training.callbacks import (
    Callback as Callback,
    read_log as read_log,
)
from .training.runner import (
    LanguageModelSAETrainingRunner as LanguageModelSAETrainingRunner,
    SAETrainingRunner as SAETrainingRunner,
)
from .training.several import (
    MultiSAETrainingRunner as MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig as MultiSAETrainingRunnerConfig,
)
from .formats.weights import convert_to_safetensors as convert_to_safetensors
from .formats.layouts import (
    Format as Format,
    register_format as register_format,
    find_saes as find_saes,
)
from .saes.transcoder_sets import (
    save_transcoder_set as save_transcoder_set,
    save_cross_layer_set as save_cross_layer_set,
)
from .saes.cross_layer import (
    CrossLayerTranscoder as CrossLayerTranscoder,
    CrossLayerTranscoderConfig as CrossLayerTranscoderConfig,
    load_lazily as load_lazily,
)
from .analysis.cross_layer_report import (
    attach_cross_layer as attach_cross_layer,
    faithfulness as faithfulness,
)
from .saes.cross_layer_training import (
    CrossLayerTrainingTranscoder as CrossLayerTrainingTranscoder,
    CrossLayerTrainingTranscoderConfig as CrossLayerTrainingTranscoderConfig,
)
from .formats.releases import (
    list_releases as list_releases,
    search as search,
    get_pretrained_saes_directory as get_pretrained_saes_directory,
)
from .saes.neuronpedia import (
    neuronpedia_url as neuronpedia_url,
    neuronpedia_id as neuronpedia_id,
)
from .saes.sharing import upload_saes_to_huggingface as upload_saes_to_huggingface
from .analysis.examples import (
    TextLatents as TextLatents,
    latent_examples as latent_examples,
)
from .analysis.latents import (
    RowLatents as RowLatents,
    LatentStats as LatentStats,
    latent_stats as latent_stats,
    latent_table as latent_table,
    nearest_latents as nearest_latents,
)
from .analysis.logits import logit_effects as logit_effects
from .analysis.page import (
    LatentPage as LatentPage,
    latent_page as latent_page,
    latent_pages as latent_pages,
)
from .analysis.dashboard import dashboard as dashboard
from .analysis.attach import (
    attach as attach,
    intervene as intervene,
)
from .analysis.bridge import (
    SAETransformerBridge as SAETransformerBridge,
    HookedSAETransformer as HookedSAETransformer,
)
from .analysis.crosscoders import (
    compare_views as compare_views,
    swap_latents as swap_latents,
    swap_check as swap_check,
    norm_shares as norm_shares,
)
from .analysis.baselines import (
    random_dictionary as random_dictionary,
    frozen_encoder as frozen_encoder,
)
from .analysis.evals import (
    run_evals as run_evals,
    get_eval_everything_config as get_eval_everything_config,
    EvalConfig as EvalConfig,
)
from .apps.history import RunHistory as RunHistory
from .apps.curves import compare_runs as compare_runs
from .apps.monitor import (
    TrainingMonitor as TrainingMonitor,
    LogMonitor as LogMonitor,
)
from .apps.chooser import (
    choose_architecture as choose_architecture,
    ArchitectureChooser as ArchitectureChooser,
)
from .apps.explorer import (
    explore as explore,
    LatentExplorer as LatentExplorer,
)
from .formats.converters import (
    PretrainedSaeHuggingfaceLoader as PretrainedSaeHuggingfaceLoader,
    PretrainedSaeDiskLoader as PretrainedSaeDiskLoader,
)

__version__: str

__all__ = [
    'SAEWorkbenchError',
    'ConfigError',
    'DataError',
    'HookError',
    'LoadError',
    'SaveError',
    'UploadError',
    'NonFiniteError',
    'ProcessError',
    'processes',
    'batch_group',
    'register_sae_class',
    'register_sae_training_class',
    'get_sae_class',
    'get_sae_training_class',
    'recovered',
    'mmcs',
    'match',
    'firing_scores',
    'capture',
    'replacing',
    'SAE',
    'SAEConfig',
    'SAEMetadata',
    'TrainingSAE',
    'TrainingSAEConfig',
    'TrainCoefficientConfig',
    'TrainStepInput',
    'TrainStepOutput',
    'StandardSAE',
    'StandardSAEConfig',
    'StandardTrainingSAE',
    'StandardTrainingSAEConfig',
    'GatedSAE',
    'GatedSAEConfig',
    'GatedTrainingSAE',
    'GatedTrainingSAEConfig',
    'JumpReLUSAE',
    'JumpReLUSAEConfig',
    'JumpReLUTrainingSAE',
    'JumpReLUTrainingSAEConfig',
    'TopKSAE',
    'TopKSAEConfig',
    'TopKTrainingSAE',
    'TopKTrainingSAEConfig',
    'AbsTopKSAE',
    'AbsTopKSAEConfig',
    'AbsTopKTrainingSAE',
    'AbsTopKTrainingSAEConfig',
    'BatchTopKTrainingSAE',
    'BatchTopKTrainingSAEConfig',
    'MatryoshkaBatchTopKTrainingSAE',
    'MatryoshkaBatchTopKTrainingSAEConfig',
    'Transcoder',
    'TranscoderConfig',
    'SkipTranscoder',
    'SkipTranscoderConfig',
    'JumpReLUTranscoder',
    'JumpReLUTranscoderConfig',
    'JumpReLUSkipTranscoder',
    'JumpReLUSkipTranscoderConfig',
    'TopKTranscoder',
    'TopKTranscoderConfig',
    'TopKSkipTranscoder',
    'TopKSkipTranscoderConfig',
    'StandardTrainingTranscoder',
    'StandardTrainingTranscoderConfig',
    'JumpReLUTrainingTranscoder',
    'JumpReLUTrainingTranscoderConfig',
    'TopKTrainingTranscoder',
    'TopKTrainingTranscoderConfig',
    'BatchTopKTrainingTranscoder',
    'BatchTopKTrainingTranscoderConfig',
    'MatryoshkaBatchTopKTrainingTranscoder',
    'MatryoshkaBatchTopKTrainingTranscoderConfig',
    'Crosscoder',
    'CrosscoderConfig',
    'TopKCrosscoder',
    'TopKCrosscoderConfig',
    'StandardTrainingCrosscoder',
    'StandardTrainingCrosscoderConfig',
    'JumpReLUTrainingCrosscoder',
    'JumpReLUTrainingCrosscoderConfig',
    'TopKTrainingCrosscoder',
    'TopKTrainingCrosscoderConfig',
    'BatchTopKTrainingCrosscoder',
    'BatchTopKTrainingCrosscoderConfig',
    'MatryoshkaBatchTopKTrainingCrosscoder',
    'MatryoshkaBatchTopKTrainingCrosscoderConfig',
    'save_crosscoder',
    'MatchingPursuitSAE',
    'MatchingPursuitSAEConfig',
    'MatchingPursuitTrainingSAE',
    'MatchingPursuitTrainingSAEConfig',
    'TemporalSAE',
    'TemporalSAEConfig',
    'model_card',
    'TokenContexts',
    'PretokenizeRunner',
    'PretokenizeRunnerConfig',
    'load_model',
    'TensorSource',
    'LanguageModelSource',
    'ModuleSource',
    'LayerSources',
    'PairedSource',
    'Difference',
    'SyntheticSource',
    'grouped',
    'trees',
    'zipf',
    'MixingBuffer',
    'ActivationScaler',
    'write_cache',
    'write_caches',
    'ShardSource',
    'ActivationsStore',
    'CacheActivationsRunner',
    'CacheActivationsRunnerConfig',
    'share_passes',
    'SideBySide',
    'LoggingConfig',
    'SAETrainerConfig',
    'LanguageModelSAERunnerConfig',
    'migrate_config',
    'Interrupted',
    'Checkpoints',
    'latest',
    'save_checkpoint',
    'load_checkpoint',
    'CoefficientChanges',
    'changes_of',
    'Guards',
    'SAETrainer',
    'train_together',
    'evaluate_sae',
    'evaluate_replacement',
    'finetune_on_model',
    'finetuner',
    'Callback',
    'read_log',
    'LanguageModelSAETrainingRunner',
    'SAETrainingRunner',
    'MultiSAETrainingRunner',
    'MultiSAETrainingRunnerConfig',
    'convert_to_safetensors',
    'Format',
    'register_format',
    'find_saes',
    'save_transcoder_set',
    'save_cross_layer_set',
    'CrossLayerTranscoder',
    'CrossLayerTranscoderConfig',
    'load_lazily',
    'attach_cross_layer',
    'faithfulness',
    'CrossLayerTrainingTranscoder',
    'CrossLayerTrainingTranscoderConfig',
    'list_releases',
    'search',
    'get_pretrained_saes_directory',
    'neuronpedia_url',
    'neuronpedia_id',
    'upload_saes_to_huggingface',
    'TextLatents',
    'latent_examples',
    'RowLatents',
    'LatentStats',
    'latent_stats',
    'latent_table',
    'nearest_latents',
    'logit_effects',
    'LatentPage',
    'latent_page',
    'latent_pages',
    'dashboard',
    'attach',
    'intervene',
    'SAETransformerBridge',
    'compare_views',
    'swap_latents',
    'swap_check',
    'norm_shares',
    'random_dictionary',
    'frozen_encoder',
    'run_evals',
    'get_eval_everything_config',
    'EvalConfig',
    'RunHistory',
    'compare_runs',
    'TrainingMonitor',
    'LogMonitor',
    'choose_architecture',
    'ArchitectureChooser',
    'explore',
    'LatentExplorer',
]
