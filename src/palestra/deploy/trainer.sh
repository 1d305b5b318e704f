#!/bin/sh
# Waits for the environment, trains, and stays when training has ended, so that one can look
# inside. What healthy.py says of the service stands in files below $STATE.
#
#   PALESTRA_TRAIN    what follows `palestra train`: a recipe and options, or --resume DIR
#   PALESTRA_WAIT_S   seconds to wait for the environment server

set -u
STATE=/run/palestra
HERE=$(dirname "$0")
child=
stopping=

stop() {
    stopping=1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

# A trap ends `wait` before the child has ended.
finish() {
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        code=$?
    done
    child=
    return $code
}

mkdir -p "$STATE"
rm -f "$STATE/began" "$STATE/ended"

python3 "$HERE/healthy.py" wait &
child=$!
finish
code=$?

if [ $code = 0 ] && [ -z "$stopping" ]; then
    # Under the container's own name the gateway is found whatever address it has. The port is
    # one of this container alone.
    # shellcheck disable=SC2086 # options are words
    palestra train ${PALESTRA_TRAIN:-demo} --set runs=/runs \
        --set gateway.host=0.0.0.0 --set gateway.port=11001 \
        --set "gateway.public_url=http://$(cat /etc/hostname):11001" &
    child=$!
    finish
    code=$?
fi
echo "$code" >"$STATE/ended"
[ -z "$stopping" ] || exit "$code"

echo "training has ended with exit code $code; the runs are in /runs, and this container stays" >&2
sleep infinity &
child=$!
finish
exit "$code"
