"""HTML elements: sections, tables, paragraphs."""
import html


def section(title, *parts):
    """Returns a section of the non-empty parts under a heading, '' if all are empty."""
    inside = '\n'.join(part for part in parts if part)
    return f'<section>\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>' if inside else ''


def table(head, rows, classes=()):
    """Returns a table that scrolls sideways on a narrow screen.

    classes: one CSS class a column, '' for none, or a function of the cell's text that returns one.
    """
    classes = classes or ('',) * len(head)
    cells = '\n'.join('<tr>' + ''.join(_cell(cell, kind) for cell, kind in zip(row, classes, strict=True)) + '</tr>'
                      for row in rows)
    names = ''.join(f'<th>{html.escape(name)}</th>' for name in head)
    return f'<div class="wide"><table>\n<tr>{names}</tr>\n{cells}\n</table></div>'


def _cell(cell, kind):
    kind = kind(cell) if callable(kind) else kind
    text = html.escape(str(cell)).replace('=', '=<wbr>')  # a long setting may wrap before its value
    return f'<td{f" class={kind!r}" if kind else ""}>{text}</td>'


def paragraph(text, kind='soft'):
    """Returns a paragraph of a CSS class, '' for an empty text."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ''
