"""What runs on the workers of a TPU slice, as text of a shell: ~/lm is the project, ~/lm.run token, pid, log and code.

A bucket becomes a folder as https://cloud.google.com/storage/docs/cloud-storage-fuse/install says.
"""

UNPACK = 'mkdir -p ~/lm && tar xzf ~/lm.tgz -C ~/lm'
MOUNT = r'''mountpoint -q {results} && exit
command -v gcsfuse >/dev/null || {{
    from=https://packages.cloud.google.com/apt key=/usr/share/keyrings/gcsfuse.asc
    curl -fsS "$from/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $from gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse >/dev/null
}} || exit
sudo mkdir -p {results} && sudo gcsfuse -o allow_other --implicit-dirs --file-mode=666 --dir-mode=777 {bucket} \
    {results} >/dev/null'''
INSTALL = 'cd ~/lm && LM_EXTRAS=tpu launch/install.sh'
START = r'''mkdir -p ~/lm.run && cd ~/lm.run
[ "$(cat token 2>/dev/null)" != {token} ] || exit 0
[ ! -f pid ] || [ -f code ] || ! kill -0 "$(cat pid)" 2>/dev/null || exit 0
rm -f code; echo {token} >token; cd ~/lm; export LM_EXTRAS=tpu
setsid bash -c {run} >~/lm.run/log 2>&1 </dev/null &
echo $! >~/lm.run/pid'''
RUN = 'trap : TERM; {command}; echo $? >~/lm.run/code'
FOLLOW = r'''cd ~/lm.run
tail -s 0.2 -n +{first} --pid="$(cat pid)" -f log | grep --line-buffered -n ''; echo "exit $(cat code)"'''
STOP = 'pkill -TERM -P "$(cat ~/lm.run/pid)"'
CHECK = r'''cd ~/lm.run; timeout 60 tail --pid="$(cat pid)" -f /dev/null; code=$(cat code 2>/dev/null || echo 137)
[ $code = 0 ] || { echo "$(hostname) ended with code $code; the end of its log:"; tail -n 30 log; }; exit $code'''
