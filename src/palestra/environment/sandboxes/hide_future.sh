# Leaves nothing in this file system that a repository knew after one commit. POSIX sh, git,
# coreutils, find, xargs, awk. Run once for an image, in a sandbox whose changes are then kept.
#
#     set -- FOLDER COMMIT VERSION [PATCH]; . this file
#
# With a patch, COMMIT is made first: the patched tree of HEAD, without parents.
#
# Nothing is taken out of the old repository: a new one is made that holds what COMMIT reaches
# (and what the index names that also lies in the working tree), and the old one is removed with
# all it has: reflogs, stashes, remotes, notes, replacements, hooks, settings.
set -eu
export LC_ALL=C GIT_NO_REPLACE_OBJECTS=1 GIT_GRAFT_FILE=/dev/null GIT_TERMINAL_PROMPT=0
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_NO_LAZY_FETCH=1
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES
export TZ=UTC0
tab=$(printf '\t')
work=$(mktemp -d /tmp/palestra-hide.XXXXXX)

fail() { echo "cannot hide what came after the base commit: $*"; exit 1; }
plain_git() { command git -c 'safe.directory=*' -c core.fsmonitor=false -c core.hooksPath=/dev/null \
  -c gc.auto=0 -c core.untrackedCache=false -c core.splitIndex=false -c core.quotePath=true \
  -c core.warnAmbiguousRefs=false -c advice.detachedHead=false \
  -c advice.graftFileDeprecated=false "$@"; }
# The new repository, while it is not in its place yet.
new_git() { GIT_DIR=$new GIT_WORK_TREE=$top plain_git "$@"; }

# hide FOLDER COMMIT: the repository of FOLDER. A function in a subshell, since it calls itself.
hide() (
  cd "$1"
  top=$(plain_git rev-parse --show-toplevel) || fail "$1 is in no git repository"
  cd "$top"
  old=$(plain_git rev-parse --absolute-git-dir)
  common=$(cd "$(plain_git rev-parse --git-common-dir)" && pwd -P)
  base=$(plain_git rev-parse --verify -q "$2^{commit}") || fail "$top has no commit $2"
  new=$top/.palestra-git
  scratch=$(mktemp -d "$work/XXXXXX")
  rm -rf "$new"
  make_repository
  copy_history
  copy_index
  plain_git worktree list --porcelain | sed -n 's/^worktree //p' >"$scratch/worktrees"
  plain_git ls-tree "$base" | awk '$2 == "tree" { print $3 }' >"$scratch/folders"
  submodules
  other_worktrees
  alternates "$common/objects"
  rm -rf "$top/.git" "$old" "$common"
  mv "$new" "$top/.git"
  other_copies
)

make_repository() {
  # git before 2.28 knows sha1 only, and says the option itself.
  format=$(plain_git rev-parse --show-object-format 2>/dev/null || :)
  [ "$format" = sha256 ] && format=--object-format=sha256 || format=
  # shellcheck disable=SC2086 # may be empty
  GIT_DIR=$new plain_git init -q --bare --template= $format
  rm -f "$new/description"
  mkdir -p "$new/info" "$new/refs/heads" "$new/refs/tags"
  for name in exclude attributes; do
    [ ! -f "$common/info/$name" ] || cp "$common/info/$name" "$new/info/$name"
  done
  new_git config core.bare false
  for key in filemode symlinks ignorecase autocrlf eol safecrlf; do
    value=$(plain_git config --get "core.$key") || continue
    new_git config "core.$key" "$value"
  done
  new_git config core.logAllRefUpdates true
  # Inodes, owners and change times look different in each sandbox: without these, git would
  # read every file of the working tree again in each.
  new_git config core.checkStat minimal
  new_git config core.trustctime false
}

copy_history() {
  base_s=$(plain_git show -s --format=%ct "$base")
  # Tags that stand on the way to the commit and are not younger than it.
  plain_git for-each-ref --merged="$base" \
    --format='%(objectname) %(refname) %(taggerdate:unix)' refs/tags |
    awk -v most="$base_s" '$3 == "" || $3 <= most { print $1, $2 }' >"$scratch/tags"
  # One of many tasks of an image: its pack is made for little work, not for little room.
  [ -s "$work/former" ] && packing="--window=0 --compression=1" || packing=
  # shellcheck disable=SC2086 # words
  { echo "$base"; cut -d' ' -f1 "$scratch/tags"; } |
    plain_git pack-objects -q --revs --delta-base-offset $packing "$new/objects/pack/pack" >/dev/null
  if [ -s "$common/shallow" ]; then
    plain_git rev-list "$base" >"$scratch/commits"
    grep -Fxf "$scratch/commits" "$common/shallow" >"$new/shallow" || rm -f "$new/shallow"
  fi
  branch=$(plain_git symbolic-ref -q HEAD || :)
  {
    awk '{ print "create", $2, $1 }' "$scratch/tags"
    [ -z "$branch" ] || echo "create $branch $base"
  } | new_git update-ref --stdin
  if [ -n "$branch" ]; then
    new_git symbolic-ref HEAD "$branch"
  else
    new_git update-ref --no-deref HEAD "$base"
  fi
  new_git pack-refs --all
  [ -f "$new/packed-refs" ] || : >"$new/packed-refs"
  rm -rf "$new/logs" "$new/branches" "$new/hooks"
}

# The index as it is, but for what is neither in the history nor in the working tree.
copy_index() {
  plain_git update-index -q --refresh >/dev/null || :
  plain_git ls-files -s >"$scratch/entries"
  plain_git ls-files -t | sed -n 's/^S //p' >"$scratch/skipped"
  plain_git ls-files -v | sed -n 's/^[a-z] //p' >"$scratch/assumed"
  awk '$1 != "160000" { print $2 }' "$scratch/entries" | sort -u |
    new_git cat-file --batch-check='%(objectname)' | sed -n 's/ missing$//p' >"$scratch/foreign"
  cp "$scratch/entries" "$scratch/kept"
  if [ -s "$scratch/foreign" ]; then sift_foreign; fi
  new_git update-index --index-info <"$scratch/kept"
  new_git update-index --skip-worktree --stdin <"$scratch/skipped"
  new_git update-index --assume-unchanged --stdin <"$scratch/assumed"
  new_git update-index -q --refresh >/dev/null || :
  # Remembers the trees' ids, where that makes no tree that is not there.
  if new_git diff-index --cached --quiet "$base"; then new_git write-tree >/dev/null; fi
}

sift_foreign() {
  # Not as in the working tree, or in conflict: as the commit has it, or not at all.
  { plain_git diff-files --name-only; cut -f2- "$scratch/skipped" "$scratch/assumed"; } |
    sort -u >"$scratch/differing"
  awk -F'\t' -v scratch="$scratch" '
    FILENAME == ARGV[1] { foreign[$0]; next }
    FILENAME == ARGV[2] { differing[$0]; next }
    { split($1, of, " ") }
    !(of[2] in foreign) { print; next }
    of[3] != "0" || $2 in differing { print $2 > (scratch "/reset"); next }
    { print; print of[2] > (scratch "/added") }
  ' "$scratch/foreign" "$scratch/differing" "$scratch/entries" >"$scratch/kept"
  if [ -s "$scratch/added" ]; then
    sort -u "$scratch/added" | plain_git pack-objects -q "$new/objects/pack/pack" >/dev/null
  fi
  if [ -s "$scratch/reset" ]; then
    plain_git ls-tree -r --full-tree "$base" |
      awk -F'\t' 'FILENAME == ARGV[1] { reset[$0]; next } $2 in reset' "$scratch/reset" - \
        >>"$scratch/kept"
  fi
}

submodules() {
  awk '$1 == "160000"' "$scratch/entries" | cut -f2- | while IFS= read -r path; do
    [ -e "$top/$path/.git" ] || continue
    commit=$(plain_git ls-tree "$base" -- "$path" | awk '{ print $3 }')
    if [ -n "$commit" ] && (cd "$top/$path" && plain_git cat-file -e "$commit^{commit}" 2>/dev/null)
    then hide "$top/$path" "$commit"
    else rm -rf "${top:?}/$path/.git"
    fi
  done
}

# within PATH FOLDER: whether PATH is FOLDER or below it.
within() { case $1/ in "${2%/}"/*) return 0 ;; esac; return 1; }

remove_tree() {
  ! within "$top" "$1" || fail "$1 holds another copy of the repository, and the repository in it"
  rm -rf "$1"
}

other_worktrees() {
  while IFS= read -r path; do
    [ "$path" = "$top" ] || [ ! -d "$path" ] || [ "$path" = "$common" ] || remove_tree "$path"
  done <"$scratch/worktrees"
}

# alternates STORE: removes the stores that a store borrows from.
alternates() {
  [ -f "$1/info/alternates" ] || return 0
  grep -v '^#' "$1/info/alternates" | while IFS= read -r store; do
    store=$(cd "$1" && cd "$store" 2>/dev/null && pwd -P) || continue
    alternates "$store"
    rm -rf "$store"
  done
}

# Other repositories that hold the commit, or one of its folders: clones, mirrors, bundles.
other_copies() {
  # One walk for both: it is the largest part of the work in a small repository.
  find / -xdev \( -type d -name objects \) -o \
    \( -type f \( -name '*.bundle' -o -name '*.pack' \) \) 2>/dev/null >"$scratch/found" || :
  while IFS= read -r store; do
    other=${store%/objects}
    [ "$other" != "$store" ] && [ "$other" != "$top/.git" ] || continue
    [ -f "$other/HEAD" ] && [ -d "$other/refs" ] || continue
    { echo "$base"; cat "$scratch/folders" "$work/former"; } |
      GIT_DIR=$other plain_git cat-file --batch-check='%(objectname)' 2>/dev/null |
      grep -qv ' missing$' || continue
    copy=${other%/.git}
    if [ "$copy" = "$other" ]; then
      remove_tree "$other"
    elif GIT_DIR=$other plain_git merge-base --is-ancestor HEAD "$base" 2>/dev/null; then
      rm -rf "$other"
    else
      remove_tree "$copy"
    fi
  done <"$scratch/found"
  while IFS= read -r file; do
    [ -f "$file" ] || continue
    case $(head -c 12 "$file" | tr -d '\0') in
      '# v'?' git bun'*) rm -f "$file" ;;
      PACK*) case $file in */objects/pack/*) ;; *) rm -f "$file" "${file%.pack}.idx" ;; esac ;;
    esac
  done <"$scratch/found"
}

# set_up FOLDER COMMIT PATCH: makes HEAD the commit of its patched tree, and nothing else.
set_up() (
  cd "$1"
  top=$(plain_git rev-parse --show-toplevel) || fail "$1 is in no git repository"
  cd "$top"
  former=$(plain_git rev-parse --verify -q 'HEAD^{commit}') || fail "$top has no commit"
  plain_git status --porcelain >"$work/status"
  [ ! -s "$work/status" ] ||
    fail "the setup patch needs a clean repository, and in $top git says: $(head -n 3 "$work/status")"
  # In the index alone: as blobs, which no setting or attribute converts.
  plain_git apply --cached --whitespace=nowarn "$3" ||
    fail "the setup patch does not apply to $former"
  made=$(root_commit "$(plain_git write-tree)")
  [ "$made" = "$2" ] ||
    fail "the setup patch makes the commit $made of $former, and base_commit is $2"
  lay_out
  plain_git update-index -q --refresh >/dev/null || :
  plain_git diff-files --quiet || fail "the setup patch cannot be laid into $top"
  plain_git update-ref HEAD "$made"
  echo "$former" >"$work/former"
  rm -f "$3"
)

# As the repositories that are made of the files of a row.
root_commit() {
  who="palestra <palestra@localhost> 1600000000 +0000"
  printf 'tree %s\nauthor %s\ncommitter %s\n\nInitial commit\n' "$1" "$who" "$who" |
    plain_git hash-object -t commit -w --stdin
}

# Changes the files in which $former and $made differ. None of them may stand out: every file
# of the repository gets a place in the layer, in the order of the index, and the same time;
# what was compiled of any goes.
lay_out() {
  time=202009131226.40
  plain_git ls-tree -r -z --name-only "$former" | xargs -0 touch -c -h -t "$time"
  plain_git -c core.quotePath=false diff-tree -r --no-renames "$former" "$made" |
    while IFS=$tab read -r facts path; do change_file "${facts#* }"; done
  find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
  # What looks like a trace and belongs to the project.
  plain_git checkout-index -q -a 2>/dev/null || :
  plain_git ls-files -z | xargs -0 touch -c -h -t "$time"
  find . -path ./.git -prune -o -type d -exec touch -c -t "$time" {} +
}

# change_file FACTS: makes the file $path what it is in $made, and removes traces of the former.
change_file() {
  folder=./
  case $path in */*) folder=./${path%/*}/ ;; esac
  rm -f "./$path.orig" "./$path.rej" "./$path~" "./${path%.py}.pyc"
  case $1 in
    *' D')
      rm -f "./$path"
      while [ "$folder" != ./ ] && rmdir "$folder" 2>/dev/null; do folder=${folder%/*/}/; done
      return 0
      ;;
    100755*) mode=a+x ;;
    *) mode=a-x ;;
  esac
  mkdir -p "$folder"
  # In its place, since a file made anew shows it by its number.
  plain_git cat-file --filters "$made:$path" >"./$path"
  chmod "$mode" "./$path"
}

: >"$work/former"
[ -z "${4:-}" ] || set_up "$1" "$2" "$4"
hide "$1" "$2"
cd "$1"
top=$(plain_git rev-parse --show-toplevel)
# By construction there is none; counted all the same.
unreachable=$(cd "$top" && plain_git fsck --connectivity-only --unreachable --no-reflogs \
  --no-progress 2>/dev/null | grep -c '^unreachable' || :)
printf 'palestra history %s\ncommit %s\nunreachable %s\n' "$3" "$2" "$unreachable" \
  >"$top/.git/palestra-history"
for cache in "${HOME:-/root}/.cache/pip" /root/.cache/pip; do rm -rf "$cache"; done
rm -rf "$work"
