"""The shell that is pid 1 of a container: its scripts, their command line and their framing.

In an image with bash it is bash; elsewhere ``sh``, of which no more is asked than what
busybox and dash have.
"""

from __future__ import annotations

from enum import IntEnum


class Ready(IntEnum):
    """What the shell answers when it is ready."""

    BASH = 0
    SH = 1
    NO_WORKDIR = 66


# USR2 comes from the engine: kill(-1) from pid 1 reaches everything inside at once, so that
# no fork escapes it. The end is said there too: whatever would have said it is dead.
# Every other signal is ignored, and given back to what the shell starts.
# The OOM killer shall choose a command before the shell. A command that kills its process
# group shall not hit the shell: job control puts it in one of its own; it is off again for
# the wait, which would otherwise end for a command that is only stopped.
_BASH = r"""
trap '' HUP INT QUIT TERM USR1 PIPE ALRM
secret=$2 nonce=$2 forwarder= killed= heard=
trap 'kill -9 -1; killed=1 forwarder=; printf "\0%s 137\0" "$nonce"' USR2
cd -- "$1" || { printf '\0%s 66\0' "$nonce"; exit 66; }
exec 3<> <(:)
forward() {
  exec 5>&-
  cat <&0 &
  echo "$number $!" >&3
  wait $!; status=$?
  echo "$number ended" >&3
  [ $status = 0 ] || exec cat >/dev/null 3>&-
}
hear() {
  said= polls=0
  while [ -z "$killed" ] && [ $polls -lt $1 ]; do
    # on a busy machine the time can be over in the middle of a line
    if IFS= read -r -t 0.1 -u 3 part; then
      heard=$heard$part of=${heard%% *} said=${heard#* } heard=
      [ "$of" = "$number" ] && return
    else heard=$heard$part polls=$((polls + 1)); fi
  done
  said=
}
printf '\0%s 0\0' "$nonce"
exec 2>/dev/null
failures=0
while [ $failures -lt 100 ]; do
  # a signal can interrupt it
  read -r word next_number next_nonce num_bytes key || { failures=$((failures + 1)); continue; }
  [ "$word" = "$secret" ] || continue
  # bash reads a pipe byte by byte; a head that is killed leaves the rest to it
  text= rest= killed=
  [ "$num_bytes" -lt 4096 ] || { text=$(head -c "$num_bytes"; printf x); text=${text%x}; }
  IFS= read -r -d '' rest || continue
  failures=0
  if [ -n "$forwarder" ]; then
    kill -9 "$forwarder"
    hear 2
  fi
  number=$next_number nonce=$next_nonce
  cd -- "$1" || cd /
  printf '\0%s begin\0' "$nonce"
  exec 5> >(forward)
  hear 100
  forwarder=$said
  set -m
  (
    trap - HUP INT QUIT TERM USR1 USR2 PIPE ALRM
    echo 500 >/proc/self/oom_score_adj
    exec </dev/null >&5 2>&1 3>&- 5>&-
    [ -z "$killed" ] || exit 137
    [ -z "$key" ] || exec 7< <(printf '%s\n' "$key")
    exec bash -c "$text$rest" bash
  ) &
  set +m
  wait $!; status=$?
  while [ $status -gt 128 ] && kill -0 $!; do wait $!; status=$?; done
  if [ $status -gt 128 ]; then wait $!; status=$?; fi
  if [ $status -lt 0 ]; then status=137; fi
  printf '\0%s %s\0' "$nonce" "$status" >&5 || printf '\0%s %s\0' "$nonce" "$status"
  exec 5>&-
done
"""

# The same with less: no process substitution, so that the command's
# pipe is opened by way of its reader; no read with a time-out or a delimiter, so that a
# command comes as lines. What is kept of the pipe to ourselves is no name in any folder.
# A line that was cut by a signal can be the last one: whoever sends the signal sends it again.
# "command exec", or else a redirection that fails ends the shell.
_SH = r"""
trap '' HUP INT QUIT TERM USR1 PIPE ALRM
secret=$2 nonce=$2 forwarder= killed=
trap 'kill -9 -1; killed=1 forwarder=; printf "\0%s 137\0" "$nonce"; echo >&3' USR2
cd -- "$1" || { printf '\0%s 66\0' "$nonce"; exit 66; }
exec 3</dev/null
for folder in /dev/shm /tmp /; do
  mkfifo -m 600 "$folder/palestra-$2" 2>/dev/null || continue
  exec 3<>"$folder/palestra-$2"
  rm -f "$folder/palestra-$2"
  break
done
lead=
if type setsid >/dev/null 2>&1; then lead=setsid; fi
forward() {
  exec 5>/proc/self/fd/0 6<&0
  cat <&6 5>&- 3>&- &
  echo "$number $!" >&3
  wait $!
  exec 5>&-
  exec cat <&6 >/dev/null 3>&-
}
hand_over() {
  exec 7<<END
$key
END
}
silence() {
  kill -9 "$forwarder"
  polls=0
  while kill -0 "$forwarder" && [ $polls -lt 1000 ]; do polls=$((polls + 1)); done
}
printf '\0%s 1\0' "$nonce"
exec 2>/dev/null
failures=0
while [ $failures -lt 100 ]; do
  read -r word next_number next_nonce key || { failures=$((failures + 1)); continue; }
  failures=0
  [ "$word" = "$secret" ] || continue
  text= killed=
  while [ $failures -lt 100 ]; do
    IFS= read -r line || { failures=$((failures + 1)); continue; }
    [ "$line" != "$next_nonce" ] || break
    text="$text$line
"
  done
  text=${text%?}
  [ -z "$forwarder" ] || silence
  number=$next_number nonce=$next_nonce forwarder=
  cd -- "$1" || cd /
  printf '\0%s begin\0' "$nonce"
  : | forward &
  reader=$! of=
  while [ "$of" != "$number" ] && [ -z "$killed" ]; do
    read -r of forwarder <&3 || break
  done
  [ -z "$killed" ] || forwarder=
  command exec 5>"/proc/$reader/fd/0" || exec 5>&1
  (
    trap - HUP INT QUIT TERM USR1 USR2 PIPE ALRM
    echo 500 >/proc/self/oom_score_adj
    exec </dev/null >&5 2>&1 3>&- 5>&-
    [ -z "$killed" ] || exit 137
    [ -z "$key" ] || hand_over
    exec $lead sh -c "$text" sh
  ) &
  wait $!; status=$?
  while [ $status -gt 128 ] && kill -0 $!; do wait $!; status=$?; done
  if [ $status -gt 128 ]; then wait $!; status=$?; fi
  printf '\0%s %s\0' "$nonce" "$status" >&5 || printf '\0%s %s\0' "$nonce" "$status"
  exec 5>&-
done
"""

_CHOOSE = r"""
if command -v bash >/dev/null 2>&1; then exec bash --norc --noprofile -c "$3" "$0" "$1" "$2"; fi
exec /bin/sh -c "$4" "$0" "$1" "$2"
"""


def shell_arguments(*, sandbox_id: str, workdir: str, nonce: str) -> list[str]:
    """The command line of the container's pid 1, which answers ``nonce`` when it is ready."""
    name = f"palestra-{sandbox_id}"
    return ["/bin/sh", "-c", _CHOOSE, name, workdir, nonce, _BASH, _SH]


def framed(
    text: bytes, *, number: int, nonce: str, secret: str, shell: Ready, key: str = ""
) -> bytes:
    """What has the shell run a command.

    Args:
        text: of the command, without NUL.
        number: of the command, from 1.
        nonce: fresh; what the shell says around the command's output.
        secret: the nonce that the shell was started with.
        shell: which of the two is listening.
        key: what the command can read once, from descriptor 7.
    """
    # A command can write here, by way of /proc/1/fd: what it leaves shall be a line of its own.
    header = f"\n{secret} {number} {nonce}"
    if shell is Ready.SH:
        return f"{header} {key}\n".encode() + text + f"\n{nonce}\n".encode()
    return f"{header} {len(text)} {key}\n".encode() + text + b"\0"


def closing(nonce: str, shell: Ready) -> bytes:
    """What ends a frame of which a signal made the shell lose the end; else it is nothing."""
    return b"\n%s\n" % nonce.encode() if shell is Ready.SH else b""
