"""The shell that is pid 1 of a sandbox: its script and its command line."""

from __future__ import annotations

MOUNT_POINT = "/dev/palestra"
"""Where the channel's folder appears inside."""

# USR2 comes from the host: kill(-1) from pid 1 reaches everything inside at once, so
# that no fork escapes it. The command runs in the background because bash runs traps
# while it waits, but not while a foreground command runs; a wait that is interrupted
# may say -1. Every other signal is ignored, and given back to what the shell starts.
# The OOM killer shall choose a command before the shell.
# A command that kills its process group shall not hit the shell: job control puts it in
# one of its own without another process, which setsid is. It is off again for the wait,
# which would otherwise end for a command that is only stopped.
_LOOP = r"""
trap '' HUP INT QUIT TERM USR1 PIPE ALRM
trap 'kill -9 -1' USR2
cd -- "$2" || exit 66
lead=; alone=:; together=:; hand_over=by_document
by_document() {
  [ -n "$secret" ] || return 0
  exec 7<<END
$secret
END
}
# A pipe in every bash; in old ones a document is a file, which can be read again.
by_pipe() { [ -z "$secret" ] || eval 'exec 7< <(printf "%s\n" "$secret")'; }
if [ -n "$BASH_VERSION" ]; then alone='set -m'; together='set +m'; hand_over=by_pipe
elif type setsid >/dev/null 2>&1; then lead=setsid; fi
echo ready
exec 2>/dev/null
failures=0
while [ $failures -lt 100 ]; do
  # a signal can interrupt it, which not every shell tells from the end of input
  read -r number how secret || { failures=$((failures + 1)); continue; }
  failures=0
  cd -- "$2" || cd /
  $alone
  (
    trap - HUP INT QUIT TERM USR1 USR2 PIPE ALRM
    echo 500 >/proc/self/oom_score_adj
    exec </dev/null >"$1/$number.out" 2>&1
    $hand_over
    case $how in
      text) IFS= read -r -d '' text <"$1/$number.in"; exec $lead "$3" -c "$text" "${3##*/}" ;;
      file) exec $lead "$3" "$1/$number.in" ;;
    esac
  ) &
  $together
  wait $!; status=$?
  while [ $status -gt 128 ] && kill -0 $!; do wait $!; status=$?; done
  if [ $status -gt 128 ]; then wait $!; status=$?; fi
  if [ $status -lt 0 ]; then status=137; fi
  printf '\n%s %s\n' "$number" "$status"
done
"""


def shell_arguments(*, sandbox_id: str, workdir: str, shell: str) -> list[str]:
    """The command line of the sandbox's pid 1; ``shell`` is a path inside."""
    quiet = ["--norc", "--noprofile"] if shell.endswith("bash") else []
    return [shell, *quiet, "-c", _LOOP, f"palestra-{sandbox_id}", MOUNT_POINT, workdir, shell]
