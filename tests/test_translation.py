"""Multi30k's captions by a model a fifth as large as the experiment's, trained for an eighth of its steps."""
import pathlib

FILE = pathlib.Path(__file__).resolve().parents[1] / 'experiments' / 'transformer_multi30k.py'
SMALL = ['model.vocab=4000', 'data.tokenizer.size=4000', 'model.width=128', 'model.encoder.depth=2',
         'model.decoder.depth=2', 'steps=200', 'optimizer.schedule.warmup=20', 'cadence.eval=200', 'objective.sample=']
