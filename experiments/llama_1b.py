"""A Llama of 1.2 billion parameters (the shape of Llama 3.2 1B) from scratch, for a TPU slice or a GPU node.

    lm train experiments/llama_1b.py mesh.fsdp=8 data.train.pattern='gs://bucket/train/*.jsonl.zst' ...
"""
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, Execution, Rope, Silu


def config():
    return train.Config(
        model=Decoder(vocab=32768, depth=16, width=2048,
                      layer=Layer(Attention(heads=32, kv_heads=8, position=Rope(base=500_000.0)),
                                  MLP(ff=8192, activation=Silu(), gated=True)),
                      execution=Execution(dtype='bfloat16', remat='full')),
        data=data.Corpus(train=data.Files('web/train*.jsonl'), valid=data.Files('web/valid*.jsonl'),
                         tokenizer=data.SentencePiece(size=32768, kind='bpe'), context=4096, batch=256,
                         packing='bestfit'),
        optimizer=optim.AdamW(peak=4e-4, schedule=optim.Cosine(warmup=2000, end=0.1), b2=0.95, weight_decay=0.1),
        mesh={'data': -1, 'fsdp': 1}, steps=25_000,
        cadence=train.Cadence(eval=1000, eval_batches=50, save=500))
