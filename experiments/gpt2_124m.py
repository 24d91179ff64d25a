"""GPT-2 small (124M) on web text: the usual yardstick for training speed.

    LM_DATA=/data lm train experiments/gpt2_124m.py

The text is your own: web/train*.jsonl.zst and web/valid*.jsonl.zst in the folder of data sets (docs/data.md).
Hardware: one GPU or TPU chip with 32 GB or more, in micro-batches of 32 rows (22.8 GiB by `lm plan --on h100`). Not yet
trained.
"""
from lm import data, optim, train
from lm.models import Decoder, Embedding, Layer
from lm.nn import Attention, Execution, LayerNorm, Learned, NoPE


def config():
    return train.Config(
        model=Decoder(vocab=50257, depth=12, width=768, embedding=Embedding(position=Learned(1024)),
                      layer=Layer(Attention(heads=12, position=NoPE()), norm=LayerNorm(bias=False)),
                      execution=Execution(dtype='bfloat16')),
        data=data.Corpus(train=data.Files('web/train*.jsonl.zst'), valid=data.Files('web/valid*.jsonl.zst'),
                         tokenizer=data.HuggingFace('tokenizers/gpt2_tokenizer.json.gz'), context=1024, batch=512),
        optimizer=optim.AdamW(peak=6e-4, schedule=optim.Cosine(warmup=2000, end=0.1), b2=0.95, weight_decay=0.1),
        steps=600_000, accumulate=16, cadence=train.Cadence(eval=1000, eval_batches=200, save=1000))
