"""The project's code as one archive in a bucket, from which machines fetch it. Equal code has an equal name there."""

import hashlib
import re
import subprocess
import tempfile

import gcloud
import shell

# Fixed dates and owners make the archive a function of the files. Not 1970: zip files, and hence wheels, begin in 1980.
REPRODUCIBLE = ('--mtime=@946684800', '--owner=0', '--group=0', '--numeric-owner')
IN_IMAGE = 'image'  # --code: the image of the container holds the project, and nothing is copied
REMEDIES = [
    gcloud.LOGIN,
    (r'403|does not have|PERMISSION_DENIED|AccessDenied',
     'this account may not write there; ask for the role Storage Object User (roles/storage.objectUser) on the bucket, '
     'or choose another folder with --code=gs://bucket/folder.'),
    (r'404|not found|NotFound|does not exist',
     'there is no such bucket; run gcloud storage buckets create, or choose another with --code=gs://bucket/folder.'),
]


def folder(code, command):
    """Returns where archives are kept: `code` if it is gs://..., else lm-code in the bucket of the command's --workdir.

    Raises a Fault where neither names a bucket.
    """
    if code and not re.match('gs://[^/]', code):
        raise shell.Fault(f'--code={code} is not a folder in a bucket; try --code=gs://bucket/folder, or --code=image '
                          'if --image holds the project.')
    workdir = re.search(r'--workdir[= ][\'"]?(gs://[^/\s\'"]+)', ' '.join(command))
    if not code and not workdir:
        raise shell.Fault('the command names no bucket to copy the code through; add --workdir=gs://bucket/run, or '
                          '--code=gs://bucket/folder before --, or --code=image if --image holds the project.')
    return code.rstrip('/') if code else f'{workdir[1]}/lm-code'


def packing():
    """Returns the shell command that writes the archive to standard output."""
    return f'{shell.packing("c", *REPRODUCIBLE)} | gzip --no-name'


class Archive:
    """The packed project, and its URL under a folder of a bucket: the sha256 of its bytes is its name."""

    def __init__(self, place):
        shell.need('git', 'install it; it names the files to copy.')
        done = subprocess.run(['bash', '-o', 'pipefail', '-c', packing()], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise shell.Fault(f'git cannot name the files of {shell.ROOT}; try git init there.')
        self.content = done.stdout
        self.digest = hashlib.sha256(self.content).hexdigest()
        self.url = f'{place}/{self.digest}.tgz'

    def __str__(self):
        return f'{len(self.content) / 1e6:.2f} MB, sha256 {self.digest}'

    def uploading(self, file):
        """Returns the command that uploads a file as this archive, unless the bucket has it."""
        return ['gcloud', 'storage', 'cp', '--no-clobber', '--quiet', file, self.url]

    def upload(self):
        """Uploads the archive; raises a Fault with the remedy."""
        shell.need('gcloud', 'install it from https://cloud.google.com/sdk/docs/install and run gcloud auth login.')
        with tempfile.NamedTemporaryFile(suffix='.tgz') as file:
            file.write(self.content)
            file.flush()
            code, _, err = shell.ask(self.uploading(file.name))
        if code:
            raise gcloud.failure(f'copy the code to {self.url}', err, REMEDIES)
