"""Tables as plain text."""


def columns(head, rows):
    """Returns a table as text with aligned columns, never truncated. head: no line for it where all are ''."""
    rows = [*([head] if any(head) else []), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
