"""RoBERTa (Liu et al. 2019): BERT without types, whose positions begin at 2, behind a row for padding."""
from lm.convert.families import bert
from lm.models import MaskedHead

ARCHITECTURE, MODEL_TYPE = 'RobertaForMaskedLM', 'roberta'
OFFSET = 2
FIXED = {'pad_token_id': OFFSET - 1}  # positions begin behind it
IGNORED = r'(^|\.)(position_ids|pooler\.dense\.(weight|bias))$|^lm_head\.bias$'  # the last where it is not tied
COPIES = {'lm_head.decoder.bias': 'lm_head.bias'}


def TABLE(model):
    """Returns the table of a model, see bert."""
    return {**bert.table('roberta', f'0/{OFFSET}+(T) D'), **bert.both('dense', 'lm_head.dense', 'I D'),
            **bert.norm('dense_norm', 'lm_head.layer_norm'), **bert.output(model, 'lm_head')}


def read(hf):
    kind = (hf.get('architectures') or ['RobertaModel'])[0]
    return bert.encoder(hf, hf['max_position_embeddings'] - OFFSET, kind == 'RobertaForMaskedLM')


def write(model):
    kind = 'RobertaForMaskedLM' if isinstance(model.head, MaskedHead) else 'RobertaModel'
    return bert.settings(model) | {'architectures': [kind], 'pad_token_id': OFFSET - 1,
                                   'max_position_embeddings': model.embedding.position.length + OFFSET}
