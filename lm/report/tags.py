"""Parts of a page as HTML: sections, tables, paragraphs."""
import html


def section(title, *parts):
    """Returns a section with a heading of the parts that are not empty, '' without any."""
    inside = '\n'.join(part for part in parts if part)
    return f'<section>\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>' if inside else ''


def table(head, rows, classes=()):
    """Returns a table that scrolls sideways on a narrow screen. classes: of the columns, '' for none."""
    classes = classes or ('',) * len(head)
    cells = '\n'.join('<tr>' + ''.join(_cell(cell, kind) for cell, kind in zip(row, classes, strict=True)) + '</tr>'
                      for row in rows)
    names = ''.join(f'<th>{html.escape(name)}</th>' for name in head)
    return f'<div class="wide"><table>\n<tr>{names}</tr>\n{cells}\n</table></div>'


def _cell(cell, kind):
    kind = kind(cell) if callable(kind) else kind
    return f'<td{f" class={kind!r}" if kind else ""}>{_breakable(cell)}</td>'


def _breakable(cell):
    """Returns a cell as HTML in which a setting may break before its value."""
    return html.escape(str(cell)).replace('=', '=<wbr>')


def paragraph(text, kind='soft'):
    """Returns a paragraph, '' of an empty text."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ''
