"""A run of an older version: every field of its Decoder away from its default, as far as they go together."""
from lm import data, optim, train
from lm.models.decoder import Base, Decoder
from lm.pipeline import Pipeline
from lm.positions import Rope

TEXT = data.Synthetic(count=40, length=200)


def config():
    return train.Config(
        model=Decoder(vocab=36, depth=5, width=16, heads=4, kv_heads=2, head_dim=6, ff=20,
                      position=Rope(500.0, 4.0, 16, 1.5, 3.0, local_base=20.0), windows=(3, 5, 0), norm='layer_bias',
                      norm_place='both', norm_epsilon=1e-4, activation='geglu', bias='all', qk_norm=True, parallel=True,
                      tied=False, scaled_embedding=True, attention_softcap=3.0, logit_softcap=5.0, dropout=0.1,
                      z_loss=0.01, smoothing=0.1, loss_parts=2, remat='dots', unroll=1, kernel='reference',
                      pipeline=Pipeline(2, 1), base=Base(width=8, heads=2)),
        data=data.Corpus(train=data.Pick(TEXT, 0.0, 0.9), valid=data.Pick(TEXT, 0.9, 1.0), tokenizer=data.Chars(),
                         context=24, batch=8),
        optimizer=optim.AdamW(peak=2e-2, schedule=optim.Constant(), weight_decay=0.1), steps=6, seed=7, mesh={'data': 1},
        accumulate=2, log_every=1, eval_every=3, eval_batches=2, save_every=3, keep=4, spike=6.0, noise_scale=True,
        sample='ab', baselines=True, patience=4)
