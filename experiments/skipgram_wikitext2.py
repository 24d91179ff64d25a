"""Skip-gram with negative sampling on WikiText-2 by words: 33,278 vectors of 100 numbers, five epochs.

    lm train experiments/skipgram_wikitext2.py
    lm sweep experiments/skipgram_wikitext2.py      # beside it, the continuous bag of words and GloVe

Needs the text and the word sets of docs/data.md. Hardware and time: two shared CPU cores, 79 to 87 CPU seconds in all.
A step with its batch does 330,000 words a second of CPU time on both cores: 1.04 times gensim 4.4, of which five runs
of 263,000 to 365,000 on the same busy machine have a mean of 317,000 (sg=1, vector_size=100, window=5, negative=5,
sample=1e-3, min_count=1, epochs=5, workers=2, a line a sentence).

Spearman's correlations, and the share of analogies, by lm.tasks.word_similarity: means and ranges over seeds.

                    WordSim-353          SimLex-999           MEN                  analogies
    gensim, 5 seeds 0.299 (0.293-0.308)  0.191 (0.189-0.193)  0.274 (0.269-0.278)  0.042 (0.040-0.044)
    ours, 3 seeds   0.388 (0.344-0.435)  0.157 (0.150-0.164)  0.405 (0.396-0.411)  0.033 (0.030-0.035)

So ours are nearer to judgements of relatedness, and farther from those of similarity and from analogies than gensim's.
"""
from lm import data, optim, train
from lm.models.word_vectors import WordVectors

SETS = 'EN-WS-353-ALL', 'EN-SIMLEX-999', 'EN-MEN-TR-3k'
SCORED = {'similarity': tuple(f'word_similarity/{name}.txt' for name in SETS),
          'analogies': 'word_similarity/questions-words.txt.gz', 'sample': 'king river music war three'}


def config():
    return train.Config(
        model=WordVectors(vocab=33278, width=100),
        data=data.Corpus(train=data.Files('wikitext2/train.txt.gz'), valid=data.Files('wikitext2/test.txt.gz'),
                         tokenizer=data.Words(), context=32, batch=512, packing='counted'),
        optimizer=optim.AdaGrad(peak=0.2, initial=0.0, eps=1e-20, schedule=optim.Linear(warmup=1, end=0.01), clip=0.0),
        steps=637, objective=train.SkipGram(**SCORED), cadence=train.Cadence(log=50))


def sweep():
    return [{}, {'objective': train.BagOfWords(**SCORED)},
            {'objective': train.Glove(**SCORED), 'data.packing': 'cooccurrences', 'model.bias': True}]
