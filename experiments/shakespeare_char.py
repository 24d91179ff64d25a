"""Character-level Shakespeare, nanoGPT's preset for a CPU: 4 layers, 4 heads, width 128.

    lm train experiments/shakespeare_char.py

The text is Karpathy's input.txt (1,115,394 bytes), in the folder of data sets (docs/data.md).
Hardware and time: two CPU cores, 100 s. Reached: validation loss 1.895 over the whole held-out text in windows of 64,
1.869 with a stride of 16.
"""
from lm import data, optim, train
from lm.models import Decoder, Embedding, Layer
from lm.nn import Attention, LayerNorm, Learned, NoPE

TEXT = data.Files('tinyshakespeare/input.txt')


def config():
    return train.Config(
        model=Decoder(vocab=65, depth=4, width=128, embedding=Embedding(position=Learned(64)),
                      layer=Layer(Attention(heads=4, position=NoPE()), norm=LayerNorm(bias=False))),
        data=data.Corpus(train=data.Cut(TEXT, 0.0, 0.9), valid=data.Cut(TEXT, 0.9, 1.0), tokenizer=data.Chars(),
                         context=64, batch=12),
        optimizer=optim.AdamW(peak=1e-3, schedule=optim.Cosine(warmup=100, end=0.1), b2=0.99, weight_decay=0.1),
        steps=2000, cadence=train.Cadence(log=100, eval=500, eval_batches=100, save=500))
