"""Modules of sentence-transformers beside a checkpoint: how the vector of a text is made of those of its tokens."""
import json

from lm import config
from lm.config import files
from lm.models import FirstToken, Mean, NoHead

KEY = 'pooling'  # of the dict of a config.json, to which it is added
MODES = {'mean': Mean(), 'cls': FirstToken()}
PREFIX = 'pooling_mode_'
DEFAULT = {f'{PREFIX}mean_tokens': True}  # of a Pooling's config.json
NOTHING = ('Transformer', 'Normalize')  # modules that change no vector of length 1
REMEDY = 'fetch it again.'


def modes(path):
    """Returns the names of what follows the encoder in a directory, such as ['cls'] or ['max', 'Dense'], [] for none.
    """
    modules = files.read_json(path / 'modules.json', [{'type': str, 'path': str}], REMEDY, optional=True)
    if modules is None and (path / '1_Pooling').is_dir():
        modules = [{'type': 'Pooling', 'path': '1_Pooling'}]
    names = []
    for module in modules or ():
        kind = module['type'].rpartition('.')[2]
        if kind == 'Pooling':
            names += _pooled(files.read_json(path / module['path'] / 'config.json', {}, REMEDY))
        elif kind not in NOTHING:
            names.append(kind)
    return names


def _pooled(settings):
    """Returns the modes of the config.json of a Pooling, in the older spelling or in the newer."""
    if 'pooling_mode' in settings:
        mode = settings['pooling_mode']
        return [mode] if isinstance(mode, str) else list(mode)
    return [key.removeprefix(PREFIX).partition('_token')[0] for key, used in (DEFAULT | settings).items()
            if key.startswith(PREFIX) and used]


def pooling(hf):
    """Returns the Pooling of an encoder by the dict of its config.json: the mean where that says none."""
    names = hf.get(KEY) or ['mean']
    if len(names) > 1 or names[0] not in MODES:
        raise config.Error(f'the vector of a text is by {", ".join(map(str, names))}, which lm lacks; it has '
                           f'{", ".join(MODES)}. Remove modules.json and 1_Pooling to convert it with means.')
    return MODES[names[0]]


def settings(model):
    """Returns the key of a config.json from which `pooling` reads that of an Encoder, {} where it goes without saying.
    """
    name = next((name for name, known in MODES.items() if known == model.pooling), None)
    return {KEY: [name]} if name and (name != 'mean' or isinstance(model.head, NoHead)) else {}


def write(directory, names, width):
    """Writes modules.json and 1_Pooling/config.json: vectors of a width, pooled by the one of `names`, of length 1."""
    kinds = {'Transformer': '', 'Pooling': '1_Pooling', 'Normalize': '2_Normalize'}
    modules = [{'idx': number, 'name': str(number), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
               for number, (kind, path) in enumerate(kinds.items())]
    (directory / '1_Pooling').mkdir()
    flags = {f'{PREFIX}cls_token': names == ['cls'], f'{PREFIX}mean_tokens': names == ['mean']}
    for file, content in (('modules.json', modules),
                          ('1_Pooling/config.json', {'word_embedding_dimension': width, **flags})):
        (directory / file).write_text(json.dumps(content, indent=2) + '\n')
