"""What every test, and every process that a test starts, finds in its environment."""
import os

os.environ['IN_TEST'] = '1'
for name, value in dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', WANDB_MODE='offline',
                        PLOTLY_RENDERER='plotly_mimetype').items():
    os.environ.setdefault(name, value)
