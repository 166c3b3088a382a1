"""Load SAEs with sae-lens from a repository of the hub (HF_ENDPOINT says which) and compare (run in an environment that has sae-lens):

    PEER/bin/python tests/peer/check_hub.py REPO FOLDER

`FOLDER/NAME.safetensors` holds an input and our latents and outputs for the SAE `NAME` of the repository.
"""
import logging, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sae_lens import SAE

def differences(repo, file):
    "What the peer gives otherwise than we do, as lines of text"
    ours, sae = load_file(file), SAE.from_pretrained(repo, file.stem)
    with torch.no_grad(): theirs = dict(latents=sae.encode(ours['x']), out=sae(ours['x']))
    for k, t in theirs.items():
        try: torch.testing.assert_close(t, ours[k], atol=1e-5, rtol=1e-5)
        except AssertionError as e: yield f'{k}: {e}'

if __name__ == '__main__':
    logging.disable(logging.WARNING)
    files = sorted(Path(sys.argv[2]).glob('*.safetensors'))
    wrong = [f'{f.stem}: {d}' for f in files for d in differences(sys.argv[1], f)]
    print('\n'.join(wrong) or f'{len(files)} SAEs are equal')
    sys.exit(bool(wrong) or not files)
