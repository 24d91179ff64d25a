"""Pages as a real browser sees them."""
import subprocess


def opened(browser, path, profile, *flags):
    """Returns (the document as the browser leaves it, what its console said)."""
    done = subprocess.run([browser, '--headless=new', '--no-sandbox', '--disable-gpu', f'--user-data-dir={profile}',
                           '--enable-logging=stderr', '--virtual-time-budget=3000', '--dump-dom', *flags,
                           path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
