#!/usr/bin/env bash
# Run a command with real container engines and the two test images at hand:
#
#     tools/test_engines.sh python -m pytest
#
# As root on a machine with apt, installs what is missing (chromium too, for the tests of the
# dashboard), starts Docker and Podman's service
# unless they run, makes a Debian and a busybox image, and stops at the end what it started.
# For anybody else it changes nothing: tests that lack something skip and say what.
# With $PALESTRA_TEST_REQUIRE set, an engine that does not start and a place for sandboxes that
# is not there are failures. What is kept for the next time lies in /var/tmp/palestra-tests.
set -euo pipefail

KEPT=/var/tmp/palestra-tests
# PROGRAM:PACKAGE; by program, since Docker may come from elsewhere.
NEEDED=(dockerd:docker.io podman:podman runc:runc skopeo:skopeo docker-registry:docker-registry
    debootstrap:debootstrap busybox:busybox-static)
DEBIAN_PACKAGES=git,python3,python3-pytest,procps
export PALESTRA_TEST_IMAGE=${PALESTRA_TEST_IMAGE:-palestra-test/debian:1}
export PALESTRA_TEST_BUSYBOX=${PALESTRA_TEST_BUSYBOX:-palestra-test/busybox:1}
STARTED=()

say() { echo "test_engines: $*" >&2; }

install_packages() {
    local missing=()
    for needed in "${NEEDED[@]}"; do
        command -v "${needed%:*}" >/dev/null || missing+=("${needed#*:}")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    # Whatever a package wants to start, this script starts and stops itself.
    apt-get update -qq
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >"$KEPT/apt.log" 2>&1 || { tail -n 20 "$KEPT/apt.log" >&2; return 1; }
}

# wait_for SECONDS COMMAND...
wait_for() {
    local left=$(($1 * 5))
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 0.2
    done
}

no_engine() {
    say "$1 does not start:"
    tail -n 5 "$KEPT/$1.log" >&2
    [ -z "${PALESTRA_TEST_REQUIRE:-}" ] || exit 1
}

# Best effort: where a distribution has none, tests of the dashboard in a browser skip.
install_browser() {
    command -v chromium chromium-browser >/dev/null && return
    say "installing chromium"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium \
        >"$KEPT/chromium.log" 2>&1 || say "no chromium: $(tail -n 1 "$KEPT/chromium.log")"
}

start_docker() {
    docker info >/dev/null 2>&1 && return
    setsid dockerd >"$KEPT/docker.log" 2>&1 &
    STARTED+=($!)
    wait_for 60 docker info || no_engine docker
}

start_podman() {
    local socket=$KEPT/podman.sock
    # crun refuses machines with cgroups of both versions; runc takes them.
    setsid podman --runtime runc system service --time 0 "unix://$socket" \
        >"$KEPT/podman.log" 2>&1 &
    STARTED+=($!)
    export CONTAINER_HOST=unix://$socket
    wait_for 60 answers "$socket" || no_engine podman
}

answers() {
    python3 - "$1" <<'PY'
import http.client, socket, sys
connection = http.client.HTTPConnection("engine", timeout=5)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("GET", "/_ping")
assert connection.getresponse().status == 200
PY
}

make_debian() {
    local tree=$KEPT/debian
    if [ ! -e "$tree.done" ]; then
        say "making a Debian tree"
        rm -rf "$tree"
        # From where apt has its packages, whatever that is here.
        release=$(. /etc/os-release && echo "$VERSION_CODENAME")
        site=$(apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' |
            awk -v release="$release" '$1 == release && $2 ~ /^http/ { print $2; exit }')
        # shellcheck disable=SC2086 # without a site, debootstrap knows one
        debootstrap --variant=minbase --include="$DEBIAN_PACKAGES" "$release" "$tree" $site \
            >"$KEPT/debootstrap.log" 2>&1 || { tail -n 5 "$KEPT/debootstrap.log" >&2; return 1; }
        rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
        touch "$tree.done"
    fi
    export PALESTRA_TEST_ROOTFS=$tree
}

make_busybox() {
    local tree=$KEPT/busybox
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,dev,etc,proc,root,sys,tmp}
    chmod 1777 "$tree/tmp"
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for name in $(busybox --list); do
        [ -e "$tree/bin/$name" ] || ln -s busybox "$tree/bin/$name"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
}

# import_image ENGINE NAME TREE
import_image() {
    "$1" info >/dev/null 2>&1 || return 0  # said above
    "$1" image inspect "$2" >/dev/null 2>&1 ||
        tar -C "$3" --numeric-owner -c . | "$1" import - "$2" >/dev/null
}

stop() {
    for pid in "${STARTED[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${STARTED[@]}"; do wait "$pid" 2>/dev/null || true; done
}

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "not root, or no apt: tests that need container engines skip unless they run already"
    exec "$@"
fi
mkdir -p "$KEPT"
trap stop EXIT
install_packages
install_browser
start_docker
make_debian
make_busybox
for engine in docker podman; do
    import_image $engine "$PALESTRA_TEST_IMAGE" "$PALESTRA_TEST_ROOTFS"
    import_image $engine "$PALESTRA_TEST_BUSYBOX" "$KEPT/busybox"
done
start_podman
status=0
"$@" || status=$?
exit $status
