"""Qwen3 30B-A3B from scratch, in its own shape: 128 experts, of which a token uses 8, so that 3.3B weights work on it.

    lm plan experiments/qwen3_30b_a3b.py --on v5p-512      # what it takes, before paying for it
    lm train experiments/qwen3_30b_a3b.py data.train.pattern='gs://bucket/train/*.jsonl.zst' ...

Hardware: 256 chips with 95 GB, by `lm plan`. Not yet trained.
"""
from lm import data, optim, train
from lm.models import Decoder, Head, Layer
from lm.nn import Attention, Execution, Experts, RMSNorm, Rope


def config():
    return train.Config(
        model=Decoder(vocab=151936, depth=48, width=2048, head=Head(tied=False),
                      layer=Layer(Attention(heads=32, kv_heads=4, head_dim=128, position=Rope(base=1_000_000.0),
                                            qk_norm=RMSNorm(1e-6)),
                                  Experts(count=128, top_k=8, ff=768, balance=0.001, z_loss=0.001, capacity_factor=2.0),
                                  norm=RMSNorm(1e-6)),
                      execution=Execution(dtype='bfloat16', remat='full', vocab_chunks=32)),
        data=data.Corpus(train=data.Files('web/train*.jsonl.zst'), valid=data.Files('web/valid*.jsonl.zst'),
                         tokenizer=data.HuggingFace('tokenizers/qwen3_tokenizer.json'), context=4096, batch=1024),
        optimizer=optim.AdamW(peak=3e-4, schedule=optim.Cosine(warmup=2000, end=0.1), b2=0.95, weight_decay=0.1),
        mesh={'fsdp': -1, 'expert': 8}, steps=250_000,
        cadence=train.Cadence(eval=2000, eval_batches=20, save=500))
