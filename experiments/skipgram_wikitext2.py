"""placeholder"""
from lm import data, optim, train
from lm.models.word_vectors import WordVectors
from lm.train.objectives.words import SkipGram

SETS = tuple(f'word_similarity/{name}.txt' for name in ('EN-WS-353-ALL', 'EN-SIMLEX-999', 'EN-MEN-TR-3k'))


def config():
    return train.Config(
        model=WordVectors(vocab=33278, width=100),
        data=data.Corpus(train=data.Files('wikitext2/train.txt.gz'), valid=data.Files('wikitext2/test.txt.gz'),
                         tokenizer=data.Words(), context=32, batch=512, packing='counted'),
        optimizer=optim.AdaGrad(peak=0.2, initial=0.0, eps=1e-20, schedule=optim.Linear(warmup=1, end=0.01), clip=0.0),
        steps=637, objective=SkipGram(similarity=SETS, analogies='word_similarity/questions-words.txt.gz',
                                      sample='king river music war three'),
        cadence=train.Cadence(log=50))
