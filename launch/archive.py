"""The project's code as one archive in a bucket, from which machines fetch it. Equal code has an equal name there."""

import hashlib
import os
import re
import subprocess
import tempfile

import gcloud
import shell

# Fixed dates and owners make the archive a function of the files. Not 1970: zip files, and hence wheels, begin in 1980.
REPRODUCIBLE = ('--mtime=@946684800', '--owner=0', '--group=0', '--numeric-owner')
# What git does not ignore, without pictures and pages of results.
FILES = ('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', '--', '.', ':!*.png',
         ':!experiments/*.html')
IN_IMAGE = 'image'  # --code: the image of the container holds the project, and nothing is copied
REMEDIES = [
    gcloud.LOGIN,
    (r'403|does not have|PERMISSION_DENIED|AccessDenied',
     'this account may not write there; ask for the role Storage Object User (roles/storage.objectUser) on the bucket, '
     'or choose another folder with --code=gs://bucket/folder.'),
    (r'404|not found|NotFound|does not exist',
     'there is no such bucket; run gcloud storage buckets create, or choose another with --code=gs://bucket/folder.'),
]


def folder(code, bucket):
    """Returns where archives are kept: `code` if it is gs://..., else lm-code in the bucket of this name.

    Raises a Fault where neither names a bucket.
    """
    if code and not re.match('gs://[^/]', code):
        raise shell.Fault(f'--code={code} is not a folder in a bucket; try --code=gs://bucket/folder, or --code=image '
                          'if --image holds the project.')
    if not code and not bucket:
        raise shell.Fault('there is no bucket to copy the code through; add --bucket=NAME, or --code=gs://bucket/folder'
                          ', or --code=image if --image holds the project.')
    return code.rstrip('/') if code else f'gs://{bucket}/lm-code'


def packing(how, *options):
    """Returns the shell command that gives the project's files to tar, `how` being its letters, e.g. cz.

    Tracked files that are deleted are left out, as git does; `packed` refuses those that cannot be read.
    """
    return (f'cd {shell.shown([shell.ROOT])} && {shell.shown(FILES)} | '
            f'tar --null --ignore-failed-read {" ".join([*options, f"-{how}"])}f - -T -')


def packed(command):
    """Returns the output of a shell command that packs the project; raises a Fault where it would lack files."""
    shell.need('git', 'install it; it names the files to copy.')
    code, names, err = shell.ask(['git', '-C', shell.ROOT, *FILES[1:]])
    if code:
        reason = next((line for line in err.splitlines() if line.startswith('fatal: ')), f'code {code}')
        remedy = (f'run git config --global --add safe.directory {shell.ROOT}' if 'ownership' in reason else
                  'try git init there')
        raise shell.Fault(f'git cannot name the files of {shell.ROOT}: {reason.removeprefix("fatal: ")}; {remedy}.')
    for path in (shell.ROOT / name for name in names.split('\0') if name):
        if path.exists() and not os.access(path, os.R_OK):
            raise shell.Fault(f'{path} cannot be read, and would not be copied; chmod +r it, or add it to .gitignore.')
    done = subprocess.run(['bash', '-o', 'pipefail', '-c', command], capture_output=True, check=False)
    if done.returncode:
        reason = os.fsdecode(done.stderr).strip().rpartition('\n')[2]
        raise shell.Fault(f'the files of {shell.ROOT} cannot be packed (code {done.returncode}: {reason}); mend that, '
                          'and run this again.')
    return done.stdout


class Archive:
    """The packed project, and its URL under a folder of a bucket: the sha256 of its bytes is its name."""

    command = f'{packing("c", *REPRODUCIBLE)} | gzip --no-name'

    def __init__(self, place):
        self.content = packed(self.command)
        self.digest = hashlib.sha256(self.content).hexdigest()
        self.url = f'{place}/{self.digest}.tgz'

    def __str__(self):
        return f'{len(self.content) / 1e6:.2f} MB, sha256 {self.digest}'

    def uploading(self, file):
        """Returns the command that uploads a file as this archive, unless the bucket has it."""
        return ['gcloud', 'storage', 'cp', '--no-clobber', '--quiet', file, self.url]

    def upload(self):
        """Uploads the archive; raises a Fault with the remedy."""
        shell.need('gcloud', gcloud.MISSING)
        with tempfile.NamedTemporaryFile(suffix='.tgz') as file:
            file.write(self.content)
            file.flush()
            code, _, err = shell.ask(self.uploading(file.name))
        if code:
            raise gcloud.failure(f'copy the code to {self.url}', err, REMEDIES)
