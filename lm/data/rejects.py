"""What could not be used, in words: how many of each reason, where the first is, and what to do about most of it."""
import re

FIRST = re.compile(r':1( \(begins .*\))?$')  # a place in the first line of a file
JSON_LINES = 'write one JSON object a line (jq -c . does), or rename them to end in .txt to read them as text'


def counts(rejects):
    """Returns the rejects of a report in words: how many of each reason, and where the first is."""
    return '; '.join(f'{reject["count"]:,} x {reason}, first at {reject["places"][0]}'
                     for reason, reject in rejects.items())


def remedy(rejects):
    """Returns what helps against the reason for most of the rejects of a report, which names their first places."""
    reason, reject = max(rejects.items(), key=lambda item: (item[1]['bytes'], item[1]['count']))
    place = reject['places'][0]
    if reason.startswith('no field') and (name := re.search(r"\(has '([^']*)'", place)):
        return f"name the field that holds the text, as in data.Files(field='{name[1]}')"
    if reason == 'not valid UTF-8':
        return 'convert them to UTF-8, as by iconv -f LATIN1 -t UTF-8'
    if reason in ('broken JSON', 'no JSON object') and FIRST.search(place):
        return JSON_LINES
    return 'mend the files'
