"""Tables, numbers and times as plain text."""

UNITS = ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k'))


def columns(head, rows):
    """Returns a table as text with aligned columns, never truncated; without a head where all of it is ''."""
    rows = [*([head] if any(head) else []), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


def short(value):
    """Returns a number with three significant digits and a unit: '1.23B' for 1.23e9, '52.3k' for 52,310."""
    value = float(f'{value:.3g}')  # first, so that 999,900 is 1M and not 1000k
    unit, letter = next((pair for pair in UNITS if abs(value) >= pair[0]), (1, ''))
    return f'{value / unit:.3g}{letter}' if abs(value) < 1e21 else f'{value:.3g}'


def clock(seconds):
    """Returns seconds as 'hours:minutes:seconds'."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
