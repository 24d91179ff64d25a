"""`lm data`: builds token caches and shows what is in them."""
from lm import config
from lm.data.cache import prepare, root
from lm.data.corpus import Corpus, prove

JAX = False  # starts no device
SHOWN = 2000  # tokens of a document that --show prints
SHOWN_NAMES = 5


def main(experiment: str, *overrides: str, cache: str = '', show: int = 0):
    """Builds the token caches of an experiment and shows what is in them.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. data.tokenizer.size=8192
        cache: directory of the token caches; $LM_CACHE or ~/.cache/lm by default
        show: how many documents to print, with the borders of their tokens
    """
    from rich.console import Console
    if show < 0:
        raise config.Error(f'--show={show} is no number of documents; try --show=3.')
    corpus = getattr(config.load(experiment, overrides).config, 'data', None)
    if not isinstance(corpus, Corpus):
        raise config.Error(f'{experiment}: config() returned nothing with data; return train.Config(data=...).')
    terminal, built = Console(), []
    for split, source in (('train', corpus.train), ('valid', corpus.valid)):
        if source is not None:
            encoder, caches = prepare(source, corpus.tokenizer, root(cache), train=corpus.train)
            built += [(split, part) for part in caches]
    prove([part for _, part in built]).check(wait=True)
    terminal.print(_table(built))
    for split, part in built:
        terminal.print(f'{split} {part.label} is in {part.directory}', markup=False, highlight=False, soft_wrap=True)
        for reason, rejects in part.report['rejects'].items():
            places = ', '.join(rejects['places'])
            terminal.print(f'  left out {rejects["count"]:,} x {reason}: {places}', markup=False, highlight=False,
                           soft_wrap=True)
        if unchecked := part.report['unchecked']:
            names = ', '.join(unchecked[:SHOWN_NAMES]) + ', ...' * (len(unchecked) > SHOWN_NAMES)
            terminal.print(f'  no checksum in {len(unchecked):,} files, whose damage would not show: {names}',
                           markup=False, highlight=False, soft_wrap=True)
    for part in (part for split, part in built if split == 'train'):
        for number in range(min(show, part.offsets.size - 1)):
            ids = part.document(number)
            terminal.print(_spelled(ids[:SHOWN], encoder), soft_wrap=True)
            if ids.size > SHOWN:
                terminal.print(f'... {ids.size - SHOWN:,} more tokens of this document')


def _table(built):
    from rich.table import Table
    table = Table()
    table.add_column()
    for split, part in built:
        table.add_column(f'{split}\n{part.label}', justify='right')
    for name in ('documents', 'bytes', 'lost', 'tokens', 'vocabulary'):
        table.add_row(name, *(f'{part.report[name]:,}' for _, part in built))
    table.add_row('bytes per token', *(f'{part.report["bytes_per_token"]:.3f}' for _, part in built))
    table.add_row('left out', *(f'{sum(r["count"] for r in part.report["rejects"].values()):,}' for _, part in built))
    table.add_row('no checksum', *(f'{len(part.report["unchecked"]):,}' for _, part in built))
    table.add_row('seconds', *(f'{part.report["seconds"]:.1f}' for _, part in built))
    return table


def _spelled(ids, encoder):
    """Returns the text of `ids`, tokens on two background colours in turn; one without printable text shows as <id>."""
    from rich.text import Text
    line, shown = Text(), ''
    ids = ids.tolist()
    for place, index in enumerate(ids):
        spelled = encoder.decode_after(ids[:place][-1:], [index])
        shown = spelled if spelled and '\ufffd' not in spelled else f'<{index}>'
        line.append(shown.replace('\n', '⏎\n'), ('black on cyan', 'black on yellow')[place % 2])
        line.append('|' * (not shown.endswith('\n')), 'dim')
    return line
