#!/usr/bin/env bash
# Runs a command in the project's own Python environment, which the first run creates.
#
#     launch/local.sh lm train experiments/quickstart.py
#     launch/local.sh pytest
#
# The command runs in the current directory. Settings, all optional, come from the environment:
#     LM_PYTHON   the interpreter to build on (3.11 or newer); otherwise the first found of python3.13, 3.12, 3.11, python3
#     LM_VENV     the folder of the environment, relative to the project (.venv); new, empty or created by this script
#     LM_EXTRAS   extras of setup.py to install beside `test`, e.g. cuda, tpu or none; otherwise found from the machine
set -euo pipefail

# Shows one line, whatever settings it holds; of a very long one the beginning and the end.
say() {
    local line=${*//[[:cntrl:]]/ }
    ((${#line} < 1000)) || line="${line:0:400} ... ${line: -400}"
    printf 'local.sh: %s\n' "$line" >&2 || :
}
die() { say "$@"; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
[[ -r $root/setup.py ]] || die "$root/setup.py cannot be read; chmod +r it, or ask its owner to."
venv=$(cd "$root" && realpath -m -- "${LM_VENV:-.venv}" 2>/dev/null) || die 'LM_VENV is no path; set it to a folder.'
# All that this script writes and removes is in the folder of the environment.
stamp=$venv/installed
marker=$venv/created-by-local.sh
log=$venv/install.log

version_of() {
    local program version
    program=$(type -P -- "$1") &&
        version=$("$program" -c 'import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null) && [[ $version =~ ^3\.[0-9] ]] && printf '%s' "$version"
}

find_python() {
    local candidate
    if [[ -n ${LM_PYTHON:-} ]]; then
        version_of "$LM_PYTHON" >/dev/null ||
            die "LM_PYTHON=$LM_PYTHON is not a Python of version 3.11 or newer; name one, or unset LM_PYTHON."
        type -P -- "$LM_PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        if version_of "$candidate" >/dev/null; then
            type -P "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer on PATH; apt install python3, or name one: LM_PYTHON=/path/to/python3.12 $0 ..."
}

accelerator() {
    if [[ -n ${LM_EXTRAS:-} ]]; then
        printf '%s' "$LM_EXTRAS"
    elif command -v nvidia-smi >/dev/null; then
        printf 'nvidia'
    elif grep -qsiE '^pci:v00001AE0d000000(27|56|5E|62|63|6F|76|7C|83)' /sys/bus/pci/devices/*/modalias; then
        printf 'tpu'
    else
        printf 'none'
    fi
}

# What an installation depends on: an environment is up to date if its stamp says just this.
wanted() { printf 'root %s\npython %s\naccelerator %s\n%s\n' "$root" "$1" "$(accelerator)" "$(<"$root/setup.py")"; }

up_to_date() {
    local version
    [[ -f $stamp ]] && version=$(version_of "$venv/bin/python") || return 1
    [[ -z ${LM_PYTHON:-} || $version == "$(version_of "$LM_PYTHON")" ]] || return 1
    [[ $(<"$stamp") == "$(wanted "$version")" ]]
}

extras() {
    local found driver
    found=$(accelerator)
    if [[ $found == nvidia ]]; then
        driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || driver=
        case ${driver%%.*} in
            '' | *[!0-9]*) found=none ;;
            *) if ((${driver%%.*} >= 580)); then found=cuda; else found=cuda12; fi ;;
        esac
    fi
    if [[ $found == none ]]; then printf 'test'; else printf 'test,%s' "$found"; fi
}

# An environment that this script has created: nothing else is ever changed or removed.
ours() { [[ -f $venv/pyvenv.cfg ]] && { [[ -f $marker ]] || grep -qs '^root /' "$stamp"; }; }

# Whether the folder may become an environment: it does not exist, is empty, or was marked just before the first file.
vacant() {  # the marker is looked for last: another run may be writing it now, into a folder that was empty
    [[ ! -e $venv ]] || [[ -d $venv && -z $(shopt -s nullglob dotglob; printf '%s' "$venv"/*) ]] || [[ -f $marker ]]
}

# Refuses settings that cannot be, and folders in which an environment would not work or may not be. The scripts of an
# environment name its Python in their first line, which a shell reads where the path is long or has spaces.
check() {
    local folder
    [[ ${LM_EXTRAS:-none} =~ ^[A-Za-z0-9._,-]+$ ]] || die "LM_EXTRAS=$LM_EXTRAS lists no extras; try cuda, tpu or none."
    [[ "$venv${LM_VENV:-}" != *[[:cntrl:]:\"\'\\\`\$\;\&\|\<\>\(\)]* ]] ||
        die "$venv has characters that a script cannot name its Python by; set LM_VENV to a folder without."
    for folder in "$root" "${HOME:-/}"; do
        [[ $(realpath -m -- "$folder")/ != "${venv%/}"/* ]] || die "$venv holds $folder; set LM_VENV to another folder."
    done
    ours || vacant || die "$venv exists and was not created by local.sh; set LM_VENV to another folder, or remove it."
}

mark() {
    { mkdir -p -- "$venv" && : >>"$marker" && { [[ -s $marker ]] || printf '%s\n' "$root" >"$marker"; }; } 2>/dev/null ||
        die "could not write to $venv; set LM_VENV to a folder that can be written to."
}

# Removes what installers put into an environment, and nothing that somebody else has put there.
empty() { rm -rf -- "$venv"/{bin,etc,include,lib,lib64,share} "$stamp"; }

create() {
    local python=$1
    ! ours || empty
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv "$venv" || die "could not create $venv with $python."
        return
    fi
    local package
    package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
    if "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet "$venv" || die "could not create $venv with virtualenv."
    elif [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        say "$python lacks the module venv; installing the package $package"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$package"; } >"$log" 2>&1 ||
            die "could not install $package (see $log); run: apt install $package"
        "$python" -m venv "$venv" || die "could not create $venv with $python."
    else
        die "$python lacks the module venv; run: sudo apt install $package (or python3-venv), then this again."
    fi
}

# Shows the latest line of standard input in place on a terminal, and nothing elsewhere.
latest_line() {
    local line
    while IFS= read -r line; do
        [[ ! -t 2 ]] || printf '\r\033[K%.*s' $((${COLUMNS:-80} - 1)) "$line" >&2
    done
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

install() {
    local python=$venv/bin/python old='' version new
    if [[ -f $stamp ]] && old=$(version_of "$python"); then
        [[ -z ${LM_PYTHON:-} || $old == "$(version_of "$LM_PYTHON")" ]] || old=
        grep -qxF "root $root" "$stamp" && grep -qxF "python $old" "$stamp" || old=
    fi
    rm -f -- "$stamp"
    if [[ -z $old ]]; then
        local base
        base=$(find_python)
        say "creating $venv on $base"
        create "$base"
    fi
    version=$(version_of "$python") || die "$python does not run; remove $venv and run this again."
    new=$(wanted "$version")
    say "installing lm[$(extras)]; this takes a few minutes once (progress in $log)"
    if ! "$python" -m pip install --disable-pip-version-check --progress-bar off -e "$root[$(extras)]" 2>&1 |
        tee "$log" | latest_line; then
        grep -E '^(ERROR|error)' "$log" | tail -n 5 >&2 || tail -n 5 "$log" >&2
        die "pip could not install the packages; the whole output is in $log"
    fi
    printf '%s\n' "$new" >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

if (($# == 0)); then
    sed -n '2,/^set -/{s/^# \{0,1\}//;/^set -/!p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
if ! up_to_date; then
    check
    mark
    (
        flock -n 9 || { say "another run is installing; waiting for it"; flock 9; }
        up_to_date || install 9>&-
    ) 9>>"$marker"
fi
export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
unset PYTHONHOME
# Huge pages spare the page faults of large temporaries: a CPU step of 10M parameters takes about a tenth less time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
type -P -- "$1" >/dev/null || die "no command '$1'; try: $0 lm --help"
exec -- "$@"
