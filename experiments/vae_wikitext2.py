"""A variational autoencoder of WikiText-2 beside the language model that is its decoder: 4,096 pieces, rows of 128.

    lm sweep experiments/vae_wikitext2.py

The files are wikitext-2's train.txt and test.txt, compressed, in the folder of data sets (docs/data.md); what is scored
is the first quarter of the test text. 1,000 steps of 2,048 tokens, one seed: a KL of 8.3 nats a text, 2.66 nats of
mutual information by batches of 16 texts (log 16 is 2.77), 5 of 32 latent numbers active; perplexity by 32 importance
weights 23.5 (1.698 bits a byte, a bound), where the decoder alone reaches 20.9: 1.12 times as much. With a weight of
the KL that ends at 1 and free nats in its place, z tells nothing; with latent vectors that are five times as large as
embeddings at first, 17 numbers were active at 24.8. 15 CPU minutes, and 8 for the decoder, on two shared cores.
"""
from lm import data, optim, train
from lm.models import Decoder, Half, Layer, TextVae
from lm.nn import MLP, Attention, Relu2, RMSNorm


def layer(causal):
    return Layer(Attention(heads=4, qk_norm=RMSNorm(), causal=causal), MLP(activation=Relu2()))


def config():
    return train.Config(
        model=TextVae(vocab=4096, latent=32, width=128, encoder=Half(2, layer(causal=False)),
                      decoder=Half(4, layer(causal=True))),
        data=data.Corpus(train=data.Files('wikitext2/train.txt.gz'),
                         valid=data.Cut(data.Files('wikitext2/test.txt.gz'), 0.0, 0.25),
                         tokenizer=data.SentencePiece(size=4096), context=128, batch=16),
        optimizer=optim.Muon(peak=1e-2, schedule=optim.Linear(warmup=50, end=0.0), weight_decay=0.1, adam_rate=0.5),
        steps=1000, objective=train.Elbo(beta=0.3, anneal=300, draws=32),
        cadence=train.Cadence(log=50, eval=500, eval_batches=20, save=500))


def sweep():
    return [{}, {'model': Decoder(vocab=4096, depth=4, width=128, layer=layer(causal=True)),
                 'objective': train.NextToken()}]
