"""Llama 3.1 8B from scratch, in its own shape: what one TPU slice or a few GPU nodes train.

    lm plan experiments/llama_8b.py --on v5e-256      # what it takes, before paying for it
    lm train experiments/llama_8b.py data.train.pattern='gs://bucket/train/*.jsonl.zst' ...

Hardware: 256 TPU chips or 64 GPUs, by `lm plan`. Not yet trained.
"""
from lm import data, optim, train
from lm.models import Decoder, Head, Layer
from lm.nn import MLP, Attention, Execution, Rope, Silu


def config():
    return train.Config(
        model=Decoder(vocab=128256, depth=32, width=4096, head=Head(tied=False),
                      layer=Layer(Attention(heads=32, kv_heads=8,
                                            position=Rope(base=500_000.0, factor=8.0, original=8192)),
                                  MLP(ff=14336, activation=Silu(), gated=True)),
                      execution=Execution(dtype='bfloat16', remat='full', vocab_chunks=24)),
        data=data.Corpus(train=data.Files('web/train*.jsonl.zst'), valid=data.Files('web/valid*.jsonl.zst'),
                         tokenizer=data.HuggingFace('tokenizers/llama3_tokenizer.json'), context=8192, batch=256),
        optimizer=optim.AdamW(peak=3e-4, schedule=optim.Cosine(warmup=2000, end=0.1), b2=0.95, weight_decay=0.1),
        mesh={'fsdp': -1}, steps=80_000, cadence=train.Cadence(eval=1000, eval_batches=20, save=500))
